"""Phrases by which a model abstains in other words than the prompt's."""

import math

import pandas as pd
import pytest

from flan_qa_pipeline.evaluation.other_abstentions import other_abstentions
from flan_qa_pipeline.reporting.tables import other_abstention_sentences


def table_of(answers, context="The bridge was built in 1904.", f1=0.0):
    """A table of (answer, whether it is unanswerable) pairs."""
    said, impossible = zip(*answers, strict=True)
    return pd.DataFrame(
        {"context": context, "is_impossible": impossible, "base": said, "base F1": f1}
    )


def test_a_phrase_that_no_context_holds_is_found_and_counted():
    answers = [("It does not say", True)] * 4 + [("it does not say ", False)] * 2
    answers += [("1904", False)] * 6 + [("", True)] * 2 + [("never", True)]
    table = table_of(answers)
    table.loc[6:13, "base F1"] = 100.0
    found = other_abstentions(table, "base")
    assert found.phrases == ["it does not say"]
    assert (found.questions, found.unanswerable) == (6, 4)
    assert found.f1 == pytest.approx(100 * 12 / 15)
    assert found.no_answer_f1 == pytest.approx(100 * 6 / 7)
    (sentence,) = other_abstention_sentences(table, ["base"])
    assert sentence == (
        'The base model says "it does not say" on 6 questions, 4 of them unanswerable. '
        "As abstentions these answers would give F1 80.00 (NoAns 85.71)."
    )


@pytest.mark.parametrize(
    "answers",
    [
        [("built in 1904", False)] * 9,  # an answer from the context
        [("unanswerable", True)] * 4,  # too few
        [("unanswerable", True)] * 5 + [(f"answer {i}", True) for i in range(300)],  # too rare
        [("", True)] * 9,  # the prompt's own abstention
    ],
)
def test_other_answers_are_no_abstentions(answers):
    table = table_of(answers)
    assert other_abstentions(table, "base") is None
    assert other_abstention_sentences(table, ["base"]) == []


def test_without_unanswerable_questions_there_is_no_score_of_them():
    found = other_abstentions(table_of([("unknown", False)] * 6), "base")
    assert math.isnan(found.no_answer_f1) and found.f1 == 0
    (sentence,) = other_abstention_sentences(table_of([("unknown", False)] * 6), ["base"])
    assert sentence.endswith("would give F1 0.00.")
