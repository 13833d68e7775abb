"""What is saved of an adapter's F1, and the line that names the adapter that answers."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flan_qa_pipeline.evaluation.subject import base_name, trained_on
from flan_qa_pipeline.training.record import kept_evaluation

Record = Mapping[str, Any]


@dataclass(frozen=True)
class DevScore:
    """The F1 on dev questions that a training recorded of the adapter that it kept.

    Attributes:
        f1: in percent.
        step: the step of training whose adapter was kept.
        base: the base's name and revision.
        questions: the fingerprint of the dev questions, how many were drawn, and the seed.
    """

    f1: float
    step: int
    base: tuple[Any, ...]
    questions: tuple[Any, ...]


def dev_score(provenance: Record, training: Record) -> DevScore | None:
    """Read the dev score of an adapter; None if its training recorded none.

    Args:
        provenance: the adapter's `provenance`.
        training: the adapter's record of its training.
    """
    kept = kept_evaluation(training)
    if kept is None:
        return None
    model = provenance["model"]
    chosen = _at(training, "run", "parameters", "training") or {}
    fingerprint = _at(training, "run", "fingerprints", "questions", "dev")
    return DevScore(
        f1=kept["eval_f1"],
        step=kept["step"],
        base=(model.get("name"), model.get("revision")),
        questions=(fingerprint, chosen.get("eval_questions"), chosen.get("seed")),
    )


def training_questions(training: Record) -> str | None:
    """Return the fingerprint of the questions that an adapter was trained on, if recorded."""
    fingerprint: str | None = _at(training, "run", "fingerprints", "questions", "train")
    return fingerprint


def describe_adapter(
    version: str,
    why: str,
    provenance: Record,
    training: Record,
    evaluation: Record,
    in_card: tuple[float, str] | None = None,
) -> str:
    """Say in one line which adapter answers, why this one, on which base, and with which F1.

    Args:
        version: the adapter's version.
        why: such as "promoted".
        provenance: the adapter's `provenance`.
        training: the adapter's record of its training.
        evaluation: the newest record of the adapter's scores on validation questions, or {}.
        in_card: the F1 that the adapter's model card names, in percent, and its corpus.
    """
    base = base_name(str(provenance["model"].get("name")))
    name = trained_on(training.get("run") or {})
    corpus = f", trained on {name}" if name else ""
    known = []
    for row in evaluation.get("scores", ()):
        if row["subset"] == "overall":
            f1 = row[f"F1 {evaluation['labels'][-1]}"]
            known.append(f"{f1:.2f} on {row['questions']:,} validation questions")
    if in_card:
        f1, validated_on = in_card
        known.append(f"{f1:.2f} on {validated_on}")
    if dev := dev_score(provenance, training):
        known.append(f"{dev.f1:.2f} on dev questions")
    scores = f"F1 {', '.join(known)}" if known else "no F1 recorded"
    return f"Adapter {version} ({why}) answers, on the base {base}{corpus}: {scores}."


def _at(record: Any, *keys: str) -> Any:
    """Return the value below these keys; None if a record does not have them."""
    for key in keys:
        record = record.get(key) if isinstance(record, Mapping) else None
    return record
