"""Readers of each kind of file: one row at a time, one batch in memory, errors with their place."""

import codecs
import csv
import json
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from io import TextIOWrapper
from itertools import count
from typing import Any, BinaryIO, NamedTuple

import fsspec
import pandas as pd
import pyarrow
from datasets import Dataset, load_from_disk
from pyarrow.parquet import ParquetFile

from flan_qa_pipeline.data.json_stream import JSONText, read_items
from flan_qa_pipeline.errors import InputError, in_one_line

ROWS = 1000  # in memory at a time
CHUNK = 2**20  # bytes
DELIMITERS = ",;\t|"
BEGINNINGS = {  # of files that are not UTF-8 text, what they are, and the remedy
    b"\xff\xfe": ("UTF-16", "save it as UTF-8"),
    b"\xfe\xff": ("UTF-16", "save it as UTF-8"),
    b"\x1f\x8b": ("gzip", "let its name end in .gz"),
    b"PAR1": ("Parquet", "let its name end in .parquet"),
    b"PK\x03\x04": ("a zip archive, as .xlsx is", "save it as CSV in UTF-8"),
}


class Row(NamedTuple):
    """The fields of a row, and its place in the file, such as "row 3" or "line 7"."""

    place: str
    fields: dict[str, Any]


@dataclass(frozen=True)
class Columns:
    """The fields of rows, and the names of their columns.

    Attributes:
        required: fields that a table must have.
        optional: further fields to read; readers skip all other columns.
        named: the column of each field that has another name there.
        parameter: the parameter that sets `named`, for messages.
    """

    required: tuple[str, ...]
    optional: tuple[str, ...]
    named: Mapping[str, str] = field(default_factory=dict, hash=False)
    parameter: str = "data.columns"

    def find(self, columns: Iterable[str], path: str) -> dict[str, str]:
        """Map each field to its column, ignoring case and outer white space.

        Raises:
            InputError: two columns match one field.
        """
        columns, found = list(columns), {}
        for name in (*self.required, *self.optional):
            wanted = self.named.get(name, name)
            near = [column for column in columns if _folded(column) == _folded(wanted)]
            if wanted in columns:
                near = [wanted]
            if len(near) > 1:
                raise InputError(
                    f"{path} has the columns {' and '.join(map(repr, near))}; rename one, or say "
                    f"which one is meant: {self.parameter}.{name}=…."
                )
            if near:
                found[name] = near[0]
        return found

    def require(self, columns: Sequence[str], path: str) -> dict[str, str]:
        """Map each field to its column, as `find` does.

        Raises:
            InputError: no column matches a required or a named field, or two match one.
        """
        found = self.find(columns, path)
        missing = [
            (name, self.named.get(name, name))
            for name in dict.fromkeys([*self.required, *self.named])
            if name not in found
        ]
        if missing:
            raise InputError(
                f"{path} has no column {' and no column '.join(name for _, name in missing)}, "
                f"only {', '.join(map(str, columns))}; name its columns "
                f"{', '.join(self.required)}, or say what they are called: "
                f"--params={self.parameter}.{missing[0][0]}=…."
            )
        return found


@lru_cache
def _folded(column: str) -> str:
    return column.strip().casefold()


@dataclass(frozen=True)
class SourceFile:
    """One file, opened each time it is read; its ending says how to decompress it."""

    path: str
    filesystem: fsspec.AbstractFileSystem

    def open(self) -> BinaryIO:
        try:
            opened: BinaryIO = self.filesystem.open(self.path, "rb", compression="infer")
        except OSError as error:
            raise InputError(
                f"{self.path} cannot be read: {error.strerror or error}; name a file that can."
            ) from error
        return opened

    @contextmanager
    def text(self) -> Iterator[TextIOWrapper]:
        """Open the file as UTF-8; turn errors of the block that reads it into sentences.

        Raises:
            InputError: names the file, the place in it and the remedy.
        """
        with readable(self.path):
            try:
                with TextIOWrapper(self.open(), encoding="utf-8-sig", newline="") as text:
                    yield text
            except UnicodeDecodeError as error:
                raise InputError(
                    f"{self.path} cannot be read: {self._encoding_problem()}."
                ) from error

    def _encoding_problem(self) -> str:
        with self.open() as file:
            beginning = file.read(4)
            for magic, (name, remedy) in BEGINNINGS.items():
                if beginning.startswith(magic):
                    return f"it is not UTF-8 but {name}; {remedy}"
            byte, place, line = _bad_byte(beginning, file)
        return f"byte 0x{byte:02x} at byte {place} (line {line}) is not UTF-8; save it as UTF-8"


def _bad_byte(chunk: bytes, file: BinaryIO) -> tuple[int, int, int]:
    """Find the first byte that is not UTF-8, its offset in the file and its line, from 1."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    before, line = 0, 1
    while True:
        left = decoder.getstate()[0]
        try:
            decoder.decode(chunk, final=not chunk)
        except UnicodeDecodeError as error:
            return (
                error.object[error.start],
                before - len(left) + error.start,
                line + (error.object.count(b"\n", 0, error.start)),
            )
        before += len(chunk)
        line += chunk.count(b"\n")
        chunk = file.read(CHUNK)


@contextmanager
def readable(path: str) -> Iterator[None]:
    """Turn errors of the block that reads a file into sentences.

    Raises:
        InputError: names the file and the remedy.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # every filesystem and file format raises different errors
        raise InputError(
            f"{path} cannot be read: {in_one_line(error)}; repair it at that place, or save or "
            "fetch it again."
        ) from error


class SquadJSON(SourceFile):
    """A file in the official SQuAD schema."""

    def articles(self) -> Generator[Any, None, Any]:
        """Yield the articles, unchecked; return the document without them.

        Raises:
            InputError: the file is not JSON.
        """
        with self.text() as text:
            return (yield from read_items(text, "data"))


def has_rows(file: SourceFile) -> bool:
    """Whether a JSON file is a list of rows: neither an object nor a list of articles."""
    with file.text() as text:
        json_text = JSONText(text)
        if json_text.next() != "[":
            return False
        try:
            first = next(json_text.items(), None)
        except (ValueError, RecursionError):  # the reader of the rows names the place
            return True
        return not (isinstance(first, dict) and "paragraphs" in first)


def csv_rows(file: SourceFile, columns: Columns) -> Iterator[Row]:
    """Read the rows under a header; the delimiter is the one that yields most of the columns."""
    with file.text() as text:
        delimiter = _delimiter(text, file.path, columns)
    with (
        file.text() as text,
        pd.read_csv(
            text, sep=delimiter, dtype=str, keep_default_na=False, chunksize=ROWS
        ) as blocks,
    ):
        numbers = count(1)
        for block in blocks:
            found = columns.require(list(block.columns), file.path)
            if not isinstance(
                block.index, pd.RangeIndex
            ):  # pandas makes an index of surplus fields
                raise ValueError(
                    f"line 2 has more fields than the {len(block.columns)} columns (a text with "
                    f"{'commas' if delimiter == ',' else repr(delimiter)} must stand in quotes)"
                )
            for row in block.to_dict("records"):
                yield Row(f"row {next(numbers)}", {name: row[found[name]] for name in found})


def _delimiter(text: TextIOWrapper, path: str, columns: Columns) -> str:
    line = next(iter(text), "")
    headers = {
        delimiter: next(csv.reader([line], delimiter=delimiter), []) for delimiter in DELIMITERS
    }
    return max(
        headers,
        key=lambda delimiter: (
            len(columns.find(headers[delimiter], path)),
            len(headers[delimiter]),
        ),
    )


def json_rows(file: SourceFile, columns: Columns) -> Iterator[Row]:
    """Read the objects of an array."""
    with file.text() as text:
        json_text = JSONText(text)
        for number, item in enumerate(json_text.items(), start=1):
            yield _row(item, f"item {number}", file.path, columns)
        json_text.end()


def json_lines(file: SourceFile, columns: Columns) -> Iterator[Row]:
    """Read one object a line."""
    with file.text() as text:
        for number, line in enumerate(text, start=1):
            if line.strip():
                try:
                    item = json.loads(line)
                except json.JSONDecodeError as error:
                    raise ValueError(f"line {number}: {error}") from error
                yield _row(item, f"line {number}", file.path, columns)


def _row(item: Any, place: str, path: str, columns: Columns) -> Row:
    if not isinstance(item, dict):
        raise ValueError(
            f"{place} is no object with {' and '.join(columns.required)} but {str(item)[:40]!r}"
        )
    found = _find(tuple(item), path, columns)
    return Row(place, {name: item[column] for name, column in found.items()})


@lru_cache
def _find(keys: tuple[str, ...], path: str, columns: Columns) -> dict[str, str]:
    return columns.find(keys, path)


def parquet_rows(file: SourceFile, columns: Columns) -> Iterator[Row]:
    """Read the rows of a Parquet file, and of them only the columns that are needed."""
    with (
        readable(file.path),
        file.open() as binary,
        ParquetFile(
            binary, pre_buffer=False, buffer_size=CHUNK, page_checksum_verification=True
        ) as table,
    ):
        found = columns.require(table.schema_arrow.names, file.path)
        yield from _table_rows(table.iter_batches(ROWS, columns=list(found.values())), found)


def saved_rows(folder: SourceFile, columns: Columns) -> Iterator[Row]:
    """Read the rows of a folder that `datasets.Dataset.save_to_disk` made."""
    with readable(folder.path):
        try:
            saved = load_from_disk(
                folder.filesystem.unstrip_protocol(folder.path),
                storage_options=folder.filesystem.storage_options,
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"its state.json or dataset_info.json is damaged ({error})") from error
        yield from dataset_rows(saved, folder.path, columns)


def dataset_rows(dataset: Dataset, path: str, columns: Columns) -> Iterator[Row]:
    """Read the rows of a dataset."""
    found = columns.require(dataset.column_names, path)
    batches = dataset.select_columns(list(found.values())).with_format("arrow").iter(ROWS)
    yield from _table_rows(batches, found)


def _table_rows(
    batches: Iterable[pyarrow.RecordBatch | pyarrow.Table], found: Mapping[str, str]
) -> Iterator[Row]:
    rows = (row for batch in batches for row in _python_rows(batch))
    for number, row in enumerate(rows, start=1):
        yield Row(f"row {number}", {name: row[column] for name, column in found.items()})


def _python_rows(batch: pyarrow.RecordBatch | pyarrow.Table) -> list[dict[str, Any]]:
    try:
        rows: list[dict[str, Any]] = batch.to_pylist()
    except (OverflowError, ValueError) as error:
        for name in batch.schema.names:
            try:
                batch.column(name).to_pylist()
            except (OverflowError, ValueError):
                raise ValueError(f"column {name}: {error}") from error
        raise
    return rows


READERS: dict[str, Callable[[SourceFile, Columns], Iterator[Row]]] = {
    ".csv": csv_rows,
    ".json": json_rows,
    ".jsonl": json_lines,
    ".parquet": parquet_rows,
    ".tsv": csv_rows,
}
