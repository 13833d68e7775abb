"""SQuAD 2.0 files that are read as they are used: article by article, or row by row."""

import io
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import PurePosixPath
from typing import Any, NoReturn, TextIO

import fsspec
import pyarrow
from kedro.io import AbstractDataset
from kedro.io.core import get_filepath_str, get_protocol_and_path
from pyarrow.parquet import ParquetFile

from flan_qa_pipeline.errors import InputError
from flan_qa_pipeline.json_stream import read_items

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
            InputError: a file is not Parquet.
        """
        files = [self.path]
        if self.filesystem.isdir(self.path):
            files = sorted(self.filesystem.glob(f"{self.path}/*.parquet"))
        for path in files:
            with self.filesystem.open(path, "rb") as file, _readable(path):
                for batch in ParquetFile(file).iter_batches(ROWS):
                    yield from batch.to_pylist()


@contextmanager
def _readable(path: str) -> Iterator[None]:
    try:
        yield
    except (ValueError, RecursionError, pyarrow.ArrowException) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{path} cannot be read: {' '.join(str(error).split())}; repair it at that place or "
            "save it again."
        ) from error


class SquadFileDataset(AbstractDataset[NoReturn, SquadJSON | SquadParquet]):
    """A SQuAD 2.0 file that is read as it is used, from any filesystem that fsspec knows.

    Parquet by its ending, `.parquet`, else JSON (UTF-8).

    Example:
    ```yaml
    raw_train:
      type: flan_qa_pipeline.squad_files.SquadFileDataset
      filepath: data/01_raw/starter_train.json
    ```
    """

    def __init__(
        self,
        *,
        filepath: str,
        credentials: dict[str, Any] | None = None,
        metadata: dict[str, Any] | None = None,
    ):
        self._protocol, path = get_protocol_and_path(filepath)
        self._fs = fsspec.filesystem(self._protocol, **credentials or {})
        self._filepath = PurePosixPath(path)
        self.metadata = metadata

    def load(self) -> SquadJSON | SquadParquet:
        path = get_filepath_str(self._filepath, self._protocol)
        if self._filepath.suffix == ".parquet":
            return SquadParquet(path, self._fs)
        return SquadJSON(path, partial(self._open, path))

    def _open(self, path: str) -> io.TextIOWrapper:
        try:
            return io.TextIOWrapper(self._fs.open(path, "rb"), encoding="utf-8-sig")
        except OSError as error:
            raise InputError(
                f"{path} cannot be read: {error.strerror or error}; name a SQuAD 2.0 file in JSON, "
                "or a file or folder of Parquet whose name ends in .parquet."
            ) from error

    def save(self, data: NoReturn) -> None:
        raise NotImplementedError("A file of training questions is only read.")

    def _exists(self) -> bool:
        return self._fs.exists(get_filepath_str(self._filepath, self._protocol))

    def _describe(self) -> dict[str, Any]:
        return {"filepath": self._filepath, "protocol": self._protocol}
