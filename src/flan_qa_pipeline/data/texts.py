"""Whether a text is whole and visible, and how texts compare without spaces, case and form."""

import unicodedata
from typing import Any

LONGEST_NAME = 1000  # characters of an id or a title
INVISIBLE_LETTERS = frozenset("\u115f\u1160\u2800\u3164\uffa0")  # fillers, the blank of Braille


def is_missing(value: Any) -> bool:
    """Whether a field of a row is empty: None, NaN or no text."""
    return value is None or value == "" or value != value


def is_unicode(text: str) -> bool:
    """Whether the text has whole characters only, and no half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def has_text(text: str) -> bool:
    """Whether the text has a visible letter, digit or sign."""
    return any(
        unicodedata.category(character)[0] in "LNPS" and character not in INVISIBLE_LETTERS
        for character in text
    )


def text_problem(value: Any, thing: str) -> str | None:
    """Say why a value cannot be a context or a question; None if it can.

    Args:
        value: the value.
        thing: how the message calls it, such as "The context".
    """
    if value is None or value != value:
        return f"{thing} is missing; give it as text."
    if not isinstance(value, str):
        return f"{thing} is of type {type(value).__name__}; give it as text."
    if not has_text(value):
        return f"{thing} is empty; give it as text."
    if not is_unicode(value):
        return f"{thing} holds half a surrogate pair; remove it."
    return None


def name_problem(name: str, thing: str) -> str | None:
    """Say why a text cannot be an id or a title; None if it can.

    Args:
        name: the text.
        thing: how the message calls it, such as "its id".
    """
    if len(name) > LONGEST_NAME:
        return f"{thing} has {len(name):,} characters; shorten it to {LONGEST_NAME:,} at most"
    if "\0" in name:
        return f"{thing} holds a NUL character; remove it"
    return None


def normalized(text: str) -> str:
    """Bring a text to one Unicode form and case, single-spaced, without zero-width characters.

    >>> normalized("Ａda \\n was\\u200b  BORN")
    'ada was born'
    """
    if text.isascii():
        return " ".join(text.lower().split())
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    seen = "".join(character for character in folded if unicodedata.category(character) != "Cf")
    return " ".join(seen.split())
