"""Triton's attention and gate against the plain computation, on a GPU."""

from functools import partial

import pytest
import torch
from conftest import DEVICE, on_gpu
from torch.nn.functional import gelu
from torch.utils.checkpoint import checkpoint

from flan_qa_pipeline.models.device import resolve_attention
from flan_qa_pipeline.models.loading import load_base_model
from flan_qa_pipeline.models.t5 import TritonFeedForward

pytestmark = on_gpu
HEADS = 3


def draw(rows, length, *, width=64, dtype=torch.bfloat16):
    """Draw states as projections lie in memory: (rows, heads, length, width)."""
    states = torch.randn(rows, length, HEADS, width, device=DEVICE) * 0.4
    return states.to(dtype).transpose(1, 2).requires_grad_()


def attend(*given, **options):
    from flan_qa_pipeline.models.triton_attention import attend as ours

    return ours(*given, **options)


def assert_near(found, wanted, tolerance):
    """Compare each tensor within a share of the largest number wanted."""
    for mine, theirs in zip(found, wanted, strict=True):
        assert (mine.float() - theirs).abs().max() <= tolerance * theirs.abs().max()


def expected(q, k, v, scores_bias):
    weights = torch.softmax(q.float() @ k.float().transpose(2, 3) + scores_bias.float(), dim=-1)
    return weights @ v.float()


# Each combination of widths, masks and dtypes is compiled: a few seconds.
@pytest.mark.parametrize(
    ("n", "m", "width", "mask", "dtype"),
    [
        (70, 70, 64, "of keys", torch.bfloat16),
        (70, 72, 64, "of keys", torch.bfloat16),  # multiples of 8 are loaded 8 at a time
        (130, 136, 64, "of pairs", torch.bfloat16),
        (8, 72, 64, "none", torch.bfloat16),
        (8, 70, 64, "none", torch.bfloat16),
        (9, 9, 64, "of pairs", torch.bfloat16),
        (1, 33, 64, "of keys", torch.bfloat16),
        (130, 129, 64, "of pairs", torch.float32),
        (130, 136, 64, "of pairs", torch.float32),
        (70, 9, 24, "none", torch.float32),
    ],
)
def test_states_and_gradients_are_those_of_softmax(n, m, width, mask, dtype):
    torch.manual_seed(0)
    q, k, v = (draw(2, length, width=width, dtype=dtype) for length in (n, m, m))
    bias = torch.randn(1, HEADS, n, m, device=DEVICE).to(dtype)
    added = None
    if mask != "none":
        added = torch.zeros(2, 1, 1 if mask == "of keys" else n, m, device=DEVICE, dtype=dtype)
        added[1, ..., m - m // 3 :] = torch.finfo(dtype).min
    whole = (bias if added is None else bias + added).clamp(min=torch.finfo(dtype).min)
    states, right = attend(q, k, v, bias, added), expected(q, k, v, whole)
    upstream = torch.randn_like(states)
    found = torch.autograd.grad(states, (q, k, v), upstream)
    wanted = torch.autograd.grad(right, (q, k, v), upstream.float())
    tolerance = 2e-2 if dtype is torch.bfloat16 else 1e-4
    assert_near((states, *found), (right, *wanted), tolerance)


def test_rows_of_bias_and_mask_may_lie_at_any_stride_and_place():
    torch.manual_seed(0)
    q, k = draw(2, 70), draw(2, 72)
    wide = torch.randn(1, HEADS, 70, 73, device=DEVICE).bfloat16()
    mask = torch.zeros(2, 1, 70, 74, device=DEVICE).bfloat16()
    mask[1, ..., 40:] = torch.finfo(torch.bfloat16).min
    bias, mask = wide[..., 1:], mask[..., 1:73]
    whole = (bias + mask).clamp(min=torch.finfo(torch.bfloat16).min)
    assert_near([attend(q, k, k, bias, mask)], [expected(q, k, k, whole)], 2e-2)


def test_dropout_keeps_the_share_and_the_backward_pass_drops_the_same_weights():
    torch.manual_seed(0)
    q, k = draw(4, 40), draw(4, 64)
    identity = torch.eye(64, device=DEVICE, dtype=torch.bfloat16).expand(4, HEADS, 64, 64)
    v = identity.contiguous().requires_grad_()
    bias = torch.zeros(1, 1, 1, 64, device=DEVICE, dtype=torch.bfloat16)
    plain, dropped = attend(q, k, v, bias), attend(q, k, v, bias, dropout=0.25)
    kept = dropped != 0  # with these values, the states are the weights
    assert kept.float().mean().item() == pytest.approx(0.75, abs=0.02)
    assert torch.allclose(dropped[kept], plain[kept] / 0.75, rtol=2e-2)
    assert not torch.equal(kept[0, 0], kept[0, 1])
    assert not torch.equal(attend(q, k, v, bias, dropout=0.25) != 0, kept)
    upstream = torch.randn_like(dropped)
    (of_values,) = torch.autograd.grad(dropped, v, upstream)
    wanted = dropped.float().transpose(2, 3) @ upstream.float()
    assert_near([of_values], [wanted], 2e-2)


def test_gradients_with_dropout_are_those_of_the_kept_weights():
    torch.manual_seed(0)
    q, k, v = draw(2, 40), draw(2, 64), draw(2, 64)
    bias = torch.randn(1, HEADS, 40, 64, device=DEVICE).bfloat16()
    identity = torch.eye(64, device=DEVICE, dtype=torch.bfloat16).expand(2, HEADS, 64, 64)
    state = torch.cuda.get_rng_state()
    kept = attend(q, k, identity.contiguous(), bias, dropout=0.25) != 0
    torch.cuda.set_rng_state(state)
    states = attend(q, k, v, bias, dropout=0.25)
    weights = torch.softmax(q.float() @ k.float().transpose(2, 3) + bias.float(), dim=-1)
    right = (weights * kept / 0.75) @ v.float()
    upstream = torch.randn_like(states)
    found = torch.autograd.grad(states, (q, k, v), upstream)
    wanted = torch.autograd.grad(right, (q, k, v), upstream.float())
    assert_near((states, *found), (right, *wanted), 3e-2)


def test_more_heads_than_fit_in_the_second_dimension_of_a_grid():
    q, k = draw(23_000, 1), draw(23_000, 5)
    bias = torch.zeros(1, 1, 1, 5, device=DEVICE, dtype=torch.bfloat16)
    with torch.no_grad():
        states = attend(q, k, k, bias)
        wanted = expected(q[-2:], k[-2:], k[-2:], bias)
    assert_near([states[-2:]], [wanted], 2e-2)


def test_a_row_without_a_readable_key_yields_zeros():
    q, k = draw(1, 5), draw(1, 7)
    nothing = torch.full((1, 1, 1, 7), torch.finfo(torch.bfloat16).min, device=DEVICE)
    states = attend(q, k, k, nothing.bfloat16())
    gradients = torch.autograd.grad(states.sum(), (q, k))
    assert not any(part.any() or part.isnan().any() for part in (states, *gradients))


@pytest.mark.parametrize("shape", [(2, HEADS, 5, 7), (2, 1, 5, 6), (3, 1, 1, 7)])
def test_a_mask_of_another_shape_is_refused(shape):
    q, k = draw(2, 5), draw(2, 7)
    bias = torch.zeros(1, 1, 1, 7, device=DEVICE, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="The mask has the shape"):
        attend(q, k, k, bias, bias.new_zeros(shape))


def test_a_captured_graph_drops_other_weights_at_every_replay():
    q, bias = draw(2, 24), torch.zeros(1, 1, 1, 24, device=DEVICE, dtype=torch.bfloat16)
    with torch.no_grad():
        attend(q, q, q, bias, dropout=0.5)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            states = attend(q, q, q, bias, dropout=0.5)
    seen = []
    for _ in range(2):
        graph.replay()
        seen.append(states.clone())
    assert not torch.equal(*seen)


def gated(*given, **options):
    from flan_qa_pipeline.models.triton_gate import gated_gelu

    return gated_gelu(*given, **options)


def draw_pair(*shape, dtype=torch.bfloat16):
    torch.manual_seed(0)
    pair = (3 * torch.randn(2, *shape, device=DEVICE)).to(dtype)
    return [part.clone().requires_grad_() for part in pair]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("shape", [(3, 7, 96), (1, 5), (9, 2048)])
def test_the_gate_and_its_gradients_are_those_of_torch(shape, dtype):
    gate, linear = draw_pair(*shape, dtype=dtype)
    products = gated(gate, linear)
    right = gelu(gate.float(), approximate="tanh") * linear.float()
    upstream = torch.randn_like(products)
    found = torch.autograd.grad(products, (gate, linear), upstream)
    wanted = torch.autograd.grad(right, (gate, linear), upstream.float())
    tolerance = 1e-2 if dtype is torch.bfloat16 else 1e-5
    assert_near((products, *found), (right, *wanted), tolerance)


def test_the_gates_inputs_may_lie_at_any_stride():
    gate, linear = (part.detach().transpose(0, 1) for part in draw_pair(40, 24))
    assert torch.equal(gated(gate, linear), gated(gate.contiguous(), linear.contiguous()))


def test_a_checkpointed_gate_drops_the_same_products_again():
    gate, linear = draw_pair(64, 512)
    gradients = []
    for run in (gated, partial(checkpoint, gated, use_reentrant=False)):
        torch.cuda.manual_seed(0)
        gradients.append(torch.autograd.grad(run(gate, linear, 0.25).sum(), (gate, linear)))
    assert all(map(torch.equal, *gradients))
    assert (gradients[0][1] == 0).float().mean().item() == pytest.approx(0.25, abs=0.02)


def test_the_gate_of_large_numbers_is_open_or_shut():
    gate = torch.tensor([-1e6, -40.0, 0.0, 40.0, 1e6], device=DEVICE).bfloat16().requires_grad_()
    products = gated(gate, torch.ones_like(gate))
    (gradient,) = torch.autograd.grad(products.sum(), gate)
    assert products.tolist() == [0, 0, 0, 40, gate[-1].item()]
    assert gradient.tolist() == [0, 0, 0.5, 1, 1]


def test_the_gate_drops_its_share_and_the_backward_pass_drops_the_same_products():
    gate, linear = draw_pair(64, 512)
    plain, dropped = gated(gate, linear), gated(gate, linear, dropout=0.25)
    kept = dropped != 0
    assert kept.float().mean().item() == pytest.approx(0.75, abs=0.02)
    assert torch.allclose(dropped[kept], plain[kept] / 0.75, rtol=2e-2)
    assert not torch.equal(gated(gate, linear, dropout=0.25) != 0, kept)
    right = gelu(gate.float(), approximate="tanh") * linear.float() * kept / 0.75
    upstream = torch.randn_like(dropped)
    found = torch.autograd.grad(dropped, (gate, linear), upstream)
    wanted = torch.autograd.grad(right, (gate, linear), upstream.float())
    assert_near(found, wanted, 1e-2)


def test_losses_and_gradients_of_a_model_are_near_those_of_eager_attention(model_parameters):
    assert resolve_attention("auto") == "triton"
    found, kinds = {}, {}
    for attention in ("eager", "triton"):
        changes = {"attn_implementation": attention, "compute_dtype": "bfloat16"}
        model = load_base_model(model_parameters.model_copy(update=changes))
        weight = model.shared.weight.requires_grad_()
        torch.manual_seed(0)
        tokens = torch.randint(2, len(weight), (3, 24), device=DEVICE)
        mask = torch.ones_like(tokens)
        mask[1, 9:] = 0
        loss = model(input_ids=tokens, attention_mask=mask, labels=tokens[:, :8]).loss
        loss.backward()
        found[attention] = loss.item(), weight.grad.float()
        kinds[attention] = {type(part) for part in model.modules()}
    assert TritonFeedForward in kinds["triton"] - kinds["eager"]
    (eager, of_eager), (fused, of_fused) = found["eager"], found["triton"]
    assert fused == pytest.approx(eager, rel=1e-2)
    assert (of_fused - of_eager).norm() <= 0.05 * of_eager.norm()
