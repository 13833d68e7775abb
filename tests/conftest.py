"""What several test files share: the real configuration and a tiny, really saved T5."""

import gc
import json
import logging
import os
import re
import shutil
import time
from collections import Counter
from pathlib import Path

import hypothesis
import pytest
import torch
import yaml
from copying_t5 import build_copying_t5
from datasets import Dataset, DatasetDict, DatasetInfo, disable_caching
from english import read_short_english, train_small_tokenizer
from hub_server import (
    BASE,
    COMMIT,
    ROWS,
    ROWS_FILE,
    SQUAD,
    SQUAD_COMMIT,
    read_repository,
    running_hub,
)
from huggingface_hub import constants
from transformers import set_seed

from flan_qa_pipeline import QuestionAnswerer
from flan_qa_pipeline.config.parameters import Parameters, PromptParameters
from flan_qa_pipeline.data.fingerprints import fingerprint_splits
from flan_qa_pipeline.data.tokenized import describe, made_with
from flan_qa_pipeline.models.adapter import Adapter, extract_adapter, provenance_of
from flan_qa_pipeline.models.loading import load_base_model, load_tokenizer
from flan_qa_pipeline.pipelines.data_engineering.nodes import WINDOW_FEATURES
from flan_qa_pipeline.pipelines.modeling.nodes import (
    attach_lora,
    fingerprint_inputs,
    train_adapter,
)
from flan_qa_pipeline.pretraining.random_t5 import build_t5
from flan_qa_pipeline.runtime.provenance import package_versions

# cuBLAS's usual workspace is far larger than a tiny model; with this one its sums repeat, too.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":16:8")
os.environ.setdefault("CUBLASLT_WORKSPACE_SIZE", "128")  # KiB; torch warns if it is the larger one
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")  # where models are loaded
on_cpu = pytest.mark.skipif(DEVICE.type != "cpu", reason="only a CPU does this; there is a GPU")
on_gpu = pytest.mark.skipif(DEVICE.type != "cuda", reason="only a GPU does this; there is none")
one_gpu_is_too_few = pytest.mark.skipif(
    torch.cuda.device_count() == 1, reason="two processes need two GPUs, or none"
)

REPOSITORY = Path(__file__).resolve().parents[1]
CONF = REPOSITORY / "conf/base"
SQUAD_V2_DIR = Path(os.environ.get("SQUAD_V2_DIR", REPOSITORY.parent / "shared/squad_v2"))
VOCAB_SIZE = 1200
QUESTIONS = ["Which club was defeated in the Final?", "Who was the referee?", "What is it?"]
RUN = "run"  # the id of all trainings
ANSWERS = ["Vera Dormore", "no answer", "27 July 1998"]

# bitsandbytes imports torch's compiler, a second of each process that tests start; none compiles.
os.environ["TORCHDYNAMO_DISABLE"] = "1"
disable_caching()  # as the project does: its files would be left in the temporary folder
hypothesis.settings.register_profile("untimed", deadline=None)  # a busy machine is no failure
hypothesis.settings.load_profile("untimed")


def pytest_collection_modifyitems(items):
    """Start files with slow tests first, so that no parallel process ends long after the others."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def pytest_collection_finish(session):
    """Keep what is imported out of garbage collection, which every training begins with."""
    gc.collect()
    gc.freeze()


def assert_close(found, expected, **tolerance):
    """Compare tensors, or structures of them; a GPU adds in another order for other kernels."""
    if DEVICE.type == "cuda":
        tolerance = {name: max(tolerance.get(name, 0), 1e-3) for name in ("rtol", "atol")}
    torch.testing.assert_close(found, expected, **tolerance)


# What conf/base chooses for the embedded base and corpus, at values that suit tiny ones.
SIZES = {
    "data": {
        "dev_fraction": 0.025,
        "calibration_fraction": 0.025,
        "unanswerable_share": None,
        "max_train_questions": None,
        "max_dev_questions": 150,
        "max_calibration_questions": 150,
    },
    "model": {"skip_modules": ["lm_head"]},
    "tokenization": {"max_source_length": 256},
    "lora": {"r": 32, "alpha": 64},
    "training": {
        "per_device_train_batch_size": 32,
        "per_device_eval_batch_size": 64,
        "learning_rate": 2e-3,
        "eval_strategy": "steps",
        "eval_steps": 0.34,
        "eval_questions": 64,
        "save_steps": 0.1,
    },
}


def resized(raw):
    """Change the sections of parameters that `SIZES` names."""
    return {
        name: section | SIZES[name] if name in SIZES else section for name, section in raw.items()
    }


def write_files(root, files):
    """Write texts to files under a folder, by their relative paths."""
    for path, text in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text, encoding="utf-8")


def copy_project(root):
    """Copy what makes this a Kedro project, without data, at the sizes of the tests."""
    for name in ("conf", "src"):
        shutil.copytree(
            REPOSITORY / name, root / name, ignore=shutil.ignore_patterns("__pycache__")
        )
    for path in (root / "conf/base").glob("parameters*.yml"):
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
        path.write_text(yaml.safe_dump(resized(raw), sort_keys=False), encoding="utf-8")
    for name in ("pyproject.toml", ".telemetry"):
        shutil.copy(REPOSITORY / name, root)


def make_project(root, corpus):
    """Copy the project; its data is a small corpus of 24 articles to train on and 6 to validate."""
    copy_project(root)
    (root / "data/01_raw").mkdir(parents=True)
    for name, articles in (("train", corpus["data"][:24]), ("validation", corpus["data"][24:])):
        path = root / f"data/01_raw/starter_{name}.json"
        path.write_text(json.dumps({"version": "v2.0", "data": articles}), encoding="utf-8")


@pytest.fixture(scope="module")
def project(tmp_path_factory, corpus):
    """A copy of the project whose data is a small corpus; runs happen inside it."""
    from kedro.framework.startup import bootstrap_project  # its import sets up logging

    root = tmp_path_factory.mktemp("project")
    make_project(root, corpus)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        bootstrap_project(root)
        yield root


def read_shipped_conf():
    """Read all parameters files as Kedro does, globals filled in."""
    names = yaml.safe_load((CONF / "globals.yml").read_text(encoding="utf-8"))
    raw = {}
    for path in sorted(CONF.glob("parameters*.yml")):
        text = path.read_text(encoding="utf-8")
        raw |= yaml.safe_load(re.sub(r"\$\{globals:(\w+)\}", lambda m: names[m[1]] or "null", text))
    return raw


def read_conf():
    """Read all parameters files at the sizes of the tests."""
    return resized(read_shipped_conf())


@pytest.fixture
def raw_parameters():
    return read_conf()


@pytest.fixture(scope="session")
def corpus():
    """A small English corpus in the official SQuAD 2.0 layout."""
    return {"version": "v2.0", "data": read_short_english(30)}


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory, corpus):
    """The folder of a T5 v1.1 with random weights and of a tokenizer trained on the corpus."""
    tokenizer = train_small_tokenizer(corpus["data"], VOCAB_SIZE)
    set_seed(5)
    model = build_t5(
        dropout=0.0,
        vocab_size=VOCAB_SIZE,
        d_model=64,
        d_kv=16,
        d_ff=128,
        num_layers=1,
        num_decoder_layers=1,
        num_heads=4,
    )
    with torch.no_grad():
        model.lm_head.weight.normal_(std=0.2)
    folder = tmp_path_factory.mktemp("tiny_base")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def parameters(tiny_base):
    """The project's own parameters, on the tiny base."""
    raw = read_conf()
    raw["model"]["name"] = str(tiny_base)
    return Parameters.model_validate(raw)


@pytest.fixture(scope="session")
def model_parameters(parameters):
    return parameters.model


@pytest.fixture(scope="session")
def prompt_parameters(parameters):
    return parameters.prompt


@pytest.fixture(scope="session")
def tokenizer(model_parameters):
    return load_tokenizer(model_parameters)


@pytest.fixture
def transformers_log(caplog):
    """caplog with the warnings of transformers, whose loggers do not propagate."""
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    yield caplog
    logger.removeHandler(caplog.handler)


@pytest.fixture
def hub(monkeypatch, tmp_path, tiny_base):
    """A hub with a base model and a dataset; nothing is cached; nobody waits between tries."""
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    with running_hub(monkeypatch, tmp_path / "cache") as hub:
        unread = ("pytorch_model.bin", "tf_model.h5", "README.md", "onnx/model.safetensors")
        hub.add(BASE, read_repository(tiny_base) | dict.fromkeys(unread, b"not read"), COMMIT)
        files = {"README.md": b"card", ROWS_FILE: ROWS}
        hub.add(SQUAD, files, SQUAD_COMMIT, kind="datasets")
        yield hub


@pytest.fixture(scope="session")
def squad_v2_dir():
    if not SQUAD_V2_DIR.is_dir():
        pytest.skip(
            f"SQuAD 2.0 is not at {SQUAD_V2_DIR}; set SQUAD_V2_DIR to the folder that holds it"
        )
    return SQUAD_V2_DIR


@pytest.fixture(scope="module")
def float32(model_parameters):
    return model_parameters.model_copy(update={"compute_dtype": "float32"})


@pytest.fixture(scope="module")
def windows(tokenizer, questions, parameters):
    rows = [
        {"id": f"q{i}", "window": 0, **tokenizer(question), "labels": tokenizer(text)["input_ids"]}
        for i, (question, text) in enumerate(zip(QUESTIONS, ANSWERS, strict=True))
    ]
    kept = [{column: row[column] for column in WINDOW_FEATURES} for row in rows]
    made = made_with(tokenizer, parameters.prompt, parameters.tokenization, parameters.data)
    text = describe(made, fingerprint_splits(questions))
    info = DatasetInfo(description=text, features=WINDOW_FEATURES)
    dataset = Dataset.from_list(kept * 4, info=info)
    held_out = dataset.select(range(3))
    return DatasetDict(train=dataset, dev=held_out, calibration=held_out, validation=dataset)


@pytest.fixture(scope="module")
def questions():
    rows = [
        {
            "id": f"q{i}",
            "question": question,
            "answers": {"text": [] if text == "no answer" else [text], "answer_start": []},
        }
        for i, (question, text) in enumerate(zip(QUESTIONS, ANSWERS, strict=True))
    ]
    return DatasetDict(dev=Dataset.from_list(rows))


@pytest.fixture(scope="session")
def lora(parameters):
    return parameters.lora.model_copy(update={"target_modules": "all-linear", "r": 4, "alpha": 8})


@pytest.fixture(scope="module")
def training(parameters, tmp_path_factory):
    folder = tmp_path_factory.mktemp("training")
    return parameters.training.model_copy(
        update={
            "output_dir": str(folder / "checkpoints"),
            "logging_dir": str(folder / "logs"),
            "num_train_epochs": 2,
            "per_device_train_batch_size": 4,
            "learning_rate": 0.05,
            "logging_steps": 1,
            "eval_strategy": "epoch",
            "cuda_graphs": False,  # a GPU, too, calls the model in every step
        }
    )


@pytest.fixture(scope="module")
def train(parameters, float32, lora, windows, questions):
    """Train with other parameters; return the model and its adapter."""

    def train_with(training, base=float32):
        model = attach_lora(load_base_model(base), lora, training)
        adapter = train_adapter(
            model,
            windows,
            questions,
            fingerprint_inputs(model, windows, questions),
            base,
            parameters.prompt,
            parameters.tokenization,
            parameters.generation,
            training,
            {"run_id": RUN, "versions": package_versions()},
        )
        return model.eval(), adapter

    return train_with


@pytest.fixture(scope="module")
def provenance(float32, prompt_parameters):
    return provenance_of(float32, prompt_parameters)


@pytest.fixture(scope="session")
def copying_base(tmp_path_factory, model_parameters, tokenizer):
    """Parameters of a tiny T5 in float32 that answers with phrases of the context."""
    set_seed(3)
    folder = tmp_path_factory.mktemp("bases") / "copying_t5"
    build_copying_t5(tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    changes = {"name": str(folder), "compute_dtype": "float32", "load_in_4bit": False}
    return model_parameters.model_copy(update=changes)


@pytest.fixture(scope="session")
def pairs(corpus):
    """Questions about contexts of one window and of several; no context is the same."""
    paragraphs = [p for article in corpus["data"] for p in article["paragraphs"]]
    short = [(p["context"], qa["question"]) for p in paragraphs[:7] for qa in p["qas"][:1]]
    long = [
        (
            " ".join(p["context"] for p in paragraphs[i : i + 7]),
            paragraphs[i + 6]["qas"][j]["question"],
        )
        for i in range(2)
        for j in range(2)
    ]
    return short + long


@pytest.fixture(scope="session")
def adapter(copying_base, parameters, lora, pairs):
    """LoRA on the copying base whose most frequent answer to the pairs stands for abstaining."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(1)
        model = attach_lora(load_base_model(copying_base), lora, parameters.training)
        for name, weight in model.named_parameters():
            if "lora_B" in name:  # a GPU draws other numbers
                weight.copy_(torch.empty(weight.shape).normal_(std=0.04))

    def made(prompt: PromptParameters) -> Adapter:
        provenance = provenance_of(
            copying_base,
            prompt,
            tokenization=parameters.tokenization,
            generation=parameters.generation,
        )
        return extract_adapter(model, load_tokenizer(copying_base), provenance, {})

    answers = QuestionAnswerer(made(parameters.prompt), compute_dtype="float32").answer(pairs)
    frequent = Counter(answer.text for answer in answers).most_common(1)[0][0]
    return made(parameters.prompt.model_copy(update={"abstention": frequent}))


@pytest.fixture(scope="session")
def answerer(adapter):
    return QuestionAnswerer(adapter, compute_dtype="float32")
