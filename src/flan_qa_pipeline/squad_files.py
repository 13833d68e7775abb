"""SQuAD 2.0 files that are read as they are used: article by article, or row by row.

json.load holds a whole file, and ijson's fast backend makes "?" of half a surrogate pair without a
word. So the text is cut into values here, and Python's own decoder decodes each.
"""

import io
import json
import re
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, NoReturn, TextIO

import fsspec
import pyarrow
from kedro.io import AbstractDataset
from kedro.io.core import get_filepath_str, get_protocol_and_path
from pyarrow.parquet import ParquetFile

from flan_qa_pipeline.errors import InputError

CHUNK = 2**20  # characters
ROWS = 1000
WHITE_SPACE = re.compile(r"[ \t\n\r]*")
MARGIN = 16  # characters; the end of a chunk may cut a number, literal or escape that is shorter


class JSONText:
    """JSON that is decoded value by value from a file; a value and a chunk are in memory."""

    def __init__(self, file: TextIO):
        self._file = file
        self._text, self._at = "", 0
        self._read_before, self._lines_before = 0, 1
        self._decode = json.JSONDecoder().raw_decode

    def next(self) -> str:
        """The next character that is not white space, which stays; "" at the end."""
        while True:
            self._at = WHITE_SPACE.match(self._text, self._at).end()
            if self._at < len(self._text) or not self._read_on():
                return self._text[self._at : self._at + 1]

    def take(self, expected: str) -> str:
        """Take the next character, which is one of the expected."""
        character = self.next()
        if not character or character not in expected:
            raise self._error(f"Expecting {' or '.join(map(repr, expected))}", self._at)
        self._at += 1
        return character

    def value(self) -> Any:
        """Take the next value."""
        self.next()
        while True:
            try:
                value, end = self._decode(self._text, self._at)
            except json.JSONDecodeError as error:
                cut = error.msg.startswith("Unterminated") or (error.pos > len(self._text) - MARGIN)
                if not (cut and self._read_on()):
                    raise self._error(error.msg, error.pos) from None
            else:
                if end <= len(self._text) - MARGIN or not self._read_on():
                    self._at = end
                    return value

    def key(self) -> str:
        """Take the next key of an object."""
        if self.next() != '"':
            raise self._error("Expecting a key in double quotes", self._at)
        return self.value()

    def end(self) -> None:
        """Make sure that nothing follows."""
        if self.next():
            raise self._error("Extra data", self._at)

    def items(self) -> Iterator[Any]:
        """Take the items of the list that is next."""
        self.take("[")
        if self.next() == "]":
            self.take("]")
            return
        yield self.value()
        while self.take(",]") == ",":
            yield self.value()

    def _read_on(self) -> bool:
        """Read as much again as is left, or a chunk, and drop what was taken; False at the end."""
        more = self._file.read(max(CHUNK, len(self._text) - self._at))
        if more:
            self._read_before += self._at
            self._lines_before += self._text.count("\n", 0, self._at)
            self._text, self._at = self._text[self._at :] + more, 0
        return bool(more)

    def _error(self, message: str, at: int) -> ValueError:
        line = self._lines_before + self._text.count("\n", 0, at)
        return ValueError(f"{message} at line {line} (character {self._read_before + at})")


def read_items(file: TextIO, key: str) -> Generator[Any, None, Any]:
    """Yield the items of the list under a key of a JSON object; return the rest of the document.

    Raises:
        ValueError: the file is not JSON; names the place.
    """
    text = JSONText(file)
    if text.next() != "{":
        rest = text.value()
    else:
        rest, separator = {}, text.take("{")
        if text.next() == "}":
            separator = text.take("}")
        while separator != "}":
            name = text.key()
            text.take(":")
            if name != key or text.next() != "[":
                rest[name] = text.value()
            elif name in rest:
                raise ValueError(f"the key {key!r} occurs twice")
            else:
                yield from text.items()
                rest[name] = []
            separator = text.take(",}")
    text.end()
    return rest


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
        return SquadJSON(
            path, lambda: io.TextIOWrapper(self._fs.open(path, "rb"), encoding="utf-8-sig")
        )

    def save(self, data: NoReturn) -> None:
        raise NotImplementedError("A file of training questions is only read.")

    def _exists(self) -> bool:
        return self._fs.exists(get_filepath_str(self._filepath, self._protocol))

    def _describe(self) -> dict[str, Any]:
        return {"filepath": self._filepath, "protocol": self._protocol}
