"""Forward and backward pass of a training step as one CUDA graph.

A step of FLAN-T5 with LoRA launches thousands of small kernels, which takes longer than a GPU
computes them. A graph is launched at once.

Captured is what torch calls the whole network:
https://docs.pytorch.org/docs/stable/notes/cuda.html#whole-network-capture
"""

import torch
from torch import nn


class GraphedPasses:
    """Forward and backward pass of a model, captured once for every shape of its batches.

    Gradients are added up in one place, to which `.grad` of the trained weights points. Graphs take
    turns in the memory of their activations, as much as the largest needs, and hold it until they
    are cleared; beside it the driver keeps a little for each. The trained weights must stay where
    they are, as optimizers leave them.
    """

    def __init__(self, model: nn.Module):
        self._model = model
        self._weights = [weight for weight in model.parameters() if weight.requires_grad]
        sizes = [weight.numel() for weight in self._weights]
        self._gradients = torch.zeros(sum(sizes), device=self._weights[0].device)
        self._parts = [
            part.view_as(weight)
            for part, weight in zip(self._gradients.split(sizes), self._weights, strict=True)
        ]
        self.clear()

    def clear(self) -> None:
        """Give the graphs' memory back; shapes are captured again when they come again."""
        self._captured: dict[
            tuple[torch.Size, ...],
            tuple[torch.cuda.CUDAGraph, dict[str, torch.Tensor], torch.Tensor],
        ] = {}
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Add the gradients of the loss of a batch, which the model takes as keywords; return it.

        `.grad` of all trained weights must be None, for no gradients yet, or what was set here.
        """
        if not self._captured:
            self._warm_up(batch)
        if self._weights[0].grad is None:
            self._gradients.zero_()
            for weight, part in zip(self._weights, self._parts, strict=True):
                weight.grad = part
        shapes = tuple(part.shape for part in batch.values())
        if shapes not in self._captured:
            self._captured[shapes] = self._capture(batch)
        graph, inputs, loss = self._captured[shapes]
        for name, part in batch.items():
            inputs[name].copy_(part)
        graph.replay()
        return loss.clone()

    def _capture(
        self, batch: dict[str, torch.Tensor]
    ) -> tuple[torch.cuda.CUDAGraph, dict[str, torch.Tensor], torch.Tensor]:
        """Record what a batch launches, without computing it; return where inputs and loss lie.

        Other threads may use the GPU meanwhile, as with Kedro's ThreadRunner.
        """
        inputs = {name: part.clone() for name, part in batch.items()}
        graph = torch.cuda.CUDAGraph()
        with (
            torch.cuda.stream(torch.cuda.current_stream()),  # put back also if capturing fails
            torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"),
        ):
            loss = self._model(**inputs).loss
            loss.backward()
        return graph, inputs, loss.detach()

    def _warm_up(self, batch: dict[str, torch.Tensor]) -> None:
        """Let libraries allocate what they need, which a capture must not; draw nothing."""
        few = {name: part[:2] if part.ndim else part for name, part in batch.items()}
        with torch.random.fork_rng([self._gradients.device]):
            torch.autograd.grad(self._model(**few).loss, self._weights)
