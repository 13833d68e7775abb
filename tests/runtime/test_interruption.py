"""Ctrl+C: one line and status 130, while imports run, while data are prepared, many times over."""

import os
import signal
import subprocess
import sys

import pytest
from conftest import make_project

from flan_qa_pipeline.runtime import interruption

# `kedro run`, sent SIGINT by itself: once a module is loaded, or in the midst of tokenization.
RUN = """
import os, signal, sys, threading, time
sys.argv[0] = "kedro"
moment, times = sys.argv.pop(), int(sys.argv.pop())


def interrupt(*args, **kwargs):
    for _ in range(times):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)


def watch():
    nodes = "flan_qa_pipeline.pipelines.data_engineering.nodes"
    wanted = nodes if moment == "tokenization" else moment
    while wanted not in sys.modules:
        time.sleep(0.001)
    if moment == "tokenization":
        while not hasattr(sys.modules[nodes], "tokenize_questions"):
            time.sleep(0.001)
        sys.modules[nodes].window_columns = interrupt
    else:
        interrupt()


threading.Thread(target=watch, daemon=True).start()
from kedro.framework.cli.cli import main
main()
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory, corpus):
    root = tmp_path_factory.mktemp("project")
    make_project(root, corpus)
    return root


@pytest.mark.parametrize(
    ("moment", "times"), [("torch.nn", 1), ("transformers", 8), ("tokenization", 8)]
)
def test_a_command_ends_in_one_line(project, tiny_base, tmp_path, moment, times):
    options = ["--pipelines=data_engineering", f"--params=model.name={tiny_base}"]
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-c", RUN, "run", *options, str(times), moment],
        cwd=project,
        env=os.environ | {"TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 130, done.stderr
    told = [line for line in done.stderr.splitlines() if line and "question/s" not in line]
    assert told == ["Interrupted."]
    assert not done.stdout
    left = {path.name for path in tmp_path.iterdir()}
    assert left <= {f"torchinductor_{name}" for name in (os.environ.get("USER"), "root")}
    assert not list((project / "data").rglob(".*"))


PACKAGED = """
import os, signal, sys, threading, time
sys.argv[0] = "flan-qa-pipeline"


def interrupt():
    while "kedro" not in sys.modules:
        time.sleep(0.001)
    os.kill(os.getpid(), signal.SIGINT)


threading.Thread(target=interrupt, daemon=True).start()
from flan_qa_pipeline.__main__ import main
main()
"""


def test_the_packaged_command_ends_in_one_line_while_kedro_is_imported(tmp_path):
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-c", PACKAGED, "--help"], cwd=tmp_path, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr.split()) == (130, "", ["Interrupted."])


@pytest.mark.parametrize("content", ["a: [b", "- a", "version: 1\nroot: {handlers: [nothing]}"])
def test_the_packaged_command_names_a_broken_configuration_of_logging(tmp_path, content):
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf/logging.yml").write_text(content)
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-m", "flan_qa_pipeline"], cwd=tmp_path, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("Error: conf/logging.yml cannot configure logging: ")


def test_a_program_that_uses_the_project_keeps_its_own_way(monkeypatch):
    monkeypatch.setattr(interruption, "_last", -float("inf"))
    before = signal.getsignal(signal.SIGINT)
    interruption.end_at_once()
    assert signal.getsignal(signal.SIGINT) is before
    with pytest.raises(KeyboardInterrupt), interruption.raised():
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before
    monkeypatch.setattr(interruption, "_last", -float("inf"))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with interruption.raised():
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)
