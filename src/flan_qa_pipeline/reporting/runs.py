"""Saved runs side by side: how their parameters differ, and what they scored and cost."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from flan_qa_pipeline.evaluation.breakdown import METRICS
from flan_qa_pipeline.evaluation.subject import base_name
from flan_qa_pipeline.reporting.html_report import render_table
from flan_qa_pipeline.training.record import kept_evaluation

SECTIONS = ("data", "model", "prompt", "tokenization", "lora", "training", "generation")
WITHOUT_EFFECT = {  # on what a run saves
    "training.output_dir",
    "training.logging_dir",
    "training.report_to",
    "training.save_total_limit",
    "training.resume",
}
SUBSETS = ("overall", "HasAns", "NoAns")


@dataclass(frozen=True)
class SavedRun:
    """What is known of a saved version; a part that it did not save is empty or None.

    Attributes:
        version: its time stamp.
        adapter: the version of the adapter that answered.
        promoted: whether this adapter is the promoted one.
        parameters: the parameters of the adapter's training and of the answers, by section.
        training: the adapter's record of its training.
        scores: the fine-tuned model's "EM" and "F1" in percent, by subset.
        seconds: wall time of all nodes.
        memory_mib: the largest peak memory of a node, on the GPU if the run had one.
    """

    version: str
    adapter: str | None = None
    promoted: bool = False
    parameters: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    scores: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    seconds: float | None = None
    memory_mib: float | None = None

    @property
    def base(self) -> str:
        """The base model's name."""
        return base_name(self.parameters.get("model", {}).get("name", ""))

    @property
    def dev_f1(self) -> float | None:
        """The F1 on dev questions of the adapter that training kept."""
        kept = kept_evaluation(self.training)
        return None if kept is None else float(kept["eval_f1"])


def flat_parameters(parameters: Mapping[str, Any]) -> dict[str, str]:
    """Map names such as `lora.r` to values as texts, of what decides the saved results."""
    sections = {name: parameters.get(name, {}) for name in SECTIONS}
    return {name: _text(value) for name, value in _leaves(sections) if name not in WITHOUT_EFFECT}


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _text(value: Any) -> str:
    """Write a value as `--params` takes it."""
    if isinstance(value, list):
        return "+".join(map(str, value))
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


def differing_parameters(runs: Sequence[SavedRun]) -> dict[str, list[str]]:
    """Map each parameter whose value differs between runs to its values, "" where it is unknown."""
    flat = [flat_parameters(run.parameters) for run in runs]
    names = dict.fromkeys(name for parameters in flat for name in parameters)
    known = [parameters for parameters in flat if parameters]
    return {
        name: [parameters.get(name, "") for parameters in flat]
        for name in names
        if len({parameters.get(name, "") for parameters in known}) > 1
    }


def run_table(runs: Sequence[SavedRun]) -> pd.DataFrame:
    """Tabulate runs, newest first: what differs, scores, time and memory."""
    runs = sorted(runs, key=lambda run: run.version, reverse=True)
    columns: dict[str, list[Any]] = {
        "version": [run.version for run in runs],
        "base": [run.base for run in runs],
    }
    if any(run.adapter not in (None, run.version) for run in runs):
        columns["adapter"] = [run.adapter or "" for run in runs]
    if any(run.promoted for run in runs):
        columns["promoted"] = ["yes" if run.promoted else "" for run in runs]
    columns |= differing_parameters(runs)
    columns["dev F1"] = [run.dev_f1 for run in runs]
    for subset in SUBSETS:
        for metric in METRICS:
            columns[f"{subset} {metric}"] = [run.scores.get(subset, {}).get(metric) for run in runs]
    columns["minutes"] = [None if run.seconds is None else run.seconds / 60 for run in runs]
    columns["memory MiB"] = [run.memory_mib for run in runs]
    return pd.DataFrame(columns)


def tabulate_differences(runs: Sequence[SavedRun], labels: Sequence[str]) -> pd.DataFrame:
    """List the parameters that differ, with each run's value under its label."""
    rows = {"version": [run.version for run in runs]}
    if any(run.adapter not in (None, run.version) for run in runs):
        rows["version of the adapter"] = [run.adapter or "" for run in runs]
    rows |= differing_parameters(runs)
    return pd.DataFrame(
        [[name, *values] for name, values in rows.items()], columns=["parameter", *labels]
    )


def runs_page(runs: Sequence[SavedRun]) -> str:
    """Render the table of runs as an HTML page."""
    return render_table(
        title="Saved runs",
        facts={"versions": str(len(runs)), "newest": max(run.version for run in runs)},
        table=run_table(runs),
        note="Scores of the fine-tuned model in percent. Dev F1 is of the questions that chose the "
        "adapter. Minutes are the wall time of all nodes. A column names a parameter only if its "
        "value differs between versions. A click on a heading sorts.",
    )
