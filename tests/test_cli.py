"""The commands apart from runs: what they import, and how errors become words."""

import subprocess
import sys

import click
import pytest
from click.testing import CliRunner
from conftest import REPOSITORY, copy_project
from kedro.framework.startup import bootstrap_project
from kedro.io import DatasetError

import flan_qa_pipeline.cli
from flan_qa_pipeline.cli import GroupInWords, InWords
from flan_qa_pipeline.errors import InputError, ProcessFailedError

HEAVY = ("torch", "transformers", "datasets", "peft", "accelerate", "pandas", "huggingface_hub")


MODULES = """
import sys
from kedro.framework.cli.cli import main

sys.argv[0] = "kedro"
try:
    main()
finally:
    print(*sys.modules, sep="\\n", file=sys.stderr)
"""


@pytest.mark.parametrize(
    "arguments", [["--help"], ["run", "--help"], ["ask", "--help"], ["registry", "list"]]
)
def test_commands_that_run_nothing_import_no_heavy_library(arguments):
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-c", MODULES, *arguments],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    imported = set(done.stderr.splitlines())
    assert imported >= {f"flan_qa_pipeline.{name}" for name in ("settings", "cli", "errors")}
    assert not imported & set(HEAVY)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--context", " \u200b", "--question", "Who?"], "The context is empty"),
        (["--context", "Ada.", "--question", "Who?", "--question", ""], "The question is empty"),
        (["--context-file", "-"], "The context is empty"),
    ],
)
def test_ask_refuses_an_empty_text_before_it_loads_a_model(options, complaint):
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-c", MODULES, "ask", *options],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 1
    assert f"Error: {complaint}; give it as text.\n" in done.stderr
    assert not set(done.stderr.splitlines()) & set(HEAVY)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (InputError("data: mend it."), "Error: data: mend it.\n"),
        (DatasetError("scores:\n no room"), "Error: scores: no room.\n"),
        (ProcessFailedError("Process 1 failed."), "Error: Process 1 failed.\n"),
    ],
)
def test_errors_become_one_line_with_status_1(error, told):
    def fail():
        raise error

    group = GroupInWords(commands={"a": click.Command("a", callback=fail)})
    for command, arguments in ((InWords("a", callback=fail), []), (group, ["a"])):
        result = CliRunner().invoke(command, arguments)
        assert (result.exit_code, result.output) == (1, told)
    assert not isinstance(error, click.ClickException)


def test_other_errors_keep_their_traceback():
    def fail():
        raise ValueError("a bug")

    result = CliRunner().invoke(InWords("a", callback=fail))
    assert isinstance(result.exception, ValueError)


def test_kedros_own_commands_report_a_bad_parameter_in_one_line(tmp_path, monkeypatch):
    copy_project(tmp_path)
    (tmp_path / "conf/bad").mkdir()
    (tmp_path / "conf/bad/parameters.yml").write_text("lora: {rr: 1}")
    monkeypatch.chdir(tmp_path)
    metadata = bootstrap_project(tmp_path)
    arguments = ["catalog", "describe-datasets", "--env=bad"]
    refused = CliRunner().invoke(flan_qa_pipeline.cli.cli, arguments, obj=metadata)
    assert refused.exit_code == 1
    assert refused.output.startswith("Error: Unknown parameter lora.rr: did you mean r?")
    assert refused.output.count("\n") == 1
