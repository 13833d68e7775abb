"""Files of new questions, read in chunks, and the file of their answers, written in chunks."""

import json
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, cast

import pandas as pd
import pyarrow
from pyarrow.parquet import ParquetFile

from flan_qa_pipeline.data.json_stream import JSONText
from flan_qa_pipeline.errors import InputError

COLUMNS = ("id", "context", "question")
BLOCK = 1000


class QuestionFile:
    """Rows of context, question and optionally id; as many in memory at a time as a chunk has.

    CSV with a header (`.csv`, UTF-8), a JSON array of objects (`.json`), JSON lines (`.jsonl`) or
    Parquet (`.parquet`). Other columns are ignored. Values stay as they are, so that a missing
    one is None or NaN.
    """

    def __init__(self, path: Path):
        self.path = path

    def __len__(self) -> int:
        """Read the whole file once; return the number of its rows.

        Raises:
            InputError: the file is not of its kind, has no column context or question, or no rows.
        """
        rows = sum(1 for _ in self._rows())
        if not rows:
            raise InputError(f"{self.path} holds no questions; give a file with at least one row.")
        return rows

    def chunks(self, size: int) -> Iterator[pd.DataFrame]:
        """Yield the rows in order, `size` at a time; a row without an id has its number, from 1.

        Raises:
            InputError: as `len` does.
        """
        rows = enumerate(self._rows(), start=1)
        while chunk := list(islice(rows, size)):
            records = []
            for number, row in chunk:
                record = {column: row.get(column) for column in COLUMNS}
                unnamed = pd.isna(record["id"]) is True or record["id"] == ""
                records.append(record | {"id": str(number if unnamed else record["id"])})
            yield pd.DataFrame(records, columns=list(COLUMNS), dtype=object)

    def _rows(self) -> Iterator[dict[str, Any]]:
        readers = {".csv": _csv, ".json": _json, ".jsonl": _json_lines, ".parquet": _parquet}
        if self.path.suffix.lower() not in readers:
            raise InputError(
                f"{self.path} is not a file of questions by its name; it may end in "
                f"{', '.join(readers)}."
            )
        try:
            yield from readers[self.path.suffix.lower()](self.path)
        except (ValueError, RecursionError, pyarrow.ArrowException) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(
                f"{self.path} cannot be read: {' '.join(str(error).split())}; repair it at that "
                "place or save it again."
            ) from error


def _csv(path: Path) -> Iterator[dict[str, Any]]:
    with pd.read_csv(
        path, dtype=str, keep_default_na=False, encoding="utf-8-sig", chunksize=BLOCK
    ) as blocks:
        for block in blocks:
            _require_columns(block.columns, path)
            if not isinstance(block.index, pd.RangeIndex):  # what pandas makes of surplus fields
                raise ValueError(
                    f"line 2 has more fields than the {len(block.columns)} columns (a text with "
                    "commas must stand in quotes)"
                )
            yield from cast(list[dict[str, Any]], block.to_dict("records"))


def _json(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8-sig") as file:
        text = JSONText(file)
        for number, row in enumerate(text.items(), start=1):
            yield _object(row, f"item {number}")
        text.end()


def _json_lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                try:
                    yield _object(json.loads(line), f"line {number}")
                except json.JSONDecodeError as error:
                    raise ValueError(f"line {number}: {error}") from error


def _object(row: Any, place: str) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise ValueError(f"{place} is no object with context and question but {str(row)[:40]!r}")
    return row


def _parquet(path: Path) -> Iterator[dict[str, Any]]:
    with ParquetFile(path, pre_buffer=False, buffer_size=2**20) as file:
        _require_columns(file.schema_arrow.names, path)
        wanted = [column for column in COLUMNS if column in file.schema_arrow.names]
        for batch in file.iter_batches(BLOCK, columns=wanted):
            yield from batch.to_pylist()


def _require_columns(columns: Iterable[str], path: Path) -> None:
    missing = [column for column in ("context", "question") if column not in columns]
    if missing:
        raise InputError(
            f"{path} has no column {' and no column '.join(missing)}, only {', '.join(columns)}; "
            "name its columns context, question and, if there is one, id."
        )
