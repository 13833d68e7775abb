"""The hooks apart from whole runs: their order, held log records, costs, notes and results."""

import gc
import logging
from types import SimpleNamespace

import pandas as pd
import pytest
import yaml
from conftest import CONF
from datasets import Dataset, DatasetDict
from kedro.framework.hooks.manager import _create_hook_manager
from kedro.io import DataCatalog, MemoryDataset
from kedro.pipeline import Pipeline, node
from kedro_datasets.text import TextDataset

from flan_qa_pipeline import settings
from flan_qa_pipeline.config.parameters import NamedFile, named_files
from flan_qa_pipeline.config.validation import check_parameters
from flan_qa_pipeline.data.splits import note_part
from flan_qa_pipeline.data.squad import flatten
from flan_qa_pipeline.errors import InputError
from flan_qa_pipeline.reporting.figures import VERSIONS
from flan_qa_pipeline.runtime.atomic_catalog import AtomicCatalog, FollowersCatalog
from flan_qa_pipeline.runtime.current_run import CurrentRun
from flan_qa_pipeline.runtime.dataset_notes import DatasetNotes, notes_of
from flan_qa_pipeline.runtime.hooks.costs import NODE_COSTS, NodeCostHooks
from flan_qa_pipeline.runtime.hooks.garbage import GarbageHooks
from flan_qa_pipeline.runtime.hooks.inputs import _require_input
from flan_qa_pipeline.runtime.hooks.logs import FailureLogHooks, QuantizationLogHooks
from flan_qa_pipeline.runtime.hooks.results import ResultHooks


def test_pluggy_calls_the_hooks_in_the_order_of_the_settings():
    manager = _create_hook_manager()
    for hooks in settings.HOOKS:
        manager.register(hooks)
    called = [call.plugin for call in reversed(manager.hook.before_pipeline_run.get_hookimpls())]
    assert called == [hooks for hooks in settings.in_order if hooks in called]
    assert len(called) > 5
    last = manager.hook.on_pipeline_error.get_hookimpls()[0].plugin
    assert type(last).__name__ == "FailureHooks"  # its error ends the others' calls


@pytest.mark.parametrize("end", ["after_pipeline_run", "on_pipeline_error"])
def test_garbage_collections_skip_what_lives_as_long_as_the_run(end):
    hooks, imported = GarbageHooks(), [[]]
    gc.collect()
    hooks.before_pipeline_run()
    try:
        assert gc.get_freeze_count() > 100_000
        assert not any(held is imported for held in gc.get_objects())
    finally:
        getattr(hooks, end)()
    assert gc.get_freeze_count() < 100_000
    assert any(held is imported for held in gc.get_objects())


def log_a_failure():
    logging.getLogger("kedro.pipeline.node").error("Node a failed")
    logging.getLogger("kedro.runner.sequential_runner").warning("resume from a")
    logging.getLogger("kedro.io.data_catalog").warning("replaced")


@pytest.mark.parametrize(
    ("error", "logged"),
    [
        (InputError("a: mend it."), ["replaced"]),
        (OSError("no space left"), ["replaced", "Node a failed", "resume from a"]),
        (None, ["replaced", "Node a failed", "resume from a"]),
    ],
)
def test_failures_are_logged_once_unless_the_command_reports_them(caplog, error, logged):
    hooks = FailureLogHooks()
    with caplog.at_level(logging.WARNING, logger="kedro"):
        hooks.before_pipeline_run()
        log_a_failure()
        assert caplog.messages == ["replaced"]
        if error is None:
            hooks.after_pipeline_run()
        else:
            hooks.on_pipeline_error(error)
        assert caplog.messages == logged
        caplog.clear()
        log_a_failure()
        assert caplog.messages == ["Node a failed", "resume from a", "replaced"]


def test_a_run_logs_a_choice_once_and_the_next_run_again(caplog):
    hooks, logger = (
        QuantizationLogHooks(),
        logging.getLogger("flan_qa_pipeline.models.quantization"),
    )
    with caplog.at_level(logging.INFO, logger=logger.name):
        for _ in range(2):
            hooks.before_pipeline_run()
            for choice, free in (("packed", 1), ("packed", 2), ("unpacked", 3)):
                logger.info("auto: %s, %d free", choice, free)
            hooks.after_pipeline_run()
        logger.info("auto: %s, %d free", "packed", 4)
    run = ["auto: packed, 1 free", "auto: unpacked, 3 free"]
    assert caplog.messages == [*run, *run, "auto: packed, 4 free"]


def test_nodes_get_the_costs_of_those_that_ended_and_nothing_changes_later():
    first, second = node(len, "a", "b", name="first"), node(len, [NODE_COSTS], "c", name="second")
    catalog = DataCatalog({NODE_COSTS: MemoryDataset(copy_mode="assign")})
    hooks = NodeCostHooks()
    hooks.before_pipeline_run(Pipeline([first, second]), catalog)
    assert catalog.load(NODE_COSTS) == {}
    hooks.before_node_run(first)
    hooks.after_node_run(first, catalog)
    seen = catalog.load(NODE_COSTS)
    assert list(seen) == ["first"]
    assert seen["first"]["seconds"] >= 0 and seen["first"]["peak_memory"]
    hooks.before_node_run(second)
    hooks.after_node_run(second, catalog)
    assert list(seen) == ["first"]
    assert list(catalog.load(NODE_COSTS)) == ["first", "second"]


def test_other_processes_read_all_and_write_nothing_but_memory(tmp_path):
    text = TextDataset(filepath=str(tmp_path / "a.txt"))
    catalog = AtomicCatalog({"text": text, "memory": MemoryDataset()})
    catalog.save("text", "by the first process")
    followers = FollowersCatalog(catalog)
    followers.save("text", "by another")
    followers.save("memory", 1)
    assert followers.load("text") == catalog.load("text") == "by the first process"
    assert catalog.load("memory") == 1


def test_every_note_of_the_catalog_is_one_that_the_hooks_read():
    config = yaml.safe_load((CONF / "catalog.yml").read_text(encoding="utf-8"))
    noted = {
        name: notes_of(name, SimpleNamespace(metadata=entry.get("metadata")))
        for name, entry in config.items()
    }
    assert {name for name, notes in noted.items() if notes.filled_in} == {
        "adapter_evaluation",
        "compared_runs",
        "node_costs",
        "run_record",
    }
    assert {name: notes.shown for name, notes in noted.items() if notes.shown} == {
        "score_table": "scores",
        "abstention_table": "threshold",
        "adapter": "training",
        "rejected_{split}_questions": "rejected",
        "parameter_differences": "differences",
        "comparison_table": "comparison",
        "report": "report",
        "comparison_report": "path",
        "answers": "path",
        "merged_model": "path",
    }
    with pytest.raises(InputError, match=r"a: metadata.flan_qa_pipeline .*remdy"):
        notes_of("a", MemoryDataset(metadata={"flan_qa_pipeline": {"remdy": "x"}}))
    assert notes_of("a", MemoryDataset()) == notes_of("a", None) == DatasetNotes()


def test_a_missing_input_is_named_with_the_remedy_of_its_entry(tmp_path):
    note = {"remedy": "make it", "versions_of": "saved"}
    metadata = {"flan_qa_pipeline": note}
    catalog = AtomicCatalog.from_config(
        {
            "wanted": {
                "type": "text.TextDataset",
                "filepath": str(tmp_path / "x.txt"),
                "metadata": metadata,
            },
            "saved": {
                "type": "text.TextDataset",
                "filepath": str(tmp_path / "saved.txt"),
                "versioned": True,
            },
        },
        save_version="2026",
    )
    with pytest.raises(InputError, match=r"wanted: there is no .*x.txt; make it \(saved: none y"):
        _require_input("wanted", catalog, is_file=False)
    catalog.save("saved", "a")
    with pytest.raises(InputError, match=r"make it \(saved: 2026\)\."):
        _require_input("wanted", catalog, is_file=False)
    with pytest.raises(InputError, match="memory is not kept between runs"):
        _require_input("memory", catalog, is_file=False)


def test_results_are_shown_as_the_catalog_says_in_one_order(tmp_path, capsys, raw_parameters):
    def entry(kind, name, shown):
        metadata = {"flan_qa_pipeline": {"shown": shown}} if shown else None
        return {"type": kind, "filepath": str(tmp_path / name), "metadata": metadata}

    text, table = "text.TextDataset", "pandas.CSVDataset"
    catalog = AtomicCatalog.from_config(
        {
            "page": entry(text, "page", "path"),
            "table": entry(table, "table", "comparison"),
            "hidden": entry(text, "hidden", None),
        }
    )
    columns = [f"{metric} {which}" for metric in ("EM", "F1") for which in VERSIONS]
    columns += [f"{metric} gain{end}" for metric in ("EM", "F1") for end in ("", " low", " high")]
    row = {"subset": "overall", "questions": 3} | dict.fromkeys(columns, 50.0)
    data = {"page": "text", "table": pd.DataFrame([row]), "hidden": "text"}
    nodes = []
    for name, content in data.items():
        catalog.save(name, content)
        nodes.append(node(lambda: None, None, name, name=name))
    run = CurrentRun()
    run.project_path = tmp_path
    raw_parameters["compare"] = {"first": "one", "second": "two"}
    run.parameters = check_parameters(raw_parameters)
    hooks = ResultHooks(run)
    hooks.after_pipeline_run(Pipeline(nodes), catalog)
    assert capsys.readouterr().out == ""  # no node has run
    run.saved.update(data)
    hooks.after_pipeline_run(Pipeline(nodes), catalog)
    printed = capsys.readouterr().out
    assert "first: one, second: two" in printed
    assert printed.splitlines()[-1] == "Saved    page, hidden, table"
    assert "text" not in printed


def test_a_training_on_a_part_of_ones_own_questions_says_so(corpus, tmp_path, capsys):
    starter = Dataset.from_list(list(flatten(corpus, "corpus")))
    ids = [str(number) for number in range(len(starter))]
    own = starter.remove_columns("id").add_column("id", ids)
    metadata = {"flan_qa_pipeline": {"shown": "training"}}
    run = CurrentRun()
    run.project_path = tmp_path
    run.saved.add("adapter")
    adapter = node(lambda: None, None, "adapter", name="adapter")
    for questions, whole, told in ((own, 12_345, True), (own, None, False), (starter, 99, False)):
        train = questions.select(range(8))
        if whole:
            note_part(train, whole, ["data.max_train_questions"])
        catalog = AtomicCatalog(
            {
                "adapter": MemoryDataset("adapter", metadata=metadata),
                "questions": MemoryDataset(DatasetDict(train=train), copy_mode="assign"),
            }
        )
        ResultHooks(run).after_pipeline_run(Pipeline([adapter]), catalog)
        part = "Trained  on 8 of 12,345 questions; --params=data.max_train_questions=null trains"
        assert capsys.readouterr().out == (f"{part}\n{'':9}on all.\n" if told else "")


def test_parameters_say_which_dataset_reads_their_file(raw_parameters):
    files = named_files(check_parameters(raw_parameters))
    assert set(files) == {
        "raw_train",
        "raw_validation",
        "new_questions",
        "pretraining_text",
        "pretraining_question_sets",
    }
    path = raw_parameters["data"]["train_file"]
    assert files["raw_train"] == NamedFile("data.train_file", path)
    assert files["raw_train"].global_name == "train_file"
    catalog = yaml.safe_load((CONF / "catalog.yml").read_text(encoding="utf-8"))
    for name, file in files.items():
        entry = catalog[name]
        place = entry.get("filepath") or entry["path"]
        assert f"globals:{file.global_name}" in place and file.parameter in place
