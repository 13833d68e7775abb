"""The one exception a user of the project is meant to see."""

from click import ClickException


class InputError(ClickException, ValueError):
    """Data, a parameter or a file that the run cannot use.

    The message names the thing, where it is, and the remedy. `kedro run` prints it after
    "Error:" without a traceback and exits with status 1.
    """


def in_one_line(error: Exception | str) -> str:
    """Put what another library says of an error in one line that a sentence can go on behind."""
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__
