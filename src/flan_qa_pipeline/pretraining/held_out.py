"""What pretraining leaves out: text and questions on the articles that a fine-tuning holds out."""

import logging
from collections.abc import Iterable, Iterator
from itertools import chain

from datasets import Dataset, DatasetDict

from flan_qa_pipeline.data.splits import column_values, distinct_values
from flan_qa_pipeline.data.texts import normalized
from flan_qa_pipeline.errors import InputError

logger = logging.getLogger(__name__)

HELD_OUT = ("dev", "calibration")


def plain_title(title: str) -> str:
    """Reduce a title to what is the same in SQuAD and in Wikipedia."""
    return normalized(title.replace("_", " "))


def leave_out_articles(
    articles: Iterable[tuple[str, list[str]]], splits: DatasetDict, left_out: list[str]
) -> Iterator[tuple[str, list[str]]]:
    """Yield the articles that do not have the title of a held-out one.

    Args:
        articles: Title and paragraphs of each.
        splits: Checked questions; `dev` and `calibration` are held out.
        left_out: Collects the titles of the others.
    """
    titles = _held_out_titles(splits)
    for title, paragraphs in articles:
        if plain_title(title) in titles:
            left_out.append(title)
        else:
            yield title, paragraphs


def leave_out_questions(further: Dataset, splits: DatasetDict) -> Dataset:
    """Leave out questions with the title or the context of a held-out article.

    Args:
        further: Checked questions of further files.
        splits: Checked questions; `dev` and `calibration` are held out.

    Returns:
        The other questions, in order.

    Raises:
        InputError: None is left.
    """
    titles = _held_out_titles(splits)
    contexts = {normalized(context) for context in _held_out_values(splits, "context")}
    kept: list[int] = []
    dropped: set[str] = set()
    columns = (column_values(further, name) for name in ("title", "context"))
    for row, (title, context) in enumerate(zip(*columns, strict=True)):
        if plain_title(title) in titles or normalized(context) in contexts:
            dropped.add(title)
        else:
            kept.append(row)
    logger.info(
        "pretrain.question_folder: %d of %d questions stay; those with the title or the context of "
        "a held-out article were left out, in %d articles.",
        len(kept),
        len(further),
        len(dropped),
    )
    if not kept:
        raise InputError(
            "pretrain.question_folder: all questions are on articles that are held out of "
            "data.train_file; give others, or set it to null."
        )
    return further.select(kept)


def _held_out_titles(splits: DatasetDict) -> set[str]:
    return {plain_title(title) for title in _held_out_values(splits, "title")}


def _held_out_values(splits: DatasetDict, column: str) -> Iterator[str]:
    return chain.from_iterable(distinct_values(splits[name], column) for name in HELD_OUT)
