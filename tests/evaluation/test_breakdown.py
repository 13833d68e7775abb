"""Groups of questions and paired bootstrap intervals, against plain and closed-form ones."""

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flan_qa_pipeline.evaluation.breakdown import (
    bootstrap_interval,
    breakdown,
    groups,
    question_word,
)
from flan_qa_pipeline.reporting.tables import breakdown_markdown, scores_markdown

LABELS = ("baseline", "fine-tuned")
OPTIONS = {"resamples": 400, "confidence": 0.95, "seed": 3}


@pytest.mark.parametrize(
    ("question", "word"),
    [
        ("Who won?", "who"),
        ("To whom was it given?", "who"),
        ("Whose hat is it?", "who"),
        ("In which year did what happen?", "which"),
        ("What's that?", "what"),
        ("HOW MANY?", "how"),
        ("Somewhat showed", "other"),
        ("", "other"),
    ],
)
def test_question_word(question, word):
    assert question_word(question) == word


@pytest.fixture
def table():
    rng = np.random.default_rng(0)
    n = 200
    impossible = rng.random(n) < 0.4
    words = pd.array(rng.integers(1, 9, n), dtype="Int64")
    words[impossible] = pd.NA
    frame = {
        "is_impossible": impossible,
        "question_word": rng.choice(["who", "what", "other"], n),
        "answer_words": words,
        "context_words": rng.integers(20, 150, n),
    }
    for label, level in zip(LABELS, (0.2, 0.7), strict=True):
        exact = rng.random(n) < level
        frame[f"{label} EM"] = 100.0 * exact
        frame[f"{label} F1"] = np.where(exact, 100.0, 100 * rng.random(n))
    return pd.DataFrame(frame)


def test_groups_of_a_kind_hold_every_question_once(table):
    masks = {}
    for group, _, mask in groups(table):
        assert mask.any()
        masks.setdefault(group, []).append(mask)
    assert set(masks) == {
        "all",
        "answerable",
        "question word",
        "answer length",
        "context length",
    }
    for group, found in masks.items():
        times = np.sum(found, axis=0)
        expected = ~table["is_impossible"] if group == "answer length" else np.ones(len(table))
        assert times.tolist() == expected.astype(int).tolist(), group


def test_a_single_context_length_is_one_group(table):
    table["context_words"] = 30
    assert [s for g, s, _ in groups(table) if g == "context length"] == ["30-30 words"]


def test_means_gains_and_counts(table):
    found = breakdown(table, LABELS, **OPTIONS).set_index("subset")
    for subset, rows in (
        ("overall", table),
        ("HasAns", table[~table["is_impossible"]]),
        ("who", table[table["question_word"] == "who"]),
        ("4-5 words", table[table["answer_words"].isin([4, 5])]),
    ):
        row = found.loc[subset]
        assert row["questions"] == len(rows)
        for metric in ("EM", "F1"):
            means = [rows[f"{label} {metric}"].mean() for label in LABELS]
            assert row[[f"{metric} {label}" for label in LABELS]].tolist() == pytest.approx(means)
            assert row[f"{metric} gain"] == pytest.approx(means[1] - means[0])
            assert row[f"{metric} gain low"] <= row[f"{metric} gain"] <= row[f"{metric} gain high"]


def test_same_seed_same_intervals_and_other_seed_others(table):
    first, again = (breakdown(table, LABELS, **OPTIONS) for _ in range(2))
    pd.testing.assert_frame_equal(first, again)
    other = breakdown(table, LABELS, **OPTIONS | {"seed": 4})
    assert not other["F1 gain low"].equals(first["F1 gain low"])


def test_interval_is_near_the_normal_one():
    rng = np.random.default_rng(1)
    differences = rng.normal(5, 40, (900, 2))
    low, high = bootstrap_interval(differences, resamples=4000, confidence=0.95, rng=rng)
    half = 1.96 * differences.std(axis=0) / math.sqrt(len(differences))
    assert low == pytest.approx(differences.mean(axis=0) - half, abs=0.25)
    assert high == pytest.approx(differences.mean(axis=0) + half, abs=0.25)


def test_pairing_makes_the_interval_of_a_constant_gain_a_point():
    differences = np.full((50, 2), 7.0)
    interval = bootstrap_interval(
        differences, resamples=100, confidence=0.95, rng=np.random.default_rng(2)
    )
    assert interval.tolist() == [[7, 7], [7, 7]]


@settings(max_examples=50)
@given(
    st.lists(st.floats(-100, 100), min_size=1, max_size=30),
    st.randoms(use_true_random=False),
)
def test_interval_stays_within_the_differences(values, random):
    differences = np.array(values)[:, None]
    rng = np.random.default_rng(random.randrange(1000))
    low, high = bootstrap_interval(differences, resamples=60, confidence=0.9, rng=rng)
    assert min(values) - 1e-9 <= low[0] <= high[0] <= max(values) + 1e-9


def test_markdown_shows_each_gain_with_its_interval(table):
    found = breakdown(table, LABELS, **OPTIONS)
    lines = breakdown_markdown(found, 0.95).splitlines()
    assert "F1 gain [95%]" in lines[0]
    assert len(lines) == 2 + len(found)
    row = found.iloc[0]
    assert f"{row['F1 gain']:+.2f} [{row['F1 gain low']:+.2f}" in lines[2]


def test_scores_show_each_metric_in_a_row_that_fits_a_terminal(table):
    found = breakdown(table, LABELS, **OPTIONS)[:3]
    lines = scores_markdown(found, LABELS, 0.95).splitlines()
    assert len(lines) == 2 + 2 * len(found)
    assert max(map(len, lines)) <= 100
    row = found.iloc[2]
    for text in ("NoAns", "F1", f"{row['F1 fine-tuned']:.2f}", f"{row['F1 gain high']:+.2f}]"):
        assert text in lines[7]
