"""How a process that only measures begins. It imports nothing that could log a warning."""

import logging
import signal


def begin_quietly() -> None:
    """Leave warnings to the run's main process, and end without a traceback on Ctrl+C."""
    logging.disable(logging.WARNING)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else the run ignores it
        signal.signal(signal.SIGINT, signal.SIG_DFL)
