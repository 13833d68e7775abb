"""SQuAD 2.0's exact match (EM) and F1, with the standard library alone.

Whatever this project scores, it scores here; ``squad_v2_scores`` hands the same scores to
other programs as a module of ``evaluate``.

The scores agree to the last digit with those of the official ``evaluate-v2.0.py`` run without
no-answer probabilities (Rajpurkar, Jia and Liang 2018, arXiv:1806.03822). The empty string is an
abstention. Per question, scores are fractions: exact is 0 or 1, f1 lies in 0..1. Over a set of
questions, they are means in percent.

Two things are stricter than in the official script, which skips questions without a prediction and
ignores predictions without a question: here both are errors.
"""

import operator
import re
import string
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from functools import reduce
from typing import TypeVar

Row = TypeVar("Row")

_ARTICLES = re.compile(r"\b(a|an|the)\b", re.UNICODE)
_DROP_PUNCTUATION = str.maketrans("", "", string.punctuation)
_IDS_NAMED = 5


def normalize_answer(text: str) -> str:
    """Lower-case, drop ASCII punctuation, drop English articles, then collapse white space.

    Only ``string.punctuation`` is dropped: typographic quotes and dashes stay. White space is what
    ``str.split`` takes for it, so a no-break space separates and a zero-width space does not.
    """
    bare = text.lower().translate(_DROP_PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", bare).split())


def exact_match(prediction_text: str, answer: str) -> int:
    """1 if both texts normalize to the same string, else 0."""
    return int(normalize_answer(prediction_text) == normalize_answer(answer))


def token_f1(prediction_text: str, answer: str) -> float:
    """F1 (0..1) of the normalized tokens, each counted as often as it occurs.

    Where either text has no tokens, 1 if neither has any, else 0.
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
    """The answers whose normalized text is not empty, or the empty string where none remains."""
    return [answer for answer in answers if normalize_answer(answer)] or [""]


def score_question(prediction_text: str, answers: Iterable[str]) -> tuple[int, float]:
    """``(exact, f1)`` of one question: for each score, the best over its gold answers.

    ``answers`` are the question's answers as the data set gives them, empty if it has none.
    """
    golds = gold_answers(answers)
    return (
        max(exact_match(prediction_text, gold) for gold in golds),
        max(token_f1(prediction_text, gold) for gold in golds),
    )


def per_question_scores(
    predictions: Mapping[str, str], references: Mapping[str, list[str]]
) -> dict[str, tuple[int, float]]:
    """``{id: (exact, f1)}`` in the order of the references.

    Args:
        predictions: question id to prediction text, the empty string being an abstention.
        references: question id to the data set's answers, an empty list where it has none.

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


def aggregate_scores(question_scores: Collection[tuple[int, float]]) -> dict[str, float]:
    """Mean ``exact`` and ``f1`` in percent, and ``total``, the number of questions.

    The last digit of f1 depends on how it is summed: here by plain additions in the order given,
    as the official script did before ``sum`` began to compensate for rounding in Python 3.12.

    Raises:
        ValueError: there are no scores.
    """
    total = len(question_scores)
    if not total:
        raise ValueError("No question scores to average; give those of at least one question.")
    return {
        "exact": 100.0 * sum(exact for exact, _ in question_scores) / total,
        "f1": 100.0 * reduce(operator.add, (f1 for _, f1 in question_scores)) / total,
        "total": total,
    }


def score_predictions(
    predictions: Mapping[str, str], references: Mapping[str, list[str]]
) -> dict[str, float]:
    """The official script's scores: overall, and apart for questions with and without answers.

    Args:
        predictions: question id to prediction text, the empty string being an abstention.
        references: question id to the data set's answers, an empty list where it has none.

    Returns:
        ``exact`` and ``f1`` in percent and ``total``, a count; the same prefixed with ``HasAns_``
        for the questions the data set gives an answer, and with ``NoAns_`` for the others. The
        keys of an empty subset are left out.

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
    """Turn ``(id, row)`` pairs into a dictionary; ``kind`` names the rows in the error.

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
