"""Reading a dataset, and one sentence for one that cannot be read."""

from typing import Any

from kedro.io import AbstractDataset, DatasetError

from flan_qa_pipeline.errors import InputError, in_one_line
from flan_qa_pipeline.runtime.kedro_private import place_of


def load(dataset: AbstractDataset) -> Any:
    """Load a dataset.

    Raises:
        InputError: the dataset cannot be read.
    """
    try:
        return dataset.load()
    except DatasetError as error:
        raise explained(error, dataset) from error


def explained(error: DatasetError, dataset: AbstractDataset | None) -> InputError:
    """Return the InputError that Kedro wrapped, else one that quotes Kedro.

    Args:
        error: what loading or saving raised.
        dataset: the dataset, if known; the sentence names its path instead of its description.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, InputError):
            return cause
        cause = cause.__cause__
    message = str(error)
    if (place := place_of(dataset)) is not None:
        message = message.replace(str(dataset), str(place))
    return InputError(f"{in_one_line(message)}. Repair or replace the file, then run again.")
