"""Forward and backward pass of a training step as one CUDA graph.

A step of FLAN-T5 with LoRA launches thousands of small kernels, which takes longer than a GPU
computes them. A graph launches them all at once.

torch calls this whole-network capture:
https://docs.pytorch.org/docs/stable/notes/cuda.html#whole-network-capture
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch
from accelerate.utils.memory import clear_device_cache
from peft import PeftModel
from torch import nn

from flan_qa_pipeline.config.parameters import TrainingParameters
from flan_qa_pipeline.errors import InputError
from flan_qa_pipeline.models.flat_gradients import FlatGradients
from flan_qa_pipeline.training.arguments import uses_dora

logger = logging.getLogger(__name__)

Captured = tuple[torch.cuda.CUDAGraph, dict[str, torch.Tensor], torch.Tensor]


def captures_graphs(model: PeftModel, training: TrainingParameters, fsdp: bool) -> bool:
    """Return whether steps are captured as CUDA graphs, and log why or why not.

    `training.cuda_graphs` decides; with `auto`, they are captured wherever they can be.

    Raises:
        InputError: `training.cuda_graphs` is true where steps cannot be captured.
    """
    obstacles = graph_obstacles(
        training,
        use_dora=uses_dora(model),
        keeps_activations=model.get_base_model().keeps_activations,
        fsdp=fsdp,
    )
    if training.cuda_graphs is True:
        require_capturable(obstacles)
    if training.cuda_graphs is False:
        obstacles = ["it is false"]
    if torch.cuda.is_available():
        outcome = f"not captured: {'; '.join(obstacles)}" if obstacles else "captured"
        logger.info("training.cuda_graphs: steps are %s.", outcome)
    return not obstacles


def graph_obstacles(
    training: TrainingParameters, *, use_dora: bool, keeps_activations: bool, fsdp: bool
) -> list[str]:
    """List what prevents steps from being captured as CUDA graphs."""
    obstacles = {
        "there is no GPU": not torch.cuda.is_available(),
        "distributed.fsdp spreads the weights": fsdp,
        "training.gradient_checkpointing is on": training.gradient_checkpointing,
        "lora.use_dora is on": use_dora,
        "activations are computed again (see model.dequantize)": not keeps_activations,
    }
    return [obstacle for obstacle, stands in obstacles.items() if stands]


def require_capturable(obstacles: list[str]) -> None:
    """Raise InputError if anything prevents CUDA graphs."""
    if obstacles:
        raise InputError(
            f"training.cuda_graphs: steps cannot be captured: {'; '.join(obstacles)}; set it to "
            "auto or false."
        )


@cache
def _capture_stream(device: torch.device) -> torch.cuda.Stream:
    """Return the one stream of all captures: cuBLAS keeps memory for each stream it has met."""
    return torch.cuda.Stream(device)


class GraphedPasses:
    """Captures a model's forward and backward pass once for each shape of its batches.

    The graphs share one pool of memory for their activations, as large as the largest graph needs,
    and hold it until `clear`; the driver keeps a little more for each graph. The trained weights
    must keep their addresses, as optimizers let them.

    Args:
        model: takes a batch as keyword arguments and returns an output with a `loss`.
        gradients: the gradients of the model.
        scale: a factor of the loss.
    """

    def __init__(self, model: nn.Module, gradients: FlatGradients, scale: int = 1):
        self._model, self._gradients, self._scale = model, gradients, scale
        self._stream = _capture_stream(gradients.whole.device)
        self.clear()

    def clear(self) -> None:
        """Free the memory of all graphs; the next batch of each shape is captured again."""
        self._captured: dict[tuple[torch.Size, ...], Captured] = {}

    def __call__(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Add the gradients of a batch's loss to `.grad`, and return the loss, a scalar.

        `.grad` of all trained weights must be None, for no gradients yet, or as set here before.
        """
        if not self._captured:
            self._warm_up(batch)
        self._gradients.attach()
        shapes = tuple(part.shape for part in batch.values())
        if shapes not in self._captured:
            self._captured[shapes] = self._capture_or_free(batch)
        graph, inputs, loss = self._captured[shapes]
        for name, part in batch.items():
            inputs[name].copy_(part)
        graph.replay()
        return loss.clone()

    def _capture_or_free(self, batch: dict[str, torch.Tensor]) -> Captured:
        """Capture a batch; free torch's cached memory and try again if the memory runs out.

        torch frees none of it during a capture.
        """
        try:
            return self._capture(batch)
        except torch.OutOfMemoryError:
            logger.info("A graph does not fit in memory beside what torch caches; freeing that.")
        clear_device_cache()
        return self._capture(batch)

    def _capture(self, batch: dict[str, torch.Tensor]) -> Captured:
        """Record what a batch launches, without computing it.

        The CPU records while the GPU computes earlier steps; `torch.cuda.graph` would wait for
        them. Other threads may use the GPU during the capture, as Kedro's ThreadRunner does.

        Returns:
            The graph, the tensors that it reads its inputs from, and the one it writes the loss to.
        """
        if not self._captured:
            self._pool = torch.cuda.graph_pool_handle()  # torch frees a pool with its last graph
        inputs = {name: part.clone() for name, part in batch.items()}
        graph = torch.cuda.CUDAGraph()
        with self._on_capture_stream():
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            try:
                loss = self._model(**inputs).loss * self._scale
                loss.backward()
            finally:
                graph.capture_end()
        return graph, inputs, loss.detach()

    def _warm_up(self, batch: dict[str, torch.Tensor]) -> None:
        """Let libraries allocate what a capture must not, and leave the random state as it is."""
        few = {name: part[:2] if part.ndim else part for name, part in batch.items()}
        with torch.random.fork_rng([self._gradients.whole.device]), self._on_capture_stream():
            torch.autograd.grad(self._model(**few).loss, self._gradients.weights)

    @contextmanager
    def _on_capture_stream(self) -> Iterator[None]:
        """Launch on the captures' stream. It waits for earlier work, and later work waits for it.

        A capture must wait for earlier replays, since torch resets the random state of all graphs
        when a capture begins. Warm-ups use the stream, too, because autograd warns if it first met
        a weight on another one.
        """
        current = torch.cuda.current_stream(self._stream.device)
        self._stream.wait_stream(current)
        try:
            with torch.cuda.stream(self._stream):
                yield
        finally:
            current.wait_stream(self._stream)
