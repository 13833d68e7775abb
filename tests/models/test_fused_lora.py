"""Fused LoRA layers compute what peft's compute, forward and backward."""

import pytest
import torch
from conftest import DEVICE, assert_close
from peft import LoraConfig, get_peft_model, set_peft_model_state_dict

from flan_qa_pipeline.models.adapter import adapter_weights
from flan_qa_pipeline.models.fused_lora import fuse
from flan_qa_pipeline.models.loading import load_base_model

BATCH = {
    "input_ids": torch.tensor([[17, 45, 101, 230, 9, 1], [300, 44, 12, 87, 150, 1]]),
    "labels": torch.tensor([[77, 5, 1], [12, 1, -100]]),
}


@pytest.fixture(params=[True, False], ids=["dequantized", "packed"])
def make(request, float32):
    """Build the same adapted model every time, its adapter no longer zero."""

    def adapted(fused, dtype="float32", **options):
        changes = {"dequantize": request.param, "compute_dtype": dtype}
        base = load_base_model(float32.model_copy(update=changes))
        config = LoraConfig(
            task_type="SEQ_2_SEQ_LM", target_modules="all-linear", r=4, lora_alpha=12, **options
        )
        model = get_peft_model(base, config)
        generator = torch.Generator().manual_seed(0)
        state = {
            name: torch.randn(weight.shape, generator=generator) / 10
            for name, weight in adapter_weights(model).items()
        }
        set_peft_model_state_dict(model, state)
        assert fuse(model) is not config.use_dora if fused else True
        return model.eval()

    return adapted


def batch():
    return {name: part.to(DEVICE) for name, part in BATCH.items()}


def loss_and_gradients(model):
    loss = model(**batch()).loss
    loss.backward()
    return loss.detach(), {
        name: weight.grad for name, weight in model.named_parameters() if weight.requires_grad
    }


def assert_same(found, expected, **tolerance):
    assert_close(found[0], expected[0], **tolerance)
    assert found[1].keys() == expected[1].keys()
    for name, gradient in expected[1].items():
        assert gradient.abs().max() > 0
        assert_close(found[1][name], gradient, **tolerance)


def test_loss_and_gradients_are_those_of_peft(make):
    assert_same(
        loss_and_gradients(make(True)), loss_and_gradients(make(False)), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("seed", [3, 4])
def test_dropout_is_drawn_as_by_peft(make, seed):
    results = []
    for fused in (True, False):
        model = make(fused, lora_dropout=0.4)
        for name, module in model.named_modules():
            module.train("lora_dropout" in name or type(module).__module__.endswith("lora"))
            if "lora" not in name:
                module.training = hasattr(module, "lora_A")
        torch.manual_seed(seed)
        results.append(loss_and_gradients(model))
    assert_same(*results, rtol=1e-4, atol=1e-5)
    assert results[0][0] != loss_and_gradients(make(True, lora_dropout=0.4))[0]


def test_bfloat16_is_nearer_to_float32_than_autocast_is(make):
    exact = loss_and_gradients(make(False))

    def error(found):
        return sum(((found[1][name] - g).norm() / g.norm()).item() for name, g in exact[1].items())

    with torch.autocast(DEVICE.type, dtype=torch.bfloat16):
        by_peft = error(loss_and_gradients(make(False, "bfloat16")))
    fused = loss_and_gradients(make(True, "bfloat16"))
    assert all(gradient.dtype == torch.float32 for gradient in fused[1].values())
    assert error(fused) < 1.1 * by_peft


def test_what_is_not_one_plain_adapter_is_left_to_peft(make):
    plain = make(True)
    adapted = plain(**batch()).loss
    with plain.disable_adapter():
        off = plain(**batch()).loss
    torch.testing.assert_close(off, plain.get_base_model()(**batch()).loss.new_tensor(off.item()))
    assert off != adapted
    assert_same(
        loss_and_gradients(make(True, use_dora=True)),
        loss_and_gradients(make(False, use_dora=True)),
        rtol=0,
        atol=0,
    )
