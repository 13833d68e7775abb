"""Hashes of rows, weights and JSON: equal for equal content, however it is stored."""

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa
import torch
from datasets import Dataset, DatasetDict
from torch import nn

BATCH_ROWS = 4096


def fingerprint_rows(dataset: Dataset) -> str:
    """Return the SHA-256 of a dataset's rows, in order, as Arrow IPC, however it is stored.

    A batch that is a part of a larger chunk would write bytes of the next row as padding, so each
    batch is copied first.
    """
    digest = hashlib.sha256()
    arrow = dataset.with_format("arrow")
    for start in range(0, len(dataset), BATCH_ROWS):
        table = arrow[start : start + BATCH_ROWS].combine_chunks().replace_schema_metadata(None)
        copied = table.take(pa.array(range(len(table))))
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, copied.schema) as writer:
            writer.write_table(copied)
        digest.update(sink.getvalue())
    return digest.hexdigest()


def fingerprint_splits(splits: DatasetDict) -> dict[str, str]:
    """Map every split to the fingerprint of its rows."""
    return {name: fingerprint_rows(split) for name, split in splits.items()}


def fingerprint_weights(model: nn.Module) -> str:
    """Return the SHA-256 of the names, shapes, dtypes and values of a model's weights.

    The scales of 4-bit weights count, too. A core hashes about 1 GB/s; as many threads as torch
    computes with hash tensors side by side.
    """
    with ThreadPoolExecutor(torch.get_num_threads()) as threads:
        digests = threads.map(_fingerprint_tensor, *zip(*model.state_dict().items(), strict=True))
        return hashlib.sha256(b"".join(digests)).hexdigest()


def _fingerprint_tensor(name: str, weights: torch.Tensor) -> bytes:
    digest = hashlib.sha256(f"{name} {tuple(weights.shape)} {weights.dtype}".encode())
    digest.update(weights.cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.digest()


def fingerprint_json(content: Any) -> str:
    """Return the SHA-256 of a JSON value, whatever the order of its keys; sets are sorted."""
    text = json.dumps(content, sort_keys=True, default=sorted)
    return hashlib.sha256(text.encode()).hexdigest()
