"""What Kedro says of a dataset that cannot be read, in a sentence."""

from typing import Any

from kedro.io import AbstractDataset, DatasetError

from flan_qa_pipeline.errors import InputError, in_one_line


def load(dataset: AbstractDataset[Any, Any]) -> Any:
    """Load a dataset.

    Raises:
        InputError: it cannot be read.
    """
    try:
        return dataset.load()
    except DatasetError as error:
        raise in_a_sentence(error, dataset) from error


def in_a_sentence(error: DatasetError, dataset: AbstractDataset[Any, Any] | None) -> InputError:
    """The sentence of an InputError that Kedro has wrapped, else what Kedro itself says."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, InputError):
            return cause
        cause = cause.__cause__
    message = str(error)
    if path := getattr(dataset, "_filepath", None):
        message = message.replace(str(dataset), str(path))
    return InputError(f"{in_one_line(message)}. Repair or replace the file, then run again.")
