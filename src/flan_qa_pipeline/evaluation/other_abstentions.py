"""Phrases by which a model seems to abstain in other words than the prompt asks for.

A base may abstain as its pretraining taught it, whatever the prompt: FLAN-T5 learned to say
"unanswerable". SQuAD 2.0's metric counts such an answer as wrong.
"""

from typing import NamedTuple

import pandas as pd

LEAST_SHARE, LEAST_COUNT = 0.02, 5  # of the questions that get the same answer


class OtherAbstentions(NamedTuple):
    """What a model's other abstentions would change.

    Attributes:
        phrases: the phrases, the most frequent first.
        questions: how many questions have one of them as the answer.
        unanswerable: how many of those are unanswerable.
        f1: F1 in percent over all questions if the phrases counted as abstentions.
        no_answer_f1: the same over the unanswerable questions; NaN if there are none.
    """

    phrases: list[str]
    questions: int
    unanswerable: int
    f1: float
    no_answer_f1: float


def other_abstentions(question_table: pd.DataFrame, label: str) -> OtherAbstentions | None:
    """Find the phrases that a model says again and again, although no context holds them.

    Args:
        question_table: columns `context`, `is_impossible`, the model's `label`, which holds its
            answers ("" abstains), and `<label> F1` in percent.
        label: the model.

    Returns:
        The phrases that at least 2% of the questions, and at least five, have as the answer; None
        if there are none.
    """
    said = question_table[label].str.strip().str.casefold()
    counts = said[said != ""].value_counts()
    frequent = counts[counts >= max(LEAST_COUNT, LEAST_SHARE * len(said))].index
    contexts = question_table["context"].str.casefold()
    phrases = [
        phrase
        for phrase in frequent
        if not contexts[said == phrase].str.contains(phrase, regex=False).any()
    ]
    if not phrases:
        return None
    abstains, unanswerable = said.isin(phrases), question_table["is_impossible"].astype(bool)
    f1 = question_table[f"{label} F1"].mask(abstains, 100.0 * unanswerable)
    return OtherAbstentions(
        phrases=phrases,
        questions=int(abstains.sum()),
        unanswerable=int((abstains & unanswerable).sum()),
        f1=float(f1.mean()),
        no_answer_f1=float(f1[unanswerable].mean()),
    )
