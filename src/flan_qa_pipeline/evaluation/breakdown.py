"""Scores by group of questions, and paired bootstrap intervals of their differences.

The interval is the percentile bootstrap over questions (Efron and Tibshirani 1993, chapter 13). It
is paired: each resample draws questions and takes both models' scores on them.
"""

import re
from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

METRICS = ("EM", "F1")
QUESTION_WORDS = ("who", "what", "when", "where", "which", "why", "how")
OTHER = "other"

_QUESTION_WORD = re.compile(rf"\b({'|'.join(QUESTION_WORDS)}|whom|whose)\b")
_ANSWER_LENGTHS = {"1 word": 1, "2 words": 2, "3 words": 3, "4-5 words": 5, "6+ words": np.inf}


def question_word(question: str) -> str:
    """Return the first question word of an English question, or "other".

    "whom" and "whose" count as "who".

    >>> question_word("In which year did it open?")
    'which'
    """
    found = _QUESTION_WORD.search(question.lower())
    if not found:
        return OTHER
    return "who" if found[1] in {"whom", "whose"} else found[1]


def groups(table: pd.DataFrame) -> Iterator[tuple[str, str, np.ndarray]]:
    """Yield the groups of a question table, without empty subsets.

    Context length groups the questions in quarters. Answer length counts the words of the first
    gold answer, and leaves out questions without one.

    Args:
        table: as in `breakdown`.

    Yields:
        (group, subset, mask): the mask selects the subset's rows.
    """
    everything = np.ones(len(table), dtype=bool)
    impossible = table["is_impossible"].to_numpy(dtype=bool)
    words = table["question_word"].to_numpy()
    answer_words = table["answer_words"].to_numpy(dtype=float)
    context_words = table["context_words"].to_numpy(dtype=float)
    yield "all", "overall", everything
    masks = [("answerable", "HasAns", ~impossible), ("answerable", "NoAns", impossible)]
    masks += [("question word", word, words == word) for word in (*QUESTION_WORDS, OTHER)]
    shortest = 0.0
    for label, longest in _ANSWER_LENGTHS.items():
        inside = (answer_words > shortest) & (answer_words <= longest)
        masks.append(("answer length", label, inside & ~impossible))
        shortest = longest
    edges = np.unique(np.quantile(context_words, [0.25, 0.5, 0.75, 1], method="inverted_cdf"))
    low = context_words.min()
    for edge in edges:
        inside = (context_words >= low) & (context_words <= edge)
        masks.append(("context length", f"{low:.0f}-{edge:.0f} words", inside))
        low = edge + 1
    yield from ((group, subset, mask) for group, subset, mask in masks if mask.any())


def bootstrap_interval(
    differences: np.ndarray, *, resamples: int, confidence: float, rng: np.random.Generator
) -> np.ndarray:
    """Return the percentile interval of the mean difference.

    Scores differ by few distinct values, so each resample draws how often it holds each of them.

    Args:
        differences: (questions, metrics), each question's score after minus before.
        resamples: number of resamples.
        confidence: 0..1.
        rng: source of the resamples.

    Returns:
        (2, metrics): the lower and upper ends, in the unit of `differences`.
    """
    n = len(differences)
    values, counts = np.unique(differences, axis=0, return_counts=True)
    means = rng.multinomial(n, counts / n, size=resamples) @ values / n
    tail = (1 - confidence) / 2
    ends: np.ndarray = np.quantile(means, [tail, 1 - tail], axis=0)
    return ends


def breakdown(
    table: pd.DataFrame, labels: Sequence[str], *, resamples: int, confidence: float, seed: int
) -> pd.DataFrame:
    """Average EM and F1 of two models in every group, and their paired difference.

    Args:
        table: one row per question: is_impossible, question_word, answer_words (missing if the
            question has no answers), context_words, and "<label> EM" and "<label> F1" for both
            labels, in percent.
        labels: the model before and the model after.
        resamples: number of bootstrap resamples.
        confidence: of the intervals, 0..1.
        seed: of the resamples.

    Returns:
        One row per subset: group, subset, questions, and for each metric both means and the gain
        with its interval ("gain", "gain low", "gain high"), in percent.
    """
    before, after = (
        table[[f"{label} {metric}" for metric in METRICS]].to_numpy(dtype=float) for label in labels
    )
    rows = []
    rng = np.random.default_rng(seed)
    for group, subset, mask in groups(table):
        differences = after[mask] - before[mask]
        low, high = bootstrap_interval(
            differences, resamples=resamples, confidence=confidence, rng=rng
        )
        row: dict[str, str | int | float] = {
            "group": group,
            "subset": subset,
            "questions": int(mask.sum()),
        }
        for column, metric in enumerate(METRICS):
            row |= {
                f"{metric} {labels[0]}": before[mask, column].mean(),
                f"{metric} {labels[1]}": after[mask, column].mean(),
                f"{metric} gain": differences[:, column].mean(),
                f"{metric} gain low": low[column],
                f"{metric} gain high": high[column],
            }
        rows.append(row)
    return pd.DataFrame(rows)
