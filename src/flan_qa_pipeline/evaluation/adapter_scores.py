"""What is saved of an adapter's F1, and the line that names the adapter that answers."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flan_qa_pipeline.evaluation.subject import base_name, corpus_name

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
    step = training.get("best_step") or training.get("steps")
    scores = [entry for entry in training.get("log", ()) if "eval_f1" in entry]
    kept = [entry["eval_f1"] for entry in scores if entry.get("step") == step]
    if not (step and kept):
        return None
    model = provenance["model"]
    chosen = _at(training, "run", "parameters", "training") or {}
    fingerprint = _at(training, "run", "fingerprints", "questions", "dev")
    return DevScore(
        f1=kept[-1],
        step=step,
        base=(model.get("name"), model.get("revision")),
        questions=(fingerprint, chosen.get("eval_questions"), chosen.get("seed")),
    )


def trained_on(training: Record) -> str | None:
    """Return the fingerprint of the questions that an adapter was trained on, if recorded."""
    fingerprint: str | None = _at(training, "run", "fingerprints", "questions", "train")
    return fingerprint


def describe_adapter(
    version: str, why: str, provenance: Record, training: Record, scores: Record | None
) -> str:
    """Say in one line which adapter answers, why this one, on which base, and with which F1.

    Args:
        version: the adapter's version.
        why: such as "promoted".
        provenance: the adapter's `provenance`.
        training: the adapter's record of its training.
        scores: the scores on validation questions that the run of this version saved, if any.
    """
    base = base_name(str(provenance["model"].get("name")))
    file = _at(training, "run", "parameters", "data", "train_file")
    corpus = f", trained on {corpus_name(file)}" if file else ""
    known = []
    if scores:
        known.append(f"{scores['f1']:.2f} on {scores['total']:,} validation questions")
    if dev := dev_score(provenance, training):
        known.append(f"{dev.f1:.2f} on dev questions")
    f1 = f"F1 {', '.join(known)}" if known else "no F1 recorded"
    return f"Adapter {version} ({why}) answers, on the base {base}{corpus}: {f1}."


def _at(record: Any, *keys: str) -> Any:
    """Return the value below these keys; None if a record does not have them."""
    for key in keys:
        record = record.get(key) if isinstance(record, Mapping) else None
    return record
