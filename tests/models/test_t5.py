"""T5 that trains in little memory computes what transformers' T5 computes."""

from collections import Counter

import pytest
import torch
from conftest import on_gpu
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import T5Config, T5ForConditionalGeneration, set_seed
from transformers.models.t5.modeling_t5 import T5Attention

import flan_qa_pipeline.models.t5
from flan_qa_pipeline.models.loading import load_base_model
from flan_qa_pipeline.models.t5 import QuantizableT5
from flan_qa_pipeline.models.transformers_private import attention_of, set_attention

BATCH, LENGTH, TARGET, VOCABULARY, HEADS, D_FF = 3, 17, 6, 601, 4, 130
LAYERS = 3


def config(attention="eager"):
    shape = T5Config(
        vocab_size=VOCABULARY,
        d_model=64,
        d_kv=16,
        d_ff=D_FF,
        num_layers=LAYERS,
        num_heads=HEADS,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
        decoder_start_token_id=0,
        dropout_rate=0.0,
    )
    set_attention(shape, attention)
    return shape


@pytest.fixture(params=["eager", "sdpa"])
def both(request):
    """transformers' model and this project's with the same weights."""
    set_seed(0)
    theirs = T5ForConditionalGeneration(config(request.param))
    ours = QuantizableT5(config(request.param))
    ours.load_state_dict(theirs.state_dict())
    return theirs.eval(), ours.eval()


@pytest.fixture(params=[False, True], ids=["whole", "padded"])
def batch(request):
    set_seed(1)
    mask = torch.ones(BATCH, LENGTH, dtype=torch.long)
    labels = torch.randint(2, VOCABULARY, (BATCH, TARGET))
    if request.param:
        mask[1, 9:], mask[2, 3:], labels[0, 4:] = 0, 0, -100
    return {
        "input_ids": torch.randint(2, VOCABULARY, (BATCH, LENGTH)),
        "attention_mask": mask,
        "labels": labels,
    }


def drop_weights(model, p):
    """Train with dropout of the attention weights."""
    for module in model.train().modules():
        if isinstance(module, T5Attention):
            module.dropout = p


def inputs(batch):
    return {name: batch[name] for name in ("input_ids", "attention_mask")}


def test_logits_are_those_of_transformers(both, batch):
    theirs, ours = both
    targets = theirs._shift_right(batch["labels"])
    with torch.inference_mode():
        expected = theirs(**inputs(batch), decoder_input_ids=targets).logits
        found = ours(**inputs(batch), decoder_input_ids=targets).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_bias_is_laid_out_as_the_scores_are(both, batch):
    given = []
    for stack in (both[1].encoder, both[1].decoder):
        for block in stack.block:
            block.layer[0].SelfAttention.register_forward_hook(
                lambda module, args, output: given.append(output[1])
            )
    both[1](**batch)
    assert len(given) == 2 * LAYERS
    assert all(bias.is_contiguous() for bias in given)


class Called(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.fixture
def cudnn_as_before():
    enabled = torch.backends.cuda.cudnn_sdp_enabled()
    yield
    torch.backends.cuda.enable_cudnn_sdp(enabled)


@pytest.mark.usefixtures("cudnn_as_before")
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_only_sdpa_switches_off_the_kernel_compiled_for_every_shape(model_parameters, attention):
    torch.backends.cuda.enable_cudnn_sdp(True)
    load_base_model(model_parameters.model_copy(update={"attn_implementation": attention}))
    assert torch.backends.cuda.cudnn_sdp_enabled() == (attention == "eager")


@on_gpu
@pytest.mark.usefixtures("cudnn_as_before")
@pytest.mark.parametrize("rows", [BATCH, 1])
def test_sdpa_trains_by_the_kernel_that_keeps_no_scores(model_parameters, rows):
    changes = {"attn_implementation": "sdpa", "compute_dtype": "bfloat16"}
    ours = load_base_model(model_parameters.model_copy(update=changes)).train()
    weight = ours.shared.weight.requires_grad_()
    tokens = torch.randint(2, len(weight), (rows, 24), device="cuda")
    with Called() as called:
        ours(input_ids=tokens, attention_mask=tokens.ne(2), labels=tokens[:, :8]).loss.backward()
    kernels = [name for name in called.names if "scaled_dot_product" in name]
    assert len(kernels) == 2 * 3 * ours.config.num_layers
    assert all("efficient" in name for name in kernels)
    assert weight.grad.isfinite().all()
    assert weight.grad.any()


def test_generation_is_that_of_transformers(both, batch):
    kwargs = inputs(batch) | {"max_new_tokens": 10, "eos_token_id": None}
    assert torch.equal(both[1].generate(**kwargs), both[0].generate(**kwargs))


def test_what_the_loss_would_leave_out_is_refused(both, batch):
    both[1](**batch, use_cache=False, output_attentions=False, encoder_outputs=None)
    with pytest.raises(TypeError, match=r"computed without \['decoder_attention_mask'\]"):
        both[1](**batch, decoder_attention_mask=torch.ones_like(batch["labels"]))


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_loss_and_gradients_are_those_of_transformers(both, batch, dropout, monkeypatch):
    monkeypatch.setattr(flan_qa_pipeline.models.t5, "LOSS_CHUNK", 4)
    theirs, ours = both
    losses = []
    for model in both:
        drop_weights(model, dropout)
        set_seed(2)
        losses.append(model(**batch).loss)
    expected, found = losses
    torch.testing.assert_close(found, expected)
    expected.backward()
    found.backward()
    held = dict(ours.named_parameters())
    for name, parameter in theirs.named_parameters():
        if name != "shared.weight":  # transformers ties it to the head
            torch.testing.assert_close(held[name].grad, parameter.grad, rtol=1e-3, atol=1e-4)


def test_accumulated_gradients_are_those_of_one_batch(both, batch):
    ours = both[1].requires_grad_(False)
    weight = ours.encoder.block[0].layer[0].SelfAttention.q.weight.requires_grad_()
    ours(**batch).loss.backward()
    whole, weight.grad = weight.grad, None
    count = batch["labels"].ne(-100).sum()
    for i in range(BATCH):
        part = {name: rows[i : i + 1] for name, rows in batch.items()}
        ours(**part, num_items_in_batch=count).loss.backward()
    torch.testing.assert_close(weight.grad, whole, rtol=1e-4, atol=1e-5)


def kept_shapes(model, batch):
    """Shapes of the tensors, other than parameters, that one step keeps for its gradient."""
    own = {parameter.data_ptr() for parameter in model.parameters()}
    kept = {}

    def pack(tensor):
        if tensor.data_ptr() not in own:
            kept[tensor.data_ptr()] = tensor
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model(**batch).loss
    assert loss.requires_grad
    return Counter(tuple(tensor.shape) for tensor in kept.values())


@pytest.mark.parametrize("batch", [True], indirect=True)
def test_little_is_kept_for_the_gradient(both, batch):
    theirs, ours = (model.requires_grad_(False).train() for model in both)
    for model in (theirs, ours):
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name.endswith(".q.weight"))
    before, after = kept_shapes(theirs, batch), kept_shapes(ours, batch)
    assert sum(n for shape, n in before.items() if VOCABULARY in shape) >= 1
    assert not any(VOCABULARY in shape for shape in after)
    assert before[BATCH, LENGTH, D_FF] >= 5 * LAYERS
    assert after[BATCH, LENGTH, D_FF] == 2 * LAYERS
    assert sum(n for shape, n in after.items() if shape[-2:] == (LENGTH, LENGTH)) <= 1


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_activations_kept_change_no_gradient(both, batch, dropout):
    theirs, ours = both
    drop_weights(ours, dropout)
    weight = ours.encoder.block[0].layer[0].SelfAttention.q.weight
    gradients, scores = [], []
    for kept in (2 * LAYERS, 3 * LAYERS):
        ours.zero_grad()
        set_seed(2)
        ours(**batch).loss.backward()
        gradients.append(weight.grad)
        shapes = kept_shapes(ours, batch)
        assert shapes[BATCH, LENGTH, D_FF] == kept
        scores.append(sum(n for shape, n in shapes.items() if shape[-2:] == (LENGTH, LENGTH)))
        ours.keep_activations()
    assert torch.equal(*gradients)
    if attention_of(theirs.config) == "eager":
        assert scores[0] < LAYERS <= scores[1]


def test_activations_keep_their_dtype_whatever_holds_the_weights(both):
    """A packed weight is uint8; the layer, not the model, knows what it stands for."""

    class Packed(torch.nn.Module):
        weight = torch.zeros(1, dtype=torch.uint8)

        def forward(self, activations):
            self.seen = activations
            return activations

    theirs, ours = (model.encoder.block[0].layer[1].DenseReluDense for model in both)
    hidden = torch.randn(2, 5, 64, requires_grad=True)
    theirs.wo, ours.wo = Packed(), Packed()
    assert theirs(hidden).dtype == torch.uint8
    assert ours(hidden).dtype == torch.float32
    with torch.no_grad():
        assert ours(hidden).dtype == torch.float32
    assert ours(hidden).requires_grad
