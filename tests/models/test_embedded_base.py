"""The embedded base model is what its card says, and transformers alone loads it."""

import pytest
from conftest import REPOSITORY
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

MODEL = REPOSITORY / "data/06_models/starter_t5"


@pytest.fixture(scope="module")
def model():
    return AutoModelForSeq2SeqLM.from_pretrained(MODEL)


def test_base_model_is_a_small_t5_v1_1(model):
    assert model.config.model_type == "t5"
    assert model.config.feed_forward_proj == "gated-gelu"
    assert model.lm_head.weight.data_ptr() != model.shared.weight.data_ptr()
    assert (MODEL / "model.safetensors").stat().st_size <= 30_000_000


def test_tokenizer_has_t5s_layout_and_reads_usual_ascii(model):
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    assert len(tokenizer) == model.config.vocab_size
    assert tokenizer.convert_tokens_to_ids(["<pad>", "</s>", "<unk>"]) == [0, 1, 2]
    assert tokenizer.convert_tokens_to_ids("<extra_id_0>") == len(tokenizer) - 1
    text = "Zyx (1987) isn't ~60% of {x}; who's that, at home?"
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
