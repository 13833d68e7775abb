"""Windows' answers, merged to one answer per question."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flan_qa_pipeline.answering.generation import GeneratedAnswer, is_abstention
from flan_qa_pipeline.answering.window_answers import merge_windows

many = settings(max_examples=200)


def window(text, log_prob):
    answer = "maybe" if is_abstention(text, "no answer") else text
    return GeneratedAnswer(text, log_prob, answer, log_prob, -log_prob)


def merge(answers):
    """Merge the windows of one question."""
    return merge_windows(["q"] * len(answers), range(len(answers)), answers, "no answer")["q"]


@pytest.mark.parametrize(
    ("answers", "text", "log_prob"),
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
def test_merging_the_windows_of_one_question(answers, text, log_prob):
    merged = merge([window(*answer) for answer in answers]).generated
    assert (merged.text, merged.log_prob) == (text, log_prob)
    assert merged.answer == (text or "maybe")


def test_an_abstained_question_keeps_the_answer_of_the_window_nearest_to_answering():
    windows = [
        GeneratedAnswer("no answer", -0.1, "Rome", -5.1, 5.0),
        GeneratedAnswer("no answer", -0.2, "Paris", -2.2, 2.0),
        GeneratedAnswer("no answer", -0.3, "Oslo", -9.3, 9.0),
    ]
    assert merge(windows) == (GeneratedAnswer("", -0.3, "Paris", -2.2, 2.0), 1)


def test_an_answered_question_has_the_no_answer_log_odds_of_its_least_abstaining_window():
    windows = [
        GeneratedAnswer("Rome", -2.0, "Rome", -2.0, -0.5),
        GeneratedAnswer("Paris", -1.0, "Paris", -1.0, -0.2),
        GeneratedAnswer("no answer", -0.2, "Oslo", -9.2, 9.0),
    ]
    assert merge(windows) == (GeneratedAnswer("Paris", -1.0, "Paris", -1.0, -0.5), 1)


def test_questions_stay_apart_and_in_order():
    answers = [window("no answer", -1.0), window("x", -2.0), window("y", -3.0)]
    merged = merge_windows(["b", "a", "b"], [0, 0, 1], answers, "no answer")
    assert list(merged) == ["b", "a"]
    found = {id_: (answer.generated.text, answer.window) for id_, answer in merged.items()}
    assert found == {"b": ("y", 1), "a": ("x", 0)}


texts = st.sampled_from(["no answer", "NO ANSWER", "", "x", "y", "z"])


@many
@given(answers=st.lists(st.tuples(texts, st.floats(-50, 0)), min_size=1, max_size=6, unique=True))
def test_merging_does_not_depend_on_the_order_of_windows(answers):
    forward, backward = (
        merge([window(*answer) for answer in ordered]).generated
        for ordered in (answers, answers[::-1])
    )
    answered = {log_prob for text, log_prob in answers if text in {"x", "y", "z"}}
    assert forward.log_prob == backward.log_prob
    assert forward.log_prob == max(answered or {min(log_prob for _, log_prob in answers)})
    assert bool(forward.text) == bool(answered)
