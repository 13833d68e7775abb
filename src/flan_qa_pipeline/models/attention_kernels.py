"""Triton's kernels of T5's attention with dropout: a forward pass, and two of a backward pass.

Position bias and mask are added inside, where the scores stay, as in FlashAttention: Dao 2023,
"FlashAttention-2: Faster Attention with Better Parallelism and Work Partitioning",
arXiv:2307.08691. The backward pass computes scores and dropout again.

A program reads BLOCK_N queries of one head, or BLOCK_M of its keys. Strides are named after a
tensor and a dimension: batch b, heads h, queries n or keys m. A weight is dropped if its 31 random
bits are below `least`; `scale` multiplies the others. With ALIGNED, m and all strides of bias and
mask are multiples of 8, so that a thread loads 16 bytes at once.
"""

import triton
import triton.language as tl

from flan_qa_pipeline.models.dropout_kernel import kept

LOG2_E = tl.constexpr(1.4426950408889634)
LOWEST = tl.constexpr(-1.0e30)  # bound of a row's maximum; keeps masked rows finite
# Triton must not compile a variant for particular values of these arguments.
VARYING = ["n", "m", "bias_b", "bias_n", "mask_b", "mask_n", "least"]


@triton.jit
def _rows(at, first, stride, n, BLOCK: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr):
    """Load rows of d_kv numbers, zeros after the last."""
    rows, columns = first + tl.arange(0, BLOCK), tl.arange(0, WIDTH)
    place = at + rows[:, None] * stride + columns[None, :]
    return tl.load(place, mask=(rows[:, None] < n) & (columns[None, :] < D), other=0.0)


@triton.jit
def _store_rows(
    at, rows, first, stride, n, BLOCK: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr
):
    places, columns = first + tl.arange(0, BLOCK), tl.arange(0, WIDTH)
    place = at + places[:, None] * stride + columns[None, :]
    inside = (places[:, None] < n) & (columns[None, :] < D)
    tl.store(place, rows.to(at.dtype.element_ty), mask=inside)


@triton.jit
def _multiple(number, ALIGNED: tl.constexpr):
    """Let the compiler know that a number is a multiple of 8."""
    return number // 8 * 8 if ALIGNED else number


@triton.jit
def _added(bias, mask, b, h, bias_b, bias_h, mask_b, ALIGNED: tl.constexpr):
    """Find a head's bias and mask."""
    bias += b * _multiple(bias_b, ALIGNED) + h * _multiple(bias_h, ALIGNED)
    return bias, mask + b * _multiple(mask_b, ALIGNED)


@triton.jit
def _scores(
    q,
    k,
    bias,
    mask,
    q_first,
    k_first,
    bias_n,
    mask_n,
    n,
    m,
    MASK: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """Compute a tile of scores, -inf outside."""
    m, bias_n, mask_n = (
        _multiple(m, ALIGNED),
        _multiple(bias_n, ALIGNED),
        _multiple(mask_n, ALIGNED),
    )
    rows, columns = q_first + tl.arange(0, BLOCK_N), k_first + tl.arange(0, BLOCK_M)
    inside = (rows[:, None] < n) & (columns[None, :] < m)
    place = bias + rows[:, None] * bias_n + columns[None, :]
    scores = tl.dot(q, tl.trans(k), input_precision="ieee")
    scores += tl.load(place, mask=inside, other=float("-inf")).to(tl.float32)
    if MASK == "of keys":
        scores += tl.load(mask + columns, mask=columns < m, other=0.0).to(tl.float32)[None, :]
    elif MASK == "of pairs":
        place = mask + rows[:, None] * mask_n + columns[None, :]
        scores += tl.load(place, mask=inside, other=0.0).to(tl.float32)
    return scores


@triton.jit
def _kept(seed, head, q_first, k_first, m, least, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr):
    """Decide which weights of a tile survive dropout."""
    rows, columns = q_first + tl.arange(0, BLOCK_N), k_first + tl.arange(0, BLOCK_M)
    return kept(seed, head, rows[:, None] * m + columns[None, :], least)


@triton.jit
def _part(length, heads, BLOCK: tl.constexpr):
    """Find a program's part: its first row, its head of all, its place in the batch, its head."""
    blocks = tl.cdiv(length, BLOCK)
    first, head = tl.program_id(0) % blocks * BLOCK, tl.program_id(0) // blocks
    return first, head, (head // heads).to(tl.int64), (head % heads).to(tl.int64)


@triton.jit
def _score_gradients(
    scores,
    values,
    given,
    log_sum,
    of_row,
    seed,
    head,
    q_first,
    k_first,
    m,
    least,
    scale,
    DROPS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """Compute the weights of a tile that are left by dropout, and the gradients of its scores."""
    weights = tl.exp2(scores * LOG2_E - log_sum[:, None])
    of_weights = tl.dot(given, tl.trans(values), input_precision="ieee")
    left = weights
    if DROPS:
        stays = _kept(seed, head, q_first, k_first, m, least, BLOCK_N, BLOCK_M)
        of_weights = tl.where(stays, of_weights * scale, 0.0)
        left = tl.where(stays, weights * scale, 0.0)
    return left, weights * (of_weights - of_row[:, None])


@triton.jit(do_not_specialize=VARYING)
def forward(
    q,
    k,
    v,
    bias,
    mask,
    seeds,
    out,
    log_sums,
    q_b,
    q_h,
    q_n,
    k_b,
    k_h,
    k_m,
    v_b,
    v_h,
    v_m,
    bias_b,
    bias_h,
    bias_n,
    mask_b,
    mask_n,
    out_b,
    out_h,
    out_n,
    heads,
    n,
    m,
    least,
    scale,
    DROPS: tl.constexpr,
    SAVES: tl.constexpr,
    MASK: tl.constexpr,
    ALIGNED: tl.constexpr,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    q_first, head, b, h = _part(n, heads, BLOCK_N)
    k += b * k_b + h * k_h
    v += b * v_b + h * v_h
    bias, mask = _added(bias, mask, b, h, bias_b, bias_h, mask_b, ALIGNED)
    queries = _rows(q + b * q_b + h * q_h, q_first, q_n, n, BLOCK_N, D, WIDTH)
    seed = tl.load(seeds) if DROPS else 0
    highest = tl.full([BLOCK_N], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_N], tl.float32)
    mixed = tl.zeros([BLOCK_N, WIDTH], tl.float32)
    for k_first in range(0, m, BLOCK_M):
        keys = _rows(k, k_first, k_m, m, BLOCK_M, D, WIDTH)
        values = _rows(v, k_first, v_m, m, BLOCK_M, D, WIDTH)
        scores = _scores(
            queries,
            keys,
            bias,
            mask,
            q_first,
            k_first,
            bias_n,
            mask_n,
            n,
            m,
            MASK,
            ALIGNED,
            BLOCK_N,
            BLOCK_M,
        )
        higher = tl.maximum(tl.maximum(highest, tl.max(scores, 1) * LOG2_E), LOWEST)
        weights, shrink = tl.exp2(scores * LOG2_E - higher[:, None]), tl.exp2(highest - higher)
        total = total * shrink + tl.sum(weights, 1)
        if DROPS:
            stays = _kept(seed, head, q_first, k_first, m, least, BLOCK_N, BLOCK_M)
            weights = tl.where(stays, weights, 0.0)
        mixed *= shrink[:, None]
        mixed = tl.dot(weights.to(values.dtype), values, mixed, input_precision="ieee")
        highest = higher
    total = tl.where(total > 0, total, 1.0)
    mixed = mixed * (scale / total)[:, None]
    _store_rows(out + b * out_b + h * out_h, mixed, q_first, out_n, n, BLOCK_N, D, WIDTH)
    if SAVES:
        rows = q_first + tl.arange(0, BLOCK_N)
        tl.store(log_sums + head * n + rows, highest + tl.log2(total), mask=rows < n)


@triton.jit(do_not_specialize=VARYING)
def backward_queries(
    q,
    k,
    v,
    bias,
    mask,
    seeds,
    out,
    log_sums,
    grad,
    delta,
    grad_q,
    q_b,
    q_h,
    q_n,
    k_b,
    k_h,
    k_m,
    v_b,
    v_h,
    v_m,
    bias_b,
    bias_h,
    bias_n,
    mask_b,
    mask_n,
    out_b,
    out_h,
    out_n,
    grad_b,
    grad_h,
    grad_n,
    heads,
    n,
    m,
    least,
    scale,
    DROPS: tl.constexpr,
    MASK: tl.constexpr,
    ALIGNED: tl.constexpr,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """Compute the queries' gradients and, for each query, delta: its output times its gradient."""
    q_first, head, b, h = _part(n, heads, BLOCK_N)
    k += b * k_b + h * k_h
    v += b * v_b + h * v_h
    bias, mask = _added(bias, mask, b, h, bias_b, bias_h, mask_b, ALIGNED)
    queries = _rows(q + b * q_b + h * q_h, q_first, q_n, n, BLOCK_N, D, WIDTH)
    given = _rows(grad + b * grad_b + h * grad_h, q_first, grad_n, n, BLOCK_N, D, WIDTH)
    states = _rows(out + b * out_b + h * out_h, q_first, out_n, n, BLOCK_N, D, WIDTH)
    rows = q_first + tl.arange(0, BLOCK_N)
    of_row = tl.sum(given.to(tl.float32) * states.to(tl.float32), 1)
    tl.store(delta + head * n + rows, of_row, mask=rows < n)
    log_sum = tl.load(log_sums + head * n + rows, mask=rows < n, other=0.0)
    seed = tl.load(seeds) if DROPS else 0
    of_queries = tl.zeros([BLOCK_N, WIDTH], tl.float32)
    for k_first in range(0, m, BLOCK_M):
        keys = _rows(k, k_first, k_m, m, BLOCK_M, D, WIDTH)
        values = _rows(v, k_first, v_m, m, BLOCK_M, D, WIDTH)
        scores = _scores(
            queries,
            keys,
            bias,
            mask,
            q_first,
            k_first,
            bias_n,
            mask_n,
            n,
            m,
            MASK,
            ALIGNED,
            BLOCK_N,
            BLOCK_M,
        )
        _, of_scores = _score_gradients(
            scores, values, given, log_sum, of_row, seed, head, q_first, k_first, m, least, scale,
            DROPS, BLOCK_N, BLOCK_M,
        )  # fmt: skip
        of_queries = tl.dot(of_scores.to(keys.dtype), keys, of_queries, input_precision="ieee")
    _store_rows(grad_q + b * out_b + h * out_h, of_queries, q_first, out_n, n, BLOCK_N, D, WIDTH)


@triton.jit(do_not_specialize=VARYING)
def backward_keys(
    q,
    k,
    v,
    bias,
    mask,
    seeds,
    log_sums,
    grad,
    delta,
    grad_k,
    grad_v,
    q_b,
    q_h,
    q_n,
    k_b,
    k_h,
    k_m,
    v_b,
    v_h,
    v_m,
    bias_b,
    bias_h,
    bias_n,
    mask_b,
    mask_n,
    grad_b,
    grad_h,
    grad_n,
    to_b,
    to_h,
    to_m,
    heads,
    n,
    m,
    least,
    scale,
    DROPS: tl.constexpr,
    MASK: tl.constexpr,
    ALIGNED: tl.constexpr,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """Compute the gradients of keys and values."""
    k_first, head, b, h = _part(m, heads, BLOCK_M)
    q += b * q_b + h * q_h
    grad += b * grad_b + h * grad_h
    bias, mask = _added(bias, mask, b, h, bias_b, bias_h, mask_b, ALIGNED)
    keys = _rows(k + b * k_b + h * k_h, k_first, k_m, m, BLOCK_M, D, WIDTH)
    values = _rows(v + b * v_b + h * v_h, k_first, v_m, m, BLOCK_M, D, WIDTH)
    seed = tl.load(seeds) if DROPS else 0
    of_keys = tl.zeros([BLOCK_M, WIDTH], tl.float32)
    of_values = tl.zeros([BLOCK_M, WIDTH], tl.float32)
    for q_first in range(0, n, BLOCK_N):
        queries = _rows(q, q_first, q_n, n, BLOCK_N, D, WIDTH)
        given = _rows(grad, q_first, grad_n, n, BLOCK_N, D, WIDTH)
        rows = q_first + tl.arange(0, BLOCK_N)
        log_sum = tl.load(log_sums + head * n + rows, mask=rows < n, other=0.0)
        of_row = tl.load(delta + head * n + rows, mask=rows < n, other=0.0)
        scores = _scores(
            queries,
            keys,
            bias,
            mask,
            q_first,
            k_first,
            bias_n,
            mask_n,
            n,
            m,
            MASK,
            ALIGNED,
            BLOCK_N,
            BLOCK_M,
        )
        left, of_scores = _score_gradients(
            scores, values, given, log_sum, of_row, seed, head, q_first, k_first, m, least, scale,
            DROPS, BLOCK_N, BLOCK_M,
        )  # fmt: skip
        left = tl.trans(left.to(given.dtype))
        of_values = tl.dot(left, given, of_values, input_precision="ieee")
        of_scores = tl.trans(of_scores.to(queries.dtype))
        of_keys = tl.dot(of_scores, queries, of_keys, input_precision="ieee")
    to = b * to_b + h * to_h
    _store_rows(grad_k + to, of_keys, k_first, to_m, m, BLOCK_M, D, WIDTH)
    _store_rows(grad_v + to, of_values, k_first, to_m, m, BLOCK_M, D, WIDTH)
