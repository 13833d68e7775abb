"""T5's gated gelu with its dropout: one kernel for each pass; for GPUs with Triton."""

from typing import Any

import torch
import triton
from torch.autograd.function import once_differentiable

from flan_qa_pipeline.models.gate_kernels import backward, forward
from flan_qa_pipeline.models.triton_dropout import draw_seed, drop_arguments

BLOCK = 1024  # elements of a program; fastest on an H200


def _launch(
    kernel: Any, seeds: torch.Tensor | None, dropout: float, *tensors: torch.Tensor
) -> None:
    gate, linear, *others = tensors
    kernel[(triton.cdiv(gate.numel(), BLOCK),)](
        gate, linear, gate if seeds is None else seeds, *others, gate.numel(),
        *drop_arguments(dropout), DROPS=seeds is not None, BLOCK=BLOCK,
    )  # fmt: skip


class _GatedGelu(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        gate: torch.Tensor,
        linear: torch.Tensor,
        seeds: torch.Tensor | None,
        dropout: float,
    ) -> torch.Tensor:
        out = torch.empty_like(linear)
        _launch(forward, seeds, dropout, gate, linear, out)
        ctx.dropout = dropout
        ctx.save_for_backward(gate, linear, seeds)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        gate, linear, seeds = ctx.saved_tensors
        grad_gate, grad_linear = torch.empty_like(gate), torch.empty_like(linear)
        with torch.cuda.device_of(grad):
            given = (gate, linear, grad.contiguous(), grad_gate, grad_linear)
            _launch(backward, seeds, ctx.dropout, *given)
        return grad_gate, grad_linear, None, None


def gated_gelu(gate: torch.Tensor, linear: torch.Tensor, dropout: float = 0.0) -> torch.Tensor:
    """Multiply a gate's gelu by a tensor of its shape, and drop some of the products.

    The backward pass computes the gelu and the dropout again.

    Args:
        gate: The gate's input, of any shape.
        linear: The tensor that the gate multiplies, of the same shape and dtype.
        dropout: The share of the products to drop, at least 0 and less than 1. The others are
            divided by 1 - `dropout`.

    Returns:
        The products, in the inputs' dtype. The kernel computes in float32.
    """
    with torch.cuda.device_of(gate):  # Triton launches on the current device
        seeds = draw_seed(gate) if dropout else None
        gate, linear = gate.contiguous(), linear.contiguous()
        products: torch.Tensor = _GatedGelu.apply(gate, linear, seeds, dropout)
        return products
