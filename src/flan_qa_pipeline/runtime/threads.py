"""How many CPU threads torch uses, and how they wait, chosen before torch is imported.

torch computes with OpenMP, which reads its environment once, when it is loaded. Its threads spin
while they wait for each other. On a core that another process uses, too, spinning spends the time
that the next piece of work needs, so each step takes many times its share.

This module imports nothing that imports torch.
"""

import math
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from flan_qa_pipeline.control_groups import ROOT, cpu_quotas, text_or_empty

NUMBER = "OMP_NUM_THREADS"
CHOSEN = "FLAN_QA_PIPELINE_THREADS"  # the number, if this module chose it; its processes inherit it
# libgomp, in torch's wheels for Linux, counts turns of its loop: a thread that has found nothing to
# do in a thousand, some 40 us, sleeps. Waking it takes time, so threads spin longer on free cores.
# libomp and libiomp sleep at once.
WAITING = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "1000", "KMP_BLOCKTIME": "0"}
ON_FREE_CORES = WAITING | {"GOMP_SPINCOUNT": "30000"}
SAMPLES, PAUSE = 5, 0.004  # of the running processes; the pause is in seconds


def choose() -> None:
    """Set what the user has not set; without effect once torch is imported."""
    if "torch" not in sys.modules:
        usable = available_cores()
        os.environ.update(
            chosen(
                os.environ,
                usable,
                cores_of_affinity(),
                lambda: WAITING if others_compute(usable) else ON_FREE_CORES,
            )
        )


def chosen(
    environment: Mapping[str, str],
    usable: int,
    known: int,
    waiting: Callable[[], Mapping[str, str]],
) -> dict[str, str]:
    """Choose the number of threads and how they wait.

    Args:
        environment: what is set. A number, or any of the variables of `WAITING`, stays.
        usable: the cores that this process may use.
        known: the cores that OpenMP counts. It needs no number if these are usable.
        waiting: finds the variables that say how threads wait; called where none is set.

    Returns:
        The variables to set.
    """
    values: dict[str, str] = {}
    number = max(1, usable // int(environment.get("LOCAL_WORLD_SIZE", 1)))
    given = NUMBER in environment and environment.get(CHOSEN) != environment[NUMBER]
    if number < known and not given:
        values |= {NUMBER: str(number), CHOSEN: str(number)}
    if not WAITING.keys() & environment.keys():
        values |= waiting()
    return values


def others_compute(usable: int, root: Path = ROOT) -> bool:
    """Return whether other processes leave fewer cores free than this one may use.

    The least of a few samples counts, because most processes run for a moment only.

    Args:
        usable: the cores that this process may use.
        root: the folder that holds `proc`.
    """
    running = []
    for sample in range(SAMPLES):
        time.sleep(PAUSE if sample else 0)
        fields = text_or_empty(root / "proc/loadavg").split()  # the fourth is running/all
        if len(fields) < 4:
            return False
        running.append(int(fields[3].partition("/")[0]))
    others = min(running) - 1  # this process runs, too
    return others + usable > (os.cpu_count() or 1)


def available_cores(root: Path = ROOT) -> int:
    """Count the cores that this process may use: by its affinity and its container's quota."""
    quotas = [math.floor(quota) for quota in cpu_quotas(root)]
    return max(1, min([cores_of_affinity(), *quotas]))


def cores_of_affinity() -> int:
    """Count the cores on which this process may run."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def describe() -> str:
    """Say which number of threads and which way of waiting are set."""
    chosen = [f"{name}={os.environ[name]}" for name in (NUMBER, *WAITING) if name in os.environ]
    return ", ".join(chosen) or "nothing is set"
