"""T5's attention and its dropout by kernels that never store the scores; for GPUs with Triton."""

from typing import Any

import torch
import triton
from torch.autograd.function import once_differentiable

from flan_qa_pipeline.models.attention_kernels import backward_keys, backward_queries, forward
from flan_qa_pipeline.models.triton_dropout import draw_seed, drop_arguments

SHORT = 16  # so many queries or fewer are one tile
SHORT_TILE = (SHORT, 64)
# Queries and keys in a tile, as measured fastest on an H200 at 144 to 320 tokens
TILES = {"answers": (64, 64), "states": (64, 32), "queries": (64, 32), "keys": (32, 64)}
WIDE = 8  # numbers of two bytes that a thread loads at once
Tensors = tuple[torch.Tensor, ...]


def _readable(states: torch.Tensor) -> torch.Tensor:
    """Copy a tensor unless numbers of its last dimension are neighbours in memory."""
    return states if states.stride(-1) == 1 else states.contiguous()


def _like(heads: torch.Tensor) -> torch.Tensor:
    """Allocate (batch, heads, n, d_kv) with heads beside d_kv in memory, as projections have it."""
    batch, count, n, d_kv = heads.shape
    return heads.new_empty(batch, n, count, d_kv).transpose(1, 2)


class _Launches:
    """Launches the kernels of one attention: the arguments besides tensors, tiles and grids.

    Args:
        tensors: q, k, v, the bias in the shape of the scores, and the mask, or the bias again.
        masks: Whether there is a mask.
        dropout: The share of the weights to drop.
    """

    def __init__(self, tensors: Tensors, masks: bool, dropout: float):
        q, k, _, _, mask = tensors
        (batch, heads, n, d_kv), m = q.shape, k.shape[2]
        of_mask = (mask.stride(0) if len(mask) > 1 else 0, mask.stride(2)) if masks else (0, 0)
        strides = tuple(stride for part in tensors[:4] for stride in part.stride()[:3])
        self._strides = (*strides, *of_mask)
        self._numbers = (heads, n, m, *drop_arguments(dropout))
        self._options: dict[str, Any] = {
            "DROPS": dropout > 0,
            "MASK": ("of keys" if mask.shape[2] == 1 else "of pairs") if masks else "none",
            "ALIGNED": not any(number % WIDE for number in (m, *tensors[3].stride()[:3], *of_mask)),
            "D": d_kv,
            "WIDTH": max(SHORT, triton.next_power_of_2(d_kv)),
        }
        self._heads, self._queries, self._keys = batch * heads, n, m

    def _launch(self, kernel: Any, tile: str, *arguments: Any, **options: Any) -> None:
        """Launch a program for each block of keys, or else of queries, of each head.

        The grid has one dimension: CUDA allows no more than 65,535 heads in a second one.
        """
        block_n, block_m = SHORT_TILE if self._queries <= SHORT else TILES[tile]
        length, block = (self._keys, block_m) if tile == "keys" else (self._queries, block_n)
        kernel[(triton.cdiv(length, block) * self._heads,)](
            *arguments, *self._numbers, **self._options, **options,
            BLOCK_N=block_n, BLOCK_M=block_m,
        )  # fmt: skip

    def forward(
        self, tensors: Tensors, seeds: torch.Tensor | None, log_sums: torch.Tensor | None
    ) -> torch.Tensor:
        """Attend; with `log_sums`, store the base-2 log-sum-exp of each row's scores there."""
        out = _like(tensors[0])
        given = (out if seeds is None else seeds, out, out if log_sums is None else log_sums)
        tile, stages = ("answers", 2) if log_sums is None else ("states", 1)
        self._launch(
            forward, tile, *tensors, *given, *self._strides, *out.stride()[:3],
            SAVES=log_sums is not None, num_stages=stages,
        )  # fmt: skip
        return out

    def backward(
        self,
        tensors: Tensors,
        seeds: torch.Tensor | None,
        log_sums: torch.Tensor,
        out: torch.Tensor,
        grad: torch.Tensor,
    ) -> Tensors:
        """Return the gradients of q, k and v."""
        q, k, v = tensors[:3]
        grad_q, grad_k, grad_v, delta = _like(q), _like(k), _like(v), torch.empty_like(log_sums)
        seeds = log_sums if seeds is None else seeds
        self._launch(
            backward_queries, "queries", *tensors, seeds, out, log_sums, grad, delta, grad_q,
            *self._strides, *out.stride()[:3], *grad.stride()[:3], num_stages=1,
        )  # fmt: skip
        self._launch(
            backward_keys, "keys", *tensors, seeds, log_sums, grad, delta, grad_k, grad_v,
            *self._strides, *grad.stride()[:3], *grad_k.stride()[:3], num_stages=1,
        )  # fmt: skip
        return grad_q, grad_k, grad_v


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        bias: torch.Tensor,
        mask: torch.Tensor,
        launches: _Launches,
        seeds: torch.Tensor | None,
    ) -> torch.Tensor:
        log_sums = q.new_empty(q.shape[:3].numel(), dtype=torch.float32)
        out = launches.forward((q, k, v, bias, mask), seeds, log_sums)
        ctx.launches = launches
        ctx.save_for_backward(q, k, v, bias, mask, seeds, log_sums, out)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        *tensors, seeds, log_sums, out = ctx.saved_tensors
        with torch.cuda.device_of(grad):
            of_states = ctx.launches.backward(tuple(tensors), seeds, log_sums, out, _readable(grad))
        return *of_states, None, None, None, None


def attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    bias: torch.Tensor,
    mask: torch.Tensor | None = None,
    dropout: float = 0.0,
) -> torch.Tensor:
    """Attend from queries to keys; T5 does not scale its scores.

    Args:
        q: Queries (batch, heads, n, d_kv).
        k: Keys (batch, heads, m, d_kv).
        v: Values, as the keys.
        bias: Added to the scores; broadcast to (batch, heads, n, m). It gets no gradient.
        mask: Added likewise, of shape (batch or 1, 1, n or 1, m); None for no mask.
        dropout: The share of the attention weights to drop.

    Returns:
        States of the queries' shape; in memory, heads lie beside d_kv. A row whose keys are all
        masked by float32's or bfloat16's lowest number yields zeros.

    Raises:
        ValueError: The mask has another shape.
    """
    (batch, heads, n, _), m = q.shape, k.shape[2]
    if mask is not None and (
        mask.shape[0] not in (1, batch)
        or mask.shape[1] != 1
        or mask.shape[2] not in (1, n)
        or mask.shape[3] != m
    ):
        raise ValueError(f"The mask has the shape {tuple(mask.shape)}; the scores {batch, 1, n, m}")
    bias = bias.expand(batch, heads, n, m)
    given = (q, k, v, bias, bias if mask is None else mask)
    tensors = tuple(_readable(part) for part in given)
    launches = _Launches(tensors, mask is not None, dropout)
    with torch.cuda.device_of(q):  # Triton launches on the current device
        seeds = draw_seed(q) if dropout else None
        if torch.is_grad_enabled() and any(part.requires_grad for part in (q, k, v)):
            attended: torch.Tensor = _Attention.apply(*tensors, launches, seeds)
            return attended
        return launches.forward(tensors, seeds, None)
