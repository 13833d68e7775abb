"""The tables that `kedro check-data` prints."""

import re
from collections.abc import Iterable, Iterator

import pandas as pd
from rich.table import Table

from flan_qa_pipeline.config.parameters import TokenizationParameters
from flan_qa_pipeline.data.profile import Profile

REASONS = 12  # the most that the table lists


def profile_tables(
    profile: Profile, rejected: pd.DataFrame, tokenization: TokenizationParameters
) -> Iterator[Table]:
    """Yield tables of the counts, lengths, windows and rejected records."""
    yield _table(profile.counts, [profile.counts.values()])
    yield _table(
        ["tokens", "median", "95%", "longest"],
        [
            (name, sizes.median, sizes.percentile_95, sizes.longest)
            for name, sizes in profile.lengths.items()
        ],
    )
    windows = profile.windows
    numbers = {
        "all": windows["all"],
        "that hold an answer": windows["answer"],
        'labelled "no answer"': windows["no answer"],
        "with an answer's words elsewhere, not trained on": windows["words elsewhere"],
        "answerable questions whose answer is whole in none": profile.unreadable,
        f"answers cut to {tokenization.max_target_length} tokens": profile.cut,
    }
    title = (
        f"windows of {tokenization.max_source_length} tokens, {tokenization.doc_stride} of overlap"
    )
    yield _table([title, "number"], numbers.items())
    if len(rejected):
        yield _table(["rejected because", "number", "first"], _reasons(rejected))


def _table(columns: Iterable[str], rows: Iterable[Iterable[str | int]]) -> Table:
    """Lay out a table, numbers aligned right and texts left."""
    table = Table(show_edge=False, pad_edge=False)
    rows = [list(row) for row in rows]
    for column, value in zip(columns, rows[0], strict=True):
        table.add_column(
            column, justify="right" if isinstance(value, int) else "left", overflow="fold"
        )
    for row in rows:
        table.add_row(*(f"{value:,}" if isinstance(value, int) else value for value in row))
    return table


def _reasons(rejected: pd.DataFrame) -> Iterator[tuple[str, int, str]]:
    """Count the problems by kind, without the texts and numbers in them, most frequent first."""
    places = rejected["place"].where(rejected["place"] != "", rejected["id"])
    kinds = rejected["problem"].map(lambda problem: re.sub(r"'[^']*'|-?\d[\d,]*", "…", problem))
    counts = kinds.value_counts()
    for kind, number in counts[:REASONS].items():
        yield str(kind), int(number), str(places[(kinds == kind).to_numpy()].iloc[0])[:40]
    if len(counts) > REASONS:
        yield "others", int(counts[REASONS:].sum()), ""
