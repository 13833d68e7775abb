"""The 4-bit base model, quantized on the CPU by the real bitsandbytes."""

import json
import logging
import math
import os
import shutil

import bitsandbytes
import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit
from conftest import DEVICE, assert_close, on_cpu
from huggingface_hub import save_torch_state_dict
from kedro.io import DatasetError
from safetensors.torch import load_file, save_file
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer
from transformers import T5ForConditionalGeneration

import flan_qa_pipeline.models.quantization
from flan_qa_pipeline.datasets.pretrained import PretrainedDataset
from flan_qa_pipeline.errors import InputError
from flan_qa_pipeline.evaluation.weight_memory import base_weights
from flan_qa_pipeline.files import save_digests
from flan_qa_pipeline.models import device
from flan_qa_pipeline.models.device import free_memory, resolve_attention, resolve_compute_dtype
from flan_qa_pipeline.models.loading import check_base, load_base_model, load_tokenizer
from flan_qa_pipeline.pipelines.modeling.nodes import attach_lora
from flan_qa_pipeline.training.measured_memory import (
    held_bytes,
    load_by_libraries,
    prepare_by_libraries,
)

LINEAR = {"q", "k", "v", "o", "wi_0", "wi_1", "wo"}
INPUT_IDS = torch.tensor([[17, 45, 101, 230, 9, 1], [300, 44, 12, 87, 150, 1]])
DECODER_INPUT_IDS = torch.tensor([[0, 77, 5], [0, 12, 310]])


@pytest.fixture
def model_parameters(model_parameters):
    """4-bit layers stay packed, so that they can be looked at."""
    return model_parameters.model_copy(update={"dequantize": False})


@pytest.fixture
def float32(model_parameters):
    return model_parameters.model_copy(update={"compute_dtype": "float32"})


def logits(model):
    with torch.inference_mode():
        ids, given = (tokens.to(model.device) for tokens in (INPUT_IDS, DECODER_INPUT_IDS))
        return model(input_ids=ids, decoder_input_ids=given).logits


def relative_error(approximate, exact):
    return ((approximate - exact).norm() / exact.norm()).item()


def test_every_linear_layer_is_nf4_and_nothing_else(float32):
    base = load_base_model(float32)
    quantized = {name for name, module in base.named_modules() if isinstance(module, Linear4bit)}
    assert {name.rpartition(".")[2] for name in quantized} == LINEAR
    linear = {name for name, _ in base.named_modules() if name.rpartition(".")[2] in LINEAR}
    assert quantized == linear
    for name in quantized:
        state = base.get_submodule(name).weight.quant_state
        assert (state.quant_type, state.nested, state.blocksize) == ("nf4", True, 64)
    assert type(base.lm_head) is torch.nn.Linear
    assert type(base.get_input_embeddings()) is torch.nn.Embedding
    assert base.lm_head.weight.dtype == base.shared.weight.dtype == torch.float32
    assert not base.training
    assert not any(parameter.requires_grad for parameter in base.parameters())


def test_without_quantization_the_weights_are_the_saved_ones(float32):
    base = load_base_model(float32.model_copy(update={"load_in_4bit": False}))
    saved = T5ForConditionalGeneration.from_pretrained(float32.name, dtype=torch.float32).eval()
    assert not any(isinstance(module, Linear4bit) for module in base.modules())
    assert_close(logits(base).cpu(), logits(saved))


@pytest.mark.parametrize("quantized", ["wo", "lm_head"])
def test_quantizing_wo_and_the_head_too_costs_little(float32, quantized):
    exact = logits(load_base_model(float32.model_copy(update={"load_in_4bit": False})))
    others = [name for name in ("lm_head", "wo") if name != quantized]
    skipping, without = (
        load_base_model(float32.model_copy(update={"skip_modules": skipped}))
        for skipped in ([quantized, *others], others)
    )
    for base, kind in ((skipping, torch.nn.Linear), (without, Linear4bit)):
        layers = [part for name, part in base.named_modules() if name.endswith(quantized)]
        assert {type(layer) for layer in layers} == {kind}
    fewer, more = (relative_error(logits(base), exact) for base in (skipping, without))
    assert 0 < fewer
    assert fewer != more
    assert more / fewer < 3


def test_a_layer_to_skip_that_is_not_there_is_named(float32):
    with pytest.raises(
        InputError, match=r"skip_modules: heads matches no linear module of .* lm_head,"
    ):
        load_base_model(float32.model_copy(update={"skip_modules": ["lm_head", "heads"]}))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_dequantized_layers_compute_what_packed_ones_do(model_parameters, dtype, caplog):
    packed = model_parameters.model_copy(update={"compute_dtype": dtype})
    kept = load_base_model(packed)
    taken = load_base_model(packed.model_copy(update={"dequantize": True}))
    assert not any(isinstance(module, Linear4bit) for module in taken.modules())
    assert not taken.is_quantized
    assert not any(parameter.requires_grad for parameter in taken.parameters())
    if dtype == "float32" or DEVICE.type == "cpu":
        assert_close(logits(taken), logits(kept), rtol=0, atol=0)
    else:
        assert relative_error(logits(taken), logits(kept)) < 0.01
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_weights_are_dequantized_only_where_they_are_small_beside_the_free_memory(
    float32, monkeypatch, caplog
):
    automatic = float32.model_copy(update={"dequantize": "auto"})
    size = sum(
        4 * module.in_features * module.out_features
        for module in load_base_model(float32).modules()
        if isinstance(module, Linear4bit)
    )
    for free, packed in ((8 * size - 1, True), (8 * size, False)):
        monkeypatch.setattr(
            flan_qa_pipeline.models.quantization, "free_memory", lambda device, n=free: n
        )
        caplog.clear()
        with caplog.at_level(logging.INFO, logger="flan_qa_pipeline"):
            base = load_base_model(automatic)
        assert any(isinstance(module, Linear4bit) for module in base.modules()) is packed
        assert ("stay packed" in caplog.text) is packed


def test_what_torch_holds_unused_on_a_gpu_is_free(monkeypatch):
    for name, size in (("mem_get_info", (70, 80)), ("memory_reserved", 9), ("memory_allocated", 4)):
        monkeypatch.setattr(torch.cuda, name, lambda device, size=size: size)
    assert free_memory(torch.device("cuda")) == 75


def dequantized(linear):
    return dequantize_4bit(linear.weight.data, linear.weight.quant_state)


@on_cpu
@pytest.mark.parametrize("repacks", [False, True], ids=["this CPU", "a CPU with AVX512_BF16"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_feed_forward_keeps_its_activations(model_parameters, monkeypatch, dtype, repacks):
    if repacks:
        monkeypatch.setattr(bitsandbytes.nn.modules, "has_avx512bf16", lambda: True)
    base = load_base_model(model_parameters.model_copy(update={"compute_dtype": dtype}))
    tolerance = {"float32": 1e-5, "bfloat16": 0.03}[dtype]
    torch.manual_seed(0)
    hidden = torch.randn(2, 5, base.config.d_model, dtype=getattr(torch, dtype))
    for dense in (base.encoder.block[0].layer[1], base.decoder.block[0].layer[2]):
        dense = dense.DenseReluDense
        wi_0, wi_1, wo = (dequantized(part).float() for part in (dense.wi_0, dense.wi_1, dense.wo))
        x = hidden.float()
        expected = (torch.nn.functional.gelu(x @ wi_0.T, approximate="tanh") * (x @ wi_1.T)) @ wo.T
        for _ in range(3):
            with torch.inference_mode():
                output = dense(hidden)
            assert dense.wo.weight.dtype == getattr(torch, dtype)
            assert relative_error(output.float(), expected) < tolerance


def test_gradients_still_pass_after_inference(float32):
    base = load_base_model(float32)

    def gradient():
        embeds = base.shared(INPUT_IDS.to(DEVICE)).detach().requires_grad_()
        labels = DECODER_INPUT_IDS.to(DEVICE)
        base.train()(inputs_embeds=embeds, labels=labels).loss.backward()
        base.eval()
        return embeds.grad

    before = gradient()
    assert before.abs().max() > 0
    first, second = logits(base), logits(base)
    assert_close(first, second)
    assert_close(gradient(), before)


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({"avx2": True}, torch.float32),
        ({"avx2": True, "avx512_bf16": False, "amx_bf16": False}, torch.float32),
        ({"avx512_bf16": True, "amx_bf16": False}, torch.bfloat16),
        ({"avx512_bf16": False, "amx_bf16": True}, torch.bfloat16),
    ],
)
def test_compute_dtype_auto_on_a_cpu(monkeypatch, capabilities, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert resolve_compute_dtype("auto") == expected


@pytest.mark.parametrize(("native", "expected"), [(False, torch.float32), (True, torch.bfloat16)])
def test_compute_dtype_auto_on_a_gpu(monkeypatch, native, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: native)
    assert resolve_compute_dtype("auto") == expected


def test_compute_dtype_by_name():
    assert resolve_compute_dtype("float16") == torch.float16


@pytest.mark.parametrize(
    ("on_gpu", "has_triton", "expected"),
    [(False, True, "eager"), (True, False, "sdpa"), (True, True, "triton")],
)
def test_attention_auto(monkeypatch, on_gpu, has_triton, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: on_gpu)
    monkeypatch.setattr(device, "multiplies_bfloat16", lambda: True)
    monkeypatch.setattr(device, "find_spec", lambda name: object() if has_triton else None)
    monkeypatch.setattr(device.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(device.Path, "exists", lambda path: True)
    assert resolve_attention("auto") == expected
    assert resolve_attention("eager") == "eager"
    monkeypatch.setattr(device, "multiplies_bfloat16", lambda: False)
    assert resolve_attention("auto") == ("sdpa" if on_gpu else "eager")


@pytest.mark.parametrize(
    ("lacking", "said"),
    [
        ("GPU", "there is no GPU"),
        ("Triton", "Triton is not installed"),
        ("compiler", "there is no C compiler (gcc or clang)"),
        ("headers", "Python's headers (Python.h) are not installed"),
    ],
)
def test_triton_where_it_does_not_work_is_refused(monkeypatch, lacking, said):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: lacking != "GPU")
    monkeypatch.setattr(device, "multiplies_bfloat16", lambda: True)
    monkeypatch.setattr(device, "find_spec", lambda name: None if lacking == "Triton" else object())
    found = None if lacking == "compiler" else "/usr/bin/cc"
    monkeypatch.setattr(device.shutil, "which", lambda name: found)
    monkeypatch.setattr(device.Path, "exists", lambda path: lacking != "headers")
    with pytest.raises(InputError) as error:
        resolve_attention("triton")
    assert str(error.value) == (
        f"model.attn_implementation is triton, but {said}; set it to auto, eager or sdpa."
    )
    assert resolve_attention("auto") == ("eager" if lacking == "GPU" else "sdpa")


@pytest.mark.parametrize("load", [load_base_model, load_tokenizer])
def test_missing_folder_is_named(float32, tmp_path, load):
    missing = tmp_path / "data/06_models/nothing"
    with pytest.raises(InputError) as error:
        load(float32.model_copy(update={"name": str(missing)}))
    assert f"model.name: there is no folder {missing}; give" in str(error.value)
    assert "such as data/06_models/starter_t5, or a hub id" in str(error.value)


@pytest.mark.parametrize("load", [load_base_model, load_tokenizer])
def test_folder_without_a_model_is_named(float32, tmp_path, load):
    with pytest.raises(InputError) as error:
        load(float32.model_copy(update={"name": str(tmp_path)}))
    assert f"model.name: the folder {tmp_path} holds no config.json; give" in str(error.value)


def test_another_architecture_is_refused(float32, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}), encoding="utf-8")
    with pytest.raises(InputError) as error:
        load_base_model(float32.model_copy(update={"name": str(tmp_path)}))
    assert f"model.name: {tmp_path} is a bert model; choose a T5 v1.1" in str(error.value)


def test_weights_without_a_head_are_refused(float32, tmp_path, tiny_base):
    shutil.copytree(tiny_base, tmp_path / "headless")
    weights = load_file(tmp_path / "headless/model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, tmp_path / "headless/model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"headless lack lm_head\.weight; give a complete T5"):
        load_base_model(float32.model_copy(update={"name": str(tmp_path / "headless")}))


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[-40] ^= 1
    path.write_bytes(content)


def reweighed(name, change):
    def damage(folder):
        weights = load_file(folder / "model.safetensors")
        weights[name] = change(weights[name])
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    return damage


def reconfigured(**changes):
    def damage(folder):
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        (folder / "config.json").write_text(json.dumps(config | changes), encoding="utf-8")

    return damage


def overwritten(name, content):
    return lambda folder: (folder / name).write_bytes(content)


@pytest.fixture
def copied(tiny_base, tmp_path):
    return shutil.copytree(tiny_base, tmp_path / "base")


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (reweighed("lm_head.weight", lambda w: w * math.nan), "lm_head.weight in .*NaN"),
        (
            reweighed(
                "encoder.block.0.layer.0.SelfAttention.q.weight",
                lambda w: w.index_fill(0, torch.tensor([3]), math.nan),
            ),
            "SelfAttention.q.weight in .* holds NaN or infinity; give a base",
        ),
        (reconfigured(d_model=32), "could not be read"),
        (reconfigured(num_heads=3), "could not be read"),
        (overwritten("config.json", b"[]"), "could not be read"),
        (overwritten("config.json", b"{"), "could not be read"),
        (overwritten("model.safetensors", b""), "model.safetensors cannot be read"),
        (overwritten("model.safetensors", b"\x80\x04}."), "model.safetensors cannot be read"),
        (
            lambda folder: os.truncate(folder / "model.safetensors", 90_000),
            "model.safetensors cannot be read",
        ),
        (lambda folder: os.remove(folder / "tokenizer.json"), "holds no tokenizer.json or spiece"),
        (lambda folder: flip_a_bit(folder / "model.safetensors"), "is not as it was saved"),
    ],
)
def test_a_damaged_base_is_refused_in_a_sentence(float32, copied, damage, named):
    if "as it was saved" in named:
        save_digests(copied, [path.name for path in copied.iterdir()])
    refuse(load_base_model, float32, copied, damage, named)


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (reconfigured(vocab_size=100), "has 100 embeddings, but the tokenizer has 1200 tokens"),
        (overwritten("tokenizer.json", b"{}"), "could not be read"),
        (lambda folder: flip_a_bit(folder / "tokenizer.json"), "could not be read|as it was saved"),
    ],
)
def test_a_damaged_tokenizer_is_refused_before_a_run(float32, copied, damage, named):
    def check_and_load(base):
        check_base(base)
        load_base_model(base)

    if "as it was saved" in named:
        save_digests(copied, [path.name for path in copied.iterdir()])
    refuse(check_and_load, float32, copied, damage, named)


def refuse(read, float32, folder, damage, named):
    base = float32.model_copy(update={"name": str(folder)})
    read(base)
    damage(folder)
    with pytest.raises(InputError, match=named) as refused:
        read(base)
    assert str(folder) in str(refused.value)


def test_a_base_without_a_tokenizer_is_refused(float32, tiny_base, tmp_path):
    for path in tiny_base.iterdir():
        if not path.name.startswith("tokenizer"):
            shutil.copy(path, tmp_path)
    with pytest.raises(InputError, match=f"{tmp_path} holds no tokenizer.json or spiece.model"):
        load_tokenizer(float32.model_copy(update={"name": str(tmp_path)}))


def test_a_model_overwrites_none_but_one_that_was_saved_so(tiny_base, tmp_path):
    model = PretrainedDataset(filepath=str(tmp_path), kind="model")
    source = PretrainedDataset(filepath=str(tiny_base), kind="model").load()
    (tmp_path / "model-00001-of-00002.safetensors").write_text("mine")
    (tmp_path / "README.md").write_text("mine")
    for _ in "12":
        model.save(source)
    model.load()
    (tmp_path / "digests.json").unlink()
    (tmp_path / "model.safetensors").write_text("mine")
    with pytest.raises(DatasetError, match="was not saved by this project and is not overwritten"):
        model.save(source)
    mine = [path.name for path in tmp_path.iterdir() if path.read_bytes() == b"mine"]
    assert sorted(mine) == ["README.md", "model-00001-of-00002.safetensors", "model.safetensors"]
    assert [path.name for path in tmp_path.parent.glob(f".{tmp_path.name}*")] == []


def test_pretrained_dataset_keeps_model_and_tokenizer_in_one_folder(tiny_base, tmp_path):
    filepath = str(tmp_path / "both")
    model = PretrainedDataset(filepath=filepath, kind="model")
    tokenizer = PretrainedDataset(filepath=filepath, kind="tokenizer")
    source_model = PretrainedDataset(filepath=str(tiny_base), kind="model")
    source_tokenizer = PretrainedDataset(filepath=str(tiny_base), kind="tokenizer")
    assert not model.exists()
    tokenizer.save(source_tokenizer.load())
    assert tokenizer.exists()
    assert not model.exists()
    model.save(source_model.load())
    assert model.exists()
    pickled = tmp_path / "both/pytorch_model.bin"
    torch.save({"a": 1}, pickled)
    with pytest.raises(DatasetError, match=r"pytorch_model\.bin is neither safetensors nor"):
        model.load()
    pickled.unlink()
    text = "Which club was defeated in the Final?"
    assert tokenizer.load()(text) == source_tokenizer.load()(text)
    torch.testing.assert_close(logits(model.load().eval()), logits(source_model.load().eval()))


def test_an_untied_head_is_loaded_and_saved_without_a_warning(
    tiny_base, tmp_path, transformers_log
):
    T5ForConditionalGeneration.from_pretrained(tiny_base)
    assert "tied weights mapping" in transformers_log.text
    transformers_log.clear()
    model = PretrainedDataset(filepath=str(tiny_base), kind="model").load()
    copy = PretrainedDataset(filepath=str(tmp_path / "copy"), kind="model")
    copy.save(model)
    again = copy.load()
    assert not transformers_log.records
    assert type(again) is T5ForConditionalGeneration
    assert again.encoder.embed_tokens.weight is again.shared.weight
    assert not torch.equal(again.lm_head.weight, again.shared.weight)
    for name, weight in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], weight), name
    config = json.loads((tmp_path / "copy/config.json").read_text(encoding="utf-8"))
    assert config["architectures"] == ["T5ForConditionalGeneration"]
    assert config["tie_word_embeddings"] is config["scale_decoder_outputs"] is False


@pytest.mark.parametrize("skip_modules", [["lm_head"], [], ["lm_head", "wo"]])
@pytest.mark.parametrize("adapted", [False, True], ids=["base", "with LoRA"])
@pytest.mark.parametrize("double_quant", [True, False])
def test_calculated_weights_are_those_in_memory(
    model_parameters, parameters, adapted, skip_modules, double_quant
):
    changes = {"skip_modules": skip_modules, "double_quant": double_quant}
    bfloat16 = model_parameters.model_copy(update={"compute_dtype": "bfloat16", **changes})
    base = load_base_model(bfloat16)
    measured = held_bytes(base)
    if adapted:
        base = attach_lora(base, parameters.lora, parameters.training).get_base_model()
    weights = base_weights(base, **changes)
    sizes = weights["loaded"]
    assert sizes["NF4 here"] == measured
    whole = load_base_model(bfloat16.model_copy(update={"load_in_4bit": False}))
    assert sizes["bfloat16"] == whole.get_memory_footprint()
    assert sizes["float32"] == 2 * sizes["bfloat16"]
    assert sizes["NF4 here"] < sizes["bfloat16"]
    assert sizes["NF4 by the libraries"] < sizes["bfloat16"]
    if double_quant:
        assert sizes["NF4 here"] <= sizes["NF4 by the libraries"]
    loaded = load_by_libraries("NF4 by the libraries", bfloat16)
    assert sizes["NF4 by the libraries"] == held_bytes(loaded)
    by_libraries = prepare_by_libraries(loaded, parameters.training)
    assert weights["in training"]["NF4 by the libraries"] == held_bytes(by_libraries)


@pytest.fixture
def saved(tiny_base, tmp_path):
    """A copy of the tiny base that may be changed."""
    return shutil.copytree(tiny_base, tmp_path / "saved")


def configure(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


@pytest.mark.parametrize("shard_size", ["10GB", "200KB"], ids=["one file", "shards"])
@pytest.mark.parametrize("embeddings", [1, 3])
def test_embeddings_may_be_stored_once_or_thrice_and_weights_in_shards(
    float32, saved, embeddings, shard_size
):
    whole = float32.model_copy(update={"load_in_4bit": False})
    expected = logits(load_base_model(whole))
    weights = load_file(saved / "model.safetensors")
    (saved / "model.safetensors").unlink()
    weights = {name: tensor for name, tensor in weights.items() if "embed_tokens" not in name}
    if embeddings == 3:
        for stack in ("encoder", "decoder"):
            weights[f"{stack}.embed_tokens.weight"] = weights["shared.weight"].clone()
    save_torch_state_dict(weights, saved, max_shard_size=shard_size)
    assert (len(list(saved.glob("*.safetensors"))) > 1) is (shard_size == "200KB")
    check_base(whole.model_copy(update={"name": str(saved)}))
    loaded = load_base_model(whole.model_copy(update={"name": str(saved)}))
    assert_close(logits(loaded), expected)


def test_a_sentencepiece_model_is_a_tokenizer(float32, saved, corpus):
    """The repositories of T5 v1.1 have spiece.model and no tokenizer.json."""
    contexts = (p["context"] for article in corpus["data"] for p in article["paragraphs"])
    with (saved / "spiece.model").open("wb") as file:
        SentencePieceTrainer.train(
            sentence_iterator=contexts,
            model_writer=file,
            vocab_size=400,
            pad_id=0,
            eos_id=1,
            unk_id=2,
            bos_id=-1,
            minloglevel=2,
        )
    (saved / "tokenizer.json").unlink()
    given = {"tokenizer_class": "T5Tokenizer", "extra_ids": 100}
    (saved / "tokenizer_config.json").write_text(json.dumps(given))
    model = float32.model_copy(update={"name": str(saved)})
    check_base(model)
    tokenizer = load_tokenizer(model)
    pieces = SentencePieceProcessor(model_file=str(saved / "spiece.model"))
    text = "The Humoslow reaches a depth of 4.0 metres."
    assert tokenizer(text)["input_ids"] == [*pieces.encode(text), tokenizer.eos_token_id]
    assert len(tokenizer) == 500


def test_flan_ul2_is_accepted(float32, saved):
    configure(saved, feed_forward_proj="gated-silu", model_type="t5", tie_word_embeddings=False)
    check_base(float32.model_copy(update={"name": str(saved)}))


def test_code_of_a_repository_is_not_run(float32, saved, monkeypatch):
    ran = saved / "ran"
    (saved / "code.py").write_text(f"open({str(ran)!r}, 'w')")
    monkeypatch.setattr("builtins.input", lambda *question: "y")
    configure(
        saved,
        auto_map={"AutoConfig": "code.Config", "AutoModelForSeq2SeqLM": "code.Model"},
    )
    given = json.loads((saved / "tokenizer_config.json").read_text())
    given["auto_map"] = {"AutoTokenizer": ["code.Tokenizer", "code.Tokenizer"]}
    (saved / "tokenizer_config.json").write_text(json.dumps(given))
    model = float32.model_copy(update={"name": str(saved)})
    check_base(model)
    load_base_model(model)
    assert not ran.exists()
