"""The error that a user can mend, and how to quote the errors of other libraries."""


class InputError(ValueError):
    """Data, a parameter or a file that a run cannot use.

    The message is one sentence that names the thing, where it is, and the remedy. Commands print
    it after "Error:", without a traceback, and exit with status 1 (see `cli.InWords`).
    """


class ProcessFailedError(RuntimeError):
    """A process of a run in several failed with an error that a user cannot mend."""


def in_one_line(error: Exception | str) -> str:
    """Fit a library's error message into one line, without a final stop, so a sentence can go on.

    Args:
        error: the error, or its text. An error without text becomes the name of its class.
    """
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__
