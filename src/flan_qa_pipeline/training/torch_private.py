"""The private parts of torch that training and pretraining rely on, under public names.

`tests/training/test_torch_private.py` checks them against the installed version.
"""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
from torch.profiler import profile


def peak_of_profile(profiler: profile) -> int:
    """Return the largest memory in bytes that tensors took on the CPU beside those held before.

    Args:
        profiler: a finished profile with `profile_memory=True`. Its public results sum the memory
            of each operator; only the single events show when it is taken and given back.
    """
    finished: Any = profiler.profiler
    events = finished.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    return max(accumulate(size for _, size in changes))


def multiply_all(tensors: Sequence[torch.Tensor], factor: float) -> None:
    """Multiply tensors in place, on a GPU with few kernel launches for all of them."""
    torch._foreach_mul_(list(tensors), factor)
