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

    def average(self) -> None:
        """Average the gradients over all processes, which must call this together."""
        if (processes := PartialState().num_processes) > 1:
            torch.distributed.all_reduce(self.whole)  # a sum, since gloo computes no mean
            self.whole /= processes
