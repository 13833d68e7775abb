"""Ctrl+C ends a command with one line, at any moment and however often it is pressed.

This module imports only the standard library, so it works before anything else is imported.
"""

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

COMMANDS = {"kedro", "flan_qa_pipeline", "flan-qa-pipeline"}
GRACE = 5  # seconds in which a second Ctrl+C does not disturb the clean-up after the first
STATUS = 128 + signal.SIGINT

_last = -float("inf")


def end_at_once() -> None:
    """Make Ctrl+C end this process during imports, if it is a command that handles Ctrl+C.

    An interrupted import may raise another error instead, or go on. In a notebook, or in a program
    that uses the project, Ctrl+C keeps its meaning.
    """
    program = Path(sys.argv[0].split()[-1])  # kedro names itself "python -m kedro"
    name = program.parent.name if program.name == "__main__.py" else program.stem
    if name in COMMANDS and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)


@contextmanager
def raised() -> Iterator[None]:
    """Raise KeyboardInterrupt on Ctrl+C inside the block, but only once within `GRACE` seconds."""
    outside = signal.getsignal(signal.SIGINT)
    if outside not in (_end, signal.default_int_handler):
        yield
        return
    signal.signal(signal.SIGINT, _raise)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, outside)


def came() -> bool:
    """Return whether Ctrl+C came inside `raised`; a library may have raised another error."""
    return _last > -float("inf")


def tell() -> None:
    """Say that the command was interrupted."""
    print("\nInterrupted.", file=sys.stderr, flush=True)


def _end(signal_number: int, frame: FrameType | None) -> None:
    if _is_new():
        tell()
        os._exit(STATUS)


def _raise(signal_number: int, frame: FrameType | None) -> None:
    global _last
    if _is_new():
        _last = time.monotonic()
        raise KeyboardInterrupt


def _is_new() -> bool:
    return time.monotonic() - _last > GRACE
