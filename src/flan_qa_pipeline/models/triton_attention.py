"""T5's attention and its dropout by kernels that keep no scores; for GPUs with Triton."""

from typing import Any

import torch
import triton

from flan_qa_pipeline.models.attention_kernels import backward_keys, backward_queries, forward

SHORT, LONG = 16, 64  # queries that a program reads at a time
KEYS = 64  # keys that it reads at a time


def _seed(near: torch.Tensor) -> torch.Tensor:
    """Draw a seed on a tensor's device, as a CUDA graph does again at every replay."""
    return torch.empty((), dtype=torch.int64, device=near.device).random_()


def _readable(states: torch.Tensor) -> torch.Tensor:
    """Copy a tensor unless numbers of its last dimension are neighbours in memory."""
    return states if states.stride(-1) == 1 else states.contiguous()


def _like(heads: torch.Tensor) -> torch.Tensor:
    """Allocate (batch, heads, n, d_kv) with heads beside d_kv in memory, as projections have it."""
    batch, count, n, d_kv = heads.shape
    return heads.new_empty(batch, n, count, d_kv).transpose(1, 2)


class _Call:
    """The arguments that all three kernels share, in their order."""

    def __init__(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        bias: torch.Tensor,
        mask: torch.Tensor | None,
        share: float,
    ):
        (batch, heads, n, d_kv), m = q.shape, k.shape[2]
        q, k, v = _readable(q), _readable(k), _readable(v)
        bias = _readable(bias.expand(batch, heads, n, m))
        of_mask, kind = (0, 0), "none"
        if mask is None:
            mask = bias
        else:
            mask = _readable(mask)
            of_mask = (mask.stride(0) if len(mask) > 1 else 0, mask.stride(2))
            kind = "of keys" if mask.shape[2] == 1 else "of pairs"
        of_bias = bias.stride()[:3]
        self.tensors = (q, k, v, bias, mask)
        self.strides = (*q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *of_bias, *of_mask)
        self.numbers = (heads, n, m, round(share * 2**31), 1 / (1 - share))
        self.heads = batch * heads
        self.options = {
            "DROPS": share > 0,
            "MASK": kind,
            "ALIGNED": all(stride % 8 == 0 for stride in (*of_bias, *of_mask)),
            "D": d_kv,
            "WIDTH": max(SHORT, triton.next_power_of_2(d_kv)),
            "BLOCK_N": SHORT if n <= SHORT else LONG,
            "BLOCK_M": KEYS,
        }

    def attend(self, seeds: torch.Tensor | None, sums: torch.Tensor | None) -> torch.Tensor:
        """Launch the forward pass; with `sums`, keep the scores' log-sums there."""
        q = self.tensors[0]
        out = _like(q)
        forward[(triton.cdiv(q.shape[2], self.options["BLOCK_N"]) * self.heads,)](
            *self.tensors,
            out if seeds is None else seeds,
            out,
            out if sums is None else sums,
            *self.strides,
            *out.stride()[:3],
            *self.numbers,
            **self.options,
            SAVES=sums is not None,
            num_stages=2 if sums is None else 1,
        )
        return out


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        bias: torch.Tensor,
        mask: torch.Tensor | None,
        share: float,
    ) -> torch.Tensor:
        call = _Call(q, k, v, bias, mask, share)
        sums = q.new_empty(call.heads * q.shape[2], dtype=torch.float32)
        seeds = _seed(q) if share else None
        out = call.attend(seeds, sums)
        ctx.share = share
        ctx.save_for_backward(q, k, v, bias, mask, seeds, sums, out)
        return out

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        q, k, v, bias, mask, seeds, sums, out = ctx.saved_tensors
        call = _Call(q, k, v, bias, mask, ctx.share)
        grad = _readable(grad)
        grad_q, grad_k, grad_v, shared = _like(q), _like(k), _like(v), torch.empty_like(sums)
        seeds = sums if seeds is None else seeds
        backward_queries[(triton.cdiv(q.shape[2], call.options["BLOCK_N"]) * call.heads,)](
            *call.tensors,
            seeds,
            out,
            sums,
            grad,
            shared,
            grad_q,
            *call.strides,
            *out.stride()[:3],
            *grad.stride()[:3],
            *call.numbers,
            **call.options,
            num_stages=1,
        )
        backward_keys[(triton.cdiv(k.shape[2], call.options["BLOCK_M"]) * call.heads,)](
            *call.tensors,
            seeds,
            sums,
            grad,
            shared,
            grad_k,
            grad_v,
            *call.strides,
            *grad.stride()[:3],
            *grad_k.stride()[:3],
            *call.numbers,
            **call.options,
            num_stages=1,
        )
        return grad_q, grad_k, grad_v, None, None, None


def attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    bias: torch.Tensor,
    mask: torch.Tensor | None = None,
    share: float = 0.0,
) -> torch.Tensor:
    """Attend from queries to keys; T5 does not scale its scores.

    Args:
        q: Queries (batch, heads, n, d_kv).
        k: Keys (batch, heads, m, d_kv).
        v: Values, as the keys.
        bias: Added to the scores; broadcast to (batch, heads, n, m).
        mask: Added likewise, of shape (batch or 1, 1, n or 1, m); None for no mask.
        share: The share of the attention weights to drop.

    Returns:
        States of the queries' shape; in memory, heads lie beside d_kv.
    """
    if torch.is_grad_enabled() and any(part.requires_grad for part in (q, k, v)):
        attended: torch.Tensor = _Attention.apply(q, k, v, bias, mask, share)
        return attended
    return _Call(q, k, v, bias, mask, share).attend(_seed(q) if share else None, None)
