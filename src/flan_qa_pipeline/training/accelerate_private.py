"""The private part of accelerate that training relies on, under a public name.

`tests/training/test_accelerate_private.py` checks it against the installed version.
"""

from torch import nn


def leave_unwrapped(model: nn.Module) -> None:
    """Keep the Trainer's accelerator from wrapping a model in DistributedDataParallel.

    FSDP has already spread the weights of a sharded model and exchanges their gradients.
    """
    model._is_accelerate_prepared = True  # type: ignore[assignment]
