"""Batches hold every sequence once, as transformers' collator pads them."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import DataCollatorForSeq2Seq

from flan_qa_pipeline.models.batching import (
    captured_length,
    coarse_length,
    collate,
    dealt,
    fill_up,
    length_batches,
    round_up,
)

WINDOWS = [
    {"id": "a", "input_ids": [17, 45, 101, 1], "labels": [5, 1]},
    {"id": "b", "input_ids": list(range(3, 14)), "labels": [7, 8, 9, 10, 11, 12, 13, 14, 1]},
]


def test_windows_are_padded_as_by_transformers(tokenizer):
    rows = [{name: window[name] for name in ("input_ids", "labels")} for window in WINDOWS]
    expected = DataCollatorForSeq2Seq(tokenizer, pad_to_multiple_of=8)(rows)
    found = collate(WINDOWS, tokenizer.pad_token_id)
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert tensor.dtype == torch.int64
        assert torch.equal(tensor, expected[name])


def test_windows_are_padded_as_told(tokenizer):
    window = {"input_ids": [5] * 129, "labels": [7, 1]}
    found = collate([window], tokenizer.pad_token_id, coarse_length)
    assert found["input_ids"].shape == found["attention_mask"].shape == (1, 144)
    assert found["attention_mask"].sum() == 129
    assert found["labels"].shape == (1, 8)


@given(st.lists(st.integers(1, 300)), st.integers(1, 9000))
def test_batches_hold_all_and_not_too_much(lengths, batch_tokens):
    batches = list(length_batches(lengths, batch_tokens))
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    longest = [[lengths[i] for i in batch] for batch in batches]
    assert [n for batch in longest for n in batch] == sorted(lengths, reverse=True)
    for batch in longest:
        filled = len(fill_up([[0]] * len(batch), len(batches[0])))
        assert len(batch) == 1 or filled * coarse_length(batch[0]) <= batch_tokens
        assert filled == len(batch) or batch is longest[-1]
        assert filled.bit_count() == 1 or filled % 64 == 0
        assert len(batches) == 1 or filled >= min(16, len(batches[0]))


def test_a_batch_is_filled_up_with_its_last_row():
    assert fill_up([[1], [2], [3]], 3) == [[1], [2], [3], [3]]
    assert fill_up([[1]], 1) == [[1]]
    assert fill_up([[1], [2]], 40) == [[1]] + [[2]] * 15
    assert len(fill_up([[1]] * 65, 65)) == 128


@given(st.integers(1, 5000))
def test_lengths_to_answer_are_little_padded(length):
    coarse = coarse_length(length)
    assert length <= coarse <= max(length + 7, 1.125 * length)
    assert coarse % 8 == 0


def test_lengths_to_answer_are_few():
    assert len({coarse_length(n) for n in range(1, 513)}) == 32


@given(st.integers(1, 5000))
def test_captured_lengths_are_coarse_lengths_too(length):
    captured = captured_length(length)
    assert length <= captured == coarse_length(captured)
    assert captured < coarse_length(length) + 32


def test_captured_lengths_are_few_where_captures_do_not_pay():
    assert {captured_length(n) for n in range(1, 129)} == {8, 16, 24, 32, 64, 96, 128}
    assert captured_length(200) == coarse_length(200)


@pytest.mark.parametrize(("length", "rounded"), [(1, 8), (8, 8), (9, 16)])
def test_lengths_are_rounded_up(length, rounded):
    assert round_up(length) == rounded


@given(count=st.integers(0, 60), processes=st.integers(1, 8))
def test_every_batch_is_dealt_once(count, processes):
    shares = [dealt(range(count), rank, processes) for rank in range(processes)]
    assert sorted(sum(shares, [])) == list(range(count))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@given(rounds=st.integers(1, 5), processes=st.integers(1, 8))
def test_no_process_gets_only_the_longer_batches(rounds, processes):
    lengths = range(2 * processes * rounds, 0, -1)
    assert len({sum(dealt(lengths, rank, processes)) for rank in range(processes)}) == 1
