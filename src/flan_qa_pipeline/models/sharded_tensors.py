"""Gather tensors that FSDP sharded over the processes, and shard whole ones."""

from typing import Any

import torch
from accelerate.utils import recursively_apply
from torch.distributed.tensor import DTensor, distribute_tensor


def whole(value: Any) -> Any:
    """Gather the sharded tensors in nested state.

    All processes must call this. Values that are no sharded tensors stay as they are.
    """
    return recursively_apply(
        DTensor.full_tensor, value, test_type=lambda part: isinstance(part, DTensor)
    )


def sharded_like(value: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Take this process's share of a whole tensor if `like` is sharded, else the tensor itself."""
    if not isinstance(like, DTensor):
        return value
    value = value.to(like.device)
    return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)
