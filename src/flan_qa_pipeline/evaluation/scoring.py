"""SQuAD 2.0's exact match (EM) and F1, computed with the standard library alone.

This module computes all scores of the project; ``squad_v2_scores`` offers them to other programs
as a module of ``evaluate``.

The scores equal the official ``evaluate-v2.0.py``'s scores without no-answer probabilities to the
last digit (Rajpurkar, Jia and Liang 2018, arXiv:1806.03822). The empty string is an abstention.
Scores of one question are fractions: exact match is 0 or 1, F1 lies in 0..1. Scores of a set of
questions are means in percent.

The official script skips questions without a prediction and ignores predictions without a
question. Here both are errors.

The same functions in transformers' ``squad_metrics`` are not used: transformers 5.21, which
``pyproject.toml`` allows, has no such module, and in 5.17 importing it imports torch.
"""

import operator
import re
import string
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from functools import reduce
from typing import NamedTuple, TypeVar

Row = TypeVar("Row")

_ARTICLES = re.compile(r"\b(a|an|the)\b", re.UNICODE)
_DROP_PUNCTUATION = str.maketrans("", "", string.punctuation)
_IDS_NAMED = 5


class QuestionScore(NamedTuple):
    """Scores of one question: exact match is 0 or 1, F1 lies in 0..1."""

    exact_match: int
    f1: float


def normalize_answer(text: str) -> str:
    """Lower-case, drop ASCII punctuation, drop English articles, then collapse white space.

    Typographic quotes and dashes stay, since they are not in ``string.punctuation``. Words are
    separated as ``str.split`` does it: by a no-break space, but not by a zero-width space.
    """
    bare = text.lower().translate(_DROP_PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", bare).split())


def exact_match(prediction_text: str, answer: str) -> int:
    """Return 1 if both texts normalize to the same string, else 0."""
    return int(normalize_answer(prediction_text) == normalize_answer(answer))


def token_f1(prediction_text: str, answer: str) -> float:
    """Return the F1 (0..1) of the normalized tokens, each counted as often as it occurs.

    If a text has no tokens, F1 is 1 if neither text has any, else 0.
    """
    predicted = normalize_answer(prediction_text).split()
    expected = normalize_answer(answer).split()
    if not predicted or not expected:
        return float(predicted == expected)
    shared = (Counter(predicted) & Counter(expected)).total()
    if not shared:
        return 0.0
    precision = shared / len(predicted)
    recall = shared / len(expected)
    return (2 * precision * recall) / (precision + recall)


def gold_answers(answers: Iterable[str]) -> list[str]:
    """Return the answers that normalize to some text, or the empty string if none does."""
    return [answer for answer in answers if normalize_answer(answer)] or [""]


def score_question(prediction_text: str, answers: Iterable[str]) -> QuestionScore:
    """Score one question; each score is the best over the gold answers.

    Args:
        prediction_text: the prediction; the empty string abstains.
        answers: the data set's answers, none if the question has none.
    """
    golds = gold_answers(answers)
    return QuestionScore(
        exact_match=max(exact_match(prediction_text, gold) for gold in golds),
        f1=max(token_f1(prediction_text, gold) for gold in golds),
    )


def per_question_scores(
    predictions: Mapping[str, str], references: Mapping[str, list[str]]
) -> dict[str, QuestionScore]:
    """Score each question.

    Args:
        predictions: prediction texts by question id; the empty string abstains.
        references: the data set's answers by question id; an empty list if there are none.

    Returns:
        Scores by question id, in the order of the references.

    Raises:
        ValueError: there are no references, or the ids of the two differ.
        TypeError: a prediction is not a string, or a question's answers are not a list of strings.
    """
    _check_ids(predictions, references)
    for question_id, answers in references.items():
        require_text(question_id, predictions[question_id])
        require_answers(question_id, answers)
    return {
        question_id: score_question(predictions[question_id], answers)
        for question_id, answers in references.items()
    }


def aggregate_scores(question_scores: Collection[QuestionScore]) -> dict[str, float]:
    """Return mean ``exact`` and ``f1`` in percent, and ``total``, the number of questions.

    The last digit of f1 depends on the summation. This function adds in the given order, as the
    official script did before Python 3.12, whose ``sum`` compensates for rounding.

    Raises:
        ValueError: there are no scores.
    """
    total = len(question_scores)
    if not total:
        raise ValueError("There are no question scores to average; give at least one.")
    return {
        "exact": 100.0 * sum(score.exact_match for score in question_scores) / total,
        "f1": 100.0 * reduce(operator.add, (score.f1 for score in question_scores)) / total,
        "total": total,
    }


def score_predictions(
    predictions: Mapping[str, str], references: Mapping[str, list[str]]
) -> dict[str, float]:
    """Compute the official script's scores: overall, and for questions with and without answers.

    Args:
        predictions: prediction texts by question id; the empty string abstains.
        references: the data set's answers by question id; an empty list if there are none.

    Returns:
        ``exact`` and ``f1`` in percent and ``total``, the number of questions. The prefixes
        ``HasAns_`` and ``NoAns_`` mark the same scores of the questions with and without answers;
        an empty subset has none.

    Raises:
        ValueError: there are no references, or the ids of the two differ.
        TypeError: a prediction is not a string, or a question's answers are not a list of strings.
    """
    question_scores = per_question_scores(predictions, references)
    scores = aggregate_scores(question_scores.values())
    for subset, has_answers in (("HasAns", True), ("NoAns", False)):
        subset_scores = [
            score
            for question_id, score in question_scores.items()
            if bool(references[question_id]) == has_answers
        ]
        if subset_scores:
            means = aggregate_scores(subset_scores)
            scores |= {f"{subset}_{key}": value for key, value in means.items()}
    return scores


def unique_by_id(pairs: Iterable[tuple[str, Row]], kind: str) -> dict[str, Row]:
    """Turn ``(id, row)`` pairs into a dictionary. ``kind`` names the rows in the error.

    Raises:
        ValueError: an id comes more than once.
    """
    pairs = list(pairs)
    counts = Counter(question_id for question_id, _ in pairs)
    repeated = [question_id for question_id, count in counts.items() if count > 1]
    if repeated:
        raise ValueError(
            f"{len(repeated)} question ids come more than once among the {kind} "
            f"({_first_ids(repeated)}); keep one of the {kind} for each question."
        )
    return dict(pairs)


def require_text(question_id: str, prediction_text: object) -> None:
    """Raise a TypeError that names the question unless its prediction is a string."""
    if not isinstance(prediction_text, str):
        raise TypeError(
            f"The prediction for question {question_id!r} is of type "
            f"{type(prediction_text).__name__}, not str; to abstain, give the empty string."
        )


def require_answers(question_id: str, answers: object) -> None:
    """Raise a TypeError that names the question unless its answers are a list of strings."""
    if not isinstance(answers, list) or not all(isinstance(answer, str) for answer in answers):
        raise TypeError(
            f"The answers to question {question_id!r} are not a list of str; give the list of "
            "answer texts, which is empty for a question without answers."
        )


def _check_ids(predictions: Mapping[str, str], references: Mapping[str, list[str]]) -> None:
    if not references:
        raise ValueError("There are no reference questions to score; give at least one.")
    missing = [question_id for question_id in references if question_id not in predictions]
    if missing:
        raise ValueError(
            f"{len(missing)} of {len(references)} reference questions have no prediction "
            f"({_first_ids(missing)}); predict each of them, with the empty string to abstain."
        )
    extra = [question_id for question_id in predictions if question_id not in references]
    if extra:
        raise ValueError(
            f"{len(extra)} of {len(predictions)} predictions are for ids that are not among the "
            f"references ({_first_ids(extra)}); leave them out or add their reference questions."
        )


def _first_ids(question_ids: list[str]) -> str:
    named = ", ".join(repr(question_id) for question_id in question_ids[:_IDS_NAMED])
    return f"ids {named}, ..." if len(question_ids) > _IDS_NAMED else f"ids {named}"
