"""Triton's kernels of T5's gated gelu with its dropout: a forward and a backward pass.

Shazeer 2020, "GLU Variants Improve Transformer", arXiv:2002.05202; tanh approximates the gelu, as
in T5 v1.1. A program computes BLOCK of `size` elements in float32. It drops an element whose 31
random bits are below `least`, and multiplies the others by `scale`.

`size` stays specialized: Triton loads 16 bytes at once only if it knows that 16 divides it.
"""

import triton
import triton.language as tl

from flan_qa_pipeline.models.dropout_kernel import kept

SQRT_2_OVER_PI = tl.constexpr(0.7978845608028654)
CUBIC = tl.constexpr(0.044715)


@triton.jit
def _own_part(size, BLOCK: tl.constexpr):
    """Find a program's elements: the first, their places from there, and which of them exist."""
    first = tl.program_id(0).to(tl.int64) * BLOCK
    places = tl.arange(0, BLOCK)
    return first, places, places < size - first


@triton.jit
def _passed_share(gate):
    """Compute the share of a gate that its gelu passes: (1 + tanh(u)) / 2 = sigmoid(2 u)."""
    return 1.0 / (1.0 + tl.exp(-2.0 * SQRT_2_OVER_PI * (gate + CUBIC * gate * gate * gate)))


@triton.jit
def _dropped(elements, seeds, first, places, least, scale):
    stays = kept(tl.load(seeds), 0, first + places, least)
    return tl.where(stays, elements * scale, 0.0)


@triton.jit(do_not_specialize=["least"])
def forward(
    gates, linears, seeds, out, size, least, scale, DROPS: tl.constexpr, BLOCK: tl.constexpr
):
    first, places, inside = _own_part(size, BLOCK)
    gate = tl.load(gates + first + places, mask=inside, other=0.0).to(tl.float32)
    linear = tl.load(linears + first + places, mask=inside, other=0.0).to(tl.float32)
    product = gate * _passed_share(gate) * linear
    if DROPS:
        product = _dropped(product, seeds, first, places, least, scale)
    tl.store(out + first + places, product.to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["least"])
def backward(
    gates, linears, seeds, grads, grad_gates, grad_linears, size, least, scale,
    DROPS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    first, places, inside = _own_part(size, BLOCK)
    gate = tl.load(gates + first + places, mask=inside, other=0.0).to(tl.float32)
    linear = tl.load(linears + first + places, mask=inside, other=0.0).to(tl.float32)
    grad = tl.load(grads + first + places, mask=inside, other=0.0).to(tl.float32)
    if DROPS:
        grad = _dropped(grad, seeds, first, places, least, scale)
    share = _passed_share(gate)
    slope = 2.0 * SQRT_2_OVER_PI * (1.0 + 3.0 * CUBIC * gate * gate)
    grad_gate = grad * linear * share * (1.0 + gate * (1.0 - share) * slope)
    grad_linear = grad * gate * share
    tl.store(grad_gates + first + places, grad_gate.to(grad_gates.dtype.element_ty), mask=inside)
    tl.store(
        grad_linears + first + places, grad_linear.to(grad_linears.dtype.element_ty), mask=inside
    )
