"""Tensors that FSDP has spread over the processes: gathered whole, and shared out again."""

from typing import Any

import torch
from accelerate.utils import recursively_apply
from torch.distributed.tensor import DTensor, distribute_tensor


def whole(value: Any) -> Any:
    """Gather the sharded tensors in nested state; all processes must call this."""
    return recursively_apply(
        DTensor.full_tensor, value, test_type=lambda part: isinstance(part, DTensor)
    )


def sharded_like(value: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """This process's share of a whole tensor, if `like` is one; else the tensor itself."""
    if not isinstance(like, DTensor):
        return value
    value = value.to(like.device)
    return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)
