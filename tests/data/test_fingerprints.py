"""Fingerprints: equal for equal content however it is stored, different for any change."""

import itertools

import pytest
import torch
from bitsandbytes.nn import Linear4bit
from conftest import DEVICE
from datasets import Dataset, concatenate_datasets, load_from_disk
from torch import nn

from flan_qa_pipeline.data.fingerprints import (
    fingerprint_json,
    fingerprint_rows,
    fingerprint_weights,
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


@pytest.mark.parametrize("n", [1500, 4097, 10500])
def test_many_rows_have_one_fingerprint_however_they_are_stored(n, tmp_path):
    answered = {"text": ["Ada", "Lovelace é"], "answer_start": [3, 5]}
    none = {"text": [], "answer_start": []}
    rows = Dataset.from_dict(
        {
            "id": [f"train-{i}" for i in range(n)],
            "title": [None if i % 7 == 0 else "t" * (i % 5) for i in range(n)],
            "answers": [answered if i % 3 else none for i in range(n)],
            "spans": [None if i % 11 == 0 else list(range(i % 4)) for i in range(n)],
            "is_impossible": [i % 3 == 0 for i in range(n)],
        }
    )
    rows.save_to_disk(tmp_path / "rows")
    rows.to_parquet(tmp_path / "rows.parquet")
    longer = concatenate_datasets([rows, rows])
    sizes = itertools.cycle([1, 700, 3000])
    ends = [0, *itertools.takewhile(lambda end: end < n, itertools.accumulate(sizes)), n]
    stored = {
        "saved": load_from_disk(tmp_path / "rows"),
        "parquet": Dataset.from_parquet(
            str(tmp_path / "rows.parquet"), features=rows.features, cache_dir=str(tmp_path)
        ),
        "chunks": concatenate_datasets(
            [rows.select(range(*bounds)) for bounds in itertools.pairwise(ends)]
        ),
        "part": longer.select(range(n)),
        "later part": longer.select(range(n, 2 * n)),
        "rows by index": rows.select(reversed(range(n))).select(reversed(range(n))),
    }
    first = fingerprint_rows(rows)
    assert {name: fingerprint_rows(same) for name, same in stored.items()} == dict.fromkeys(
        stored, first
    )
    changed = rows.map(lambda row, i: {"title": "x"} if i == n - 1 else {}, with_indices=True)
    assert fingerprint_rows(changed) != first


def test_any_retrained_weight_changes_the_fingerprint():
    model = nn.Linear(300, 2)
    first = fingerprint_weights(model)
    assert fingerprint_weights(model) == first
    nn.init.zeros_(model.bias)
    assert fingerprint_weights(model) != first


def test_the_last_value_of_a_weight_changes_the_fingerprint():
    model = nn.Linear(300, 300).bfloat16()
    first = fingerprint_weights(model)
    with torch.no_grad():
        model.weight[-1, -1] += 1
    assert fingerprint_weights(model) != first


def test_the_scales_of_4_bit_weights_change_the_fingerprint():
    model = Linear4bit(64, 64, quant_type="nf4", compress_statistics=False).to(DEVICE)
    first = fingerprint_weights(model)
    assert fingerprint_weights(model) == first
    model.weight.quant_state.absmax[-1] *= 2
    assert fingerprint_weights(model) != first


def test_the_order_of_keys_and_sets_does_not_matter():
    assert fingerprint_json({"a": {"q", "v"}, "b": 1}) == fingerprint_json(
        {"b": 1, "a": {"v", "q"}}
    )
    assert fingerprint_json({"a": 1}) != fingerprint_json({"a": 2})
