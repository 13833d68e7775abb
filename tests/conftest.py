"""What several test files share: the real configuration and a tiny, really saved T5."""

import os
import re
from pathlib import Path

import pytest
import torch
import yaml
from transformers import T5Config, T5ForConditionalGeneration, set_seed

from flan_qa_pipeline.models import load_tokenizer
from flan_qa_pipeline.parameters import Parameters
from flan_qa_pipeline.pretraining import train_unigram_tokenizer
from flan_qa_pipeline.starter_corpus import generate_corpus

REPOSITORY = Path(__file__).resolve().parents[1]
CONF = REPOSITORY / "conf/base"
SQUAD_V2_DIR = Path(os.environ.get("SQUAD_V2_DIR", REPOSITORY.parent / "shared/squad_v2"))
VOCAB_SIZE = 600


def read_conf():
    """Read all parameters files as Kedro does, globals filled in."""
    names = yaml.safe_load((CONF / "globals.yml").read_text(encoding="utf-8"))
    raw = {}
    for path in sorted(CONF.glob("parameters*.yml")):
        text = path.read_text(encoding="utf-8")
        raw |= yaml.safe_load(re.sub(r"\$\{globals:(\w+)\}", lambda m: str(names[m[1]]), text))
    return raw


@pytest.fixture
def raw_parameters():
    return read_conf()


@pytest.fixture(scope="session")
def corpus():
    """A small starter corpus in the official SQuAD 2.0 layout."""
    kinds = REPOSITORY / "data/01_raw/starter_kinds.yml"
    return generate_corpus(
        yaml.safe_load(kinds.read_text(encoding="utf-8")),
        seed=7,
        n_articles=30,
        paragraphs_per_article=(2, 3),
        questions_per_paragraph=(3, 4),
        impossible_fraction=0.4,
    )


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory, corpus):
    """The folder of a T5 v1.1 with random weights and of a tokenizer trained on the corpus."""
    paragraphs = [p for article in corpus["data"] for p in article["paragraphs"]]
    texts = [p["context"] for p in paragraphs]
    texts += [qa["question"] for p in paragraphs for qa in p["qas"]]
    tokenizer = train_unigram_tokenizer(texts, VOCAB_SIZE)
    set_seed(5)
    model = T5ForConditionalGeneration(
        T5Config(
            vocab_size=len(tokenizer),
            d_model=64,
            d_kv=16,
            d_ff=128,
            num_layers=1,
            num_decoder_layers=1,
            num_heads=4,
            feed_forward_proj="gated-gelu",
            tie_word_embeddings=False,
            dropout_rate=0.0,
            decoder_start_token_id=tokenizer.pad_token_id,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )
    with torch.no_grad():
        model.lm_head.weight.mul_(0.2)
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


@pytest.fixture(scope="session")
def squad_v2_dir():
    if not SQUAD_V2_DIR.is_dir():
        pytest.skip(
            f"SQuAD 2.0 is not at {SQUAD_V2_DIR}; set SQUAD_V2_DIR to the folder that holds it"
        )
    return SQUAD_V2_DIR
