"""Batched greedy answers against the models' own one-by-one ones."""

import logging
import math
import random
import threading
from collections import Counter
from copy import deepcopy
from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import DEVICE, on_cpu
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import T5Tokenizer

import flan_qa_pipeline.answering.generation
from flan_qa_pipeline.answering.generation import generate_answers
from flan_qa_pipeline.errors import InputError
from flan_qa_pipeline.models.loading import load_base_model

MAX_NEW_TOKENS = 10
N_INPUTS = 13


@pytest.fixture(scope="module")
def texts(corpus):
    """Inputs of very different lengths, in no order of length."""
    contexts = [p["context"] for article in corpus["data"] for p in article["paragraphs"]]
    return [context[: 15 + 47 * (5 * i % N_INPUTS)] for i, context in enumerate(contexts)][
        :N_INPUTS
    ]


@pytest.fixture(scope="module")
def input_ids(texts, tokenizer):
    return [tokenizer(text)["input_ids"] for text in texts]


@pytest.fixture(scope="module", params=["float32", "nf4", "dequantized", "sdpa"])
def model(request, model_parameters, input_ids):
    """The tiny base, its end token made as likely as its favourite token, so that answers end."""
    changes = {"compute_dtype": "float32", "load_in_4bit": request.param in ("nf4", "dequantized")}
    changes["dequantize"] = request.param == "dequantized"
    changes["attn_implementation"] = "sdpa" if request.param == "sdpa" else "eager"
    model = load_base_model(model_parameters.model_copy(update=changes))
    favourites = Counter(token for ids in input_ids for token in generate(model, ids))
    favourites.pop(model.config.eos_token_id, None)
    favourite = favourites.most_common(2)[1][0]
    end = model.config.eos_token_id
    with torch.no_grad():
        model.lm_head.weight[[end, favourite]] = model.lm_head.weight[[favourite, end]]
    return model


def one_by_one(model, ids, suppressed_at_first=()):
    """Generate tokens for one input; several tests ask the same of a model that stays the same."""
    return list(_generated(model, tuple(ids), tuple(suppressed_at_first)))


@cache
def _generated(model, ids, suppressed_at_first):
    return generate(model, list(ids), list(suppressed_at_first) or None)


def generate(model, ids, suppressed_at_first=None):
    with torch.inference_mode():
        output = model.generate(
            input_ids=torch.tensor([ids], device=model.device),
            do_sample=False,
            num_beams=1,
            max_new_tokens=MAX_NEW_TOKENS,
            begin_suppress_tokens=suppressed_at_first,
        )
    return output[0, 1:].tolist()


def answer(model, tokenizer, input_ids, batch_tokens=160, abstention="no answer"):
    return generate_answers(
        model,
        tokenizer,
        input_ids,
        abstention=abstention,
        batch_tokens=batch_tokens,
        max_new_tokens=MAX_NEW_TOKENS,
    )


def log_probability(model, ids, tokens):
    """Of the whole token sequence, from one forward pass over one unbatched input."""
    decoder = [model.config.decoder_start_token_id, *tokens[:-1]]
    with torch.inference_mode():
        logits = model(
            input_ids=torch.tensor([ids], device=model.device),
            decoder_input_ids=torch.tensor([decoder], device=model.device),
        ).logits[0]
    log_probs = torch.log_softmax(logits, dim=-1)
    return sum(log_probs[i, token].item() for i, token in enumerate(tokens))


@pytest.fixture
def two_at_a_time(monkeypatch):
    """Answer as on a GPU; a CPU has threads without streams."""
    module = flan_qa_pipeline.answering.generation
    monkeypatch.setattr(module, "batches_at_once", lambda model, batch_tokens: 2)
    if DEVICE.type == "cpu":
        stream = SimpleNamespace(wait_stream=lambda other: None)
        monkeypatch.setattr(module, "_streams", lambda device, count: [stream] * count)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
        monkeypatch.setattr(torch.cuda, "set_stream", lambda stream: None)


@pytest.mark.usefixtures("two_at_a_time")
def test_two_batches_at_a_time_have_the_same_answers(model, tokenizer, input_ids, monkeypatch):
    met = threading.Barrier(2, timeout=60)
    answers = flan_qa_pipeline.answering.generation._BatchAnswerer._answer

    def meeting(self, batch):
        if threading.current_thread() is not threading.main_thread():
            met.wait()  # breaks unless two batches are answered at once
        return answers(self, batch)

    even = input_ids[:12]
    alone = [answer(model, tokenizer, [ids])[0].text for ids in even]
    batcher = "flan_qa_pipeline.answering.generation.length_batches"
    monkeypatch.setattr(batcher, lambda lengths, tokens: [[n, n + 1] for n in range(0, 12, 2)])
    monkeypatch.setattr("flan_qa_pipeline.answering.generation._BatchAnswerer._answer", meeting)
    assert [found.text for found in answer(model, tokenizer, even)] == alone


@pytest.mark.usefixtures("two_at_a_time")
@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory."), RuntimeError("broken")]
)
def test_a_batch_that_does_not_fit_beside_another_is_answered_alone(
    model, tokenizer, input_ids, monkeypatch, caplog, error
):
    answers = flan_qa_pipeline.answering.generation._BatchAnswerer._answer
    threads = Counter()

    def failing(self, batch):
        beside = threading.current_thread() is not threading.main_thread()
        threads[beside] += 1
        if beside and threads[True] % 2:
            raise error
        return answers(self, batch)

    expected = answer(model, tokenizer, input_ids)
    module = "flan_qa_pipeline.answering.generation._BatchAnswerer._answer"
    monkeypatch.setattr(module, failing)
    if isinstance(error, torch.OutOfMemoryError):
        assert [a.text for a in answer(model, tokenizer, input_ids)] == [a.text for a in expected]
        assert threads[False] == (threads[True] + 1) // 2 > 1
        assert "halves" not in caplog.text
    else:
        with pytest.raises(RuntimeError, match="broken"):
            answer(model, tokenizer, input_ids)


def test_batched_answers_are_the_one_by_one_answers_in_order(model, tokenizer, input_ids):
    expected = [one_by_one(model, ids) for ids in input_ids]
    lengths = {len(tokens) for tokens in expected}
    assert len(lengths) > 1
    assert any(model.config.eos_token_id in tokens for tokens in expected)
    answers = answer(model, tokenizer, input_ids)
    texts = [tokenizer.decode(tokens, skip_special_tokens=True) for tokens in expected]
    assert len(set(texts)) > 3
    assert [answer.text for answer in answers] == texts


def test_log_prob_covers_the_whole_answer(model, tokenizer, input_ids):
    answers = answer(model, tokenizer, input_ids)
    for ids, found in zip(input_ids, answers, strict=True):
        expected = log_probability(model, ids, one_by_one(model, ids))
        assert found.log_prob == pytest.approx(expected, abs=1e-3)


def test_no_answer_log_odds_set_the_abstention_against_the_answer(model, tokenizer, input_ids):
    answers = answer(model, tokenizer, input_ids)
    assert all(found.answer == found.text for found in answers if found.text)
    for ids, found in zip(input_ids, answers, strict=True):
        if not found.text:
            continue
        abstention = log_probability(model, ids, tokenizer("no answer")["input_ids"])
        assert found.no_answer_log_odds == pytest.approx(abstention - found.log_prob, abs=1e-3)


def check_other_answer(model, tokenizer, ids, found, abstention):
    """The answer beside an abstention, and the odds between them, against one-by-one decoding."""
    canonical, said = tokenizer(abstention)["input_ids"], one_by_one(model, ids)
    suppressed = [canonical[0], tokenizer.eos_token_id]
    tokens, text = said, abstention
    while flan_qa_pipeline.answering.generation.is_abstention(text, abstention):
        if tokens != canonical:
            suppressed += [tokens[0], *tokenizer.all_special_ids]
        tokens = one_by_one(model, ids, suppressed)
        text = tokenizer.decode(tokens, skip_special_tokens=True)
        assert tokens[0] not in suppressed
    assert found.answer == text
    score = log_probability(model, ids, tokens)
    assert found.answer_log_prob == pytest.approx(score, abs=1e-3)
    abstaining = {tuple(canonical), tuple(said)}
    log_odds = np.logaddexp.reduce([log_probability(model, ids, way) for way in abstaining])
    assert found.no_answer_log_odds == pytest.approx(log_odds - score, abs=1e-3)


def test_an_input_that_is_abstained_on_has_another_answer(model, tokenizer, input_ids):
    """The model's most frequent output is taken for the abstention."""
    usual = answer(model, tokenizer, input_ids)
    abstention = Counter(found.text for found in usual if found.text).most_common(1)[0][0]
    answers = answer(model, tokenizer, input_ids, abstention=abstention)
    assert [found.text for found in answers] == [found.text for found in usual]
    abstained = [
        (ids, found)
        for ids, found in zip(input_ids, answers, strict=True)
        if found.text == abstention
    ]
    assert abstained
    for ids, found in abstained:
        check_other_answer(model, tokenizer, ids, found, abstention)


def test_answers_do_not_depend_on_batches_or_repetition(model, tokenizer, input_ids):
    first, again = (answer(model, tokenizer, input_ids) for _ in range(2))
    assert first == again
    alone = answer(model, tokenizer, input_ids, batch_tokens=1)
    assert [found.text for found in alone] == [found.text for found in first]
    for field in ("log_prob", "answer_log_prob", "no_answer_log_odds"):
        assert [getattr(found, field) for found in alone] == pytest.approx(
            [getattr(found, field) for found in first], abs=1e-3
        )


def test_nothing_to_answer(model_parameters, tokenizer):
    model = load_base_model(model_parameters.model_copy(update={"load_in_4bit": False}))
    assert answer(model, tokenizer, []) == []


def test_a_batch_that_does_not_fit_in_memory_is_answered_in_halves(
    model, tokenizer, input_ids, monkeypatch, caplog
):
    expected = answer(model, tokenizer, input_ids)
    forward = type(model.encoder).forward
    sizes = []

    def full_above_one(self, input_ids=None, **kwargs):
        sizes.append(len(input_ids))
        if len(input_ids) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB.")
        return forward(self, input_ids=input_ids, **kwargs)

    monkeypatch.setattr(type(model.encoder), "forward", full_above_one)
    with caplog.at_level(logging.INFO, logger="flan_qa_pipeline"):
        found = answer(model, tokenizer, input_ids)
    assert max(sizes) > 1
    assert "windows do not fit in memory; answering them in halves." in caplog.text
    assert [said.text for said in found] == [said.text for said in expected]
    assert [said.log_prob for said in found] == pytest.approx(
        [said.log_prob for said in expected], abs=1e-3
    )


class Products(TorchDispatchMode):
    """Collects the shapes that matrix products are called with."""

    def __init__(self):
        super().__init__()
        self.shapes = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name in {"linear", "matmul", "mm", "bmm", "addmm"}:
            self.shapes.add((name, *(tuple(arg.shape) for arg in args[:3] if arg is not None)))
        return func(*args, **(kwargs or {}))


@on_cpu
def test_a_long_stream_brings_few_new_shapes(model_parameters, tokenizer):
    """A CPU keeps a kernel for every shape of a product that it has met."""
    model = load_base_model(model_parameters.model_copy(update={"load_in_4bit": False}))
    rng = random.Random(0)
    chunks = [
        [[rng.randrange(3, 99)] * rng.randint(30, 100) for _ in range(rng.randint(90, 110))]
        for _ in range(20)
    ]
    known = []
    with Products() as products:
        for chunk in chunks:
            answer(model, tokenizer, chunk, batch_tokens=2048)
            known.append(len(products.shapes))
    assert 0 < known[9] <= known[-1] <= 1.1 * known[9]


def test_an_abstention_in_other_tokens_is_answered_as_alone(model, tokenizer, input_ids):
    usual = answer(model, tokenizer, input_ids)
    said = Counter(found.text for found in usual if found.text).most_common(1)[0][0]
    abstention = said.swapcase()
    first = tokenizer(abstention)["input_ids"][0]
    assert first != tokenizer(said)["input_ids"][0]
    answers = answer(model, tokenizer, input_ids, abstention=abstention)
    alone = answer(model, tokenizer, input_ids, batch_tokens=1, abstention=abstention)
    abstained = [
        (ids, found) for ids, found in zip(input_ids, answers, strict=True) if found.text == said
    ]
    assert len(abstained) > 1
    for ids, found in abstained:
        check_other_answer(model, tokenizer, ids, found, abstention)
    for field in ("text", "answer"):
        assert [getattr(found, field) for found in answers] == [
            getattr(found, field) for found in alone
        ]
    assert [found.answer_log_prob for found in answers] == pytest.approx(
        [found.answer_log_prob for found in alone], abs=1e-3
    )


def test_other_answers_that_abstain_are_passed_over_one_after_the_other(
    model, tokenizer, input_ids, monkeypatch
):
    said = Counter(found.text for found in answer(model, tokenizer, input_ids)).most_common()
    abstention = next(text for text, _ in said if text)
    others = set()
    for _ in range(3):
        answers = answer(model, tokenizer, input_ids, abstention=abstention)
        abstained = [i for i, found in enumerate(answers) if found.text == abstention]
        for i in abstained:
            check_other_answer(model, tokenizer, input_ids[i], answers[i], abstention)
        found = {answers[i].answer for i in abstained}
        assert found
        assert found.isdisjoint(others)
        others |= found
        monkeypatch.setattr(
            flan_qa_pipeline.answering.generation,
            "is_abstention",
            lambda text, abstention, others=others: text in {"", abstention, *others},
        )


def test_a_model_that_can_only_abstain_comes_to_an_end(float32, input_ids, caplog):
    """Its tokenizer has no words, so that every output reads as an abstention."""
    answers = answer(load_base_model(float32), T5Tokenizer(), input_ids[:3])
    assert [said.answer for said in answers] == [""] * 3
    assert all(math.isfinite(said.no_answer_log_odds) for said in answers)
    assert "3 of 3 windows have no answer beside the abstention" in caplog.text


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e38])
def test_probabilities_that_are_no_numbers_are_refused(float32, tokenizer, input_ids, value):
    model = load_base_model(float32)
    with torch.no_grad():
        model.lm_head.weight[7] = value
    with pytest.raises(InputError, match="probabilities are not finite .* restore them"):
        answer(model, tokenizer, input_ids)


def test_an_abstention_cut_off_in_its_own_tokens_counts_once(model, tokenizer, input_ids):
    ids, abstention = next(
        (ids, text)
        for ids in input_ids
        for said in [one_by_one(model, ids)]
        for length in range(1, MAX_NEW_TOKENS)
        if tokenizer(text := tokenizer.decode(said[:length]))["input_ids"][:-1] == said[:length]
    )
    own = tokenizer(abstention)["input_ids"]
    (found,) = generate_answers(
        model,
        tokenizer,
        [ids],
        abstention=abstention,
        batch_tokens=160,
        max_new_tokens=len(own) - 1,
    )
    assert found.text == abstention
    log_odds = log_probability(model, ids, own) - found.answer_log_prob
    assert found.no_answer_log_odds == pytest.approx(log_odds, abs=1e-3)


def test_a_special_token_does_not_begin_the_answer_beside_an_abstention(
    model, tokenizer, input_ids
):
    model = deepcopy(model)
    usual = answer(model, tokenizer, input_ids)
    said = Counter(found.text for found in usual if found.text).most_common(1)[0][0]
    abstained = [ids for ids, found in zip(input_ids, usual, strict=True) if found.text == said]
    first, special = generate(model, abstained[0])[0], tokenizer.all_special_ids[-1]
    with torch.no_grad():
        model.lm_head.weight[special] = 0.99 * model.lm_head.weight[first]
    assert one_by_one(model, abstained[0], [first])[0] == special
    abstention = said.swapcase()
    for ids, found in zip(
        abstained, answer(model, tokenizer, abstained, abstention=abstention), strict=True
    ):
        check_other_answer(model, tokenizer, ids, found, abstention)
