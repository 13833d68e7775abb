"""Files of new questions, read in chunks for inference."""

from array import array
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, Self

import pandas as pd

from flan_qa_pipeline.data.readers import Columns, SquadJSON
from flan_qa_pipeline.data.row_files import RowFiles
from flan_qa_pipeline.data.squad import flatten
from flan_qa_pipeline.data.texts import is_missing
from flan_qa_pipeline.errors import InputError

COLUMNS = ("id", "context", "question")


class QuestionFile:
    """Rows of context, question and optionally id, of which memory holds one chunk at a time.

    Ignores other columns. Values stay unchanged: a missing one is None or NaN.
    """

    def __init__(
        self,
        url: str | Path,
        named: Mapping[str, str] | None = None,
        credentials: Mapping[str, Any] | None = None,
    ):
        """Open no file yet.

        Args:
            url: any place that `RowFiles` finds.
            named: the column of each field that has another name there.
            credentials: options of the filesystem.
        """
        self.files = RowFiles(str(url), credentials=credentials)
        self._columns = Columns(("context", "question"), ("id",), named or {}, "inference.columns")
        self._taken: set[str] | None = None

    def named(self, columns: Mapping[str, str]) -> Self:
        """Return the same files with other column names."""
        return type(self)(self.files.url, columns, self.files.credentials)

    def __len__(self) -> int:
        """Count the rows, which reads all files once.

        Raises:
            InputError: a file is not what its name says, or lacks a column; or there are no rows.
        """
        rows, self._taken = self._count()
        return rows

    def chunks(self, size: int) -> Iterator[pd.DataFrame]:
        """Yield the rows in order, `size` at a time.

        A row without an id gets its number, from 1, or "row" and the number if another row has
        that number as its id.

        Raises:
            InputError: as for `len`.
        """
        taken = self._count()[1] if self._taken is None else self._taken
        rows = enumerate(self._rows(), start=1)
        while chunk := list(islice(rows, size)):
            records = []
            for number, row in chunk:
                record = {column: row.get(column) for column in COLUMNS}
                if is_missing(record["id"]):
                    record["id"] = f"row {number}" if str(number) in taken else number
                records.append(record | {"id": str(record["id"])})
            yield pd.DataFrame(records, columns=list(COLUMNS), dtype=object)

    def _count(self) -> tuple[int, set[str]]:
        """Count the rows; find the ids that are numbers, where a row has none."""
        rows, numbers, some_unnamed = 0, array("q"), False
        for row in self._rows():
            rows += 1
            id_ = row.get("id")
            some_unnamed |= is_missing(id_)
            if str(id_).isdecimal() and len(str(id_)) < 19:
                numbers.append(int(str(id_)))
        if not rows:
            raise InputError(
                f"{self.files.url} holds no questions; give a file with at least one row."
            )
        return rows, set(map(str, numbers)) if some_unnamed else set()

    def _rows(self) -> Iterator[dict[str, Any]]:
        for part in self.files.parts(self._columns):
            if isinstance(part, SquadJSON):
                yield from flatten(part, part.path)
            else:
                yield from (fields for _, fields in part)
