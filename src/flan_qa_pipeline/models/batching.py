"""Batches of token sequences: of similar lengths, padded to the longest.

Batches to answer have few shapes, whatever comes in a long stream: in bfloat16 on a CPU, oneDNN
compiles every product of a batch for its shape, and keeps up to 1,024 of them, 0.5 MiB each. So
have batches to train on where a CUDA graph is captured for every shape.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

PAD_TO_MULTIPLE = 8  # matrix units read rows of so many values
MIN_ROWS, ROWS_MULTIPLE = 16, 64  # of batches to answer
NO_LABEL = -100  # what torch's cross entropy leaves out


def round_up(length: int, multiple: int = PAD_TO_MULTIPLE) -> int:
    """The smallest multiple that is at least the length."""
    return -(-length // multiple) * multiple


def coarse_length(length: int) -> int:
    """The smallest multiple of 8 of at most four significant binary digits that is at least this.

    >>> [coarse_length(length) for length in (1, 120, 128, 129, 145, 256, 257)]
    [8, 120, 128, 144, 160, 256, 288]
    """
    return round_up(length, max(PAD_TO_MULTIPLE, 1 << length.bit_length() >> 4))


def fill_up(rows: Sequence[Any], batch_size: int) -> list[Any]:
    """Repeat the last of a few rows, taken from batches of a size, until they are a batch.

    They are then a power of two or a multiple of 64, and at least 16 if `batch_size` is.
    """
    size = max(len(rows), min(MIN_ROWS, batch_size))
    return [*rows, *list(rows[-1:]) * (round_up(size, _rows_step(size)) - len(rows))]


def _rows_step(n_rows: int) -> int:
    return min(ROWS_MULTIPLE, 1 << (n_rows.bit_length() - 1))


def pad(rows: Sequence[Sequence[int]], value: int, length: int) -> torch.Tensor:
    """Put sequences into one tensor (rows, length), filled up with `value` on their right."""
    padded = np.full((len(rows), length), value)
    for place, row in zip(padded, rows, strict=True):
        place[: len(row)] = row
    return torch.from_numpy(padded)


def mask(rows: Sequence[Sequence[int]], length: int) -> torch.Tensor:
    """Tell the tokens (1) of `pad` from its filling (0)."""
    lengths = np.array([len(row) for row in rows])
    return torch.from_numpy((np.arange(length) < lengths[:, None]).astype(int))


def collate(
    windows: Sequence[Mapping[str, Sequence[int]]],
    pad_token_id: int,
    padded: Callable[[int], int] = round_up,
) -> dict[str, torch.Tensor]:
    """Batch tokenized windows for training; other columns than input_ids and labels are left out.

    `padded` maps the length of the longest to the batch's, such as `coarse_length`.
    (transformers' collator pads by way of Python lists, which takes longer than a GPU trains.)
    """
    input_ids = [window["input_ids"] for window in windows]
    labels = [window["labels"] for window in windows]
    length, labels_length = (padded(max(map(len, rows))) for rows in (input_ids, labels))
    return {
        "input_ids": pad(input_ids, pad_token_id, length),
        "attention_mask": mask(input_ids, length),
        "labels": pad(labels, NO_LABEL, labels_length),
    }


def length_batches(lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Yield the indices of sequences from the longest to the shortest, in batches.

    A batch has at most `batch_tokens` tokens when its sequences are padded to the `coarse_length`
    of the longest, or is one sequence that is longer. The size of all but the last, which `fill_up`
    completes, is a power of two or a multiple of 64.
    """
    order = sorted(range(len(lengths)), key=lambda i: lengths[i], reverse=True)
    while order:
        size = max(1, batch_tokens // coarse_length(lengths[order[0]]))
        size -= size % _rows_step(size)
        yield order[:size]
        order = order[size:]
