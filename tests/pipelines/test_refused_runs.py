"""Runs that are refused, fail or are killed, and what they say."""

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from click.testing import CliRunner
from conftest import DEVICE, assert_close
from kedro.framework.startup import bootstrap_project

import flan_qa_pipeline.cli
from flan_qa_pipeline.cli import InWords
from flan_qa_pipeline.errors import InputError
from flan_qa_pipeline.training.best_adapter import BestAdapter
from flan_qa_pipeline.training.progress import LastingTensorBoard
from pipelines.kedro_project import load, read, run, versions

BAD_FILES = {
    '{"version": "v2.0", "data": [': "cannot be read: Expecting value at line 1",
    '{"version": "v2.0", "data": [{"title": 1}]}': "is not SQuAD 2.0 JSON: ",
}
READ_ONLY = {
    "data": "nothing can be saved in .*/data/0",
    "data/06_models/adapter": "adapter: nothing can be saved in .*/06_models/adapter",
    "data/06_models/checkpoints": "checkpoints cannot be made or written in: .*output_dir",
    "data/08_reporting": "nothing can be saved in .*/08_reporting",
    "data/08_reporting/tensorboard": "tensorboard cannot be made .*training.logging_dir",
}
# Runs `kedro run` several times, some while a folder is read-only, and says where each begins and
# how it ends. Then a run kills its process in the second training step.
COMMANDS = """
import json, os, signal, subprocess, sys
from kedro.framework.cli.cli import main
from kedro.framework.session import KedroSession
from flan_qa_pipeline.training.best_adapter import BestAdapter


def kill(self, args, state, control, **kwargs):
    if state.global_step == 1:
        os.kill(os.getpid(), signal.SIGKILL)


commands, parameters = map(json.loads, sys.argv[1:])
for argument, folder in commands:
    sys.argv = ["kedro", "run", argument]
    if folder:
        subprocess.run(["mount", "--bind", folder, folder], check=True)
        subprocess.run(["mount", "-o", "remount,bind,ro", folder], check=True)
    print("command", argument, folder, flush=True)
    try:
        main()
    except SystemExit as end:
        print("status", end.code, flush=True)
    if folder:
        subprocess.run(["umount", "--lazy", folder], check=True)
print("training", flush=True)
BestAdapter.on_step_begin = kill
with KedroSession.create(runtime_params=parameters) as session:
    session.run()
"""


@pytest.fixture(scope="module")
def commands(project, full_run, tiny_base, tiny_run, tmp_path_factory):
    """The lines and status of commands by argument and read-only folder, and how training ended.

    One process without a hub runs them all, because its imports take most of the time.
    """
    paths = [project / f"data/01_raw/bad_{number}.json" for number in range(len(BAD_FILES))]
    for path, text in zip(paths, BAD_FILES, strict=True):
        path.write_text(text, encoding="utf-8")
    base = f"--params=model.name={tiny_base}"
    given = [(f"{base},data.train_file={path}", "") for path in paths] + [("--env=squad", "")]
    unshare = [shutil.which("unshare") or "unshare", "-Urm"]
    mounts = subprocess.run([*unshare, "mount", "--bind", ".", "."], capture_output=True)  # noqa: S603
    if mounts.returncode:
        unshare = []
    else:
        given += [(base, folder) for folder in READ_ONLY]
    before = versions(project)
    assert not list((project / "data/06_models/checkpoints").iterdir())
    done = subprocess.run(  # noqa: S603
        [*unshare, sys.executable, "-c", COMMANDS, json.dumps(given), json.dumps(tiny_run)],
        cwd=project,
        env=os.environ
        | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path_factory.mktemp("no_cache"))}
        | {"COLUMNS": "1000"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    saved = {name: found - before[name] for name, found in versions(project).items()}
    assert len(set().union(*saved.values())) == 1  # the version of the training, which is cut off
    assert not saved["adapter"] | saved["finetuned_predictions"] | saved["score_table"]
    refused, _, _ = done.stdout.partition("\ntraining\n")
    outputs = re.split(r"^command .*\n", refused + "\n", flags=re.MULTILINE)[1:]
    lines = [output.splitlines() for output in outputs]
    return dict(zip(given, lines, strict=True)), done.returncode


def refusal(commands, argument: str, folder: str = "") -> list[str]:
    """Return the lines of a command that ended with status 1."""
    *lines, status = commands[0][argument, folder]
    assert status == "status 1"
    return lines


def test_a_run_killed_in_training_is_finished_by_the_same_command(
    project, full_run, tiny_run, commands, caplog, capsys
):
    checkpoints = project / "data/06_models/checkpoints"
    assert commands[1] == -signal.SIGKILL
    assert [path.name for path in checkpoints.glob("*/*")] == ["checkpoint-1"]
    resumed = run(project, tiny_run)
    assert not list(checkpoints.iterdir())
    for once in ("Base: ", "Questions: 64 train", "model.dequantize auto", "Kept: step "):
        assert caplog.text.count(once) == 1, once
    assert f"Not promoted: {full_run} stays, with a dev F1 of " in caplog.text
    *_, compare, saved = re.split("^(?=Compare|Saved)", capsys.readouterr().out, flags=re.M)
    assert saved.startswith(f"Saved    version {resumed}: data/03_primary/questions,\n")
    assert compare.endswith(f"=compare.first={full_run},compare.second={resumed}\n")
    first, second = (
        json.loads(
            (project / f"data/06_models/adapter/{version}/adapter/training.json").read_text()
        )
        for version in (full_run, resumed)
    )
    assert f"Kept: step {first['best_step']} of 2, the best" in caplog.text
    losses, wanted = (
        [entry["loss"] for entry in training["log"] if "loss" in entry]
        for training in (second, first)
    )
    assert_close(losses, wanted, rtol=0, atol=0)
    rtol = 1e-3 if DEVICE.type == "cuda" else 1e-5
    for dataset in ("finetuned_predictions", "score_table"):
        pd.testing.assert_frame_equal(
            load(project, dataset, resumed), load(project, dataset, full_run), rtol=rtol
        )


def test_rejected_records_are_listed_in_the_catalog(project, full_run, tiny_run):
    path = broken(project, "invalid", lambda data: paragraph(data).update(context=7))
    data = tiny_run["data"] | {"train_file": path, "on_invalid": "skip"}
    skipped = run(project, tiny_run | {"data": data}, "data_engineering")
    for version, rejected in ((full_run, 0), (skipped, 1)):
        table = pd.read_csv(io.StringIO(read(project, "rejected_train_questions.csv", version)))
        assert len(table) == rejected
    assert table["place"].tolist() == ["data.0.paragraphs.0"]
    assert "valid string at context" in table["problem"][0]


@pytest.mark.parametrize("parameter", ["logging_dir", "output_dir"])
def test_a_folder_that_cannot_be_made_is_told_before_any_work(
    project, full_run, tiny_run, parameter
):
    before = versions(project)
    (project / "a file").touch()
    parameters = tiny_run | {"training": tiny_run["training"] | {parameter: "a file/here"}}
    told = f"a file/here cannot be made or written in: Not a directory; .*training.{parameter}"
    with pytest.raises(InputError, match=told):
        run(project, parameters)
    assert versions(project) == before


@pytest.mark.parametrize(("folder", "named"), READ_ONLY.items())
def test_a_read_only_folder_is_told_in_one_line_before_any_work(commands, tiny_base, folder, named):
    given = f"--params=model.name={tiny_base}", folder
    if given not in commands[0]:
        pytest.skip("a read-only folder needs Linux and leave to mount (unshare -Urm)")
    (line,) = refusal(commands, *given)
    assert re.search(f"Error: .*{named}", line)


def test_training_continues_if_its_log_is_removed(project, full_run, tiny_run, caplog):
    def remove(self, args, state, control, **kwargs):
        if state.global_step == 1:
            shutil.rmtree(project / "data/08_reporting/tensorboard")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BestAdapter, "on_step_begin", remove)
        version = run(project, tiny_run, "modeling", to_nodes=["modeling.train_adapter"])
    assert version in versions(project)["adapter"]
    folder = Path("data/08_reporting/tensorboard", version)
    assert f"{folder} was removed during training; training continues" in " ".join(caplog.messages)
    assert [path.name for path in folder.iterdir()][0].startswith("events.")


def test_a_file_that_cannot_be_written_in_training_is_told(project, full_run, tiny_run):
    def fail(self, *args, **kwargs):
        raise OSError(30, "Read-only file system", "data/08_reporting")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LastingTensorBoard, "on_log", fail)
        with pytest.raises(InputError, match="stopped after step 1: .*Read-only.*then run again"):
            run(project, tiny_run, "modeling")


@pytest.mark.parametrize(
    ("option", "complaint"),
    [
        ("--env=nowhere", "configuration path .*conf/nowhere"),
        ("--env=broken", "Invalid YAML or JSON file .*conf/broken/parameters.yml"),
        ("--pipelines=mergee", "There is no pipeline mergee: did you mean merge\\?"),
        ("--from-nodes=train_adaptor", "does not contain nodes named .*train_adaptor"),
        ("--tags=reprot", "contains no nodes"),
        ("--load-versions=adaptor:2026", "adaptor.* not found in the catalog"),
    ],
)
def test_what_kedro_does_not_know_is_told_in_a_sentence(project, option, complaint):
    (project / "conf/broken").mkdir(exist_ok=True)
    (project / "conf/broken/parameters.yml").write_text("a: [b")
    refused = CliRunner().invoke(flan_qa_pipeline.cli.run, [option], obj=bootstrap_project(project))
    assert refused.exit_code == 1
    assert re.search(f"Error: .*{complaint}", refused.output)
    assert refused.output.count("\n") == 1


@pytest.mark.parametrize("work", [int, json.loads])
def test_a_failure_of_a_node_keeps_its_traceback(work):
    with pytest.raises(ValueError) as failure:
        work("no number")
    with pytest.raises(failure.type, match=re.escape(str(failure.value))):
        InWords("work", callback=lambda: work("no number")).main([], standalone_mode=False)


def broken(project: Path, name: str, change) -> str:
    data = json.loads((project / "data/01_raw/starter_train.json").read_text())
    change(data)
    path = project / f"data/01_raw/{name}.json"
    path.write_text(json.dumps(data), encoding="utf-8")
    return str(path)


def paragraph(data):
    return data["data"][0]["paragraphs"][0]


def answerable(data):
    return next(qa for qa in paragraph(data)["qas"] if not qa["is_impossible"])


def first_validation_article(project):
    return json.loads((project / "data/01_raw/starter_validation.json").read_text())["data"][0]


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda d, _: d.pop("data"), "not SQuAD 2.0 JSON"),
        (lambda d, _: answerable(d)["answers"][0].update(answer_start=1), "answer_start"),
        (lambda d, _: paragraph(d).update(context=" "), "context is empty"),
        (lambda d, _: d["data"].append(d["data"][0]), "id occurs more than once"),
        (lambda d, p: d["data"].append(first_validation_article(p)), "article"),
    ],
)
def test_bad_data_stops_before_training(project, full_run, tiny_run, change, complaint):
    before = versions(project)
    path = broken(project, "broken", lambda data: change(data, project))
    parameters = tiny_run | {"data": tiny_run["data"] | {"train_file": path}}
    with pytest.raises(InputError, match=complaint) as caught:
        run(project, parameters)
    assert path in str(caught.value)
    assert versions(project) == before


def test_what_cannot_be_trained_with_stops_before_any_work(project, full_run, tiny_run):
    before = versions(project)
    captured = {"cuda_graphs": True, "gradient_checkpointing": True}
    parameters = tiny_run | {"training": tiny_run["training"] | captured}
    with pytest.raises(InputError, match="steps cannot be captured: .*checkpointing is on"):
        run(project, parameters)
    assert versions(project) == before


@pytest.mark.parametrize(
    ("parameters", "complaint"),
    [
        ({"data": {"train_file": "nowhere.json"}}, r"raw_train: there is no .*nowhere\.json"),
        ({"trainig": {"seed": 1}}, "Unknown parameter trainig: did you mean training"),
        ({"training": {"learning_rat": 1}}, "did you mean learning_rate"),
        ({"lora": {"target_modules": ["query"]}}, "query"),
        ({"lora": {"target_modules": "all"}}, r"target_modules: \['all'\] match .*use all-linear"),
        (
            {"compare": {"first": "../../../../x"}},
            "first_question_table: .*leads out of the project",
        ),
        ({"lora": {"target_modules": ["layer_norm"]}}, "layer_norm.* match no linear module"),
    ],
)
def test_bad_parameters_stop_before_any_work(project, full_run, tiny_run, parameters, complaint):
    before = versions(project)
    merged = {
        key: tiny_run.get(key, {}) | parameters.get(key, {})
        for key in tiny_run.keys() | parameters.keys()
    }
    with pytest.raises(InputError, match=complaint):
        run(project, merged)
    assert versions(project) == before


@pytest.mark.parametrize(("number", "complaint"), [*enumerate(BAD_FILES.values())])
def test_a_bad_file_is_told_once_on_the_command_line(
    project, commands, tiny_base, number, complaint
):
    path = project / f"data/01_raw/bad_{number}.json"
    *logged, line = refusal(commands, f"--params=model.name={tiny_base},data.train_file={path}")
    assert line.startswith(f"Error: {path} {complaint}")
    assert not [other for other in logged if "INFO  " not in other]  # the automatic choices


def test_other_errors_keep_what_kedro_says_of_them(project, full_run, tiny_run, caplog):
    """A full drive is not a bad input: Kedro's log names the node and the way to resume."""
    from flan_qa_pipeline.pipelines.data_engineering import nodes

    def fail(*args):
        raise OSError("no space left")

    with pytest.MonkeyPatch.context() as patch, pytest.raises(OSError, match="no space"):
        patch.setattr(nodes, "check", fail)
        run(project, tiny_run, "data_engineering")
    assert "flatten_train_questions" in caplog.text


def test_environment_squad_without_a_hub_stops_with_one_error(commands):
    output = "\n".join(refusal(commands, "--env=squad"))
    assert "Traceback" not in output
    assert output.count("Error: ") == 1
    assert "google/flan-t5-base at 7bcac572ce56db69c1ea7c8af255c5d7c9672fc2" in output
    assert output.count("hf://datasets/rajpurkar/squad_v2@3ffb306f") == 2
    assert "/path/to/snapshot" in output
