"""All gradients of a model in one tensor, which processes average in one exchange."""

import torch
from accelerate import PartialState
from torch import nn


class FlatGradients:
    """One tensor that `.grad` of each trained weight points into.

    A backward pass adds to it, as long as nobody replaces `.grad`. Processes average it with one
    all-reduce after the last batch of a step, so a step launches nothing for each weight, as the
    hooks of torch's DistributedDataParallel do, and its passes can be captured as a CUDA graph.

    Args:
        model: has at least one trained weight, all of one dtype and on one device.
    """

    def __init__(self, model: nn.Module):
        self.weights = [weight for weight in model.parameters() if weight.requires_grad]
        sizes = [weight.numel() for weight in self.weights]
        first = self.weights[0]
        self.whole = torch.zeros(sum(sizes), dtype=first.dtype, device=first.device)
        self._parts = [
            part.view_as(weight)
            for part, weight in zip(self.whole.split(sizes), self.weights, strict=True)
        ]

    def attach(self) -> None:
        """Set `.grad` of all trained weights to zeros in the tensor if it is None."""
        if self.weights[0].grad is None:
            self.whole.zero_()
            for weight, part in zip(self.weights, self._parts, strict=True):
                weight.grad = part

    def detach(self) -> None:
        """Set `.grad` of all trained weights to None, as `nn.Module.zero_grad` does."""
        for weight in self.weights:
            weight.grad = None

    def average(self, dtype: torch.dtype | None = None) -> None:
        """Average the gradients over all processes, which must call this together.

        Args:
            dtype: of the numbers that the processes exchange; by default the gradients' own.
        """
        if (processes := PartialState().num_processes) > 1:
            sent = self.whole.to(dtype or self.whole.dtype)
            torch.distributed.all_reduce(sent)  # a sum, since gloo computes no mean
            sent /= processes
            self.whole.copy_(sent)

    def clip(self, largest: float) -> torch.Tensor:
        """Scale the gradients to a norm of at most `largest`; return the norm before."""
        norm = self.whole.norm()
        self.whole.mul_((largest / (norm + 1e-6)).clamp(max=1.0))
        return norm
