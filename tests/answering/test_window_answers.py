"""Windows' answers, merged to one answer per question."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flan_qa_pipeline.answering.generation import is_abstention
from flan_qa_pipeline.answering.window_answers import WindowAnswer, merge_windows

many = settings(max_examples=200)


def window(id_, text, score):
    said = not is_abstention(text, "no answer")
    return WindowAnswer(id_, text, score, text if said else "maybe", score, -score, 0)


@pytest.mark.parametrize(
    ("answers", "text", "score"),
    [
        ([("Paris", -1.0)], "Paris", -1.0),
        ([(" Paris ", -1.0)], "Paris", -1.0),
        ([("Paris", -3.0), ("Rome", -1.0)], "Rome", -1.0),
        ([("Rome", -1.0), ("Paris", -3.0)], "Rome", -1.0),
        ([("no answer", -0.1), ("Paris", -9.0)], "Paris", -9.0),
        ([("Paris", -9.0), ("no answer", -0.1)], "Paris", -9.0),
        ([("no answer", -0.1), ("no answer", -2.0)], "", -2.0),
        ([("no answer", -2.0), ("no answer", -0.1)], "", -2.0),
        ([(" No Answer\n", -0.5)], "", -0.5),
        ([("", -0.5), ("Paris", -4.0)], "Paris", -4.0),
        ([("no answers", -0.5)], "no answers", -0.5),
    ],
)
def test_merging_the_windows_of_one_question(answers, text, score):
    merged = merge_windows([window("q", *answer) for answer in answers], "no answer")
    assert (merged["q"].text, merged["q"].score) == (text, score)
    assert merged["q"].answer == (text or "maybe")


def test_an_abstained_question_keeps_the_answer_of_the_window_nearest_to_answering():
    windows = [
        WindowAnswer("q", "no answer", -0.1, "Rome", -5.1, 5.0, 0),
        WindowAnswer("q", "no answer", -0.2, "Paris", -2.2, 2.0, 1),
        WindowAnswer("q", "no answer", -0.3, "Oslo", -9.3, 9.0, 2),
    ]
    merged = merge_windows(windows, "no answer")["q"]
    assert merged == WindowAnswer("q", "", -0.3, "Paris", -2.2, 2.0, 1)


def test_an_answered_question_has_the_no_answer_score_of_its_least_abstaining_window():
    windows = [
        WindowAnswer("q", "Rome", -2.0, "Rome", -2.0, -0.5, 0),
        WindowAnswer("q", "Paris", -1.0, "Paris", -1.0, -0.2, 1),
        WindowAnswer("q", "no answer", -0.2, "Oslo", -9.2, 9.0, 2),
    ]
    merged = merge_windows(windows, "no answer")["q"]
    assert merged == WindowAnswer("q", "Paris", -1.0, "Paris", -1.0, -0.5, 1)


def test_questions_stay_apart_and_in_order():
    answers = [
        window("b", "no answer", -1.0),
        window("a", "x", -2.0),
        window("b", "y", -3.0),
    ]
    merged = merge_windows(answers, "no answer")
    assert list(merged) == ["b", "a"]
    assert {id_: answer.text for id_, answer in merged.items()} == {"b": "y", "a": "x"}


texts = st.sampled_from(["no answer", "NO ANSWER", "", "x", "y", "z"])


@many
@given(answers=st.lists(st.tuples(texts, st.floats(-50, 0)), min_size=1, max_size=6, unique=True))
def test_merging_does_not_depend_on_the_order_of_windows(answers):
    forward = merge_windows([window("q", *a) for a in answers], "no answer")["q"]
    backward = merge_windows([window("q", *a) for a in reversed(answers)], "no answer")["q"]
    said = {score for text, score in answers if text in {"x", "y", "z"}}
    assert forward.score == backward.score
    assert forward.score == (max(said) if said else min(score for _, score in answers))
    assert bool(forward.text) == bool(said)
