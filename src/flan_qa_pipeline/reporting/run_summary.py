"""What a run prints at its end: the scores, and what to do next."""

from collections.abc import Sequence

import pandas as pd
from rich.console import Console
from rich.table import Table

from flan_qa_pipeline.reporting.tables import readable_scores

WIDTH = 80  # columns
SUBSETS = ("overall", "HasAns", "NoAns")
TEXT_COLUMNS = 2  # subset and metric


def terminal() -> Console:
    """Return a console that prints texts as they are, in at most `WIDTH` columns."""
    return Console(width=min(WIDTH, Console().width), highlight=False, markup=False)


def print_scores(table: pd.DataFrame, labels: Sequence[str], confidence: float, title: str) -> None:
    """Print EM and F1 of two models on all, answerable and unanswerable questions.

    Args:
        table: the breakdown, or its rows of these three subsets.
        labels: the model before and the model after.
        confidence: of the interval in brackets, 0..1.
        title: what the scores are about.
    """
    scores = readable_scores(table[table["subset"].isin(SUBSETS)], labels, confidence)
    printed = Table(show_edge=False, pad_edge=False)
    for number, column in enumerate(scores):
        printed.add_column(
            str(column), justify="left" if number < TEXT_COLUMNS else "right", overflow="fold"
        )
    for number, row in enumerate(scores.itertuples(index=False)):
        printed.add_row(*map(str, row), end_section=number % 2 == 1)
    terminal().print("", title, "", printed, "", sep="\n")


def print_next_steps(report: str, adapter_version: str | None = None) -> None:
    """Print where the report lies, how to ask and how to compare, each on a line.

    Args:
        report: the report's path.
        adapter_version: the version that answers; None for the latest.
    """
    pinned = f" --load-versions=adapter:{adapter_version}" if adapter_version else ""
    for label, text in {
        "Report": report,
        "Ask": f"kedro ask{pinned}",
        "Compare": "kedro run --pipelines=compare --params=compare.first=A,compare.second=B",
    }.items():
        terminal().print(f"{label:<9}{text}", soft_wrap=True)
