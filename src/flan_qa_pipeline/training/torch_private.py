"""The private part of torch that training relies on, under a public name.

`tests/training/test_torch_private.py` checks it against the installed version.
"""

from itertools import accumulate
from typing import Any

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
