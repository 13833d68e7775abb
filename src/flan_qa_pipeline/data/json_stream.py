"""Decode JSON value by value with Python's decoder, for files larger than memory.

Other streaming parsers accept less than json.load, or change the data: ijson refuses NaN and
silently turns half a surrogate pair into "?".
"""

import json
import re
from collections.abc import Generator, Iterator
from typing import Any, TextIO

CHUNK = 2**16  # characters
MARGIN = 16  # characters; longer than any number, literal or escape that a chunk's end may cut
WHITE_SPACE = re.compile(r"[ \t\n\r]*")


class JSONText:
    """A JSON file that is decoded value by value.

    Holds one value and one chunk of text in memory. Every method raises ValueError, which names
    the line and the character, where the text is not JSON.
    """

    def __init__(self, file: TextIO):
        self._file = file
        self._text, self._at = "", 0
        self._read_before, self._lines_before = 0, 1
        self._decode = json.JSONDecoder().raw_decode

    def next(self) -> str:
        """Look at the next character that is not white space; "" at the end of the file."""
        while True:
            if space := WHITE_SPACE.match(self._text, self._at):
                self._at = space.end()
            if self._at < len(self._text) or not self._read_on():
                return self._text[self._at : self._at + 1]

    def take(self, expected: str) -> str:
        """Take the next character, which must be one of `expected`."""
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
        key: str = self.value()
        return key

    def end(self) -> None:
        """Require the end of the file."""
        if self.next():
            raise self._error("Extra data", self._at)

    def items(self) -> Iterator[Any]:
        """Take the next value, a list, item by item."""
        self.take("[")
        if self.next() == "]":
            self.take("]")
            return
        yield self.value()
        while self.take(",]") == ",":
            yield self.value()

    def _read_on(self) -> bool:
        """Drop the text taken so far and read on; return False at the end of the file.

        Reads as many characters as are left, or a chunk if that is more.
        """
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
    """Yield the items of the list under a key of a JSON object.

    Returns:
        The document with an empty list under the key; or the whole document if it is no object.

    Raises:
        ValueError: the file is not JSON, or the key occurs twice; names the place.
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
