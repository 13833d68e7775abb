"""Runs that read what earlier runs saved."""

import dataclasses
import io
import json
import re

import pandas as pd
import pytest
from click.testing import CliRunner
from datasets import load_from_disk
from kedro.framework.session import KedroSession
from kedro.framework.startup import bootstrap_project
from kedro.runner import ParallelRunner, ThreadRunner

import flan_qa_pipeline.cli
from flan_qa_pipeline.data.fingerprints import fingerprint_splits
from flan_qa_pipeline.datasets.adapter import AdapterDataset
from flan_qa_pipeline.errors import InputError
from flan_qa_pipeline.files import DIGESTS, save_digests
from flan_qa_pipeline.pipelines import modeling, reporting
from pipelines.kedro_project import SELECT, VERSIONED, load, read, run, versions


def test_two_runs_of_one_version_do_not_mix(project, full_run, tiny_run):
    before = versions(project)
    (project / "data/08_reporting/tensorboard" / "taken").mkdir()
    with KedroSession.create(project_path=project, runtime_params=tiny_run) as session:
        session._store["session_id"] = "taken"
        with pytest.raises(InputError, match="same millisecond and saves the version taken"):
            session.run(pipeline_names=["evaluate"])
    assert versions(project) == before


def test_compare_sets_two_saved_versions_side_by_side(project, full_run, tiny_run, capsys):
    again = run(project, tiny_run, "evaluate", load_versions={"adapter": full_run})
    versions = {"compare": {"first": full_run, "second": again}}
    compared = run(project, tiny_run | versions, "compare")
    table = pd.read_csv(io.StringIO(read(project, "comparison_table.csv", compared)))
    assert table["questions"].iloc[0] == 40
    assert (table["F1 gain"] == 0).all()
    printed = capsys.readouterr().out
    copyable = re.compile(r"(Report|Saved) +\S+|Compare +kedro run \S+ \S+")
    for line in printed.splitlines():
        assert len(line) <= 80 or copyable.fullmatch(line)
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


def test_other_weights_in_the_folder_of_the_base_are_refused_before_it_is_loaded(
    project, full_run, tiny_run, tiny_base, monkeypatch
):
    load = AdapterDataset.load

    def trained_on_others(dataset):
        adapter = load(dataset)
        digests = {"model.safetensors": "0" * 64}
        return dataclasses.replace(adapter, training=adapter.training | {"base_digests": digests})

    monkeypatch.setattr(AdapterDataset, "load", trained_on_others)
    monkeypatch.setattr(reporting.nodes, "load_base_model", no_base)
    save_digests(tiny_base, ["model.safetensors"])
    try:
        with pytest.raises(InputError, match=f"{tiny_base} holds other weights"):
            run(project, tiny_run, "evaluate")
    finally:
        (tiny_base / DIGESTS).unlink()


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


def test_threads_may_run_the_nodes_but_not_processes(project, full_run, tiny_run):
    version = run(project, tiny_run, "data_engineering", runner=ThreadRunner())
    saved = [
        load_from_disk(project / "data" / VERSIONED["questions"] / v / "questions")
        for v in (full_run, version)
    ]
    assert fingerprint_splits(saved[0]) == fingerprint_splits(saved[1])
    with pytest.raises(InputError, match="ParallelRunner .* use SequentialRunner or ThreadRunner"):
        run(project, tiny_run, "data_engineering", runner=ParallelRunner())
