"""Splitting questions by article, a batch in memory at a time.

Of all questions at once there are only numbers, distinct titles and digests in memory.
"""

import json
from array import array
from collections.abc import Iterator
from hashlib import blake2b
from typing import Any

import numpy as np
from datasets import Dataset, concatenate_datasets

from flan_qa_pipeline.data.squad import split_titles
from flan_qa_pipeline.errors import InputError

ROWS = 1000


def hold_out(questions: Dataset, fraction: float, seed: int) -> tuple[Dataset, Dataset]:
    """Hold out a fraction of the articles, and with them those that share a context."""
    numbers: dict[str, int] = {}
    groups: list[int] = []
    group_of_context: dict[bytes, int] = {}
    articles = array("l")
    for title, context in zip(
        column_values(questions, "title"), column_values(questions, "context"), strict=True
    ):
        article = numbers.setdefault(title, len(groups))
        if article == len(groups):
            groups.append(article)
        articles.append(article)
        shared = group_of_context.setdefault(_digest(context), article)
        groups[_root(groups, article)] = _root(groups, shared)
    roots = np.array([_root(groups, article) for article in range(len(groups))], dtype=np.int64)
    picked = [numbers[title] for title in split_titles(numbers, fraction, seed)]
    held_out = np.isin(roots[np.asarray(articles)], roots[picked])
    return (
        questions.select(np.flatnonzero(~held_out)),
        questions.select(np.flatnonzero(held_out)),
    )


def _root(groups: list[int], article: int) -> int:
    while groups[article] != article:
        groups[article] = article = groups[groups[article]]
    return article


def pool(train: Dataset, validation: Dataset) -> Dataset:
    """Join two files; a question that is the same in both counts once.

    Raises:
        InputError: the same id stands for different questions.
    """
    known = {row["id"]: _digest(json.dumps(row)) for row in train}
    new = []
    for i, row in enumerate(validation):
        if row["id"] not in known:
            new.append(i)
        elif known[row["id"]] != _digest(json.dumps(row)):
            raise InputError(
                f"Question id {row['id']!r} stands for different questions in the two files; "
                "give every question an id of its own."
            )
    return concatenate_datasets([train, validation.select(new)])


def shared_values(one: Dataset, other: Dataset, column: str) -> list[str]:
    """The sorted texts that stand in a column of both."""
    digests = {_digest(value) for value in column_values(other, column)}
    return sorted({value for value in column_values(one, column) if _digest(value) in digests})


def column_values(dataset: Dataset, column: str) -> Iterator[Any]:
    """The values of a column, 1000 of them in memory at a time."""
    batches = dataset.select_columns(column).with_format("arrow").iter(ROWS)
    return (value for batch in batches for value in batch[column].to_pylist())


def _digest(text: str) -> bytes:
    return blake2b(text.encode(), digest_size=16).digest()
