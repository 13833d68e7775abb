"""A base that is stored in 4 bits, as `save_pretrained` of a 4-bit model writes it."""

import json
import re
import shutil

import pytest
import torch
from bitsandbytes.nn import Linear4bit
from conftest import DEVICE, assert_close
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForSeq2SeqLM,
    BitsAndBytesConfig,
    T5ForConditionalGeneration,
)

from flan_qa_pipeline.answering.answerer import QuestionAnswerer
from flan_qa_pipeline.datasets.adapter import load_adapter, save_adapter
from flan_qa_pipeline.errors import InputError
from flan_qa_pipeline.evaluation.weight_memory import base_weights
from flan_qa_pipeline.models.adapter import attach_adapter, provenance_of
from flan_qa_pipeline.models.loading import check_base, load_base_model
from flan_qa_pipeline.models.t5 import QuantizableT5
from flan_qa_pipeline.pipelines.modeling.nodes import merge_adapter
from flan_qa_pipeline.training.measured_memory import (
    held_bytes,
    load_by_libraries,
    training_peaks,
)

INPUT_IDS = torch.tensor([[17, 45, 101, 230, 9, 1], [300, 44, 12, 87, 150, 1]])
DECODER_INPUT_IDS = torch.tensor([[0, 77, 5], [0, 12, 310]])
Q = "encoder.block.0.layer.0.SelfAttention.q"
# skip_modules of the stored base, and the dtype that its packed bytes have there
STORED = {
    "head packed": (["wo"], torch.uint8),
    "head packed, under bfloat16": (["wo"], torch.bfloat16),
    "head whole": (["wo", "lm_head"], torch.uint8),
    "everything packed": ([], torch.uint8),
    "wo packed": (["lm_head"], torch.bfloat16),
}


def logits(model):
    with torch.inference_mode():
        ids, given = (tokens.to(model.device) for tokens in (INPUT_IDS, DECODER_INPUT_IDS))
        return model(input_ids=ids, decoder_input_ids=given).logits.cpu()


def relative_error(approximate, exact):
    return ((approximate.float() - exact.float()).norm() / exact.float().norm()).item()


def packed(base):
    return {name for name, part in base.named_modules() if isinstance(part, Linear4bit)}


@pytest.fixture(scope="module")
def whole(tiny_base, tmp_path_factory):
    """The folder of the tiny base in bfloat16, its vocabulary filled up to a multiple of 32.

    Plain transformers lets bitsandbytes repack weights on a CPU with AVX512_BF16, which takes rows
    by 32.
    """
    folder = shutil.copytree(tiny_base, tmp_path_factory.mktemp("whole") / "base")
    weights = load_file(folder / "model.safetensors")
    halves = {name: weight.bfloat16() for name, weight in weights.items()}
    for name in ("shared.weight", "lm_head.weight"):
        halves[name] = torch.nn.functional.pad(halves[name], (0, 0, 0, -len(halves[name]) % 32))
    configured(vocab_size=len(halves["lm_head.weight"]))(folder)
    save_file(halves, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def store(whole, tmp_path_factory):
    """Save those weights in 4 bits; by transformers alone where it can."""

    def stored(skip_modules, storage=torch.uint8, quant_type="nf4", double_quant=True):
        folder = shutil.copytree(whole, tmp_path_factory.mktemp("stored") / "base")
        config = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=quant_type,
            bnb_4bit_use_double_quant=double_quant,
            bnb_4bit_compute_dtype=torch.bfloat16,
            bnb_4bit_quant_storage=storage,
            llm_int8_skip_modules=skip_modules,
        )
        kind = T5ForConditionalGeneration if "wo" in skip_modules else QuantizableT5
        kind.from_pretrained(
            whole, dtype=torch.bfloat16, quantization_config=config
        ).save_pretrained(folder)
        return folder

    return stored


@pytest.fixture(scope="module", params=STORED)
def stored(request, store, whole, model_parameters):
    """Parameters of a base stored in 4 bits, and of its bfloat16 weights, packed at load."""
    skip_modules, storage = STORED[request.param]
    at_load, in_file = (
        model_parameters.model_copy(
            update={"name": str(folder), "skip_modules": skip_modules, "dequantize": False}
        )
        for folder in (whole, store(skip_modules, storage))
    )
    return in_file, at_load


@pytest.mark.parametrize("dequantize", [False, True, "auto"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_logits_are_those_of_the_weights_packed_at_load(stored, dtype, dequantize):
    changes = {"compute_dtype": dtype, "dequantize": dequantize}
    found, expected = (load_base_model(m.model_copy(update=changes)) for m in stored)
    check_base(stored[0])
    assert packed(found) == packed(expected)
    assert bool(packed(found)) is (dequantize is False)
    for (name, weight), (_, other) in zip(
        found.named_parameters(), expected.named_parameters(), strict=True
    ):
        assert weight.dtype == other.dtype == getattr(torch, dtype)
        assert weight.shape == other.shape, name
    assert torch.equal(logits(found), logits(expected))
    assert not any(parameter.requires_grad for parameter in found.parameters())


def test_transformers_alone_loads_what_keeps_wo_whole(stored):
    in_file = stored[0].model_copy(update={"compute_dtype": "bfloat16"})
    if "wo" not in in_file.skip_modules:
        if DEVICE.type == "cuda":
            pytest.skip("only a CPU is sure to refuse a packed wo")
        plain = AutoModelForSeq2SeqLM.from_pretrained(in_file.name)
        with pytest.raises(RuntimeError):
            logits(plain)
        return
    plain = AutoModelForSeq2SeqLM.from_pretrained(in_file.name)
    ours = load_base_model(in_file)
    assert plain.dtype == torch.bfloat16
    assert packed(plain) == packed(ours)
    for name in packed(plain):
        theirs, mine = (model.get_submodule(name).weight for model in (plain, ours))
        assert torch.equal(*(weight.data.flatten().view(torch.uint8) for weight in (theirs, mine)))
    assert relative_error(logits(plain), logits(ours)) < 0.02
    exact = load_base_model(in_file.model_copy(update={"compute_dtype": "float32"}))
    in_float32 = AutoModelForSeq2SeqLM.from_pretrained(in_file.name, dtype=torch.float32)
    assert relative_error(logits(in_float32), logits(exact)) < 2 * 2**-8  # two roundings


@pytest.fixture(scope="module")
def trained(train, training, store, float32):
    """A base stored with its head in 4 bits, and an adapter trained on it while it is packed."""
    base = float32.model_copy(
        update={"name": str(store(["wo"])), "skip_modules": ["wo"], "dequantize": False}
    )
    return base, *train(training, base)


def test_an_adapter_trains_and_is_saved_loaded_and_answers(trained, prompt_parameters, tmp_path):
    base, model, adapter = trained
    losses = [entry["loss"] for entry in adapter.training["log"] if "loss" in entry]
    assert losses[-1] < losses[0]
    assert adapter.training["quantized_from_dtype"] is None
    save_adapter(adapter, tmp_path / "adapter")
    loaded = load_adapter(tmp_path / "adapter")
    again = attach_adapter(load_base_model(base), loaded, provenance_of(base, prompt_parameters))
    assert_close(logits(again), logits(model))
    assert not torch.equal(logits(again), logits(load_base_model(base)))
    [answer] = QuestionAnswerer(loaded, compute_dtype="float32").answer(
        [("The Humoslow reaches a depth of 4.0 metres.", "How deep is it?")]
    )
    assert isinstance(answer.text, str)


def test_the_merged_model_is_plain_and_whole(trained, prompt_parameters, tmp_path):
    base, model, adapter = trained
    merged = merge_adapter(base, prompt_parameters, adapter, {}).model
    merged.save_pretrained(tmp_path)
    assert "quantization_config" not in json.loads((tmp_path / "config.json").read_text())
    read = AutoModelForSeq2SeqLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    assert not packed(read)
    assert relative_error(logits(read), logits(model)) < 0.02


def test_memory_rows_are_those_of_the_same_weights(stored, parameters):
    in_file = stored[0].model_copy(update={"compute_dtype": "bfloat16"})
    base = load_base_model(in_file)
    sizes = base_weights(base, in_file.skip_modules)["loaded"]
    assert sizes["NF4 here"] == held_bytes(base)
    for form in ("float32", "bfloat16", "NF4 by the libraries"):
        assert sizes[form] == held_bytes(load_by_libraries(form, in_file)), form


@pytest.mark.slow
def test_a_step_is_measured_in_every_format(trained, parameters, windows):
    base, _, adapter = trained
    batch = windows["train"].select_columns(["input_ids", "labels"]).select(range(2)).to_list()
    formats = parameters.reporting.memory_formats
    peaks = training_peaks(formats, base, adapter.config, parameters.training, batch)
    assert all(peaks[form] > 0 for form in formats)
    assert peaks["NF4 here"] < peaks["float32"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"load_in_4bit": False}, "model.load_in_4bit is false, but .* stored in 4 bits; set it"),
        ({"quant_type": "fp4"}, "model.quant_type is fp4, but .* with nf4; set it to nf4"),
        ({"double_quant": False}, "model.double_quant is false, .* with true; set it to true"),
        ({"skip_modules": ["lm_head"]}, r"skip_modules is \[lm_head\], but .* set it to \[wo\]"),
        ({"skip_modules": []}, r"skip_modules is \[\], but .* out of 4 bits; set it to \[wo\]"),
        ({"skip_modules": ["wo", "q"]}, r"is \[wo, q\], but .* in 4 bits; set it to \[wo\]"),
    ],
)
@pytest.mark.parametrize("check", [check_base, load_base_model])
def test_a_parameter_that_the_files_contradict_is_named(store, float32, changes, message, check):
    held = {"name": str(store(["wo"])), "skip_modules": ["wo"]}
    check(float32.model_copy(update=held))
    with pytest.raises(InputError, match=message) as refused:
        check(float32.model_copy(update=held | changes))
    assert held["name"] in str(refused.value)


@pytest.mark.parametrize(("quant_type", "double_quant"), [("fp4", True), ("nf4", False)])
def test_other_kinds_of_4_bits_load_where_the_parameters_name_them(
    store, whole, float32, quant_type, double_quant
):
    chosen = {"quant_type": quant_type, "double_quant": double_quant}
    folder = store(["wo"], **chosen)
    held = float32.model_copy(
        update={"name": str(folder), "skip_modules": ["wo"], "dequantize": False, **chosen}
    )
    state = load_base_model(held).get_submodule(Q).weight.quant_state
    assert (state.quant_type, state.nested) == (quant_type, double_quant)
    at_load = held.model_copy(update={"name": str(whole)})
    assert torch.equal(logits(load_base_model(held)), logits(load_base_model(at_load)))


def configured(**changes):
    def damage(folder):
        config = json.loads((folder / "config.json").read_text())
        config = {key: value for key, value in (config | changes).items() if value is not None}
        (folder / "config.json").write_text(json.dumps(config))

    return damage


def reweighed(key, change):
    def damage(folder):
        weights = load_file(folder / "model.safetensors")
        weights[key] = change(weights[key])
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    return damage


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (configured(quantization_config=None), "names no quantization, and its weights are packed"),
        (
            configured(quantization_config={"quant_method": "gptq", "bits": 4}),
            "names the quantization gptq, and its weights are packed in 4 bits; give a base",
        ),
        (reweighed(f"{Q}.weight", lambda w: w[:-8]), "the shape of .*q.weight is"),
        (reweighed(f"{Q}.weight.absmax", lambda w: w[:-8]), "the shape of .*q.weight is"),
        (reweighed(f"{Q}.weight.quant_map", lambda w: w[:-8]), "the shape of .*q.weight is"),
        (reweighed(f"{Q}.weight.nested_absmax", lambda w: w * torch.nan), "holds NaN or infinity"),
        (reweighed(f"{Q}.weight", lambda w: w.double()), "is stored in 4 bits under F64; give"),
        (reweighed("shared.weight", lambda w: w / 0), "shared.weight in .* holds NaN or infinity"),
    ],
)
def test_a_damaged_base_in_4_bits_is_refused_in_a_sentence(store, float32, damage, message):
    folder = store(["wo"])
    damage(folder)
    held = {"name": str(folder), "skip_modules": ["wo"]}
    with pytest.raises(InputError, match=message) as refused:
        load_base_model(float32.model_copy(update=held))
    assert re.search(re.escape(str(folder)), str(refused.value))


def test_a_base_of_another_quantization_is_refused(float32, tiny_base, tmp_path):
    folder = shutil.copytree(tiny_base, tmp_path / "base")
    configured(quantization_config={"quant_method": "gptq", "bits": 4})(folder)
    with pytest.raises(InputError, match="names the quantization gptq; give a base in bfloat16"):
        check_base(float32.model_copy(update={"name": str(folder)}))
