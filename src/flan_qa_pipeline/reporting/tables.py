"""Readable tables: numbers formatted as texts, in a DataFrame or in Markdown."""

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import pandas as pd

from flan_qa_pipeline.evaluation.breakdown import METRICS
from flan_qa_pipeline.evaluation.other_abstentions import OtherAbstentions, other_abstentions


def readable_breakdown(table: pd.DataFrame, confidence: float) -> pd.DataFrame:
    """Format the breakdown; each gain has its interval in brackets."""
    shown = table[["group", "subset", "questions"]].copy()
    for metric in METRICS:
        for column in table.columns:
            if column.startswith(f"{metric} ") and " gain" not in column:
                shown[column] = table[column].map("{:.2f}".format)
        shown[f"{metric} gain [{confidence:.0%}]"] = table.apply(_gain, axis=1, metric=metric)
    return shown


def breakdown_markdown(table: pd.DataFrame, confidence: float) -> str:
    """Format the breakdown as Markdown."""
    return _markdown(readable_breakdown(table, confidence))


def readable_scores(table: pd.DataFrame, labels: Sequence[str], confidence: float) -> pd.DataFrame:
    """Format rows of the breakdown, one row for each metric."""
    return pd.DataFrame(
        {
            "subset": row["subset"],
            "metric": metric,
            "questions": row["questions"],
            **{label: f"{row[f'{metric} {label}']:.2f}" for label in labels},
            f"gain [{confidence:.0%}]": _gain(row, metric),
        }
        for row in table.to_dict("records")
        for metric in METRICS
    )


def scores_markdown(table: pd.DataFrame, labels: Sequence[str], confidence: float) -> str:
    """Format rows of the breakdown as Markdown, one row for each metric."""
    return _markdown(readable_scores(table, labels, confidence))


def _gain(row: Mapping[Hashable, Any], metric: str) -> str:
    gain, low, high = (row[f"{metric} gain{end}"] for end in ("", " low", " high"))
    return f"{gain:+.2f} [{low:+.2f}, {high:+.2f}]"


def _markdown(shown: pd.DataFrame) -> str:
    align = ["left", "left", *["right"] * (shown.shape[1] - 2)]
    return shown.to_markdown(index=False, colalign=align, disable_numparse=True) + "\n"


def readable_costs(table: pd.DataFrame) -> pd.DataFrame:
    """Format the cost table: counts in full, other values to three digits."""
    return readable_cost_comparison(table, ["value"])


def readable_cost_comparison(table: pd.DataFrame, labels: Sequence[str]) -> pd.DataFrame:
    """Format the columns of several runs' costs; a value that a run lacks is empty."""
    return table.assign(
        **{
            label: [_cost(*row) for row in zip(table[label], table["unit"], strict=True)]
            for label in labels
        }
    )


def _cost(value: float, unit: str) -> str:
    if pd.isna(value):
        return ""
    return f"{value:,.0f}" if unit == "parameters" or value >= 1000 else f"{value:.3g}"


def cost_markdown(table: pd.DataFrame) -> str:
    """Format the cost table as Markdown."""
    align = ["left", "left", "right", "left"]
    shown = readable_costs(table)
    return shown.to_markdown(index=False, colalign=align, disable_numparse=True) + "\n"


def readable_memory(table: pd.DataFrame) -> pd.DataFrame:
    """Format the memory table; a value that was not measured is empty."""
    sizes = table.select_dtypes("number")
    return table.assign(**sizes.map(lambda size: "" if pd.isna(size) else f"{size:,.1f}"))


def memory_markdown(table: pd.DataFrame) -> str:
    """Format the memory table as Markdown."""
    align = ["left", "right", "right", "right", "left"]
    shown = readable_memory(table)
    return shown.to_markdown(index=False, colalign=align, disable_numparse=True) + "\n"


def other_abstention_sentences(question_table: pd.DataFrame, labels: Sequence[str]) -> list[str]:
    """Say for each model by which other phrases it abstains, and what they would change."""
    found = {label: other_abstentions(question_table, label) for label in labels}
    return [_sentences(label, other) for label, other in found.items() if other]


def _sentences(label: str, other: OtherAbstentions) -> str:
    phrases = " or ".join(f'"{phrase}"' for phrase in other.phrases)
    of_unanswerable = "" if math.isnan(other.no_answer_f1) else f" (NoAns {other.no_answer_f1:.2f})"
    return (
        f"The {label} model says {phrases} on {other.questions} questions, {other.unanswerable} of "
        f"them unanswerable. As abstentions these answers would give F1 {other.f1:.2f}"
        f"{of_unanswerable}."
    )
