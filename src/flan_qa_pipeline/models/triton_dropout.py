"""Arguments of kernels with dropout; for GPUs with Triton."""

import torch


def draw_seed(near: torch.Tensor) -> torch.Tensor:
    """Draw a seed on a tensor's device, as a CUDA graph does again at every replay."""
    return torch.empty((), dtype=torch.int64, device=near.device).random_()


def drop_arguments(dropout: float) -> tuple[int, float]:
    """Return `least` and `scale` of the kernels.

    Args:
        dropout: the share of the elements to drop, at least 0 and less than 1.

    Returns:
        The bound below which an element's 31 random bits drop it, and the factor of the others.
    """
    return round(dropout * 2**31), 1 / (1 - dropout)
