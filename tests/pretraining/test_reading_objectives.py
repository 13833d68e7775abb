"""What each pretraining objective keeps and hides, on real English."""

import json
import random
from itertools import chain, zip_longest

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from flan_qa_pipeline.data.row_files import files_in
from flan_qa_pipeline.data.squad import flatten
from flan_qa_pipeline.pipelines.data_engineering.nodes import flatten_questions
from flan_qa_pipeline.pretraining.altered_questions import (
    ImpossibleQuestions,
    contains,
    substitute_answer,
)
from flan_qa_pipeline.pretraining.encoding import EncodedQuestions, encode_by_article
from flan_qa_pipeline.pretraining.held_out import plain_title
from flan_qa_pipeline.pretraining.prompts import Prompt, encode
from flan_qa_pipeline.pretraining.span_corruption import corrupt_spans, uncorrupted_length


def text_of(tokenizer, ids) -> str:
    return tokenizer.decode(list(ids), skip_special_tokens=True)


def test_tokenizer_has_t5s_layout_and_gives_english_back(tokenizer, articles):
    assert len(tokenizer) == 1500
    assert tokenizer.convert_tokens_to_ids(["<pad>", "</s>", "<unk>"]) == [0, 1, 2]
    assert tokenizer.convert_tokens_to_ids("<extra_id_0>") == 1499
    for article in articles:
        for paragraph in article["paragraphs"]:
            ids = tokenizer(paragraph["context"])["input_ids"]
            assert tokenizer.unk_token_id not in ids
            assert text_of(tokenizer, ids) == paragraph["context"]


@settings(max_examples=100)
@given(
    length=st.integers(2, 300),
    density=st.floats(0.05, 0.6),
    mean=st.floats(1, 6),
    seed=st.integers(0, 2**32 - 1),
)
def test_corrupted_spans_and_their_targets_are_the_text(length, density, mean, seed):
    ids = np.arange(1000, 1000 + length)
    sentinels = list(range(100))
    rng = np.random.default_rng(seed)
    source, target = corrupt_spans(
        ids, sentinels, rng, noise_density=density, mean_span_length=mean
    )
    removed, current = {}, None
    for token in target:
        if token < 100:
            removed[current := token] = []
        else:
            removed[current].append(token)
    restored = [t for i in source for t in (removed[i] if i < 100 else [i])]
    assert restored == ids.tolist()
    assert all(removed.values())
    used = [i for i in source if i < 100]
    assert used == sorted(removed) == list(range(len(used)))


def test_corrupted_text_fills_a_row():
    shape = {"noise_density": 0.15, "mean_span_length": 3.0}
    length = uncorrupted_length(256, **shape)
    source, _ = corrupt_spans(
        np.arange(200, 200 + length), range(100), np.random.default_rng(1), **shape
    )
    assert 250 <= len(source) + 1 <= 256


def test_sentences_words_names_and_numbers(tokenizer, tasks):
    text = "In 1901 Karl Landsteiner lived in Vienna. He had 3 dogs, and they slept."
    ids = np.array(encode(tokenizer, text))
    found = tasks.tables.sentences(ids)
    assert [text_of(tokenizer, ids[a:b]) for a, b in found] == [text[:41], text[42:]]
    names = [text_of(tokenizer, ids[a:b]) for a, b in tasks.tables.entities(ids, found)]
    assert names == ["1901", "Karl Landsteiner", "Vienna", "3"]
    words = [text_of(tokenizer, ids[a:b]) for a, b in tasks.tables.words(ids)]
    assert words == text.split()
    kinds = [tasks.kind(ids, span) for span in tasks.tables.entities(ids, found)]
    assert kinds == ["year", "name", "name", "number"]


def test_prompt_is_filled_in_the_order_of_its_text(tokenizer):
    prompt = Prompt.of(tokenizer, "Text: {context} Say: {question}", "unknown")
    filled = prompt.fill(context=encode(tokenizer, "a cat"), question=encode(tokenizer, "Who?"))
    assert text_of(tokenizer, filled) == "Text: a cat Say: Who?"
    assert prompt.length == len(filled) - len(encode(tokenizer, "a cat")) - len(
        encode(tokenizer, "Who?")
    )
    assert text_of(tokenizer, prompt.abstention) == "unknown"


def test_cloze_answers_stand_in_the_text_or_the_model_abstains(tokenizer, tasks, splits):
    rng = random.Random(3)
    contexts = [np.array(ids) for ids in splits["paragraphs"]["ids"]]
    abstentions = {tuple(prompt.abstention) for prompt in tasks.prompts}
    answered = abstained = 0
    for _ in range(600):
        context = rng.choice(contexts)
        pair = tasks.cloze(context, rng)
        if pair is None:
            continue
        source, target, _ = pair
        assert len(source) < 384 and 0 < len(target) < 40
        if contains(context, target):
            answered += 1
            assert contains(np.array(source), target)
        else:
            abstained += 1
            assert tuple(target) in abstentions
    assert 0.1 < abstained / (answered + abstained) < 0.35


def test_annotated_answers_are_read_from_the_input(tokenizer, tasks, questions):
    rng = random.Random(5)
    made = 0
    for question in questions.answerable[:150]:
        context = questions.contexts[question.context]
        pair = tasks.annotated(question, context, [], rng, edited=0, substitutes={}, substituted=0)
        if pair is not None:
            made += 1
            assert pair[1] == question.answer
            assert contains(np.array(pair[0]), question.ids.tolist())
            answer = text_of(tokenizer, pair[1])
            assert answer.strip(" .,") in text_of(tokenizer, pair[0])
    assert made > 120


def test_unanswerable_questions_want_the_abstention_of_their_prompt(tasks, questions):
    rng = random.Random(6)
    abstentions = {tuple(prompt.abstention) for prompt in tasks.prompts}
    for question in questions.unanswerable[:100]:
        assert question.span is None and question.answer == []
        context = questions.contexts[question.context]
        pair = tasks.annotated(
            question, context, [], rng, edited=0.5, substitutes={}, substituted=0.5
        )
        assert pair is None or tuple(pair[1]) in abstentions


def test_edited_questions_differ_or_lose_their_answer(tokenizer, tasks, questions):
    rng = random.Random(7)
    impossible = ImpossibleQuestions(tokenizer, tasks.tables, tasks.kind)
    edits = {"question": 0, "context": 0}
    for question in questions.answerable:
        context = questions.contexts[question.context]
        first, end = questions.articles[question.context]
        others = [questions.contexts[i] for i in range(first, end) if i != question.context]
        made = impossible.make(question, context, others, rng)
        if made is None:
            continue
        ids, remaining = made
        if remaining is context:
            edits["question"] += 1
            assert ids != question.ids.tolist()
        else:
            edits["context"] += 1
            assert ids == question.ids.tolist()
            assert not contains(remaining, question.answer)
    assert min(edits.values()) > 20


def test_paragraphs_of_an_article_belong_together_though_its_rows_alternate(
    articles, tokenizer, tasks, tmp_path
):
    by_article = [list(flatten({"version": "v2.0", "data": [a]}, "")) for a in articles[:4]]
    rows = [row for row in chain.from_iterable(zip_longest(*by_article)) if row is not None]
    lines = "\n".join(json.dumps(row | {"answers": row["answers"]["text"]}) for row in rows)
    (tmp_path / "rows.jsonl").write_text(lines, encoding="utf-8")
    (files,) = files_in(str(tmp_path)).values()
    checked, _ = flatten_questions(files, "rows.jsonl", "error")
    none = checked.select([])
    splits = {"train": checked, "dev": none, "calibration": none}
    encoded = encode_by_article(splits, tokenizer)
    found = EncodedQuestions.of(encoded, tasks)

    contexts = [text_of(tokenizer, ids) for ids in found.contexts]
    together = {row["context"]: {r["context"] for r in part} for part in by_article for row in part}
    assert contexts[:4] != [part[0]["context"] for part in by_article]
    for context, (first, end) in zip(contexts, found.articles, strict=True):
        assert set(contexts[first:end]) == together[context]
    assert [contexts[row["paragraph"]] for row in encoded["train"]] == checked["context"][:]


def test_substitution_replaces_every_mention_and_finds_the_new_span():
    context = np.array([5, 7, 8, 6, 7, 8, 9])
    made, span, answer = substitute_answer(context, (4, 6), [7, 8], [1, 2, 3])
    assert made.tolist() == [5, 1, 2, 3, 6, 1, 2, 3, 9]
    assert answer == made[span[0] : span[1]].tolist() == [1, 2, 3]
    assert span == (5, 8)


def test_substitution_leaves_alone_what_is_tokenized_otherwise_or_overlaps():
    for context, span, answer in (
        (np.array([5, 7, 8]), (1, 2), [7, 8]),
        (np.array([7, 7, 7, 5]), (1, 3), [7, 7]),
    ):
        made, same, kept = substitute_answer(context, span, answer, [1])
        assert made is context and same == span and kept == answer


def test_substituted_answers_are_in_the_input_and_the_old_ones_are_not(tasks, questions):
    rng = random.Random(8)
    changed = 0
    for question in questions.answerable:
        context = questions.contexts[question.context]
        pair = tasks.annotated(
            question,
            context,
            [],
            rng,
            edited=0,
            substitutes=questions.answers,
            substituted=0.999,
        )
        if pair is not None and pair[1] != question.answer:
            changed += 1
            assert contains(np.array(pair[0]), pair[1])
    assert changed > 200


def test_asked_pairs_give_the_answer_and_want_the_question(tasks, questions):
    rng = random.Random(9)
    for question in questions.answerable[:100]:
        context = questions.contexts[question.context]
        pair = tasks.asked(question, context, rng)
        assert pair is not None
        assert pair[1] == question.ids.tolist()
        assert contains(np.array(pair[0]), question.answer)
        assert not contains(np.array(pair[0]), question.ids.tolist())
    assert tasks.asked(questions.unanswerable[0], questions.contexts[0], rng) is None


def test_crop_keeps_the_answers_sentence_in_the_room(tasks, questions):
    rng = random.Random(10)
    for question in questions.answerable[:100]:
        context = questions.contexts[question.context]
        start, end = tasks.crop(context, question.span, 120, rng)
        assert end - start <= 120
        sentences = tasks.tables.sentences(context)
        inside = [s for s in sentences if s[0] < question.span[1] and s[1] > question.span[0]]
        if len(inside) == 1 and inside[0][1] - inside[0][0] <= 120:
            assert start <= question.span[0] and question.span[1] <= end


def test_titles_of_squad_and_wikipedia_are_the_same():
    assert plain_title("New_York_City") == plain_title("New York City")
    assert plain_title("Venice") != plain_title("Venus")
