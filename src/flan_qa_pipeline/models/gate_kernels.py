"""Triton's kernels of T5's gated gelu and its dropout: a forward and a backward pass.

Shazeer 2020, "GLU Variants Improve Transformer", arXiv:2002.05202; the gelu is approximated by
tanh, as in T5 v1.1. A program computes BLOCK of `size` numbers in float32. `least` is 2**31 times
the share of products to drop; `scale` multiplies those that are kept.
"""

import triton
import triton.language as tl

from flan_qa_pipeline.models.dropout_kernel import kept

SLOPE = tl.constexpr(0.7978845608028654)  # sqrt(2 / pi)
CUBIC = tl.constexpr(0.044715)


@triton.jit
def _own_part(size, BLOCK: tl.constexpr):
    """Find a program's numbers: where they begin, their places from there, which of them exist."""
    first = tl.program_id(0).to(tl.int64) * BLOCK
    places = tl.arange(0, BLOCK)
    return first, places, places < size - first


@triton.jit
def _share(gate):
    """Compute the share of a gate that its gelu lets through: (1 + tanh(u)) / 2 = sigmoid(2 u)."""
    return 1.0 / (1.0 + tl.exp(-2.0 * SLOPE * (gate + CUBIC * gate * gate * gate)))


@triton.jit
def _dropped(numbers, seeds, first, places, least, scale):
    stays = kept(tl.load(seeds), 0, first + places, least)
    return tl.where(stays, numbers * scale, 0.0)


@triton.jit(do_not_specialize=["least"])
def forward(
    gates, linears, seeds, out, size, least, scale, DROPS: tl.constexpr, BLOCK: tl.constexpr
):
    first, places, inside = _own_part(size, BLOCK)
    gate = tl.load(gates + first + places, mask=inside, other=0.0).to(tl.float32)
    linear = tl.load(linears + first + places, mask=inside, other=0.0).to(tl.float32)
    gated = gate * _share(gate) * linear
    if DROPS:
        gated = _dropped(gated, seeds, first, places, least, scale)
    tl.store(out + first + places, gated.to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["least"])
def backward(
    gates, linears, seeds, grads, of_gates, of_linears, size, least, scale,
    DROPS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    first, places, inside = _own_part(size, BLOCK)
    gate = tl.load(gates + first + places, mask=inside, other=0.0).to(tl.float32)
    linear = tl.load(linears + first + places, mask=inside, other=0.0).to(tl.float32)
    grad = tl.load(grads + first + places, mask=inside, other=0.0).to(tl.float32)
    if DROPS:
        grad = _dropped(grad, seeds, first, places, least, scale)
    share = _share(gate)
    slope = 2.0 * SLOPE * (1.0 + 3.0 * CUBIC * gate * gate)
    of_gate = grad * linear * share * (1.0 + gate * (1.0 - share) * slope)
    of_linear = grad * gate * share
    tl.store(of_gates + first + places, of_gate.to(of_gates.dtype.element_ty), mask=inside)
    tl.store(of_linears + first + places, of_linear.to(of_linears.dtype.element_ty), mask=inside)
