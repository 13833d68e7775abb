"""Hooks that put a dataset's failure into one sentence."""

from kedro.framework.hooks import hook_impl
from kedro.io import DatasetError

from flan_qa_pipeline.datasets.reading import explained
from flan_qa_pipeline.errors import InputError, in_one_line
from flan_qa_pipeline.runtime.atomic_catalog import NamedDatasetError, VersionNotSavedError


class FailureHooks:
    """Replaces the error of a dataset that cannot be read or written by an InputError."""

    @hook_impl
    def on_pipeline_error(self, error: Exception) -> None:
        if isinstance(error, VersionNotSavedError):
            raise InputError(
                f"{in_one_line(error)}. Earlier versions are whole; free space or clear the "
                "place, then run again."
            ) from error
        if isinstance(error, DatasetError):
            dataset = error.dataset if isinstance(error, NamedDatasetError) else None
            raise explained(error, dataset) from error
