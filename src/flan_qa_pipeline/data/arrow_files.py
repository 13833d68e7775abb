"""Datasets in temporary Arrow files, so that they need not fit in memory."""

import tempfile
from collections.abc import Iterable, Iterator, Mapping
from errno import ENOSPC
from typing import Any

import pyarrow as pa
from datasets import Dataset, DatasetInfo, Features

from flan_qa_pipeline.errors import InputError

ROWS, CHARACTERS = 1000, 2**24  # in a batch that is written at a time, at most


def on_disk(batches: Iterable[Mapping[str, list[Any]]], info: DatasetInfo) -> Dataset:
    """Write batches of columns to a temporary file; return a dataset that reads the file.

    The file lies in Python's folder for temporary files (`TMPDIR`); the system frees it together
    with the dataset. (`Dataset.from_generator` gathers a thousand rows of any size: for 3,000
    contexts of 900,000 characters it took 3,260 MiB of memory, this function 98 MiB. It also takes
    3.6 times as long for 100,000 short questions, refuses an empty split and leaves its files
    behind.)

    Args:
        batches: column names mapped to the values of a few rows.
        info: the features of the dataset and its description.

    Raises:
        InputError: there is no room for the file.
    """
    schema = info.features.arrow_schema
    with tempfile.NamedTemporaryFile(suffix=".arrow") as file:
        try:
            with pa.OSFile(file.name, "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
                for batch in batches:
                    writer.write_batch(pa.RecordBatch.from_pydict(batch, schema))
        except OSError as error:
            if error.errno != ENOSPC:
                raise
            raise InputError(
                f"{tempfile.gettempdir()} has no room left for a temporary copy of the questions; "
                "free space, or set TMPDIR to a larger folder."
            ) from error
        return Dataset.from_file(file.name, info=info)


def rows_on_disk(rows: Iterable[Mapping[Any, Any]], features: Features) -> Dataset:
    """Write rows to a temporary file; return a dataset that reads it, as `on_disk` does.

    Args:
        rows: columns mapped to the values of one row.
        features: the columns and their types.

    Raises:
        InputError: there is no room for the file.
    """
    return on_disk(in_batches(rows, features), DatasetInfo(features=features))


def in_batches(
    records: Iterable[Mapping[str, Any]], columns: Iterable[str]
) -> Iterator[dict[str, list[Any]]]:
    """Gather records into batches of at most `ROWS` rows and about `CHARACTERS` characters.

    Yields at least one batch, which is empty if there are no records.
    """
    batch, characters = [], 0
    for record in records:
        batch.append(record)
        characters += sum(len(value) for value in record.values() if isinstance(value, str))
        if len(batch) == ROWS or characters >= CHARACTERS:
            yield {column: [record[column] for record in batch] for column in columns}
            batch, characters = [], 0
    yield {column: [record[column] for record in batch] for column in columns}
