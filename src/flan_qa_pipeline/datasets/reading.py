"""Reading a dataset, and one sentence for one that cannot be read."""

from typing import Any

from kedro.io import AbstractDataset, DatasetError
from kedro.io.core import Version

from flan_qa_pipeline.errors import InputError, in_one_line
from flan_qa_pipeline.runtime.kedro_private import is_versioned, place_of

EVALUATIONS = "evaluation_record"


def load(dataset: AbstractDataset[Any, Any]) -> Any:
    """Load a dataset.

    Raises:
        InputError: the dataset cannot be read.
    """
    try:
        return dataset.load()
    except DatasetError as error:
        raise explained(error, dataset) from error


def load_version(catalog: Any, name: str, version: str | None) -> Any:
    """Load a saved version of a dataset that a run makes.

    Args:
        catalog: the project's catalog.
        name: the dataset's name in the catalog.
        version: the time stamp of the version; None: the latest.

    Raises:
        InputError: there is no such version, or it cannot be read.
    """
    dataset = catalog.get(name, version=Version(version, None) if version else None)
    if not dataset.exists():
        saved = ", ".join(sorted(dataset.list_versions(full_path=False)))
        raise InputError(
            f"{name}: there is no {version or 'version'} in {place_of(dataset)}; make one with "
            f"`kedro run` or name one of: {saved or 'none yet'}."
        )
    return load(dataset)


def newest_evaluation(catalog: Any, adapter: str | None) -> dict[str, Any]:
    """Find the newest saved evaluation of an adapter on questions that it cannot have seen.

    Args:
        catalog: the project's catalog.
        adapter: the version that the adapter was trained under; None: unknown.

    Returns:
        The record, as the node `record_evaluation` made it; {} if there is none.
    """
    dataset = catalog[EVALUATIONS]
    if adapter is None or not is_versioned(dataset) or not dataset.exists():
        return {}
    for version in dataset.list_versions(full_path=False):
        record: dict[str, Any] = load_version(catalog, EVALUATIONS, version)
        if record.get("adapter") == adapter and not record.get("may_have_seen"):
            return record
    return {}


def explained(error: DatasetError, dataset: AbstractDataset[Any, Any] | None) -> InputError:
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
