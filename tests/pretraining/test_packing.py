"""The packed base: NF4, with float8 in the file for what plain transformers keeps out of 4 bits."""

import json

import pytest
import torch
from accelerate.utils import set_seed
from conftest import on_cpu
from english import small
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSeq2SeqLM, T5ForConditionalGeneration

from flan_qa_pipeline.errors import InputError
from flan_qa_pipeline.models.loading import load_base_model
from flan_qa_pipeline.pretraining.packing import pack, pack_nf4, shrink_stream
from flan_qa_pipeline.pretraining.random_t5 import build_random_t5

WO = "encoder.block.0.layer.1.DenseReluDense.wo.weight"
Q = "encoder.block.0.layer.0.SelfAttention.q"
IDS = torch.tensor([[5, 6, 7, 1]])


@pytest.fixture
def model(raw_parameters):
    sizes = {"vocab_size": 1504, "d_model": 64, "d_kv": 32, "d_ff": 128}  # whole blocks of NF4
    architecture = small(raw_parameters["pretrain"]).architecture.model_copy(update=sizes)
    set_seed(1)
    model = build_random_t5(architecture, dropout=0.0).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(std=30.0 if name == "shared.weight" else 0.1)
    return model.bfloat16()


def logits(model):
    with torch.inference_mode():
        return model(input_ids=IDS, decoder_input_ids=IDS).logits.float()


def test_packing_warns_of_nothing(model, transformers_log):
    packed = pack(model, ["wo", "shared"])
    assert type(packed) is T5ForConditionalGeneration
    assert not transformers_log.records


@pytest.mark.parametrize("float8", [[], ["wo"], ["wo", "shared"]])
def test_plain_transformers_reads_float8_as_bfloat16(model, float8, tmp_path):
    pack(model, float8).save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", framework="pt") as weights:
        stored = {name: weights.get_slice(name).get_dtype() for name in weights.keys()}  # noqa: SIM118
    assert stored[f"{Q}.weight"] == stored["lm_head.weight"] == "U8"
    assert stored[WO] == ("F8_E4M3" if "wo" in float8 else "BF16")
    assert stored["shared.weight"] == ("F8_E4M3" if "shared" in float8 else "BF16")
    assert set(stored.values()) <= {"U8", "F32", "BF16", "F8_E4M3"}
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert config["tie_word_embeddings"] is config["scale_decoder_outputs"] is False
    read = AutoModelForSeq2SeqLM.from_pretrained(tmp_path, device_map={"": "cpu"})
    assert type(read.get_submodule(Q)).__name__ == "Linear4bit"
    expected = pack_nf4(model)
    for name, weight in read.named_parameters():
        if stored[name] == "F8_E4M3":
            other = expected.get_parameter(name)
            assert weight.dtype == torch.bfloat16
            assert torch.equal(weight, other.to(torch.float8_e4m3fn).bfloat16())
            assert (weight - other).norm() < 0.04 * other.norm()
    similarity = torch.nn.functional.cosine_similarity
    assert similarity(logits(read).flatten(), logits(expected).flatten(), dim=0) > 0.99
    if not float8:
        assert torch.equal(logits(read), logits(expected))


@on_cpu
def test_the_project_loads_what_plain_transformers_loads(model, parameters, tokenizer, tmp_path):
    pack(model, ["wo", "shared"]).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    changes = {"name": str(tmp_path), "skip_modules": ["wo"], "compute_dtype": "bfloat16"}
    ours = parameters.model.model_copy(update=changes | {"dequantize": False})
    read = AutoModelForSeq2SeqLM.from_pretrained(tmp_path, device_map={"": "cpu"})
    loaded = load_base_model(ours)
    assert loaded.get_parameter(WO).dtype == torch.bfloat16
    for name in (WO, "shared.weight"):
        assert torch.equal(loaded.get_parameter(name), read.get_parameter(name))
    error = (logits(loaded) - logits(read)).norm() / logits(read).norm()
    assert error < 0.02
    weights = load_file(tmp_path / "model.safetensors")
    weights[WO].view(torch.uint8)[0, 0] = 0x7F  # NaN in e4m3
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match="wo.weight in .* holds NaN or infinity"):
        load_base_model(ours)


def test_weights_beyond_float8_shrink_with_the_residual_stream(model, tmp_path):
    with torch.no_grad():
        model.shared.weight[5, 3] = 948.0
    shrunk = shrink_stream(model)
    assert shrunk.shared.weight.abs().max() == 948.0 / 4
    assert model.shared.weight.abs().max() == 948.0
    assert torch.allclose(logits(shrunk), logits(model), rtol=1e-3, atol=1e-3)
    pack(model, ["wo", "shared"]).save_pretrained(tmp_path)
    read = AutoModelForSeq2SeqLM.from_pretrained(tmp_path, device_map={"": "cpu"})
    assert all(parameter.isfinite().all() for parameter in read.parameters())
    similarity = torch.nn.functional.cosine_similarity
    expected = logits(pack_nf4(model)).flatten()
    assert similarity(logits(read).flatten(), expected, dim=0) > 0.99
