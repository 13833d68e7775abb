"""Whether this process is one of several, asked without importing torch."""

import os

LAUNCHED_HERE = "flan_qa_pipeline"  # the launch's id, in the environment of its processes


def is_one_of_several() -> bool:
    """Return whether `torchrun`, or a run with `distributed.num_processes`, started this process.

    Both set `RANK` (torch.distributed, "Environment variable initialization").
    """
    return "RANK" in os.environ


def leads() -> bool:
    """Return whether this process is the only or the first one of its run."""
    return os.environ.get("RANK", "0") == "0"


def is_launched_here() -> bool:
    """Return whether a run with `distributed.num_processes` started this process."""
    return os.environ.get("TORCHELASTIC_RUN_ID") == LAUNCHED_HERE
