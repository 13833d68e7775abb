"""What a catalog entry notes for the project's hooks, under `metadata: flan_qa_pipeline:`."""

from typing import Any, Literal

from kedro.io import AbstractDataset
from pydantic import BaseModel, ConfigDict, ValidationError

from flan_qa_pipeline.errors import InputError, in_one_line

KEY = "flan_qa_pipeline"

Shown = Literal[
    "scores", "threshold", "differences", "comparison", "training", "rejected", "report", "path"
]


class DatasetNotes(BaseModel):
    """Notes of one dataset.

    Attributes:
        remedy: how a user gives the dataset, if it does not exist.
        versions_of: a versioned dataset whose saved versions the remedy lists.
        shown: how a run that made the dataset presents it at the end: as the table of its `scores`,
            of a `comparison` or of the `differences` in parameters, by the scores with its
            `threshold` from train articles, by the part of the questions that the `training` used,
            by the number of `rejected` records and their place, as the `report` with the next
            steps, or by the `path` of the saved version in the list of what was saved.
        filled_in: whether a hook saves the dataset before a node loads it.
        only_read: in an environment that reads the dataset of another run, how to start a run that
            does not replace it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    remedy: str = "make it with `kedro run` or name an existing version with --load-versions"
    versions_of: str | None = None
    shown: Shown | None = None
    filled_in: bool = False
    only_read: str | None = None


def notes_of(name: str, dataset: AbstractDataset[Any, Any] | None) -> DatasetNotes:
    """Read the notes of a dataset, given its name in the catalog.

    Raises:
        InputError: names what is wrong with them.
    """
    metadata: Any = getattr(dataset, "metadata", None)
    noted = metadata.get(KEY, {}) if isinstance(metadata, dict) else {}
    try:
        return DatasetNotes.model_validate(noted)
    except ValidationError as error:
        raise InputError(
            f"{name}: metadata.{KEY} in the catalog is wrong: {in_one_line(error)}; correct it."
        ) from error
