"""SQuAD 2.0 files that are read as they are used: article by article, or row by row."""

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TextIO

import fsspec
from pyarrow.parquet import ParquetFile

from flan_qa_pipeline.data.json_stream import read_items
from flan_qa_pipeline.errors import InputError

ROWS = 1000


@dataclass(frozen=True)
class SquadJSON:
    """A file in the official SQuAD 2.0 schema; `open` opens its text."""

    path: str
    open: Callable[[], TextIO]

    def articles(self) -> Generator[Any, None, Any]:
        """Yield the articles as they stand in the file; return the file without them.

        Raises:
            InputError: the file is not JSON.
        """
        with self.open() as file, _readable(self.path):
            return (yield from read_items(file, "data"))


@dataclass(frozen=True)
class SquadParquet:
    """Rows with the columns of squad_v2, in a Parquet file or a folder of them, by their names."""

    path: str
    filesystem: fsspec.AbstractFileSystem

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield the rows, 1000 of them in memory at a time.

        Raises:
            InputError: a file is not Parquet, or cannot be read to its end.
        """
        files = [self.path]
        with _readable(self.path):
            if self.filesystem.isdir(self.path):
                files = sorted(self.filesystem.glob(f"{self.path}/*.parquet"))
        for path in files:
            with _readable(path), self.filesystem.open(path, "rb") as file:
                for batch in ParquetFile(file).iter_batches(ROWS):
                    yield from batch.to_pylist()


@contextmanager
def _readable(path: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # every filesystem has errors of its own
        if isinstance(error, InputError):
            raise
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        raise InputError(
            f"{path} cannot be read: {reason}; repair it at that place, or save or fetch it again."
        ) from error
