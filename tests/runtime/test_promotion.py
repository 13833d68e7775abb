"""Which adapter answers, and which training is promoted: on real adapters in a real catalog."""

import logging
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from conftest import CONF
from datasets import Dataset, DatasetDict, DatasetInfo
from kedro.io import MemoryDataset
from kedro.pipeline import Pipeline, node

from flan_qa_pipeline.data.tokenized import describe
from flan_qa_pipeline.datasets.promotion import load_answering_adapter, promoted_version
from flan_qa_pipeline.errors import InputError
from flan_qa_pipeline.files import replace_text
from flan_qa_pipeline.runtime import kedro_private
from flan_qa_pipeline.runtime.atomic_catalog import AtomicCatalog
from flan_qa_pipeline.runtime.current_run import CurrentRun
from flan_qa_pipeline.runtime.hooks.promotion import PromotionHooks

ENTRIES = ("adapter", "promoted_adapter", "evaluation_record")
A, B, C = (f"2026-01-0{day}T00.00.00.000Z" for day in (1, 2, 3))
HOOKS = PromotionHooks.__module__


@pytest.fixture
def catalog_of(tmp_path, monkeypatch):
    """Make the project's catalog as a run that saves this version sees it."""
    monkeypatch.chdir(tmp_path)
    config = yaml.safe_load((CONF / "catalog.yml").read_text(encoding="utf-8"))
    entries = {name: config[name] for name in ENTRIES}
    return lambda version: AtomicCatalog.from_config(entries, save_version=version)


def trained(adapter, f1, *, seed=13, base="a", train="t"):
    """The adapter with the record of a training that reached this dev F1."""
    scores = {} if f1 is None else {4: f1 - 9, 8: f1}
    log = [{"step": step, "eval_f1": f1, "eval_exact": f1} for step, f1 in scores.items()]
    parameters = {
        "training": {"seed": seed, "eval_questions": 64},
        "data": {"train_file": "data/01_raw/starter_train.json"},
    }
    fingerprints = {"questions": {"train": train, "dev": "d"}}
    run = {"parameters": parameters, "fingerprints": fingerprints}
    run["corpora"] = {"train": "the embedded starter corpus"}
    model = adapter.provenance["model"] | {"name": base}
    return replace(
        adapter,
        provenance=adapter.provenance | {"model": model},
        training={"best_step": 8, "steps": 12, "log": log, "run": run},
    )


def test_a_training_is_promoted_if_it_is_better_on_the_same_questions(catalog_of, adapter, caplog):
    def train(version, *args, **changes):
        catalog = catalog_of(version)
        catalog.save("adapter", trained(adapter, *args, **changes))
        caplog.clear()
        with caplog.at_level(logging.INFO):
            run = CurrentRun(saved={"adapter"})
            PromotionHooks(run).after_pipeline_run(catalog)
        (told,) = (line.getMessage() for line in caplog.records if line.name == HOOKS)
        return promoted_version(catalog), told

    by_hand = f"`kedro promote {B}` makes this one answer"
    assert train(A, None)[0] is None
    assert train("2026", 70.0) == (
        "2026", "Promoted: version 2026 answers from now on; none was promoted before."
    )  # fmt: skip
    assert train(B, 70.0) == (
        "2026", f"Not promoted: 2026 stays, with a dev F1 of 70.00; {by_hand}."
    )  # fmt: skip
    assert train("2027", 99.0, seed=1)[1].startswith("Not promoted: 2026 stays, with other dev q")
    assert train("2028", 99.0, base="b")[1].startswith("Not promoted: 2026 stays, on another base")
    assert train("2029", None)[1].startswith("Not promoted: no dev F1 was recorded; `kedro promote")
    assert train(C, 70.5, train="fewer") == (
        C, f"Promoted: version {C} answers from now on; better on dev questions than 2026."
    )  # fmt: skip
    Path("data/06_models/adapter", C, "adapter/adapter_model.safetensors").write_bytes(b"")
    promoted, told = train("2030", 99.0)
    assert promoted == C and "is not as it was saved" in told and "kedro promote 2030" in told


def test_the_promoted_version_answers_and_one_line_says_why_and_how_well(catalog_of, adapter):
    for version, f1 in ((A, 70.0), (B, 60.0)):
        catalog = catalog_of(version)
        catalog.save("adapter", trained(adapter, f1))
    scores = [{"subset": "overall", "questions": 1431, "F1 base": 1.0, "F1 tuned": 65.432}]
    record = {"adapter": B, "labels": ["base", "tuned"], "scores": scores}
    catalog.save("evaluation_record", record)
    catalog = catalog_of(C)
    latest = load_answering_adapter(catalog)
    assert (latest.version, latest.origin) == (
        B,
        f"Adapter {B} (the latest; none is promoted) answers, on the base a, trained on the "
        "embedded starter corpus: F1 65.43 on 1,431 validation questions, 60.00 on dev questions.",
    )
    catalog.save("promoted_adapter", A)
    promoted = load_answering_adapter(catalog)
    assert promoted.version == A
    assert f"{A} (promoted)" in promoted.origin
    assert promoted.origin.endswith(": F1 70.00 on dev questions.")
    assert f"{B} (named)" in load_answering_adapter(catalog, B).origin
    weights = Path("data/06_models/adapter", A, "adapter/adapter_model.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(
        InputError, match=rf"as it was saved.* Version {A} is the promoted one; prom"
    ):
        load_answering_adapter(catalog)
    assert load_answering_adapter(catalog, B).version == B


def test_runs_use_the_promoted_version_but_score_again_what_was_trained_last(catalog_of, adapter):
    for version, train in ((A, "old"), (B, "new")):
        catalog_of(version).save("adapter", trained(adapter, 70.0, train=train))
    catalog_of(C).save("promoted_adapter", A)

    def used(tag, train=None, named=None):
        catalog, inputs = catalog_of(C), ["adapter"]
        if train:
            info = DatasetInfo(description=describe({}, {"train": train}))
            windows = DatasetDict(train=Dataset.from_dict({"id": ["a"]}, info=info))
            catalog["tokenized_questions"] = MemoryDataset(windows, copy_mode="assign")
            inputs.append("tokenized_questions")
        run_params = {"load_versions": named and {"adapter": named}}
        pipeline = Pipeline([node(lambda *_: 1, inputs, "x", name="x", tags=[tag])])
        PromotionHooks(CurrentRun()).before_pipeline_run(run_params, pipeline, catalog)
        return kedro_private.pinned_version(catalog["adapter"])

    assert used("predict") == used("merge") == used("predict", "other questions") == A
    assert used("predict", "new") == used("predict", named=B) == B
    assert used("report") is None


def test_a_file_is_replaced_at_once_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "new" / "a.json"
    replace_text(path, "old")
    with monkeypatch.context() as patch, pytest.raises(OSError, match="full"):
        patch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError("full")))
        replace_text(path, "new")
    assert path.read_text() == "old"
    replace_text(path, "new")
    assert path.read_text() == "new"
    assert [file.name for file in path.parent.iterdir()] == ["a.json"]
