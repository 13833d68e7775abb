"""What Kedro says of a dataset that cannot be read, in a sentence."""

from typing import Any

from kedro.io import AbstractDataset, DatasetError

from flan_qa_pipeline.errors import InputError, in_one_line


def load(dataset: AbstractDataset) -> Any:
    """Load a dataset.

    Raises:
        InputError: it cannot be read.
    """
    try:
        return dataset.load()
    except DatasetError as error:
        raise in_a_sentence(error, dataset) from error


def in_a_sentence(error: DatasetError, dataset: AbstractDataset | None) -> InputError:
    """The sentence of an InputError that Kedro has wrapped, else what Kedro itself says."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, InputError):
            return cause
        cause = cause.__cause__
    message = str(error)
    if hasattr(dataset, "_filepath"):
        message = message.replace(str(dataset), str(dataset._filepath))
    return InputError(f"{in_one_line(message)}. Repair or replace the file, then run again.")
