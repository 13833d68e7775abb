"""Replaced tokens and the span head: what they see, what they learn, and what they leave alone."""

import random

import numpy as np
import pytest
import torch
from accelerate.utils import set_seed

from flan_qa_pipeline.config.parameters import ReplacedTokensParameters, SpanHeadParameters
from flan_qa_pipeline.errors import InputError
from flan_qa_pipeline.pretraining.batches import BatchSource
from flan_qa_pipeline.pretraining.encoding import EncodedQuestions
from flan_qa_pipeline.pretraining.greedy_answers import mark, score_spans
from flan_qa_pipeline.pretraining.objectives import Objectives
from flan_qa_pipeline.pretraining.optimizers import build_part_optimizers
from flan_qa_pipeline.pretraining.random_t5 import build_random_t5
from flan_qa_pipeline.pretraining.reading_tasks import ReadingTasks
from flan_qa_pipeline.pretraining.span_head import best_spans


@pytest.fixture
def source(text, questions, tasks, pretrain, sentinels):
    return BatchSource(
        text,
        questions,
        tasks,
        pretrain.batches,
        pretrain.reader.stages[0].mixture,
        sentinels=sentinels,
        seed=7,
        rank=0,
    )


@pytest.fixture
def model(pretrain):
    set_seed(3)
    return build_random_t5(pretrain.architecture, dropout=0.1)


@pytest.fixture
def objectives(model, pretrain, sentinels):
    return Objectives(model, pretrain, sentinels)


def first_batch(source, *kinds):
    return source.batch(next(step for step in range(99) if source.kind(step) in kinds))


def words(tokenizer, ids):
    return tokenizer.decode(list(ids), skip_special_tokens=True).strip(" .,;:()\"'")


@pytest.mark.parametrize("number", range(11))
@pytest.mark.parametrize("longest", [384, 110])
def test_places_point_at_the_answer_in_every_prompt(tokenizer, splits, pretrain, number, longest):
    prompts = [pretrain.prompts[number]]
    tasks = ReadingTasks(tokenizer, prompts, pretrain.asking_prompts, longest, 40)
    questions = EncodedQuestions.of(splits, tasks)
    rng = random.Random(number)
    options = {"substitutes": questions.answers, "substituted": 0.5, "edited": 0.2}
    pairs = [
        tasks.annotated(question, questions.contexts[question.context], [], rng, **options)
        for question in (questions.answerable + questions.unanswerable)[::3]
    ]
    pairs += [tasks.cloze(rng.choice(questions.contexts), rng) for _ in range(60)]
    found = abstained = unknown = 0
    for source, target, place in (pair for pair in pairs if pair is not None):
        if target == tasks.prompts[0].abstention:
            abstained += 1
            assert place == (len(source), len(source) + 1)
        elif place is None:
            unknown += 1
        else:
            found += 1
            assert 0 <= place[0] < place[1] <= len(source)
            assert words(tokenizer, target) in words(tokenizer, source[slice(*place)])
    assert found > 30 and abstained > 10 and unknown < 20


def test_batches_give_the_first_and_the_last_token_of_the_answer(tokenizer, source, tasks):
    abstentions = {tokenizer.decode(prompt.abstention) for prompt in tasks.prompts}
    found = abstained = 0
    for step in range(40):
        batch = source.batch(step)
        places = batch["places"]
        if source.kind(step) == "denoising":
            assert (places == -100).all()
        for row, (first, last) in enumerate(places.tolist()):
            ids, target = batch["input_ids"][row], batch["labels"][row]
            said = words(tokenizer, target[target > 1].tolist())
            if first == -100:
                assert last == -100
            elif ids[first] == 1:
                abstained += 1
                assert first == last and said in abstentions
            else:
                found += 1
                assert said in words(tokenizer, ids[first : last + 1].tolist())
    assert found > 20 and abstained > 5


def test_only_plain_tokens_are_filled_and_as_many_as_the_share_says(source, objectives, sentinels):
    batch = first_batch(source, "denoising")
    ids, mask = batch["input_ids"], batch["attention_mask"]
    part = objectives.replaced_tokens
    noise = torch.rand(ids.shape)
    places, chosen = part._choose(ids, noise)
    plain = (ids > 1) & (ids < min(sentinels))
    assert torch.equal(chosen.sum(1), (0.15 * plain.sum(1)).round().long())
    assert plain.gather(1, places)[chosen].all()
    filled, loss = part.fill(ids, mask, noise)
    at_places = torch.zeros_like(plain).scatter(1, places, chosen)
    assert loss.item() == pytest.approx(np.log(1500), rel=0.01)
    differs = filled != ids
    assert not (differs & ~plain).any()
    assert 0 < differs.sum() <= chosen.sum() == at_places.sum()


def test_a_token_counts_as_replaced_only_where_the_sample_differs(
    source, model, objectives, monkeypatch
):
    batch = first_batch(source, "denoising")
    part = objectives.replaced_tokens
    usual = batch["input_ids"][batch["input_ids"] > 1].mode().values.item()
    with torch.no_grad():
        part.generator_head.bias[usual] = 1e4  # the generator always samples this token
    labels = []
    detect = part.detect

    def spy(states, replaced, mask):
        labels.append(replaced)
        return detect(states, replaced, mask)

    monkeypatch.setattr(part, "detect", spy)
    chosen = torch.zeros_like(batch["input_ids"], dtype=torch.bool)
    for seed in range(10):
        torch.manual_seed(seed)
        batch["noise"] = torch.rand(chosen.shape)
        places, counted = part._choose(batch["input_ids"], batch["noise"])
        chosen = torch.zeros_like(chosen).scatter(1, places, counted)
        objectives.losses(model, batch, denoises=True)
        assert torch.equal(labels[-1], chosen & (batch["input_ids"] != usual))
    assert any((batch["input_ids"][label.shape[0] - 1] == usual).any() for label in labels)


def test_detection_trains_the_encoder_and_not_the_generator(source, model, objectives):
    batch = first_batch(source, "denoising")
    ids, mask = batch["input_ids"], batch["attention_mask"]
    with torch.no_grad():
        for parameter in [*model.parameters(), *objectives.parameters()]:
            parameter.add_(0.01 * torch.randn_like(parameter))
    part = objectives.replaced_tokens
    filled, generator_loss = part.fill(ids, mask, torch.rand(ids.shape))
    states = model.encoder(input_ids=filled, attention_mask=mask).last_hidden_state
    part.detect(states, filled != ids, mask).backward()
    generator = [*part.generator.parameters(), *part.generator_head.parameters()]
    assert all(parameter.grad is None for parameter in generator)
    assert all(parameter.grad.norm() > 0 for parameter in part.detector.parameters())
    assert all(p.grad is not None for n, p in model.encoder.named_parameters())
    model.zero_grad()
    generator_loss.backward()
    assert all(parameter.grad.norm() > 0 for parameter in generator)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_without_weights_nothing_is_built_and_the_loss_is_the_models(
    source, model, pretrain, sentinels
):
    off = ReplacedTokensParameters(weight=8.0, share=0, d_model=16, num_layers=1)
    for replaced in (off, off.model_copy(update={"weight": 0, "share": 0.15})):
        settings = pretrain.model_copy(
            update={"replaced_tokens": replaced, "span_head": SpanHeadParameters(weight=0)}
        )
        nothing = Objectives(model, settings, sentinels)
        assert not list(nothing.parameters())
        assert build_part_optimizers(nothing, pretrain.reader.optimizer) == {}
    for kind in ("denoising", "short"):
        assert nothing.trained_by(kind) == []
        batch = first_batch(source, kind)
        torch.manual_seed(5)
        total, named = nothing.losses(model, batch, denoises=kind == "denoising")
        total.backward()
        found = [p.grad.clone() for p in model.parameters()]
        model.zero_grad()
        torch.manual_seed(5)
        given = {k: batch[k] for k in ("input_ids", "attention_mask", "labels")}
        loss = model(**given, use_cache=False).loss
        loss.backward()
        assert torch.equal(total, loss) and named.keys() == {"target"}
        assert all(map(torch.equal, found, (p.grad for p in model.parameters())))
        model.zero_grad()


def test_heads_of_other_sizes_are_refused(model, pretrain, sentinels, objectives):
    other = pretrain.model_copy(update={"span_head": SpanHeadParameters(weight=0)})
    saved = {name: weight.clone() for name, weight in objectives.weights().items()}
    again = Objectives(model, pretrain, sentinels)
    again.restore(saved)
    assert all(torch.equal(weight, saved[name]) for name, weight in again.weights().items())
    with pytest.raises(
        InputError, match=r"span_head.layers.0.bias has the shape \(32,\), not None"
    ):
        Objectives(model, other, sentinels).restore(saved)


def test_generator_detector_and_span_head_learn(source, model, objectives):
    torch.manual_seed(1)
    denoising, reading = first_batch(source, "denoising"), first_batch(source, "short")
    rare = min(set(range(100, 1300)) - set(denoising["input_ids"].flatten().tolist()))
    with torch.no_grad():
        objectives.replaced_tokens.generator_head.bias[rare] = 12.0  # its first samples
    rate = {"span_head": 3e-3, "replaced_tokens": 3e-3}
    groups = [{"params": model.parameters(), "lr": 1e-2}]
    groups += [{"params": p.parameters(), "lr": rate[n]} for n, p in objectives.named_children()]
    optimizer = torch.optim.AdamW(groups)
    history = []
    for _ in range(40):
        optimizer.zero_grad()
        denoising["noise"] = torch.rand(denoising["input_ids"].shape)
        filled, named = objectives.losses(model, denoising, denoises=True)
        read, others = objectives.losses(model, reading, denoises=False)
        (filled + read).backward()
        optimizer.step()
        history.append({name: loss.item() for name, loss in (named | others).items()})
    first, last = history[0], history[-1]
    assert first.keys() == {"target", "generator", "replaced_tokens", "span_head"}
    assert last["span_head"] < first["span_head"] / 2
    assert last["replaced_tokens"] < 0.2 < first["replaced_tokens"]  # the share alone gives 0.4
    assert last["generator"] < first["generator"] - 1


def test_best_spans_are_short_ordered_and_inside_the_input():
    scores = torch.zeros(3, 40, 2)
    mask = torch.ones(3, 40, dtype=torch.long)
    scores[0, 7, 0] = scores[0, 9, 1] = 5
    scores[1, 30, 0] = scores[1, 3, 1] = 9  # the end comes before the start
    scores[1, 30, 1] = 1
    scores[2, 39] = 8  # </s>
    scores[2, 5, 0] = scores[2, 35, 1] = 7  # longer than a span may be
    scores[2, 6, 1] = 2
    assert best_spans(scores, mask, forced=False) == [(7, 10), (30, 31), None]
    assert best_spans(scores, mask, forced=True) == [(7, 10), (30, 31), (5, 7)]
    mask[0, 8:] = 0
    scores[0, 8:] = -1e4
    (start, end), *_ = best_spans(scores, mask, forced=True)
    assert start < end <= 7


def test_marked_answers_are_words_of_the_input_in_any_batch(
    tokenizer, model, objectives, tasks, splits
):
    torch.manual_seed(2)
    head = objectives.span_head
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.normal_()
    model.eval()
    rows = [[5, 6, 7, 8, 9], [9, 20], [10, 11, 12]]
    together = mark(model, head, rows, 3, forced=True)
    assert together == [mark(model, head, [row], 1, forced=True)[0] for row in rows]
    for row, answer in zip(rows, together, strict=True):
        assert any(row[i : i + len(answer)] == answer for i in range(len(row))) and answer
    options = {"limit": 20, "batch_size": 8}
    asked = splits["train"], splits["paragraphs"]
    forced = score_spans(model, head, tokenizer, tasks, *asked, **options, forced=True)
    free = score_spans(model, head, tokenizer, tasks, *asked, **options)
    assert forced["no_answer_accuracy"] == 0
    assert forced["has_answer"] == free["has_answer"] > 0


def test_a_decay_lowers_the_rates_of_all_parts_alike(objectives, pretrain):
    first = pretrain.reader.optimizer
    names = ("matrix_lr", "embedding_lr", "head_lr", "other_lr")
    half = first.model_copy(update={name: getattr(first, name) / 2 for name in names})

    def rates(given):
        optimizers = build_part_optimizers(objectives, given)
        return [
            group["lr"] for those in optimizers.values() for o in those for group in o.param_groups
        ]

    assert rates(half) == pytest.approx([rate / 2 for rate in rates(first)])
    assert len(rates(first)) > 5
