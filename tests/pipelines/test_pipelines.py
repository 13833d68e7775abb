"""The pipelines as Kedro runs them, in a copy of the project with a tiny base model."""

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import weakref
from graphlib import TopologicalSorter
from importlib import metadata
from itertools import chain, product
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from click.testing import CliRunner
from conftest import DEVICE, REPOSITORY, SQUAD_V2_DIR, assert_close, make_project
from datasets import Dataset, DatasetDict, load_from_disk
from kedro.config import OmegaConfigLoader
from kedro.framework.session import KedroSession
from kedro.framework.startup import bootstrap_project
from kedro.runner import ParallelRunner, ThreadRunner
from transformers import AutoTokenizer, T5ForConditionalGeneration

import flan_qa_pipeline.cli
from flan_qa_pipeline.cli import InWords
from flan_qa_pipeline.data.squad import flatten
from flan_qa_pipeline.errors import InputError
from flan_qa_pipeline.evaluation.squad_v2_scores.squad_v2_scores import SquadV2Scores
from flan_qa_pipeline.evaluation.subject import EMBEDDED_CORPUS
from flan_qa_pipeline.models.loading import load_base_model
from flan_qa_pipeline.pipeline_registry import register_pipelines
from flan_qa_pipeline.pipelines import modeling, reporting
from flan_qa_pipeline.runtime import selection
from flan_qa_pipeline.runtime.provenance import fingerprint_splits
from flan_qa_pipeline.training.best_adapter import BestAdapter
from flan_qa_pipeline.training.progress import LastingTensorBoard

SELECT = ["data_engineering.apply_unanswerable_policy"]
FLATTEN = ["data_engineering.flatten_train_questions"]
VERSIONED = {
    "questions": "03_primary/questions",
    "tokenized_questions": "05_model_input/tokenized_questions",
    "adapter": "06_models/adapter",
    "finetuned_predictions": "07_model_output/finetuned_predictions.parquet",
    "score_table": "08_reporting/score_table.csv",
}


@pytest.fixture(scope="module")
def project(tmp_path_factory, corpus):
    """A copy of the project whose data is a small corpus; runs happen inside it."""
    root = tmp_path_factory.mktemp("project")
    make_project(root, corpus)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        bootstrap_project(root)
        yield root


@pytest.fixture(scope="module")
def tiny_run(tiny_base):
    """Parameters of a run of a few steps on the tiny base."""
    return {
        "model": {"name": str(tiny_base)},
        "training": {"num_train_epochs": 1, "logging_steps": 2},
        "data": {"max_train_questions": 64, "max_validation_questions": 40},
        "reporting": {"memory_formats": []},
    }


def run(project: Path, parameters: dict, *pipelines: str, env: str | None = None, **kwargs) -> str:
    """Run pipelines as `kedro run` does; return the version that the run saved under."""
    with KedroSession.create(project_path=project, env=env, runtime_params=parameters) as session:
        session.run(pipeline_names=list(pipelines) or None, **kwargs)
        return session.session_id


def versions(project: Path) -> dict[str, set[str]]:
    return {
        name: {path.name for path in (project / "data" / folder).glob("*")}
        for name, folder in VERSIONED.items()
    }


@pytest.fixture(scope="module")
def full_run(project, tiny_run):
    return run(project, tiny_run)


def load(project: Path, dataset: str, version: str):
    folder = project / "data" / VERSIONED[dataset]
    path = folder / version / folder.name
    return pd.read_csv(path) if path.suffix == ".csv" else pd.read_parquet(path)


def test_full_run_saves_every_version_and_the_table(project, full_run):
    assert all(full_run in found for found in versions(project).values())
    table = load(project, "score_table", full_run)
    assert list(table["subset"]) == ["overall", "HasAns", "NoAns"]
    assert table["questions"].iloc[0] == 40 == table["questions"].iloc[1:].sum()
    scores = table.filter(regex="^(EM|F1) (baseline|fine-tuned)$")
    assert scores.shape == (3, 4)
    assert scores.stack().between(0, 100).all()
    for metric in ("EM", "F1"):
        gain = table[f"{metric} fine-tuned"] - table[f"{metric} baseline"]
        assert table[f"{metric} gain"].tolist() == pytest.approx(gain.tolist())
        assert (table[f"{metric} gain low"] <= table[f"{metric} gain"]).all()
        assert (table[f"{metric} gain"] <= table[f"{metric} gain high"]).all()
    for model, name in (("baseline", "baseline"), ("fine-tuned", "finetuned")):
        scores = json.loads(read(project, f"{name}_scores.json", full_run))
        for metric, key in (("EM", "exact"), ("F1", "f1")):
            assert table[f"{metric} {model}"].tolist() == pytest.approx(
                [scores[f"{subset}{key}"] for subset in ("", "HasAns_", "NoAns_")]
            )


def test_the_first_training_is_promoted(project, full_run):
    promoted = json.loads((project / "data/06_models/promoted_adapter.json").read_text())
    assert promoted == {"version": full_run}


def test_training_leaves_a_log_and_tensorboard_events(project, full_run):
    folder = project / "data/06_models/adapter" / full_run / "adapter"
    log = json.loads((folder / "training.json").read_text())["log"]
    assert any("loss" in entry for entry in log)
    assert any("eval_loss" in entry for entry in log)
    assert list((project / "data/08_reporting/tensorboard" / full_run).glob("events.*"))


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
    compare, last = capsys.readouterr().out.splitlines()[-2:]
    assert last.startswith(f"Saved    version {resumed}: data/03_primary/questions, ")
    assert compare.endswith(f"=compare.first={full_run},compare.second={resumed}")
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


def test_what_made_the_adapter_is_saved_beside_it(project, full_run, tiny_base):
    path = project / f"data/06_models/adapter/{full_run}/adapter/training.json"
    made = json.loads(path.read_text(encoding="utf-8"))["run"]
    assert made["run_id"] == full_run
    assert made["parameters"]["model"]["name"] == str(tiny_base)
    assert made["parameters"]["data"]["max_train_questions"] == 64
    assert made["versions"]["torch"] == metadata.version("torch")
    assert made["git"] is None
    assert made["fingerprints"]["questions"] == fingerprint_splits(
        load_from_disk(project / f"data/03_primary/questions/{full_run}/questions")
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


def test_two_runs_of_one_version_do_not_mix(project, full_run, tiny_run):
    before = versions(project)
    (project / "data/08_reporting/tensorboard" / "taken").mkdir()
    with KedroSession.create(project_path=project, runtime_params=tiny_run) as session:
        session._store["session_id"] = "taken"
        with pytest.raises(InputError, match="same millisecond and saves the version taken"):
            session.run(pipeline_names=["evaluate"])
    assert versions(project) == before


def test_saved_versions_hold_nothing_but_data(project, full_run):
    files = {path for path in (project / "data").rglob("*") if path.is_file()}
    events = {path for path in files if path.name.startswith("events.out.tfevents.")}
    suffixes = {path.suffix for path in files - events}
    assert suffixes <= {".json", ".arrow", ".safetensors", ".parquet", ".csv", ".md", ".html"}
    assert not list((project / "data/03_primary").rglob("cache-*"))


def read(project: Path, name: str, version: str) -> str:
    return (project / f"data/08_reporting/{name}/{version}/{name}").read_text(encoding="utf-8")


def test_full_run_saves_tables_figures_and_report(project, full_run, tiny_run):
    score_table = load(project, "score_table", full_run)
    breakdown = pd.read_csv(io.StringIO(read(project, "breakdown_table.csv", full_run)))
    assert {"question word", "answer length", "context length"} < set(breakdown["group"])
    abstention = pd.read_csv(io.StringIO(read(project, "abstention_table.csv", full_run)))
    assert abstention["model"].tolist() == ["baseline"] * 4 + ["fine-tuned"] * 4
    assert abstention["decision"].tolist()[1::4] == ["train articles"] * 2
    assert "nan" not in read(project, "abstention_table.md", full_run)
    greedy = abstention[abstention["decision"] == "greedy"]
    overall = score_table.iloc[0]
    assert greedy["F1"].tolist() == pytest.approx(
        [overall["F1 baseline"], overall["F1 fine-tuned"]]
    )
    costs = read(project, "cost_table.md", full_run)
    for quantity in ("trainable", "samples/s", "questions/s", "node train_adapter", "peak"):
        assert quantity in costs
    memory = pd.read_csv(io.StringIO(read(project, "memory_table.csv", full_run)))
    assert memory["format"].tolist()[::3] == ["float32", "NF4 here"]
    assert memory["weights MiB"].is_monotonic_decreasing
    assert memory["step"].str.fullmatch(r"32 x \d+ tokens, (CPU|NVIDIA.*)").all()
    times = pd.read_csv(io.StringIO(read(project, "node_times.csv", full_run)))
    assert {"flatten_train_questions", "train_adapter", "build_report"} <= set(times["node"])
    assert (times[["seconds", "peak MiB, process"]] > 0).all().all()
    subject = f"{Path(tiny_run['model']['name']).name} on {EMBEDDED_CORPUS}"
    for name in ("score", "abstention", "training", "context_length"):
        figure = json.loads(read(project, f"{name}_figure.json", full_run))
        assert figure["data"]
        assert figure["layout"]["title"]["subtitle"]["text"] == subject
    page = read(project, "report.html", full_run)
    assert f"<title>{subject}, before and after fine-tuning</title>" in page
    for fact in ("version", "adapter"):
        assert f"{fact}: <b>{full_run}</b>" in page
    for fact in ("date: <b>2", "device: <b>", "seed: <b>13", "training file: <b>data/01_raw/"):
        assert fact in page
    assert "SQuAD 2.0" not in page
    assert page.count("plotly.js v") == 1
    assert '"outcome":"' in page


def test_compare_sets_two_saved_versions_side_by_side(project, full_run, tiny_run, capsys):
    again = run(project, tiny_run, "evaluate", load_versions={"adapter": full_run})
    versions = {"compare": {"first": full_run, "second": again}}
    compared = run(project, tiny_run | versions, "compare")
    table = pd.read_csv(io.StringIO(read(project, "comparison_table.csv", compared)))
    assert table["questions"].iloc[0] == 40
    assert (table["F1 gain"] == 0).all()
    printed = capsys.readouterr().out
    assert f"first: {full_run}, second: {again}" in printed
    assert "Parameters that differ" in printed
    page = read(project, "comparison_report.html", compared)
    assert "Two versions side by side" in page
    differences = pd.read_csv(io.StringIO(read(project, "parameter_differences.csv", compared)))
    assert differences.values.tolist() == [
        ["version", full_run, again],
        ["version of the adapter", full_run, full_run],
    ]
    assert "Parameters that differ" in page
    costs = pd.read_csv(io.StringIO(read(project, "cost_comparison.csv", compared)))
    assert costs.columns.tolist() == ["kind", "quantity", "first", "second", "unit"]
    assert costs["kind"].drop_duplicates().tolist() == ["parameters", "memory", "speed", "time"]


def test_runs_lists_saved_versions_in_the_terminal_and_as_a_page(
    project, full_run, tiny_run, tiny_base
):
    other = tiny_run | {"generation": {"max_new_tokens": 7}}
    again = run(project, other, "evaluate", load_versions={"adapter": full_run})
    params = f"--params=model.name={tiny_base}"
    listed = CliRunner().invoke(
        flan_qa_pipeline.cli.cli, ["runs", params], obj=bootstrap_project(project)
    )
    assert listed.exit_code == 0, listed.output
    assert max(map(len, listed.output.splitlines()[:-1])) <= 80
    head, *entries = re.split(r"\n(?=\S+ +EM )", listed.output)
    assert "dev" in head and "MiB" in head
    newest, *_, oldest = (entry.split() for entry in entries)
    assert (newest[0], oldest[0]) == (again, full_run)
    assert newest[newest.index("adapter") + 1] == full_run
    assert "adapter" not in oldest
    promoted = json.loads((project / "data/06_models/promoted_adapter.json").read_text())["version"]
    marked = [words[0] for words in map(str.split, entries) if "promoted" in words]
    assert promoted in marked
    assert (again in marked) is (full_run in marked)
    assert "generation.max_new_" in " ".join(newest)
    page = (project / "data/08_reporting/runs.html").read_text(encoding="utf-8")
    assert "generation.max_new_tokens" in page
    overall = load(project, "score_table", full_run)["F1 fine-tuned"].iloc[0]
    assert f'<td class="number">{overall:.2f}</td>' in page


def test_nodes_are_named_with_or_without_their_namespace(project):
    options = {name: [] for name in selection.FILTERS} | {
        "pipeline": None,
        "pipelines": ["modeling"],
        "namespaces": [],
        "is_async": False,
        "from_nodes": ["attach_lora"],
        "to_nodes": ["modeling.train_adapter"],
    }
    found = selection.require_known(options)
    assert found["from_nodes"] == ["modeling.attach_lora"]
    assert found["to_nodes"] == ["modeling.train_adapter"]


def test_compare_without_versions_names_those_saved(project, full_run, tiny_run):
    with pytest.raises(InputError, match=f"compare.first=.*saved: .*{full_run}"):
        run(project, tiny_run, "compare")


def test_evaluate_repeats_the_scores_without_training(project, full_run, tiny_run, caplog):
    before = versions(project)
    again = run(project, tiny_run, "evaluate")
    assert caplog.text.count("Compute dtype auto: torch.") == 1
    assert caplog.text.count("Attention auto: ") == 1
    after = versions(project)
    assert after["adapter"] == before["adapter"]
    assert after["tokenized_questions"] == before["tokenized_questions"]
    pd.testing.assert_frame_equal(
        load(project, "finetuned_predictions", again),
        load(project, "finetuned_predictions", full_run),
    )
    pd.testing.assert_frame_equal(
        load(project, "score_table", again), load(project, "score_table", full_run)
    )


def test_load_versions_pin_the_adapter(project, full_run, tiny_run):
    changes = {"seed": 1, "learning_rate": 0.05, "load_best_model_at_end": False}
    other = tiny_run | {"training": tiny_run["training"] | changes}
    newer = run(project, other, "modeling")
    pinned = run(project, tiny_run, "evaluate", load_versions={"adapter": full_run})
    latest = run(project, tiny_run, "evaluate")
    assert newer in versions(project)["adapter"]
    first, second, third = (
        load(project, "finetuned_predictions", version)["score"]
        for version in (full_run, pinned, latest)
    )
    pd.testing.assert_series_equal(first, second)
    assert not third.equals(first)


def test_scoring_on_other_questions_than_those_of_the_training_is_told(
    project, full_run, tiny_run, caplog
):
    def told(**versions):
        caplog.clear()
        run(project, tiny_run, "evaluate", load_versions={"adapter": full_run, **versions})
        return [line for line in caplog.messages if "trained on other questions" in line]

    other = tiny_run | {"data": tiny_run["data"] | {"seed": 99}}
    run(project, other, "data_engineering")
    assert len(told()) == 1
    assert not told(questions=full_run, tokenized_questions=full_run)
    run(project, tiny_run, "data_engineering")


def test_parameters_of_data_that_are_not_made_again_are_told(project, full_run, tiny_run, caplog):
    run(project, tiny_run, "data_engineering")
    run(project, tiny_run, "evaluate", node_names=["prediction.load_finetuned_model"])
    assert "This run reads" not in caplog.text
    others = {
        "data": tiny_run["data"] | {"seed": 1},
        "training": tiny_run["training"] | {"learning_rate": 0.5, "logging_dir": "logs"},
    }
    run(project, tiny_run | others, "evaluate", node_names=["prediction.load_finetuned_model"])
    told = [line for line in caplog.messages if "This run reads" in line]
    assert [line.partition(", which ")[2].split(" does not change")[0] for line in told] == [
        "data.seed",
        "training.learning_rate",
    ]


def test_a_version_that_the_run_does_not_load_is_refused_before_any_work(
    project, full_run, tiny_run
):
    before = versions(project)
    for pipelines, name, problem in (
        ([], "adapter", "which this run makes"),
        (["compare"], "adapter", "which this run does not load"),
        (["evaluate"], "finetuned_scores", "which this run makes"),
        (["data_engineering"], "raw_train", "which has no versions"),
    ):
        with pytest.raises(InputError, match=f"--load-versions names {name}, {problem}.*leave it"):
            run(project, tiny_run, *pipelines, load_versions={name: full_run})
    assert versions(project) == before


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


def test_the_base_has_answered_and_left_the_memory_when_the_training_begins(
    project, full_run, tiny_run, monkeypatch
):
    class Began(Exception):
        pass

    answering, left = [], []

    def load_answering(*args, **kwargs):
        base = load_base_model(*args, **kwargs)
        answering.append(weakref.ref(base))
        return base

    def begin(*args, **kwargs):
        left.extend(base() for base in answering)
        raise Began

    monkeypatch.setattr(reporting.nodes, "load_base_model", load_answering)
    monkeypatch.setattr(modeling.nodes, "build_trainer", begin)
    predictions = project / "data/07_model_output/baseline_predictions.parquet"
    before = len(list(predictions.iterdir()))
    with pytest.raises(Began):
        run(project, tiny_run)
    assert left == [None]
    assert len(list(predictions.iterdir())) == before + 1


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


@pytest.mark.parametrize("file", ["parameters", "catalog", "globals"])
@pytest.mark.parametrize(
    "content",
    [
        *(b"- a\n- b", b"\xff\xfe\0a", b"a: 1\na: 2", b"a: !!python/object:os.system {}"),
        *(b"a: \0", b"a: *b", b"&a [*a]", b"a: ${", b"null: 3", bytes(range(256)), b"a: [b"),
    ],
)
def test_a_broken_configuration_is_told_in_a_line_with_the_file(project, file, content):
    path = project / f"conf/broken_{file}/{file}.yml"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    metadata = bootstrap_project(project)
    options = [f"--env=broken_{file}", "--pipelines=compare"]
    refused = CliRunner().invoke(flan_qa_pipeline.cli.run, options, obj=metadata)
    path.unlink()
    assert refused.exit_code == 1
    assert refused.output.startswith("Error: ") and str(path) in refused.output
    assert refused.output.count("\n") == 1


def test_a_run_from_a_folder_inside_leaves_nothing_there(project, full_run, tiny_base, monkeypatch):
    folder = project / "notebooks/mine"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    params = f"--params=model.name={tiny_base}"
    for file, status in (("no.json", 1), ("data/01_raw/starter_train.json", 0)):
        metadata = bootstrap_project(project)
        arguments = ["--pipelines=data_engineering", f"{params},data.train_file={file}"]
        done = CliRunner().invoke(flan_qa_pipeline.cli.run, arguments, obj=metadata)
        assert done.exit_code == status, done.output
        assert not list(folder.iterdir())
        assert Path.cwd() == folder
    monkeypatch.chdir(project)


@pytest.mark.parametrize("work", [int, json.loads])
def test_a_failure_of_a_node_keeps_its_traceback(work):
    with pytest.raises(ValueError) as failure:
        work("no number")
    with pytest.raises(failure.type, match=re.escape(str(failure.value))):
        InWords("work", callback=lambda: work("no number")).main([], standalone_mode=False)


def test_adapter_of_another_prompt_is_refused(project, full_run, tiny_run):
    before = versions(project)
    with pytest.raises(InputError, match="prompt.abstention is 'none'"):
        run(project, tiny_run | {"prompt": {"abstention": "none"}}, "evaluate")
    assert versions(project)["score_table"] == before["score_table"]


def no_base(*args, **kwargs):
    raise AssertionError("the base is loaded")


def test_windows_of_other_choices_are_refused_before_the_base_is_loaded(
    project, full_run, tiny_run, monkeypatch
):
    """Windows that do not fit the run, then an adapter that does not fit windows that do."""
    before = versions(project)
    for nodes in (modeling.nodes, reporting.nodes):
        monkeypatch.setattr(nodes, "load_base_model", no_base)
    asking = tiny_run | {"prompt": {"template": "{context} {question}"}}
    silent = tiny_run | {"prompt": {"abstention": "none"}}
    flagged = tiny_run | {"data": tiny_run["data"] | {"unanswerable": "flag"}}
    shorter = tiny_run | {"tokenization": {"doc_stride": 32}}
    for other, named in (
        (asking, "prompt.template is"),
        (silent, "prompt.abstention is 'none', theirs 'no answer'"),
        (flagged, "data.unanswerable is 'flag', theirs 'keep'"),
        (shorter, "tokenization.doc_stride is 32, theirs 64"),
    ):
        for pipeline in ("evaluate", "modeling"):
            with pytest.raises(InputError, match=f"tokenized_questions do not fit .*{named}"):
                run(project, other, pipeline)
        with pytest.raises(InputError, match=named):
            run(project, other, from_nodes=["modeling.quantize_base_model"])
    run(project, asking, "data_engineering")
    for pipeline in ("evaluate", "modeling"):
        with pytest.raises(InputError, match="prompt.template is 'question: .* theirs '{context}"):
            run(project, tiny_run, pipeline)
    with pytest.raises(InputError, match="adapter does not fit .*template is .* trained with"):
        run(project, asking, "evaluate")
    assert versions(project)["adapter"] == before["adapter"]
    assert versions(project)["finetuned_predictions"] == before["finetuned_predictions"]
    monkeypatch.undo()
    run(project, tiny_run, "data_engineering")


def test_other_questions_than_those_tokenized_are_not_trained_on(project, full_run, tiny_run):
    other = tiny_run | {"data": tiny_run["data"] | {"seed": 99}}
    run(project, other, "data_engineering", to_nodes=SELECT)
    with pytest.raises(InputError, match="hold different train questions.*--load-versions"):
        run(project, tiny_run, "modeling")
    run(project, tiny_run, "data_engineering")


def test_questions_of_a_run_that_did_not_tokenize_them_are_refused(project, full_run, tiny_run):
    before = versions(project)
    fewer = tiny_run | {"data": tiny_run["data"] | {"max_validation_questions": 10}}
    run(project, fewer, "data_engineering", to_nodes=SELECT)
    with pytest.raises(InputError, match="different validation questions.*--load-versions"):
        run(project, tiny_run, "evaluate")
    assert versions(project)["finetuned_predictions"] == before["finetuned_predictions"]
    pinned = {"questions": full_run, "tokenized_questions": full_run, "adapter": full_run}
    again = run(project, tiny_run, "evaluate", load_versions=pinned)
    pd.testing.assert_frame_equal(
        load(project, "finetuned_predictions", again),
        load(project, "finetuned_predictions", full_run),
    )
    run(project, tiny_run, "data_engineering")


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
    """A drive that is full is no bad input: the node and the way to resume are told."""
    from flan_qa_pipeline.pipelines.data_engineering import nodes

    def fail(*args):
        raise OSError("no space left")

    with pytest.MonkeyPatch.context() as patch, pytest.raises(OSError, match="no space"):
        patch.setattr(nodes, "check", fail)
        run(project, tiny_run, "data_engineering")
    assert "flatten_train_questions" in caplog.text


def test_threads_may_run_the_nodes_but_not_processes(project, full_run, tiny_run):
    version = run(project, tiny_run, "data_engineering", runner=ThreadRunner())
    saved = [
        load_from_disk(project / "data" / VERSIONED["questions"] / v / "questions")
        for v in (full_run, version)
    ]
    assert fingerprint_splits(saved[0]) == fingerprint_splits(saved[1])
    with pytest.raises(InputError, match="ParallelRunner .* use SequentialRunner or ThreadRunner"):
        run(project, tiny_run, "data_engineering", runner=ParallelRunner())


def environment(project: Path, name: str, **files: dict) -> str:
    for file, content in files.items():
        path = project / f"conf/{name}/{file}.yml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return name


def test_a_misspelt_global_is_told(project, full_run, tiny_run):
    env = environment(project, "misspelt", globals={"trainfile": "a.json", "bucket": "s3://b"})
    with pytest.raises(InputError, match="Unknown global trainfile: did you mean train_file"):
        run(project, tiny_run, env=env)


def test_environment_of_globals_alone(project, full_run, tiny_run, corpus):
    articles = corpus["data"][:5]
    path = project / "data/01_raw/fewer.json"
    path.write_text(json.dumps({"version": "v2.0", "data": articles}), encoding="utf-8")
    env = environment(project, "fewer", globals={"train_file": "data/01_raw/fewer.json"})
    version = run(project, tiny_run, "data_engineering", env=env, to_nodes=SELECT)
    questions = load_from_disk(project / f"data/03_primary/questions/{version}/questions")
    titles = {t for name in ("train", "dev", "calibration") for t in questions[name]["title"]}
    assert titles == {article["title"] for article in articles}
    assert set(questions["validation"]["title"]) == {a["title"] for a in corpus["data"][24:]}
    run(project, tiny_run, "data_engineering")


def test_saved_datasets_instead_of_json(project, full_run, tiny_run, corpus):
    rows = list(flatten({"data": corpus["data"][:5]}, "corpus"))
    splits = DatasetDict(train=Dataset.from_list(rows))
    folder = project / "data/01_raw/saved"
    splits.save_to_disk(folder)
    entry = {"type": "huggingface.ArrowDataset", "path": "${globals:train_file}"}

    def read(path: Path) -> str:
        env = environment(
            project, "saved", globals={"train_file": str(path)}, catalog={"raw_train": entry}
        )
        return run(project, tiny_run, "data_engineering", env=env, to_nodes=FLATTEN)

    read(folder / "train")
    with pytest.raises(InputError, match=f"{folder} holds a DatasetDict .*{folder / 'train'}"):
        read(folder)


def test_a_hub_dataset_is_refused_before_any_work(project, full_run, tiny_run):
    entry = {"type": "huggingface.HFDataset", "dataset_name": "rajpurkar/squad_v2"}
    env = environment(project, "hub", catalog={"raw_train": entry})
    with pytest.raises(InputError, match="raw_train is of type HFDataset.*save_to_disk"):
        run(project, tiny_run, "data_engineering", env=env)


def test_viz_shows_layers_in_order_and_previews(project, full_run):
    subprocess.run(  # noqa: S603
        [sys.executable, "-m", "kedro", "viz", "build", "--include-previews"],
        cwd=project,
        capture_output=True,
        check=True,
    )
    assert (project / "build/index.html").is_file()
    main = json.loads((project / "build/api/main").read_text(encoding="utf-8"))
    layers = ["intermediate", "primary", "model_input", "models", "model_output", "reporting"]
    assert main["layers"] == ["raw", *layers]
    grouped = main["modular_pipelines"]
    assert set(grouped) == {"__root__", "data_engineering", "modeling", "prediction", "reporting"}
    opened = grouped["__root__"]["children"]
    assert {child["type"] for child in opened} == {"modularPipeline", "data", "parameters"}
    shown = [node for node in main["nodes"] if node["type"] == "data"]
    assert [node["name"] for node in shown if not node["layer"]] == []
    for node in shown:
        if node["name"].endswith(("_figure", "_table", "_answers")):
            path = project / "build/api/nodes" / node["id"]
            preview = json.loads(path.read_text(encoding="utf-8")).get("preview")
            assert bool(preview) is (node["name"] != "question_table")
        for name, file in (("report", "report.html"), ("score_table_markdown", "score_table.md")):
            if node["name"] == name:
                path = project / "build/api/nodes" / node["id"]
                preview = json.loads(path.read_text(encoding="utf-8"))["preview"]
                assert "<td" in preview
                assert preview.endswith(f"/{file.replace('_', '%5F')})")


def test_layers_of_all_pipelines_have_one_order():
    loader = OmegaConfigLoader(REPOSITORY / "conf", base_env="base", default_run_env="local")
    layers = {
        name: entry["metadata"]["kedro-viz"]["layer"]
        for name, entry in loader["catalog"].items()
        if "kedro-viz" in entry.get("metadata", {})
    }
    order: TopologicalSorter[str] = TopologicalSorter()
    nodes = [node for pipeline in register_pipelines().values() for node in pipeline.nodes]
    for source, target in chain.from_iterable(product(n.inputs, n.outputs) for n in nodes):
        first, then = layers.get(source), layers.get(target)
        if first and then and first != then:
            order.add(then, first)
    assert list(order.static_order())[0] == "raw"  # a cycle raises an error


def test_the_metric_module_gives_the_reported_scores(project, full_run, tmp_path):
    """Other programs get the run's own numbers from its saved questions and predictions."""
    questions = load_from_disk(project / f"data/03_primary/questions/{full_run}/questions")
    predictions = load(project, "finetuned_predictions", full_run)
    metric = SquadV2Scores(cache_dir=str(tmp_path))
    scores = metric.compute(
        predictions=predictions[["id", "prediction_text"]].to_dict("records"),
        references=list(questions["validation"].select_columns(["id", "answers"])),
    )
    assert scores == json.loads(read(project, "finetuned_scores.json", full_run))


def test_registered_pipelines(project):
    from kedro.framework.project import pipelines

    pipelines.set_requested(None)
    assert set(pipelines) == {
        "__default__",
        "data_engineering",
        "modeling",
        "reporting",
        "evaluate",
        "merge",
        "inference",
        "compare",
        "pretrain",
    }
    assert not any("train" in node.tags for node in pipelines["evaluate"].nodes)
    for pipeline in pipelines.values():  # the command line takes nodes by their short names
        assert len({node.short_name for node in pipeline.nodes}) == len(pipeline.nodes)
    for name in ("__default__", "inference", "compare"):
        assert all(node.tags and node.func.__doc__ for node in pipelines[name].nodes)


def test_real_squad_runs_through(project, squad_v2_dir, tiny_run):
    parameters = tiny_run | {
        "data": {
            "train_file": str(SQUAD_V2_DIR / "train.json"),
            "validation_file": str(SQUAD_V2_DIR / "validation.json"),
            "max_train_questions": 16,
            "max_dev_questions": 8,
            "max_calibration_questions": 8,
            "max_validation_questions": 16,
        }
    }
    version = run(project, parameters)
    assert load(project, "score_table", version)["questions"].iloc[0] == 16


def test_environment_squad_reads_parquet_and_a_snapshot_folder(project, tiny_run, corpus, tmp_path):
    files = {}
    for name, articles in (("train", corpus["data"][:24]), ("validation", corpus["data"][24:])):
        files[f"{name}_file"] = str(tmp_path / f"{name}.parquet")
        rows = pd.DataFrame(flatten({"data": articles}, name)).drop(columns="is_impossible")
        rows.to_parquet(files[f"{name}_file"])
    parameters = tiny_run | {
        "data": tiny_run["data"] | files,
        "training": {"max_steps": 2, "gradient_accumulation_steps": 1, "eval_strategy": "no"},
    }
    version = run(project, parameters, env="squad")
    assert load(project, "score_table", version)["questions"].iloc[0] == 40
    folder = project / "data/06_models/adapter" / version / "adapter"
    provenance = json.loads((folder / "provenance.json").read_text())
    assert provenance["tokenization"]["max_source_length"] == 512
    run(project, tiny_run, "data_engineering")


def test_environment_squad_without_a_hub_stops_with_one_error(commands):
    output = "\n".join(refusal(commands, "--env=squad"))
    assert "Traceback" not in output
    assert output.count("Error: ") == 1
    assert "google/flan-t5-base at 7bcac572ce56db69c1ea7c8af255c5d7c9672fc2" in output
    assert output.count("hf://datasets/rajpurkar/squad_v2@3ffb306f") == 2
    assert "/path/to/snapshot" in output


def test_merge_writes_a_model_that_transformers_alone_loads(project, full_run, tiny_run, capsys):
    version = run(project, tiny_run, "merge", load_versions={"adapter": full_run})
    folder = project / "data/06_models/merged" / version / "merged"
    table = load(project, "score_table", full_run)
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert f"value: {round(table.loc[0, 'F1 fine-tuned'], 2)}\n" in card
    assert f"Saved    {folder.relative_to(project)}\n" in capsys.readouterr().out
    merged = T5ForConditionalGeneration.from_pretrained(folder, dtype="auto")
    assert merged.dtype == torch.bfloat16
    assert not any("lora" in name for name, _ in merged.named_modules())
    assert AutoTokenizer.from_pretrained(folder)("What?")["input_ids"]
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["T5ForConditionalGeneration"]
    assert config["tie_word_embeddings"] is False
