"""Texts: whether they are whole and visible, and how they compare but for spaces, case and form."""

import unicodedata
from typing import Any

LONGEST_NAME = 1000  # characters of an id or a title
INVISIBLE_LETTERS = frozenset("\u115f\u1160\u2800\u3164\uffa0")  # fillers, the blank of Braille


def is_missing(value: Any) -> bool:
    """Whether a field of a row is empty: None, NaN or no text."""
    return value is None or value == "" or value != value


def is_unicode(text: str) -> bool:
    """Whether the text has only whole characters, no half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def has_text(text: str) -> bool:
    """Whether a letter, digit or sign can be seen, not only space and zero-width characters."""
    return any(
        unicodedata.category(character)[0] in "LNPS" and character not in INVISIBLE_LETTERS
        for character in text
    )


def name_problem(name: str, thing: str) -> str | None:
    """Say why a text cannot be an id or a title; None if it can."""
    if len(name) > LONGEST_NAME:
        return f"{thing} has {len(name):,} characters; shorten it to {LONGEST_NAME:,} at most"
    if "\0" in name:
        return f"{thing} holds a NUL character; remove it"
    return None


def normalized(text: str) -> str:
    """The text in one Unicode form and case, without zero-width characters, single-spaced.

    >>> normalized("Ａda \\n was\\u200b  BORN")
    'ada was born'
    """
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    seen = "".join(character for character in folded if unicodedata.category(character) != "Cf")
    return " ".join(seen.split())
