"""Abstaining by threshold: SQuAD 2.0's sweep over no-answer probabilities.

`best_threshold` and `precision_recall` compute `find_best_thresh` and `make_precision_recall_eval`
of the official ``evaluate-v2.0.py`` (Rajpurkar, Jia and Liang 2018, arXiv:1806.03822) on arrays.
All arrays have one entry per question: `scores` are EM or F1 (0..1) of the model's best answer, as
if it never abstained; `na_probs` are no-answer probabilities; `has_answer` says whether the
question has a gold answer, and `answered` whether the best answer is not empty.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from flan_qa_pipeline.evaluation.scoring import per_question_scores

GREEDY = "greedy"  # the decision without a threshold
ON_TRAIN_ARTICLES = "train articles"  # the decision whose threshold they choose


def no_answer_probability(no_answer_log_odds: ArrayLike) -> np.ndarray:
    """Return the probability of abstaining if the best answer were the only alternative.

    Args:
        no_answer_log_odds: log-probability of the abstention minus the log-probability of the best
            answer, in nats.

    Returns:
        Probabilities, 0..1, in the shape of the log-odds.
    """
    with np.errstate(over="ignore"):
        probabilities: np.ndarray = 1 / (1 + np.exp(-np.asarray(no_answer_log_odds, dtype=float)))
    return probabilities


def best_threshold(
    scores: np.ndarray, na_probs: np.ndarray, has_answer: np.ndarray, answered: np.ndarray
) -> tuple[float, float]:
    """Find the threshold of the best mean score.

    The model abstains on a question if its no-answer probability is above the threshold. As in the
    official script, 0 means abstaining on every question. The script also sweeps questions of
    equal probability one by one, so the score of a threshold among them can be slightly too high.

    Returns:
        The best mean score in percent, and its threshold.

    Raises:
        ValueError: there are no questions.
    """
    _require_questions(scores)
    order = np.argsort(na_probs, kind="stable")
    gains = np.where(has_answer, scores, np.where(answered, -1.0, 0.0))[order]
    totals = np.cumsum(np.concatenate([[float((~has_answer).sum())], gains]))
    best = int(np.argmax(totals))
    threshold = float(na_probs[order[best - 1]]) if best else 0.0
    return 100.0 * float(totals[best]) / len(scores), threshold


def apply_threshold(
    scores: np.ndarray, na_probs: np.ndarray, has_answer: np.ndarray, threshold: float
) -> np.ndarray:
    """Score abstentions above the threshold: 1 without a gold answer, 0 with one."""
    return np.where(na_probs > threshold, (~has_answer).astype(float), scores)


@dataclass(frozen=True)
class PrecisionRecall:
    """Precision and recall at each distinct threshold, the strictest first; shares are 0..1.

    Attributes:
        thresholds: the no-answer probabilities above which the model abstains.
        precision: mean score of the questions answered; those without a gold answer score 0.
        recall: sum of these scores, as a share of the questions with a gold answer.
        abstained: share of the questions not answered.
    """

    thresholds: np.ndarray
    precision: np.ndarray
    recall: np.ndarray
    abstained: np.ndarray

    @property
    def average_precision(self) -> float:
        """Average precision over recall, in percent."""
        return 100.0 * float(self.precision @ np.diff(self.recall, prepend=0.0))


def precision_recall(
    scores: np.ndarray, na_probs: np.ndarray, has_answer: np.ndarray
) -> PrecisionRecall:
    """Compute precision and recall of the answers given, at every distinct threshold.

    Raises:
        ValueError: there are no questions, or none has an answer.
    """
    _require_questions(scores)
    if not has_answer.any():
        raise ValueError("No question has an answer, so recall is undefined; give at least one.")
    order = np.argsort(na_probs, kind="stable")
    true_positives = np.cumsum(np.where(has_answer, scores, 0.0)[order])
    given = np.arange(1, len(order) + 1)
    probabilities = na_probs[order]
    ends = np.append(probabilities[1:] != probabilities[:-1], True)
    precision = (true_positives / given)[ends]
    recall = (true_positives / has_answer.sum())[ends]
    return PrecisionRecall(
        thresholds=probabilities[ends],
        precision=precision,
        recall=recall,
        abstained=1 - given[ends] / len(order),
    )


def _require_questions(scores: np.ndarray) -> None:
    if not len(scores):
        raise ValueError("There are no question scores; give at least one.")


@dataclass(frozen=True)
class Candidates:
    """One model's scored answers to a set of questions; the module describes the arrays.

    Attributes:
        scores: EM and F1 of the best answers.
        na_probs: no-answer probabilities.
        has_answer: which questions have a gold answer.
        answered: which best answers are not empty.
        greedy_scores: EM and F1 of the greedy outputs, which may be abstentions.
        greedy_answered: which greedy outputs are not abstentions.
    """

    scores: dict[str, np.ndarray]
    na_probs: np.ndarray
    has_answer: np.ndarray
    answered: np.ndarray
    greedy_scores: dict[str, np.ndarray]
    greedy_answered: np.ndarray

    def after(self, threshold: float) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Return EM and F1 under a threshold, and which questions the model then abstains on."""
        scores = {
            metric: apply_threshold(values, self.na_probs, self.has_answer, threshold)
            for metric, values in self.scores.items()
        }
        return scores, (self.na_probs > threshold) | ~self.answered

    def best(self, metric: str) -> float:
        """Return the best threshold for a metric on these questions."""
        values = self.scores[metric]
        return best_threshold(values, self.na_probs, self.has_answer, self.answered)[1]


def candidates(golds: Mapping[str, list[str]], predictions: pd.DataFrame) -> Candidates:
    """Score one model's predictions.

    Args:
        golds: the data set's answers by question id; the arrays follow its order.
        predictions: columns id, prediction_text, answer_text and no_answer_score.

    Raises:
        ValueError: a question has no prediction.
    """
    ordered = predictions.set_index("id")
    best, greedy = (
        {id_: texts[id_] for id_ in golds if id_ in texts}
        for texts in (ordered[column].to_dict() for column in ("answer_text", "prediction_text"))
    )

    def scores(texts: dict[str, str]) -> dict[str, np.ndarray]:
        rows = per_question_scores(texts, golds).values()
        return {
            "EM": np.array([row.exact_match for row in rows], dtype=float),
            "F1": np.array([row.f1 for row in rows], dtype=float),
        }

    best_scores, greedy_scores = scores(best), scores(greedy)
    return Candidates(
        scores=best_scores,
        na_probs=no_answer_probability(ordered.loc[list(golds), "no_answer_score"].to_numpy()),
        has_answer=np.array([bool(answers) for answers in golds.values()]),
        answered=np.array([bool(best[id_]) for id_ in golds]),
        greedy_scores=greedy_scores,
        greedy_answered=np.array([bool(greedy[id_]) for id_ in golds]),
    )


def abstention_rows(answers: Candidates, calibration: Candidates | None) -> list[dict[str, object]]:
    """Compare ways to decide when to abstain.

    Abstention precision is the share of abstentions that are right; abstention recall is the share
    of the questions without answers on which the model abstains. Either is missing if it divides
    by zero.

    Args:
        answers: the scored validation questions.
        calibration: scored questions of train articles that choose a threshold, if there are any.

    Returns:
        A row for each way: its threshold, abstentions, and scores in percent.
    """
    greedy_abstains = ~answers.greedy_answered
    rows = [_row(answers, GREEDY, None, answers.greedy_scores, greedy_abstains)]
    ways = [(ON_TRAIN_ARTICLES, calibration.best("F1"))] if calibration else []
    ways += [(f"best {metric} on validation", answers.best(metric)) for metric in answers.scores]
    return rows + [_row(answers, name, limit, *answers.after(limit)) for name, limit in ways]


def tuned_rows(table: pd.DataFrame, model: str) -> pd.DataFrame:
    """Return a model's row with the threshold from train articles; no row if there is none.

    Args:
        table: rows of `abstention_rows`, and their model.
        model: its label.
    """
    return table[(table["model"] == model) & (table["decision"] == ON_TRAIN_ARTICLES)]


def _row(
    answers: Candidates,
    decision: str,
    threshold: float | None,
    scores: dict[str, np.ndarray],
    abstained: np.ndarray,
) -> dict[str, object]:
    has_answer = answers.has_answer
    right = int((abstained & ~has_answer).sum())
    row: dict[str, object] = {
        "decision": decision,
        "threshold": threshold,
        "questions": len(abstained),
        "abstained": int(abstained.sum()),
        "abstained rightly": right,
        "abstention precision": 100 * right / abstained.sum() if abstained.any() else None,
        "abstention recall": 100 * right / (~has_answer).sum() if not has_answer.all() else None,
    }
    for metric, values in scores.items():
        row[metric] = 100 * values.mean()
    for subset, mask in (("HasAns", has_answer), ("NoAns", ~has_answer)):
        row[f"{subset} F1"] = 100 * scores["F1"][mask].mean() if mask.any() else None
    return row
