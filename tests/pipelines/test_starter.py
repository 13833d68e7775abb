"""The embedded corpus and base model are what their recipe and card say."""

import json

import pytest
from conftest import REPOSITORY
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from flan_qa_pipeline.config.parameters import StarterParameters
from flan_qa_pipeline.pipelines.starter.nodes import generate_starter_corpus

RAW = REPOSITORY / "data/01_raw"
MODEL = REPOSITORY / "data/06_models/starter_t5"


@pytest.fixture(scope="module")
def model():
    return AutoModelForSeq2SeqLM.from_pretrained(MODEL)


def test_corpus_files_are_what_the_recipe_makes(raw_parameters):
    import yaml

    kinds = yaml.safe_load((RAW / "starter_kinds.yml").read_text(encoding="utf-8"))
    starter = StarterParameters.model_validate(raw_parameters["starter"])
    made = generate_starter_corpus(kinds, starter)
    kept = [json.loads((RAW / f"starter_{n}.json").read_text()) for n in ("train", "validation")]
    assert list(made) == kept


def test_corpus_size_and_share_of_unanswerable():
    for name, least in (("train", 4000), ("validation", 1000)):
        data = json.loads((RAW / f"starter_{name}.json").read_text())["data"]
        questions = [qa for a in data for p in a["paragraphs"] for qa in p["qas"]]
        assert len(questions) >= least
        share = sum(qa["is_impossible"] for qa in questions) / len(questions)
        assert 0.37 < share < 0.43


def test_base_model_is_a_small_t5_v1_1(model):
    assert model.config.model_type == "t5"
    assert model.config.feed_forward_proj == "gated-gelu"
    assert model.lm_head.weight.data_ptr() != model.shared.weight.data_ptr()
    assert sum(parameter.numel() for parameter in model.parameters()) <= 5_000_000
    assert (MODEL / "model.safetensors").stat().st_size <= 16_000_000


def test_tokenizer_has_t5s_layout_and_reads_any_ascii(model):
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    assert len(tokenizer) == model.config.vocab_size
    assert tokenizer.convert_tokens_to_ids(["<pad>", "</s>", "<unk>"]) == [0, 1, 2]
    assert tokenizer.convert_tokens_to_ids("<extra_id_0>") == len(tokenizer) - 1
    text = "Zyx (1987) isn't ~60% of {x}; who's that @ home?"
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
