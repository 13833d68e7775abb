"""The embedded base model is what its card says, and transformers alone loads it."""

import pytest
from conftest import REPOSITORY, read_shipped_conf
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from flan_qa_pipeline import QuestionAnswerer
from flan_qa_pipeline.config.parameters import ModelParameters
from flan_qa_pipeline.models.adapter import load_adapter, require_trained_on

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


def test_the_adapter_that_ships_answers_and_abstains(monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    model = read_shipped_conf()["model"] | {"revision": None}
    adapter = load_adapter(REPOSITORY / "data/06_models/starter_adapter")
    require_trained_on(adapter, ModelParameters.model_validate(model))
    context = "Ada Lovelace was born in London. Charles Babbage designed the Analytical Engine."
    questions = [
        "Where was Ada Lovelace born?",
        "Who designed the Analytical Engine?",
        "When did Babbage die?",
    ]
    answers = QuestionAnswerer(adapter).answer([(context, question) for question in questions])
    assert [answer.text for answer in answers] == ["London", "Charles Babbage", ""]
    assert [answer.abstained for answer in answers] == [False, False, True]
