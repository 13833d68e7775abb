"""Abstaining by threshold: SQuAD 2.0's sweep over no-answer probabilities.

`best_threshold` is `find_best_thresh` and `precision_recall` is `make_precision_recall_eval` of
the official ``evaluate-v2.0.py`` (Rajpurkar, Jia and Liang 2018, arXiv:1806.03822), over arrays.
All arrays have one entry per question: `scores` are EM or F1 (0..1) of the best answer, had the
question been answered; `na_probs` are no-answer probabilities; `has_answer` and `answered` say
whether the question has a gold answer and whether that best answer is not empty.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from flan_qa_pipeline.evaluation.scoring import per_question_scores


def no_answer_probability(no_answer_scores: ArrayLike) -> np.ndarray:
    """Probability of abstaining, were abstention and best answer the only two choices.

    `no_answer_scores` are log-odds in nats: log-probability of the abstention minus that of the
    best answer.
    """
    with np.errstate(over="ignore"):
        probabilities: np.ndarray = 1 / (1 + np.exp(-np.asarray(no_answer_scores, dtype=float)))
    return probabilities


def best_threshold(
    scores: np.ndarray, na_probs: np.ndarray, has_answer: np.ndarray, answered: np.ndarray
) -> tuple[float, float]:
    """The best mean score in percent, and the threshold that gives it.

    A question is abstained on if its no-answer probability is above the threshold. As in the
    official script, 0 stands for abstaining on every question, and questions of equal probability
    are taken one by one, so that a threshold among them may promise slightly more than it keeps.
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
    """Scores after abstaining above the threshold: then 1 without a gold answer and 0 with one."""
    return np.where(na_probs > threshold, (~has_answer).astype(float), scores)


@dataclass(frozen=True)
class PrecisionRecall:
    """One point per distinct threshold, from the strictest on; shares are 0..1.

    `precision` is the mean score of the questions answered, counting 0 for one without a gold
    answer; `recall` is the share of all that could be scored; `abstained` is the share of
    questions not answered.
    """

    thresholds: np.ndarray
    precision: np.ndarray
    recall: np.ndarray
    abstained: np.ndarray

    @property
    def average_precision(self) -> float:
        """Precision averaged over recall, in percent."""
        return 100.0 * float(self.precision @ np.diff(self.recall, prepend=0.0))


def precision_recall(
    scores: np.ndarray, na_probs: np.ndarray, has_answer: np.ndarray
) -> PrecisionRecall:
    """Precision and recall of the answers given, at every threshold that can be set.

    Raises:
        ValueError: there are no questions, or none has an answer.
    """
    _require_questions(scores)
    if not has_answer.any():
        raise ValueError("No question has an answer, so that recall is undefined; give one.")
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
        raise ValueError("No question scores to sweep over; give those of at least one question.")


@dataclass(frozen=True)
class Candidates:
    """One model's answers to a set of questions; arrays as the module says, scores by metric.

    `scores` and `answered` are of the best answer, `greedy_scores` and `greedy_answered` of the
    greedy output, which may be an abstention.
    """

    scores: dict[str, np.ndarray]
    na_probs: np.ndarray
    has_answer: np.ndarray
    answered: np.ndarray
    greedy_scores: dict[str, np.ndarray]
    greedy_answered: np.ndarray

    def after(self, threshold: float) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Scores by metric, and which questions are abstained on, under a threshold."""
        scores = {
            metric: apply_threshold(values, self.na_probs, self.has_answer, threshold)
            for metric, values in self.scores.items()
        }
        return scores, (self.na_probs > threshold) | ~self.answered

    def best(self, metric: str) -> float:
        """The threshold that is best for a metric on these questions."""
        values = self.scores[metric]
        return best_threshold(values, self.na_probs, self.has_answer, self.answered)[1]


def candidates(golds: Mapping[str, list[str]], predictions: pd.DataFrame) -> Candidates:
    """Score one model's predictions (as `predict` makes them), in the order of the golds."""
    ordered = predictions.set_index("id")
    best, greedy = (
        {id_: texts[id_] for id_ in golds if id_ in texts}
        for texts in (ordered[column].to_dict() for column in ("answer_text", "prediction_text"))
    )

    def scores(texts: dict[str, str]) -> dict[str, np.ndarray]:
        rows = np.array(list(per_question_scores(texts, golds).values()), dtype=float)
        return {"EM": rows[:, 0], "F1": rows[:, 1]}

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
    """Ways to decide when to abstain, each with its threshold, abstentions and scores in percent.

    Abstention precision is the share of the abstentions that are right, recall the share of the
    questions without answers that are abstained on; missing where there are none.
    """
    greedy_abstains = ~answers.greedy_answered
    rows = [_row(answers, "greedy", None, answers.greedy_scores, greedy_abstains)]
    ways = [("train articles", calibration.best("F1"))] if calibration else []
    ways += [(f"best {metric} on validation", answers.best(metric)) for metric in answers.scores]
    return rows + [_row(answers, name, limit, *answers.after(limit)) for name, limit in ways]


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
