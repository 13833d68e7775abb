"""The corpus of natural English is valid SQuAD 2.0, and its form betrays little of the answers."""

import json
import math
import re
from collections import Counter

import pytest
from conftest import REPOSITORY

from flan_qa_pipeline.data.squad import check, flatten
from flan_qa_pipeline.data.texts import normalized

RAW = REPOSITORY / "data/01_raw"
# What a classifier of the question's form alone may reach on the validation questions: percentage
# points above always saying "answerable", and the area under its ROC curve.
MOST_GAIN, MOST_AREA = 2.0, 0.62


@pytest.fixture(scope="module")
def corpus():
    names = ("train", "validation")
    return {n: json.loads((RAW / f"starter_{n}.json").read_text(encoding="utf-8")) for n in names}


def paragraphs_of(corpus, split):
    return [p for article in corpus[split]["data"] for p in article["paragraphs"]]


def questions_of(corpus, split):
    return [qa for paragraph in paragraphs_of(corpus, split) for qa in paragraph["qas"]]


@pytest.mark.parametrize(
    ("split", "articles", "questions", "impossible"),
    [("train", 135, 2666, 810), ("validation", 40, 836, 240)],
)
def test_counts_are_those_of_the_data_card(corpus, split, articles, questions, impossible):
    assert corpus[split]["version"] == "v2.0"
    assert len(corpus[split]["data"]) == articles
    assert len(paragraphs_of(corpus, split)) == 3 * articles
    asked = questions_of(corpus, split)
    assert len(asked) == questions
    assert sum(qa["is_impossible"] for qa in asked) == impossible
    card = (RAW / "README.md").read_text(encoding="utf-8")
    assert f"| {articles} | {3 * articles} | {questions:,} | {impossible} |" in card


@pytest.mark.parametrize("split", ["train", "validation"])
def test_every_record_passes_the_projects_checks(corpus, split):
    records = list(check(flatten(corpus[split], split), split))
    assert len(records) == len(questions_of(corpus, split))


@pytest.mark.parametrize("split", ["train", "validation"])
def test_spans_stand_where_they_say_and_begin_and_end_words(corpus, split):
    for paragraph in paragraphs_of(corpus, split):
        context = paragraph["context"]
        assert 80 <= len(context.split()) <= 160
        assert 5 <= len(paragraph["qas"]) <= 7
        for qa in paragraph["qas"]:
            assert qa["is_impossible"] == (not qa["answers"])
            assert qa["is_impossible"] == ("plausible_answers" in qa)
            spans = qa["answers"] or qa["plausible_answers"]
            assert len({span["text"] for span in spans}) == len(spans) >= 1
            for span in spans:
                start, end = span["answer_start"], span["answer_start"] + len(span["text"])
                assert context[start:end] == span["text"]
                assert span["text"].strip(" .,;:") == span["text"]
                assert not re.match(r"\w\w", context[max(start - 1, 0) : start + 1])
                assert not re.match(r"\w\w", context[end - 1 : end + 1])


def test_nothing_is_there_twice_and_articles_are_disjoint(corpus):
    both = questions_of(corpus, "train") + questions_of(corpus, "validation")
    for values in (
        [qa["id"] for qa in both],
        [normalized(qa["question"]) for qa in both],
        [article["title"] for split in corpus.values() for article in split["data"]],
        [normalized(p["context"]) for split in corpus for p in paragraphs_of(corpus, split)],
    ):
        assert len(set(values)) == len(values)


def opening(question: str, words: int) -> list[str]:
    return [" ".join(question.lower().split()[:words])]


def words_in_place(question: str) -> list[str]:
    return [f"{i} {word}" for i, word in enumerate(question.lower().rstrip("?").split()[:5])]


FORMS = {
    "first word": lambda question: opening(question, 1),
    "first two words": lambda question: opening(question, 2),
    "first three words": lambda question: opening(question, 3),
    "first five words by place": words_in_place,
    "all words": lambda question: question.lower().rstrip("?").split(),
    "number of words": lambda question: [str(len(question.split()))],
}


def naive_bayes(features, train, validation):
    """Return accuracy and area under the ROC curve, in percent and as a share."""
    counts = {True: Counter(), False: Counter()}
    for qa in train:
        counts[qa["is_impossible"]].update(features(qa["question"]))
    kinds = len(counts[True] | counts[False])
    totals = {answer: counter.total() + kinds for answer, counter in counts.items()}
    impossible = sum(qa["is_impossible"] for qa in train)
    prior = math.log(impossible / (len(train) - impossible))

    def score(qa):
        return prior + sum(
            math.log((counts[True][f] + 1) / totals[True])
            - math.log((counts[False][f] + 1) / totals[False])
            for f in features(qa["question"])
        )

    scored = [(score(qa), qa["is_impossible"]) for qa in validation]
    right = sum((value > 0) == truth for value, truth in scored)
    yes = [value for value, truth in scored if truth]
    no = [value for value, truth in scored if not truth]
    wins = sum((a > b) + (a == b) / 2 for a in yes for b in no)
    return 100 * right / len(scored), wins / (len(yes) * len(no))


@pytest.mark.parametrize("form", FORMS)
def test_a_questions_form_hardly_tells_whether_it_has_an_answer(corpus, form):
    train, validation = questions_of(corpus, "train"), questions_of(corpus, "validation")
    accuracy, area = naive_bayes(FORMS[form], train, validation)
    answerable = 100 * sum(not qa["is_impossible"] for qa in validation) / len(validation)
    assert accuracy <= answerable + MOST_GAIN
    assert area <= MOST_AREA


def test_the_classifier_finds_a_form_that_tells(corpus):
    def marked(questions):
        return [
            qa | {"question": f"Not {qa['question']}" if qa["is_impossible"] else qa["question"]}
            for qa in questions
        ]

    train, validation = (marked(questions_of(corpus, s)) for s in ("train", "validation"))
    accuracy, area = naive_bayes(FORMS["first word"], train, validation)
    assert accuracy > 99
    assert area > 0.99
