"""Batches of token sequences: of similar lengths, padded to the longest."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch

PAD_TO_MULTIPLE = 8  # matrix units read rows of so many values
NO_LABEL = -100  # what torch's cross entropy leaves out


def round_up(length: int, multiple: int = PAD_TO_MULTIPLE) -> int:
    """The smallest multiple that is at least the length."""
    return -(-length // multiple) * multiple


def pad(rows: Sequence[Sequence[int]], value: int) -> torch.Tensor:
    """Put sequences into one tensor (rows, length), filled up with `value` on their right."""
    padded = np.full((len(rows), round_up(max(map(len, rows)))), value)
    for place, row in zip(padded, rows, strict=True):
        place[: len(row)] = row
    return torch.from_numpy(padded)


def mask(rows: Sequence[Sequence[int]]) -> torch.Tensor:
    """Tell the tokens (1) of `pad` from its filling (0)."""
    lengths = np.array([len(row) for row in rows])
    return torch.from_numpy((np.arange(round_up(lengths.max())) < lengths[:, None]).astype(int))


def collate(
    windows: Sequence[Mapping[str, Sequence[int]]], pad_token_id: int
) -> dict[str, torch.Tensor]:
    """Batch tokenized windows for training; other columns than input_ids and labels are left out.

    (transformers' collator pads by way of Python lists, which takes longer than a GPU trains.)
    """
    input_ids = [window["input_ids"] for window in windows]
    return {
        "input_ids": pad(input_ids, pad_token_id),
        "attention_mask": mask(input_ids),
        "labels": pad([window["labels"] for window in windows], NO_LABEL),
    }


def length_batches(lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Yield the indices of sequences from the longest to the shortest, in batches.

    A batch has at most `batch_tokens` tokens when its sequences are padded to the longest, or is
    one sequence that is longer.
    """
    order = sorted(range(len(lengths)), key=lambda i: lengths[i], reverse=True)
    while order:
        size = max(1, batch_tokens // round_up(lengths[order[0]]))
        yield order[:size]
        order = order[size:]
