"""Batches of token sequences of similar lengths, padded to the longest.

Batches to answer come in few shapes, however long the stream. On a CPU in bfloat16, oneDNN compiles
every matrix product for its shape and keeps up to 1,024 of them, 0.5 MiB each. Batches to train on
come in few shapes, too, where training captures a CUDA graph for every shape.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

PAD_TO_MULTIPLE = 8  # matrix units read this many values at a time
MIN_ROWS, ROWS_MULTIPLE = 16, 64  # of batches to answer
SHORT_MULTIPLE = 32  # of tokens in short batches that are captured
NO_LABEL = -100  # torch's cross entropy ignores this label


def round_up(length: int, multiple: int = PAD_TO_MULTIPLE) -> int:
    """Round a length up to the next multiple."""
    return -(-length // multiple) * multiple


def coarse_length(length: int) -> int:
    """Round a length up to a multiple of 8 with at most four significant binary digits.

    >>> [coarse_length(length) for length in (1, 120, 128, 129, 145, 256, 257)]
    [8, 120, 128, 144, 160, 256, 288]
    """
    return round_up(length, max(PAD_TO_MULTIPLE, 1 << length.bit_length() >> 4))


def captured_length(length: int) -> int:
    """Round a length up to a `coarse_length`, and to a multiple of 32 between 32 and 128.

    Trainings on whole paragraphs have few batches this short. Capturing a CUDA graph for them takes
    longer than computing their padding.

    >>> [captured_length(length) for length in (5, 30, 33, 65, 97, 129)]
    [8, 32, 64, 96, 128, 144]
    """
    coarse = coarse_length(length)
    return round_up(coarse, SHORT_MULTIPLE) if SHORT_MULTIPLE < coarse < 128 else coarse


def dealt(batches: Sequence[Any], rank: int, processes: int) -> list[Any]:
    """Return a process's batches, dealt from the first process to the last, then back, and again.

    Where they go from the longest to the shortest, every process gets about as much work.

    >>> [dealt("abcdefghij", rank, 3) for rank in range(3)]
    [['a', 'f', 'g'], ['b', 'e', 'h'], ['c', 'd', 'i', 'j']]
    """
    there_and_back = 2 * processes
    own = {rank, there_and_back - 1 - rank}
    return [batch for i, batch in enumerate(batches) if i % there_and_back in own]


def fill_up(rows: Sequence[Any], batch_size: int) -> list[Any]:
    """Repeat the last row until the number of rows is a usual one.

    A usual number is a power of two or a multiple of 64, and at least the smaller of 16 and
    `batch_size`.
    """
    size = max(len(rows), min(MIN_ROWS, batch_size))
    return [*rows, *list(rows[-1:]) * (round_up(size, _rows_step(size)) - len(rows))]


def _rows_step(n_rows: int) -> int:
    return min(ROWS_MULTIPLE, 1 << (n_rows.bit_length() - 1))


def pad(rows: Sequence[Sequence[int]], value: int, length: int) -> torch.Tensor:
    """Put sequences into one integer tensor (rows, length), padded with `value` on the right."""
    padded = np.full((len(rows), length), value)
    for place, row in zip(padded, rows, strict=True):
        place[: len(row)] = row
    return torch.from_numpy(padded)


def mask(rows: Sequence[Sequence[int]], length: int) -> torch.Tensor:
    """Mark tokens with 1 and padding with 0 in a tensor (rows, length), as `pad` lays them out."""
    lengths = np.array([len(row) for row in rows])
    return torch.from_numpy((np.arange(length) < lengths[:, None]).astype(int))


def collate(
    windows: Sequence[Mapping[str, Sequence[int]]],
    pad_token_id: int,
    padded: Callable[[int], int] = round_up,
) -> dict[str, torch.Tensor]:
    """Batch tokenized windows for training.

    (transformers' collator pads Python lists, which takes longer than a GPU trains.)

    Args:
        windows: rows with input_ids and labels; other columns are ignored.
        pad_token_id: the id that pads input_ids; `NO_LABEL` pads labels.
        padded: maps the length of the longest sequence to the length of the batch.

    Returns:
        input_ids and attention_mask (rows, source length), labels (rows, target length).
    """
    input_ids = [window["input_ids"] for window in windows]
    labels = [window["labels"] for window in windows]
    length, labels_length = (padded(max(map(len, rows))) for rows in (input_ids, labels))
    return {
        "input_ids": pad(input_ids, pad_token_id, length),
        "attention_mask": mask(input_ids, length),
        "labels": pad(labels, NO_LABEL, labels_length),
    }


def lengthen(
    batch: Mapping[str, torch.Tensor], pad_token_id: int, length: int, labels_length: int
) -> dict[str, torch.Tensor]:
    """Pad a batch that `collate` made to greater lengths."""
    padding = {
        "input_ids": (length, pad_token_id),
        "attention_mask": (length, 0),
        "labels": (labels_length, NO_LABEL),
    }
    return {
        name: nn.functional.pad(part, (0, padding[name][0] - part.shape[1]), value=padding[name][1])
        for name, part in batch.items()
    }


def length_batches(lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Yield the indices of sequences in batches, from the longest sequence to the shortest.

    Padded to the `coarse_length` of its longest sequence, a batch has at most `batch_tokens`
    tokens; a longer sequence is a batch alone. The number of sequences is a power of two or a
    multiple of 64, except in the last batch, which `fill_up` completes.

    Args:
        lengths: in tokens.
        batch_tokens: tokens in a batch, padding included.
    """
    order = sorted(range(len(lengths)), key=lambda i: lengths[i], reverse=True)
    while order:
        size = max(1, batch_tokens // coarse_length(lengths[order[0]]))
        size -= size % _rows_step(size)
        yield order[:size]
        order = order[size:]
