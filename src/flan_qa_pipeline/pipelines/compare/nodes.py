"""Compare two saved versions, question by question."""

import logging
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from flan_qa_pipeline.config.parameters import CompareParameters, ReportingParameters
from flan_qa_pipeline.data.squad import one_line
from flan_qa_pipeline.errors import InputError
from flan_qa_pipeline.evaluation.breakdown import breakdown
from flan_qa_pipeline.reporting.figures import VERSIONS
from flan_qa_pipeline.reporting.html_report import outcome, render_report
from flan_qa_pipeline.reporting.runs import SavedRun, tabulate_differences
from flan_qa_pipeline.reporting.tables import (
    breakdown_markdown,
    readable_breakdown,
    readable_cost_comparison,
)

logger = logging.getLogger(__name__)

MODEL_COLUMNS = ("", " EM", " F1")


def pair_questions(
    first_question_table: pd.DataFrame,
    second_question_table: pd.DataFrame,
    compare: CompareParameters,
) -> pd.DataFrame:
    """Pair both versions' fine-tuned answers to the questions that they share.

    Raises:
        InputError: the versions share no question, or a question differs between them.
    """
    model = "fine-tuned"
    first, second = (
        table.set_index("id") for table in (first_question_table, second_question_table)
    )
    shared = [id_ for id_ in first.index if id_ in second.index]
    if not shared:
        raise InputError(
            f"The versions {compare.first} and {compare.second} share no question; compare two "
            "versions with the same validation file."
        )
    for column in ("question", "context", "answers"):
        for id_ in shared:
            values: list[Any] = [table.at[id_, column] for table in (first, second)]
            one, other = values
            if (list(one) if column == "answers" else one) != (
                list(other) if column == "answers" else other
            ):
                raise InputError(
                    f"Question {id_!r} has another {column} in version {compare.first} than in "
                    f"{compare.second}; compare two versions of the same data."
                )
    left_out = len(first) + len(second) - 2 * len(shared)
    if left_out:
        logger.info(
            "Compared on %d shared questions; %d questions are in one version only.",
            len(shared),
            left_out,
        )
    known = [c for c in first.columns if not c.startswith(("baseline", model))]
    pairs = first.loc[shared, known].copy()
    for label, table in zip(VERSIONS, (first, second), strict=True):
        for column in MODEL_COLUMNS:
            pairs[f"{label}{column}"] = table.loc[shared, f"{model}{column}"]
    return pairs.reset_index()


def tabulate_comparison(
    question_pairs: pd.DataFrame, compare: CompareParameters, reporting: ReportingParameters
) -> tuple[pd.DataFrame, str]:
    """Tabulate both versions' EM and F1, each difference with its bootstrap interval."""
    table = breakdown(
        question_pairs,
        VERSIONS,
        resamples=reporting.bootstrap_resamples,
        confidence=reporting.confidence,
        seed=reporting.seed,
    )
    versions = f"first: {compare.first}, second: {compare.second}\n\n"
    return table, versions + breakdown_markdown(table, reporting.confidence)


def compare_parameters(compared_runs: list[SavedRun]) -> pd.DataFrame:
    """List the parameters that differ between both versions."""
    return tabulate_differences(compared_runs, VERSIONS)


def compare_costs(first_cost_table: pd.DataFrame, second_cost_table: pd.DataFrame) -> pd.DataFrame:
    """Join both versions' costs."""
    keys = ["kind", "quantity", "unit"]
    rows = pd.concat([first_cost_table, second_cost_table])[keys].drop_duplicates()
    for label, table in zip(VERSIONS, (first_cost_table, second_cost_table), strict=True):
        rows = rows.merge(table.rename(columns={"value": label}), on=keys, how="left")
    kinds = {kind: place for place, kind in enumerate(rows["kind"].unique())}
    rows = rows.sort_values("kind", key=lambda kind: kind.map(kinds), kind="stable")
    return rows[["kind", "quantity", *VERSIONS, "unit"]].reset_index(drop=True)


def list_changed_answers(question_pairs: pd.DataFrame) -> pd.DataFrame:
    """List the questions that one version answers exactly and the other does not."""
    changed = question_pairs[question_pairs["first EM"] != question_pairs["second EM"]]
    return pd.DataFrame(
        {
            "id": changed["id"],
            "question": changed["question"],
            "gold": changed["answers"].map(one_line),
            "first": changed["first"],
            "second": changed["second"],
            "outcome": [
                outcome(*exact)
                for exact in zip(changed["first EM"], changed["second EM"], strict=True)
            ],
        }
    )


def build_comparison_report(
    question_pairs: pd.DataFrame,
    parameter_differences: pd.DataFrame,
    comparison_table: pd.DataFrame,
    cost_comparison: pd.DataFrame,
    comparison_figure: go.Figure,
    compare: CompareParameters,
    reporting: ReportingParameters,
) -> str:
    """Render the comparison's tables, figure and browsable questions as one HTML page."""
    return render_report(
        title="Two versions side by side",
        facts={"first": str(compare.first), "second": str(compare.second)},
        summary={
            "Parameters that differ": (parameter_differences, ""),
            "Scores": (
                readable_breakdown(comparison_table, reporting.confidence),
                f"In brackets: {reporting.confidence:.0%} paired bootstrap interval of the gain.",
            ),
        },
        figures={"F1 of the second version minus the first": comparison_figure},
        tables={},
        question_table=question_pairs,
        labels=VERSIONS,
        costs={"Cost": (readable_cost_comparison(cost_comparison, VERSIONS), "")},
    )
