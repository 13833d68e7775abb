"""Fingerprints: equal for equal content however it is stored, different for any change."""

import re

import pytest
from conftest import REPOSITORY
from datasets import Dataset, concatenate_datasets, load_from_disk
from torch import nn

from flan_qa_pipeline.runtime.provenance import (
    fingerprint_json,
    fingerprint_rows,
    fingerprint_weights,
    git_commit,
)


@pytest.fixture
def rows():
    ids = [f"q{i}" for i in range(9)]
    return Dataset.from_dict({"id": ids, "input_ids": [list(range(i)) for i in range(9)]})


def test_rows_have_one_fingerprint_however_they_are_stored(rows, tmp_path):
    first = fingerprint_rows(rows)
    rows.save_to_disk(tmp_path / "rows")
    doubled = concatenate_datasets([rows.select(range(4)), rows.select(range(4, 9))])
    backwards = rows.select(reversed(range(9)))
    for same in (load_from_disk(tmp_path / "rows"), doubled, backwards.select(reversed(range(9)))):
        assert fingerprint_rows(same) == first
    assert fingerprint_rows(backwards) != first
    assert fingerprint_rows(rows.select(range(8))) != first
    assert fingerprint_rows(rows.rename_column("id", "title")) != first


def test_any_retrained_weight_changes_the_fingerprint():
    model = nn.Linear(300, 2)
    first = fingerprint_weights(model)
    assert fingerprint_weights(model) == first
    nn.init.zeros_(model.bias)
    assert fingerprint_weights(model) != first


def test_the_order_of_keys_and_sets_does_not_matter():
    assert fingerprint_json({"a": {"q", "v"}, "b": 1}) == fingerprint_json(
        {"b": 1, "a": {"v", "q"}}
    )
    assert fingerprint_json({"a": 1}) != fingerprint_json({"a": 2})


def test_the_commit_is_that_of_the_folder(tmp_path):
    if not (REPOSITORY / ".git").exists():
        pytest.skip("the project is not a git checkout here")
    assert re.fullmatch("[0-9a-f]{40}", git_commit(REPOSITORY)["commit"])
    assert git_commit(tmp_path) is None
