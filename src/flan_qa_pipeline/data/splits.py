"""Split questions by article while reading them in batches.

Beyond the current batch, memory holds only numbers, distinct titles and digests.
"""

import json
import re
from array import array
from collections.abc import Iterator, Sequence
from functools import lru_cache
from hashlib import blake2b
from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict, concatenate_datasets

from flan_qa_pipeline.data.squad import split_titles
from flan_qa_pipeline.data.texts import normalized
from flan_qa_pipeline.errors import InputError

ROWS = 1000
SHINGLE = 8  # words in a row
FACTORS = np.random.default_rng(0).integers(2**63, size=SHINGLE, dtype=np.uint64) * 2 + 1
NEAR = 0.9  # a context is a near duplicate if at least this share of its shingles is found


def describe_splits(splits: DatasetDict) -> str:
    """Count the questions of each split, as in "40 train, 10 dev"."""
    return ", ".join(f"{len(split):,} {name}" for name, split in splits.items())


def note_part(split: Dataset, whole: int, parameters: Sequence[str]) -> None:
    """Note in a split's description of how many questions it is a part, and what made it one.

    Args:
        split: the questions that stay.
        whole: the number of questions before.
        parameters: those that left questions out, or would if the others did not.
    """
    split.info.description = json.dumps({"whole": whole, "parameters": parameters})


def describe_part(split: Dataset) -> str | None:
    """Say of how many questions a split is a part, and how to take all; None if it is whole."""
    if not split.info.description:
        return None
    part = json.loads(split.info.description)
    params = ",".join(f"{parameter}=null" for parameter in part["parameters"])
    return f"{len(split):,} of {part['whole']:,} questions; --params={params} trains on all."


def hold_out(questions: Dataset, fraction: float, seed: int) -> tuple[Dataset, Dataset]:
    """Hold out a fraction of the articles and every article that shares a context with one of them.

    Contexts that differ only in white space, case or Unicode form count as equal.

    Returns:
        The remaining questions and the held-out questions.
    """
    numbers: dict[str, int] = {}
    groups: list[int] = []
    group_of_context: dict[bytes, int] = {}
    articles = array("l")
    context_before, digest = None, b""
    for title, context in zip(
        column_values(questions, "title"), column_values(questions, "context"), strict=True
    ):
        article = numbers.setdefault(title, len(groups))
        if article == len(groups):
            groups.append(article)
        articles.append(article)
        if context != context_before:
            context_before, digest = context, _digest(normalized(context))
        shared = group_of_context.setdefault(digest, article)
        groups[_root(groups, article)] = _root(groups, shared)
    roots = np.array([_root(groups, article) for article in range(len(groups))], dtype=np.int64)
    picked = [numbers[title] for title in split_titles(numbers, fraction, seed)]
    held_out = np.isin(roots[np.asarray(articles)], roots[picked])
    return (
        questions.select(np.flatnonzero(~held_out)),
        questions.select(np.flatnonzero(held_out)),
    )


def thin_out(questions: Dataset, unanswerable: float, seed: int) -> Dataset:
    """Leave out random questions of the more frequent kind until a share is unanswerable.

    Args:
        questions: With and without an answer.
        unanswerable: The share to reach, above 0 and below 1.
        seed: Chooses the questions.
    """
    impossible = np.fromiter(column_values(questions, "is_impossible"), bool, len(questions))
    without, having = np.flatnonzero(impossible), np.flatnonzero(~impossible)
    rng = np.random.default_rng(seed)
    ratio = unanswerable / (1 - unanswerable)
    kept = [
        rng.choice(without, min(len(without), round(len(having) * ratio)), replace=False),
        rng.choice(having, min(len(having), round(len(without) / ratio)), replace=False),
    ]
    return questions.select(np.sort(np.concatenate(kept)))


def _root(groups: list[int], article: int) -> int:
    while groups[article] != article:
        groups[article] = article = groups[groups[article]]
    return article


def pool(train: Dataset, validation: Dataset) -> Dataset:
    """Concatenate two files; a question that occurs unchanged in both is kept once.

    Raises:
        InputError: two different questions have the same id.
    """
    known = {row["id"]: _digest(json.dumps(row)) for row in train}
    new = []
    for i, row in enumerate(validation):
        if row["id"] not in known:
            new.append(i)
        elif known[row["id"]] != _digest(json.dumps(row)):
            raise InputError(
                f"Question id {row['id']!r} stands for different questions in the two files; "
                "give every question a unique id."
            )
    return concatenate_datasets([train, validation.select(new)])


def shared_values(one: Dataset, other: Dataset, column: str) -> list[str]:
    """Return, sorted, the values of a column that both datasets hold; contexts are normalized."""
    key = normalized if column == "context" else str
    digests = {_digest(key(value)) for value in distinct_values(other, column)}
    return sorted({v for v in distinct_values(one, column) if _digest(key(v)) in digests})


def near_duplicates(train: Dataset, validation: Dataset) -> tuple[int, int, str]:
    """Count the validation contexts that share at least `NEAR` of their shingles with training.

    Memory holds one number for each shingle of the validation contexts.

    Returns:
        The number of near duplicates, the number of distinct validation contexts that are long
        enough to have a shingle, and the first near duplicate ("" if there is none).
    """
    shingles = [_shingles(context) for context in distinct_values(validation, "context")]
    known = np.unique(np.concatenate([*shingles, np.array([], np.uint64)]))
    seen = np.zeros(len(known), bool)
    if len(known):
        for context in distinct_values(train, "context"):
            found = _shingles(context)
            places = np.minimum(np.searchsorted(known, found), len(known) - 1)
            seen[places[known[places] == found]] = True
    near, first = 0, ""
    for context, own in zip(distinct_values(validation, "context"), shingles, strict=True):
        if len(own) and seen[np.searchsorted(known, own)].mean() >= NEAR:
            near, first = near + 1, first or context
    return near, sum(len(own) > 0 for own in shingles), first


def _shingles(text: str) -> np.ndarray:
    """Hash every run of `SHINGLE` words to a number; a shorter text gives no number."""
    words = re.findall(r"\w+", normalized(text))
    numbers = np.array([_number(word) for word in words], np.uint64)
    if len(words) < SHINGLE:
        return numbers[:0]
    rows = np.lib.stride_tricks.sliding_window_view(numbers, SHINGLE)
    return rows @ FACTORS


@lru_cache(maxsize=2**17)
def _number(word: str) -> int:
    return int.from_bytes(blake2b(word.encode(), digest_size=8).digest())


def distinct_values(dataset: Dataset, column: str) -> Iterator[str]:
    """Yield the distinct values of a column in order, keeping only digests in memory."""
    known: set[bytes] = set()
    for value in column_values(dataset, column):
        digest = _digest(value)
        if digest not in known:
            known.add(digest)
            yield value


def column_values(dataset: Dataset, column: str) -> Iterator[Any]:
    """Yield the values of a column, reading `ROWS` of them at a time."""
    batches = dataset.select_columns(column).with_format("arrow").iter(ROWS)
    return (value for batch in batches for value in batch[column].to_pylist())


def _digest(text: str) -> bytes:
    return blake2b(text.encode(), digest_size=16).digest()
