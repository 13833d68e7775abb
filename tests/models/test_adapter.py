"""LoRA adapters: trained for real, saved, versioned, attached again, and every misfit."""

import dataclasses
import json
import logging
import math
import os
import re
import shutil
from hashlib import sha256
from pathlib import Path

import pytest
import torch
from bitsandbytes.nn import Linear4bit
from conftest import DEVICE, assert_close
from kedro.io import DatasetError
from kedro.io.core import Version
from peft import PeftModel
from safetensors.torch import load_file, save_file

import flan_qa_pipeline.models.adapter
from flan_qa_pipeline import QuestionAnswerer
from flan_qa_pipeline.answering.generation import generate_answers
from flan_qa_pipeline.datasets.adapter import AdapterDataset
from flan_qa_pipeline.datasets.reading import load
from flan_qa_pipeline.errors import InputError
from flan_qa_pipeline.files import DIGESTS, save_digests
from flan_qa_pipeline.models.adapter import (
    attach_adapter,
    load_adapter,
    provenance_of,
    save_adapter,
)
from flan_qa_pipeline.models.loading import check_base, load_base_model
from flan_qa_pipeline.models.quantization import dequantize
from flan_qa_pipeline.pipelines.modeling.nodes import attach_lora, merge_adapter
from flan_qa_pipeline.runtime.atomic_catalog import AtomicCatalog


@pytest.fixture(scope="module")
def trained(train, training):
    """The trained model and its adapter."""
    return train(training)


@pytest.fixture
def dataset(tmp_path):
    def open_version(load=None, save=None):
        return AdapterDataset(filepath=str(tmp_path / "adapter"), version=Version(load, save))

    return open_version


def files_in(folder):
    return [path for path in Path(folder).rglob("*") if path.is_file()]


def logits(model, windows):
    batch = torch.tensor([windows["train"][0]["input_ids"]], device=model.device)
    given = torch.tensor([[0, 4, 9]], device=model.device)
    with torch.inference_mode():
        return model(input_ids=batch, decoder_input_ids=given).logits


def answers(model, tokenizer, windows):
    ids = windows["train"]["input_ids"]
    return generate_answers(
        model, tokenizer, ids, abstention="no answer", batch_tokens=160, max_new_tokens=8
    )


def scaled(adapter, factor):
    weights = {name: factor * tensor for name, tensor in adapter.state_dict.items()}
    return dataclasses.replace(adapter, state_dict=weights)


def test_training_changes_the_model_and_lowers_both_losses(trained, float32, windows):
    model, adapter = trained
    log = adapter.training["log"]
    losses = [entry["loss"] for entry in log if "loss" in entry]
    eval_losses = [entry["eval_loss"] for entry in log if "eval_loss" in entry]
    assert losses[-1] < losses[0]
    assert len(eval_losses) == 2
    assert eval_losses[1] < eval_losses[0]
    assert all(tensor.device.type == "cpu" for tensor in adapter.state_dict.values())
    lora_b = [tensor for name, tensor in adapter.state_dict.items() if "lora_B" in name]
    assert len(lora_b) == 18
    assert all(tensor.abs().max() > 0 for tensor in lora_b)
    assert not torch.allclose(logits(model, windows), logits(load_base_model(float32), windows))


def test_reloaded_adapter_answers_like_the_trained_model(
    trained, float32, provenance, windows, tokenizer, dataset
):
    model, adapter = trained
    dataset().save(adapter)
    loaded = dataset().load()
    assert loaded.provenance == adapter.provenance
    assert provenance.items() <= loaded.provenance.items()
    assert loaded.training == adapter.training
    assert loaded.config.base_model_name_or_path == float32.name
    again = attach_adapter(load_base_model(float32), loaded, provenance)
    assert not again.training
    assert torch.equal(logits(again, windows), logits(model, windows))
    assert answers(again, tokenizer, windows) == answers(model, tokenizer, windows)
    assert answers(again, loaded.tokenizer, windows) == answers(again, tokenizer, windows)


def test_a_base_quantized_from_another_dtype_is_warned_of(trained, float32, provenance, caplog):
    caplog.set_level(logging.WARNING, logger="flan_qa_pipeline")
    _, adapter = trained
    assert adapter.training["quantized_from_dtype"] == "float32"
    attach_adapter(load_base_model(float32), adapter, provenance)
    assert not caplog.messages
    bfloat16 = float32.model_copy(update={"compute_dtype": "bfloat16"})
    attach_adapter(load_base_model(bfloat16), adapter, provenance)
    [line] = caplog.messages
    assert "quantized from float32; this base was quantized from bfloat16" in line
    assert line.endswith("Give model.compute_dtype=float32 for the weights of the training.")


def test_an_adapter_knows_the_weights_in_the_folder_of_its_base(train, training, float32, tmp_path):
    folder = tmp_path / "base"
    shutil.copytree(float32.name, folder)
    save_digests(folder, ["config.json", "model.safetensors"])
    model = float32.model_copy(update={"name": str(folder)})
    _, adapter = train(training.model_copy(update={"max_steps": 1}), model)
    digest = sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert adapter.training["base_digests"] == {"model.safetensors": digest}
    attach_adapter(load_base_model(model), adapter, adapter.provenance)
    weights = load_file(folder / "model.safetensors")
    save_file({name: 2 * weight for name, weight in weights.items()}, folder / "model.safetensors")
    save_digests(folder, ["config.json", "model.safetensors"])
    with pytest.raises(InputError, match=f"{folder} holds other weights than those .* train again"):
        attach_adapter(load_base_model(model), adapter, adapter.provenance)
    (folder / DIGESTS).unlink()
    attach_adapter(load_base_model(model), adapter, adapter.provenance)


def test_versions_are_kept_and_can_be_pinned(trained, dataset):
    _, adapter = trained
    assert not dataset().exists()
    dataset(save="2026-01-01T00.00.00.000Z").save(adapter)
    dataset(save="2026-01-02T00.00.00.000Z").save(scaled(adapter, 2))
    assert dataset().exists()
    for version, factor in (
        (None, 2),
        ("2026-01-02T00.00.00.000Z", 2),
        ("2026-01-01T00.00.00.000Z", 1),
    ):
        loaded = dataset(load=version).load()
        assert loaded.state_dict.keys() == adapter.state_dict.keys()
        for name, tensor in adapter.state_dict.items():
            assert torch.equal(loaded.state_dict[name], factor * tensor)
        assert (loaded.config.r, loaded.config.lora_alpha) == (
            adapter.config.r,
            adapter.config.lora_alpha,
        )
    with pytest.raises(DatasetError, match="must not exist if versioning is enabled"):
        dataset(save="2026-01-01T00.00.00.000Z").save(adapter)


def test_unversioned_adapter_can_be_saved_again(trained, tmp_path):
    _, adapter = trained
    plain = AdapterDataset(filepath=str(tmp_path / "plain"))
    plain.save(adapter)
    plain.save(scaled(adapter, 3))
    for name, tensor in plain.load().state_dict.items():
        assert torch.equal(tensor, 3 * adapter.state_dict[name])
    assert [path.name for path in tmp_path.iterdir() if "plain" in path.name] == ["plain"]


def test_files_are_safetensors_and_json_in_pefts_own_layout(trained, float32, windows, dataset):
    model, adapter = trained
    opened = dataset(save="v1")
    opened.save(adapter)
    folder = opened._get_versioned_path("v1")
    files = files_in(folder)
    assert {path.suffix for path in files} == {".safetensors", ".json", ".md"}
    for path in files:
        if path.suffix == ".json":
            json.loads(path.read_text(encoding="utf-8"))
    plain = PeftModel.from_pretrained(load_base_model(float32), str(folder)).eval()
    assert_close(logits(plain, windows), logits(model, windows), rtol=0, atol=0)


@pytest.mark.parametrize("name", ["adapter_model.bin", "optimizer.pt", "tokenizer/vocab.pkl"])
def test_an_adapter_with_a_pickle_is_refused(trained, dataset, name):
    _, adapter = trained
    opened = dataset(save="v1")
    opened.save(adapter)
    pickled = Path(opened._get_versioned_path("v1"), name)
    pickled.parent.mkdir(exist_ok=True)
    torch.save(adapter.state_dict, pickled)
    with pytest.raises(DatasetError, match=f"{name} is neither safetensors nor JSON nor text"):
        dataset().load()


def test_an_adapter_saved_without_digests_loads_with_a_warning(trained, tmp_path, caplog):
    _, adapter = trained
    save_adapter(adapter, tmp_path)
    load_adapter(tmp_path)
    assert not caplog.text
    (tmp_path / DIGESTS).unlink()
    loaded = load_adapter(tmp_path)
    assert all(torch.equal(loaded.state_dict[n], w) for n, w in adapter.state_dict.items())
    assert f"{tmp_path} holds no digests.json: it was saved by an earlier" in caplog.text
    assert len(caplog.records) == 1


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [flip_a_bit, os.remove, lambda path: path.write_bytes(b"")])
def test_any_change_of_any_file_of_an_adapter_is_noticed(trained, tmp_path, damage):
    save_adapter(trained[1], tmp_path / "whole")
    names = sorted(path.name for path in (tmp_path / "whole").iterdir())
    assert len(names) == 7
    for name in names:
        folder = tmp_path / name.partition(".")[0]
        shutil.copytree(tmp_path / "whole", folder)
        if damage is os.remove and name == DIGESTS:
            continue  # an adapter of an earlier version
        damage(folder / name)
        named = "" if name == DIGESTS else f"{name} (is not as it was saved|cannot be read)"
        with pytest.raises(InputError, match=f"{named}.*restore the folder"):
            load_adapter(folder)


def changed(name, **values):
    def change(folder):
        raw = json.loads((folder / name).read_text(encoding="utf-8"))
        (folder / name).write_text(json.dumps(raw | values), encoding="utf-8")

    return pytest.param(change, name, id=f"{name} {values}"[:60])


def overwritten(name, content, named=None):
    def change(folder):
        (folder / name).write_bytes(content)

    return pytest.param(change, named or name, id=f"{name} {content[:20]!r}")


def reweighed(name, weigh):
    def change(folder):
        path = folder / "adapter_model.safetensors"
        weights = load_file(path)
        first = sorted(weights)[0]
        save_file(weights | {first: weigh(weights[first])}, path)

    return pytest.param(change, "adapter_model.safetensors: base_model.model.decoder", id=name)


CONFIG = "adapter_config.json"
DAMAGES = [
    *(
        overwritten(name, content)
        for name in (CONFIG, "provenance.json", "training.json")
        for content in (b"", b"[]", b"{", b"\xff", b"null", b'"text"')
    ),
    *(
        overwritten("adapter_model.safetensors", content)
        for content in (b"", b"\x80\x04}.", b"PK\x03\x04", 8 * b"\xff", b"\x02" + 7 * b"\0" + b"{}")
    ),
    *(
        overwritten("tokenizer.json", content, "The tokenizer in ")
        for content in (b"", b"[]", b"{}", b"null", b"\xff")
    ),
    overwritten("tokenizer_config.json", b"[]", "The tokenizer in "),
    changed("provenance.json", model=[]),
    changed("provenance.json", prompt=None),
    *(changed(CONFIG, r=r) for r in (0, -1, "four", None, 1_000_000_000)),
    *(changed(CONFIG, lora_alpha=alpha) for alpha in (1e9, math.nan, math.inf, "8", 0, 9)),
    *(changed(CONFIG, lora_dropout=dropout) for dropout in (1, -1, math.nan)),
    changed(CONFIG, use_rslora=True),
    changed(CONFIG, use_dora=True),
    changed(CONFIG, alpha_pattern={"q": 900}),
    changed(CONFIG, rank_pattern={"q": 1}),
    changed(CONFIG, target_modules="(a+)+$"),
    changed(CONFIG, target_modules=None),
    changed(CONFIG, target_modules=[["q"]]),
    changed(CONFIG, peft_type="IA3"),
    changed(CONFIG, task_type="CAUSAL_LM"),
    changed(CONFIG, bias="all"),
    changed(CONFIG, init_lora_weights="pissa"),
    changed(CONFIG, modules_to_save=["lm_head"]),
    changed(CONFIG, auto_mapping={"parent_library": "os"}),
    reweighed("nan", lambda w: w * math.nan),
    reweighed("inf", lambda w: w.index_fill(0, torch.tensor([0]), -math.inf)),
    reweighed("bool", lambda w: w > 0),
    reweighed("int8", lambda w: w.to(torch.int8)),
    reweighed("float8", lambda w: w.to(torch.float8_e4m3fn)),
]


@pytest.mark.parametrize(("change", "named"), DAMAGES)
def test_what_no_training_writes_is_refused_without_digests_too(
    trained, parameters, lora, tmp_path, change, named
):
    """By whatever loads an adapter, in the same sentence."""
    folder = tmp_path / "adapter"
    run = {"parameters": {"lora": lora.model_dump()}}
    training = trained[1].training | {"run": run}
    save_adapter(dataclasses.replace(trained[1], training=training), folder)
    (folder / DIGESTS).unlink()
    load_adapter(folder)
    change(folder)
    with pytest.raises(InputError, match=named) as refused:
        load(AdapterDataset(filepath=str(folder)))
    assert "restore" in str(refused.value)
    with pytest.raises(InputError, match=re.escape(str(refused.value))):
        QuestionAnswerer.from_folder(folder)


@pytest.mark.parametrize("names", [["tokenizer.json"], ["tokenizer.json", "tokenizer_config.json"]])
def test_an_adapter_without_a_tokenizer_is_refused(trained, tmp_path, names):
    save_adapter(trained[1], tmp_path)
    for name in [DIGESTS, *names]:
        (tmp_path / name).unlink()
    with pytest.raises(InputError, match=f"{tmp_path}.*restore"):
        load_adapter(tmp_path)


def test_a_folder_with_anything_else_is_not_overwritten(trained, tmp_path):
    plain = AdapterDataset(filepath=str(tmp_path / "plain"))
    plain.save(trained[1])
    (tmp_path / "plain/notes.txt").write_text("mine")
    (tmp_path / "models/base").mkdir(parents=True)
    (tmp_path / "models/base/model.safetensors").write_text("mine")
    before = {path: path.read_bytes() for path in files_in(tmp_path)}
    for dataset, named in (
        (plain, "plain/notes.txt"),
        (AdapterDataset(filepath=str(tmp_path / "models")), "models/base"),
    ):
        with pytest.raises(DatasetError, match=f"{named} was not saved with an adapter"):
            dataset.save(trained[1])
    assert {path: path.read_bytes() for path in files_in(tmp_path)} == before


@pytest.mark.parametrize("step", ["weights", "config", "tokenizer", "provenance"])
@pytest.mark.parametrize("interruption", [OSError("disk full"), KeyboardInterrupt()])
def test_interrupted_save_leaves_no_version(trained, tmp_path, dataset, step, interruption):
    _, adapter = trained
    dataset(save="2026-01-01T00.00.00.000Z").save(adapter)
    before = {path: path.read_bytes() for path in files_in(tmp_path / "adapter")}

    def fail(*args, **kwargs):
        raise interruption

    with pytest.MonkeyPatch.context() as patch:
        if step == "weights":
            patch.setattr(flan_qa_pipeline.models.adapter, "save_file", fail)
        elif step == "config":
            patch.setattr(type(adapter.config), "save_pretrained", fail)
        elif step == "tokenizer":
            patch.setattr(type(adapter.tokenizer), "save_pretrained", fail)
        else:
            patch.setattr(flan_qa_pipeline.models.adapter.json, "dumps", fail)
        catalog = AtomicCatalog({"adapter": dataset(save="2026-01-02T00.00.00.000Z")})
        with pytest.raises((DatasetError, KeyboardInterrupt)):
            catalog.save("adapter", scaled(adapter, 2))

    assert dataset().list_versions(full_path=False) == ["2026-01-01T00.00.00.000Z"]
    assert {path: path.read_bytes() for path in files_in(tmp_path / "adapter")} == before
    assert [path.name for path in (tmp_path / "adapter").iterdir()] == ["2026-01-01T00.00.00.000Z"]
    assert [path.name for path in tmp_path.iterdir() if "adapter" in path.name] == ["adapter"]
    loaded = dataset().load().state_dict
    assert all(torch.equal(loaded[name], adapter.state_dict[name]) for name in adapter.state_dict)
    dataset(save="2026-01-02T00.00.00.000Z").save(adapter)
    assert len(dataset().list_versions()) == 2


def test_every_difference_of_provenance_is_named(trained, parameters, float32):
    _, adapter = trained
    model = float32.model_copy(update={"quant_type": "fp4", "revision": "main"})
    prompt = parameters.prompt.model_copy(update={"abstention": "none"})
    with pytest.raises(InputError) as error:
        attach_adapter(load_base_model(float32), adapter, provenance_of(model, prompt))
    message = str(error.value)
    assert "model.quant_type is 'fp4', trained with 'nf4'" in message
    assert "model.revision is 'main', trained with None" in message
    assert f"prompt.abstention is 'none', trained with {parameters.prompt.abstention!r}" in message
    assert "template" not in message
    assert "--load-versions=adapter:" in message


def test_what_does_not_change_the_answers_may_differ(trained, parameters, float32):
    _, adapter = trained
    model = float32.model_copy(update={"compute_dtype": "bfloat16", "attn_implementation": "sdpa"})
    ids = {"input_ids": torch.tensor([[3, 4, 1]]), "labels": torch.tensor([[5, 1]])}
    ids = {name: tokens.to(DEVICE) for name, tokens in ids.items()}
    losses = [
        attach_adapter(load_base_model(float32), adapter, provenance_of(m, parameters.prompt))
        .eval()(**ids)
        .loss.item()
        for m in (float32, model)
    ]
    assert losses[0] == losses[1]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda weights, name: weights.pop(name), "missing in the adapter and ("),
        (
            lambda weights, name: weights.update({name: weights[name][:, :3]}),
            ", 3) in the adapter and (",
        ),
        (
            lambda weights, name: weights.update({f"{name}.more": weights[name]}),
            "in the adapter and missing on the base",
        ),
    ],
    ids=["missing", "another shape", "too many"],
)
def test_weights_that_do_not_fit_the_base_are_named(trained, float32, provenance, change, said):
    _, adapter = trained
    weights = dict(adapter.state_dict)
    name = sorted(weights)[0]
    change(weights, name)
    wrong = dataclasses.replace(adapter, state_dict=weights)
    with pytest.raises(InputError) as error:
        attach_adapter(load_base_model(float32), wrong, provenance)
    assert f"does not fit the base {float32.name}: {name}" in str(error.value)
    assert said in str(error.value)


def test_target_module_that_matches_nothing_is_refused(float32, lora):
    lora = lora.model_copy(update={"target_modules": ["q", "query", "w"]})
    with pytest.raises(InputError) as error:
        check_base(float32, lora)
    assert f"['query', 'w'] match no linear module of {float32.name}" in str(error.value)
    assert "q, k, v, o, wi_0, wi_1 and wo (or use all-linear)" in str(error.value)


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        ("all-linear", {"q", "k", "v", "o", "wi_0", "wi_1", "wo"}),
        (["q", "v"], {"q", "v"}),
        (["EncDecAttention.q"], {"q"}),
    ],
)
def test_lora_is_put_on_the_targets_alone(parameters, float32, lora, caplog, targets, expected):
    lora = lora.model_copy(update={"target_modules": targets})
    check_base(float32, lora)
    with caplog.at_level(logging.INFO, logger="flan_qa_pipeline"):
        model = attach_lora(load_base_model(float32), lora, parameters.training)
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert all(".lora_A." in name or ".lora_B." in name for name in trainable)
    assert {name.split(".lora_")[0].rpartition(".")[2] for name in trainable} == expected
    assert "LoRA trains" in caplog.text


@pytest.mark.parametrize("kind", ["use_rslora", "use_dora"])
def test_variants_of_lora_train_on_4_bit(train, training, lora, parameters, float32, kind):
    changed = lora.model_copy(update={kind: True})
    model = attach_lora(load_base_model(float32), changed, training).train()
    assert getattr(model.peft_config["default"], kind)
    ids = torch.tensor([[5, 6, 7, 1]], device=model.device)
    model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=ids).loss.backward()
    trained = [name for name, p in model.named_parameters() if p.grad is not None]
    assert trained == [name for name, p in model.named_parameters() if p.requires_grad]
    assert any("magnitude" in name for name in trained) == (kind == "use_dora")


def test_merged_model_answers_like_the_adapter_on_the_dequantized_base(
    trained, parameters, float32, provenance, windows, tokenizer
):
    _, adapter = trained
    made = merge_adapter(float32, parameters.prompt, adapter, {})
    merged, saved_tokenizer = made.model, made.tokenizer
    assert {p.dtype for p in merged.parameters()} == {torch.bfloat16}
    apart = attach_adapter(dequantize(load_base_model(float32)), adapter, provenance)
    expected = logits(apart, windows)
    error = (logits(merged, windows).float() - expected).norm() / expected.norm()
    assert error < 0.02
    untrained = logits(load_base_model(float32), windows)
    assert (untrained - expected).norm() / expected.norm() > 10 * error
    texts, others = (
        [answer.text for answer in answers(model, some, windows)]
        for model, some in ((merged, saved_tokenizer), (apart, tokenizer))
    )
    assert texts == others


@pytest.mark.parametrize(
    ("compute_dtype", "recorded", "expected"),
    [
        ("bfloat16", "float32", "bfloat16"),
        ("auto", "bfloat16", "bfloat16"),
        ("auto", "float32", "float32"),
    ],
)
def test_a_merged_model_has_the_quantized_base_of_the_compute_dtype_or_of_the_training(
    trained, parameters, float32, provenance, compute_dtype, recorded, expected
):
    """The codes of NF4 depend on the dtype that is quantized; the tiny base is saved in float32."""
    _, adapter = trained
    made = dataclasses.replace(
        adapter, training=adapter.training | {"quantized_from_dtype": recorded}
    )
    choosing = float32.model_copy(update={"compute_dtype": compute_dtype})
    merged = merge_adapter(choosing, parameters.prompt, made, {}).model
    name = "encoder.block.0.layer.1.DenseReluDense.wi_0"
    errors = {}
    for dtype in ("bfloat16", "float32"):
        base = load_base_model(float32.model_copy(update={"compute_dtype": dtype}))
        model = attach_adapter(dequantize(base).float(), adapter, provenance)
        model.merge_adapter()
        layer = model.get_base_model().get_submodule(name).get_base_layer()
        difference = merged.get_submodule(name).weight.float() - layer.weight
        errors[dtype] = difference.norm() / layer.weight.norm()
    assert min(errors, key=errors.get) == expected
    assert min(errors.values()) < 0.3 * max(errors.values())


def test_a_head_in_4_bits_trains_saves_answers_and_merges(
    train, training, parameters, float32, windows, tokenizer, dataset
):
    whole = float32.model_copy(update={"skip_modules": [], "dequantize": False})
    model, adapter = train(training, whole)
    assert type(model.get_output_embeddings()) is Linear4bit
    losses = [entry["loss"] for entry in adapter.training["log"] if "loss" in entry]
    assert losses[-1] < losses[0]
    dataset().save(adapter)
    loaded = dataset().load()
    again = attach_adapter(load_base_model(whole), loaded, provenance_of(whole, parameters.prompt))
    assert torch.equal(logits(again, windows), logits(model, windows))
    assert answers(again, tokenizer, windows) == answers(model, tokenizer, windows)
    with pytest.raises(InputError, match=r"skip_modules is \['lm_head'\], trained with \[\]"):
        attach_adapter(load_base_model(float32), loaded, provenance_of(float32, parameters.prompt))
    merged = merge_adapter(whole, parameters.prompt, loaded, {}).model
    expected = logits(model, windows)
    error = (logits(merged, windows).float() - expected).norm() / expected.norm()
    assert error < 0.02
