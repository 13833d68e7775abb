"""What a run prints at its end: the scores, and what to do next."""

import textwrap
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import PurePosixPath

import pandas as pd
from rich.console import Console
from rich.table import Table

from flan_qa_pipeline.evaluation.breakdown import METRICS
from flan_qa_pipeline.evaluation.no_answer_threshold import GREEDY, tuned_rows
from flan_qa_pipeline.reporting.runs import SUBSETS, SavedRun, differing_parameters
from flan_qa_pipeline.reporting.tables import readable_scores

WIDTH = 80  # columns
TEXT_COLUMNS = 2  # subset and metric
LABEL = 9  # columns of the label before a line
LISTED = 4  # saved paths; more are counted by folder


def terminal(*, stderr: bool = False) -> Console:
    """Return a console that prints texts as they are, in at most `WIDTH` columns."""
    width = min(WIDTH, Console().width)
    return Console(width=width, highlight=False, markup=False, stderr=stderr)


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


def print_table(table: pd.DataFrame, title: str) -> None:
    """Print a table of texts; long ones continue on the next line."""
    printed = Table(show_edge=False, pad_edge=False)
    for column in table:
        printed.add_column(str(column), overflow="fold")
    for row in table.fillna("").itertuples(index=False):
        printed.add_row(*map(str, row))
    terminal().print("", title, "", printed, "", sep="\n")


def print_runs(runs: Sequence[SavedRun]) -> None:
    """Print saved runs, newest first: what differs, scores in percent, minutes, peak memory."""
    printed = Table(box=None, show_edge=False, pad_edge=False, padding=(0, 2, 1, 0))
    printed.add_column("version, base,\nwhat differs", overflow="fold", ratio=1)
    for column in ("", "over-\nall", "Has-\nAns", "No-\nAns", "dev\nF1", "min-\nutes", "MiB"):
        printed.add_column(column, justify="right", no_wrap=True)
    runs = sorted(runs, key=lambda run: run.version, reverse=True)
    differing = differing_parameters(runs)
    for number, run in enumerate(runs):
        texts = [run.version, run.base]
        if run.adapter not in (None, run.version):
            texts.append(f"adapter {run.adapter}")
        if run.promoted:
            texts.append("promoted")
        texts += [
            f"{name}={values[number]}" for name, values in differing.items() if values[number]
        ]
        scores = [
            "\n".join(_number(run.scores.get(subset, {}).get(metric), 2) for metric in METRICS)
            for subset in SUBSETS
        ]
        printed.add_row(
            "\n".join(filter(None, texts)),
            "\n".join(METRICS),
            *scores,
            _number(run.dev_f1, 2),
            _number(run.seconds and run.seconds / 60, 1),
            _number(run.memory_mib, 0),
        )
    terminal().print(printed)


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:,.{digits}f}"


def print_next_steps(
    report: str, adapter_version: str | None = None, versions: Sequence[str] = ()
) -> None:
    """Print where the report lies, how to ask and how to compare, each on a line.

    Args:
        report: the report's path.
        adapter_version: the version that answers; None for the latest.
        versions: those that can be compared, newest first; with fewer than two there is no line.
    """
    pinned = f" --load-versions=adapter:{adapter_version}" if adapter_version else ""
    print_copyable("Report", report)
    print_copyable("Ask", f"kedro ask{pinned}")
    if len(versions) > 1:
        given = f"compare.first={versions[1]},compare.second={versions[0]}"
        print_copyable("Compare", f"kedro run --pipelines=compare --params={given}")


def print_sentences(text: str, label: str = "", *, stderr: bool = False) -> None:
    """Print sentences, wrapped at spaces and indented under a label; paths stay whole."""
    console = terminal(stderr=stderr)
    indent = LABEL if label else 0
    wrapped = textwrap.fill(
        text,
        console.width,
        initial_indent=f"{label:<{indent}}",
        subsequent_indent=" " * indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
    console.print(wrapped, soft_wrap=True)


def print_copyable(label: str, text: str) -> None:
    """Print a path or a command under a label, in one line that can be copied."""
    terminal().print(f"{label:<{LABEL}}{text}", soft_wrap=True)


def describe_saved(whole: Iterable[str], places: Iterable[str], version: str | None) -> str:
    """List saved paths; if there are many, count those of one folder.

    Args:
        whole: paths that are given as they are.
        places: paths without a version.
        version: of `places`; None if they have none.
    """
    kept = sorted(set(places) - set(whole))
    folders = Counter(str(PurePosixPath(place).parent) for place in kept)
    listed: dict[str, None] = {}
    for place in kept:
        folder = str(PurePosixPath(place).parent)
        alone = len(kept) <= LISTED or folders[folder] == 1
        listed[place if alone else f"{folders[folder]} in {folder}"] = None
    of_version = f"version {version}: " if listed and version else ""
    return ", ".join(filter(None, (*whole, of_version + ", ".join(listed))))


def tuned(table: pd.DataFrame, label: str) -> str | None:
    """Give a model's F1 with the no-answer threshold chosen on train articles.

    None without a threshold, or if greedy abstaining has the higher F1.

    Args:
        table: decisions about when to abstain, as `abstention_rows` makes them, and their model.
        label: the model.
    """
    chosen = tuned_rows(table, label)
    greedy = table[(table["model"] == label) & (table["decision"] == GREEDY)]["F1"]
    if chosen.empty or (chosen["F1"].iloc[0] < greedy).any():
        return None
    row = chosen.iloc[0]
    subsets = [
        f"{name} {row[f'{name} F1']:.2f}" for name in SUBSETS[1:] if pd.notna(row[f"{name} F1"])
    ]
    return f"no_answer_threshold {row['threshold']:.3g}: F1 {row['F1']:.2f} ({', '.join(subsets)})"


def without_gain(table: pd.DataFrame) -> str | None:
    """Say that fine-tuning gained no F1, or perhaps none, and what to try; None if it gained.

    Args:
        table: the scores of all questions in the row `overall`, with the gain and its interval.
    """
    overall = table[table["subset"] == "overall"].iloc[0]
    gain, low, high = (overall[f"F1 gain{end}"] for end in ("", " low", " high"))
    if gain > 0 and low > 0:
        return None
    found = "Fine-tuning did not help" if gain <= 0 else "The gain may be chance"
    return (
        f"{found}: F1 {gain:+.2f} [{low:+.2f}, {high:+.2f}]. Train on more questions, or change "
        "training.num_train_epochs or training.learning_rate."
    )
