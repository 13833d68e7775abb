"""SQuAD 2.0's exact match and F1 as a module for ``evaluate.load(<this folder>)``.

It needs the installed package ``flan_qa_pipeline`` and no network.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import datasets
import evaluate

from flan_qa_pipeline.evaluation.scoring import (
    require_answers,
    require_text,
    score_predictions,
    unique_by_id,
)

_ANSWER_FIELDS = ("text", "answer_start")

_DESCRIPTION = """
Exact match (EM) and F1 of SQuAD 2.0. They equal, to the last digit, the scores of the official
script evaluate-v2.0.py without no-answer probabilities. The context may not answer a question; the
right prediction is then an abstention, the empty string.
"""

_CITATION = """
@inproceedings{rajpurkar-etal-2018-know,
  title = {Know What You Don't Know: Unanswerable Questions for {SQuAD}},
  author = {Rajpurkar, Pranav and Jia, Robin and Liang, Percy},
  booktitle = {Proceedings of the 56th Annual Meeting of the Association for Computational
               Linguistics (Volume 2: Short Papers)},
  year = {2018},
  eprint = {1806.03822},
  archivePrefix = {arXiv}
}
"""

_INPUTS_DESCRIPTION = """
Args:
    predictions: list of {"id": str, "prediction_text": str}, one for each reference, in any order;
        the empty string abstains.
    references: list of {"id": str, "answers": answers}, where answers is
        {"text": list of str, "answer_start": list of int} as in the data set squad_v2, or the
        official JSON's list of {"text": str, "answer_start": int}; empty for a question without
        answers.
    The module ignores further fields, such as squad_v2's no_answer_probability, context or title.
Returns:
    exact, f1: means over all questions in percent, 0 to 100.
    total: the number of questions.
    HasAns_exact, HasAns_f1, HasAns_total: the same for the questions with answers.
    NoAns_exact, NoAns_f1, NoAns_total: the same for the questions without answers.
    An empty subset has no keys.
Raises:
    ValueError: an id occurs more than once, predictions and references differ in number or ids, a
        field is missing, or there is nothing to score.
    TypeError: a prediction_text is not a string, or answer texts are not a list of strings.
Examples:
    >>> scores = evaluate.load("src/flan_qa_pipeline/evaluation/squad_v2_scores")
    >>> scores.compute(
    ...     predictions=[{"id": "q1", "prediction_text": "the Amazon"}],
    ...     references=[{"id": "q1", "answers": {"text": ["Amazon"], "answer_start": [4]}}],
    ... )
    {'exact': 100.0, 'f1': 100.0, 'total': 1, \
'HasAns_exact': 100.0, 'HasAns_f1': 100.0, 'HasAns_total': 1}
"""


class SquadV2Scores(evaluate.Metric):
    """EM and F1 of SQuAD 2.0, overall and for questions with and without answers."""

    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        start = datasets.Value("int32")
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS_DESCRIPTION,
            features=datasets.Features(
                {
                    "predictions": {"id": text, "prediction_text": text},
                    "references": {
                        "id": text,
                        "answers": {
                            "text": datasets.List(text),
                            "answer_start": datasets.List(start),
                        },
                    },
                }
            ),
            reference_urls=[
                "https://rajpurkar.github.io/SQuAD-explorer/",
                "https://arxiv.org/abs/1806.03822",
            ],
        )

    def add_batch(
        self,
        *,
        predictions: Iterable[Mapping[str, Any]],
        references: Iterable[Mapping[str, Any]],
    ) -> None:
        """Add predictions and their references; keep only the fields that scoring reads."""
        super().add_batch(
            predictions=[_prediction_fields(prediction) for prediction in predictions],
            references=[_reference_fields(reference) for reference in references],
        )

    def add(self, *, prediction: Mapping[str, Any], reference: Mapping[str, Any]) -> None:
        """Add one prediction and its reference."""
        self.add_batch(predictions=[prediction], references=[reference])

    def _compute(
        self, predictions: list[dict[str, str]], references: list[dict[str, Any]]
    ) -> dict[str, float]:
        return score_predictions(
            unique_by_id(((p["id"], p["prediction_text"]) for p in predictions), "predictions"),
            unique_by_id(((r["id"], r["answers"]["text"]) for r in references), "references"),
        )


def _prediction_fields(prediction: Mapping[str, Any]) -> dict[str, str]:
    _require_fields(prediction, ("id", "prediction_text"))
    require_text(prediction["id"], prediction["prediction_text"])
    return {"id": prediction["id"], "prediction_text": prediction["prediction_text"]}


def _reference_fields(reference: Mapping[str, Any]) -> dict[str, Any]:
    _require_fields(reference, ("id", "answers"))
    answers = _answer_columns(reference["answers"])
    require_answers(reference["id"], answers["text"])
    return {"id": reference["id"], "answers": answers}


def _answer_columns(answers: Any) -> dict[str, Any]:
    if isinstance(answers, list):
        for answer in answers:
            _require_fields(answer, _ANSWER_FIELDS)
        return {field: [answer[field] for answer in answers] for field in _ANSWER_FIELDS}
    _require_fields(answers, _ANSWER_FIELDS)
    return {field: answers[field] for field in _ANSWER_FIELDS}


def _require_fields(row: Any, fields: tuple[str, ...]) -> None:
    missing = [field for field in fields if not isinstance(row, Mapping) or field not in row]
    if missing:
        raise ValueError(
            f"{row!r:.200} lacks {' and '.join(missing)}; give it the fields {', '.join(fields)}."
        )
