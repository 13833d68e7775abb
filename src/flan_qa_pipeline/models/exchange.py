"""Exchange between the processes of a run: JSON and safetensors, nothing pickled.

(`gather_object` and `broadcast_object_list` of torch and accelerate pickle the objects.)
All processes must call each of these functions together.
"""

import json
from collections.abc import Mapping
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast, gather, pad_across_processes
from safetensors.torch import load, save


def broadcast_json(value: Any) -> Any:
    """Send the first process's value to every process."""
    if PartialState().num_processes == 1:
        return value
    sent = json.dumps(value).encode() if PartialState().is_main_process else b""
    size = int(broadcast(torch.tensor([len(sent)], device=PartialState().device)))
    return json.loads(_bytes(broadcast(_on_device(sent or bytes(size)))))


def gather_json(value: Any) -> list[Any]:
    """Send the values of all processes to every process, in the order of the ranks."""
    if PartialState().num_processes == 1:
        return [value]
    return [json.loads(data) for data in _gather(json.dumps(value).encode())]


def gather_tensors(
    value: Any, tensors: Mapping[str, torch.Tensor]
) -> list[tuple[Any, dict[str, torch.Tensor]]]:
    """Send the values of all processes, with tensors, to every process, in the order of the ranks.

    The tensors arrive on the CPU.
    """
    if PartialState().num_processes == 1:
        return [(value, dict(tensors))]
    saved = _gather(save(dict(tensors)))
    return list(zip(gather_json(value), map(load, saved), strict=True))


def _gather(data: bytes) -> list[bytes]:
    sizes = gather(torch.tensor([len(data)], device=PartialState().device)).tolist()
    padded = pad_across_processes(_on_device(data))
    rows = gather(padded).view(len(sizes), -1)
    return [_bytes(row[:size]) for row, size in zip(rows, sizes, strict=True)]


def _on_device(data: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8).to(PartialState().device)


def _bytes(tensor: torch.Tensor) -> bytes:
    return tensor.cpu().numpy().tobytes()
