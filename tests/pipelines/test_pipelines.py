"""The pipelines as Kedro runs them, and what a full run saves."""

import io
import json
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
from click.testing import CliRunner
from conftest import REPOSITORY, SQUAD_V2_DIR
from datasets import load_from_disk
from kedro.config import OmegaConfigLoader
from kedro.framework.startup import bootstrap_project
from transformers import AutoTokenizer, T5ForConditionalGeneration

import flan_qa_pipeline.cli
from flan_qa_pipeline.data.fingerprints import fingerprint_splits
from flan_qa_pipeline.evaluation.squad_v2_scores.squad_v2_scores import SquadV2Scores
from flan_qa_pipeline.evaluation.subject import EMBEDDED_CORPUS
from flan_qa_pipeline.models.loading import load_base_model
from flan_qa_pipeline.pipeline_registry import register_pipelines
from flan_qa_pipeline.pipelines import modeling, reporting
from flan_qa_pipeline.runtime import selection
from pipelines.kedro_project import load, read, run, versions


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


def test_saved_versions_hold_nothing_but_data(project, full_run):
    files = {path for path in (project / "data").rglob("*") if path.is_file()}
    events = {path for path in files if path.name.startswith("events.out.tfevents.")}
    suffixes = {path.suffix for path in files - events}
    assert suffixes <= {".json", ".arrow", ".safetensors", ".parquet", ".csv", ".md", ".html"}
    assert not list((project / "data/03_primary").rglob("cache-*"))


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
