"""Hooks that claim the version of a run and check that its outputs can be written."""

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from kedro.framework.hooks import hook_impl
from kedro.io import AbstractDataset, CatalogProtocol
from kedro.pipeline import Pipeline

from flan_qa_pipeline.errors import InputError
from flan_qa_pipeline.runtime import kedro_private, node_tags
from flan_qa_pipeline.runtime.current_run import CurrentRun
from flan_qa_pipeline.runtime.dataset_notes import notes_of
from flan_qa_pipeline.runtime.hooks.costs import NODE_TIMES


class OutputHooks:
    """Checks that every output can be written; makes the folder of the run's TensorBoard log.

    The log's folder, named after the run's version, also claims the version: of two runs that
    start in one millisecond, the second finds it and stops.
    """

    def __init__(self, run: CurrentRun):
        self._run = run
        self._logs: Path | None = None

    @hook_impl
    def before_pipeline_run(
        self, run_params: dict[str, Any], pipeline: Pipeline, catalog: CatalogProtocol[Any, Any]
    ) -> None:
        from accelerate import PartialState

        self._logs = None
        self._run.saved.clear()
        if not PartialState().is_main_process:
            return
        training = self._run.parameters.training
        for name in sorted(pipeline.all_outputs() | {NODE_TIMES}):
            _require_own(name, catalog.get(name))
            _require_writable(name, catalog.get(name))
        if any(node_tags.TRAINS in node.tags for node in pipeline.nodes):
            _make_folder(training.output_dir, "training.output_dir")
        _make_folder(training.logging_dir, "training.logging_dir")
        logs = Path(training.logging_dir) / run_params["run_id"]
        try:
            logs.mkdir()
        except FileExistsError:
            raise InputError(
                f"Another run was started in the same millisecond and saves the version "
                f"{run_params['run_id']}; start this one again."
            ) from None
        self._logs = logs

    @hook_impl
    def after_dataset_saved(self, dataset_name: str) -> None:
        self._run.saved.add(dataset_name)

    @hook_impl
    def after_pipeline_run(self) -> None:
        self._remove_empty_logs()

    @hook_impl
    def on_pipeline_error(self) -> None:
        self._remove_empty_logs()

    def _remove_empty_logs(self) -> None:
        if self._logs is not None:
            with suppress(OSError):
                self._logs.rmdir()


def _require_own(name: str, dataset: AbstractDataset[Any, Any] | None) -> None:
    """Check that the environment does not only read what the run would save."""
    if remedy := notes_of(name, dataset).only_read:
        raise InputError(
            f"{name}: this run would replace {kedro_private.place_of(dataset)}, which its "
            f"environment only reads; {remedy}."
        )


def _require_writable(name: str, dataset: AbstractDataset[Any, Any] | None) -> None:
    """Check the nearest existing folder of the place at which a dataset is saved."""
    place = kedro_private.place_of(dataset)
    if dataset is None or place is None or not kedro_private.is_local(dataset):
        return
    existing = next(parent for parent in Path(place).absolute().parents if parent.exists())
    if Path(place).is_dir():
        existing = Path(place)
    if not (existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)):
        raise InputError(
            f"{name}: nothing can be saved in {existing}, which is no writable folder; make it "
            f"one, or name another place for {name} in the catalog."
        )


def _make_folder(folder: str, parameter: str) -> None:
    reason = "Permission denied"
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK | os.X_OK):
            return
    except OSError as error:
        reason = error.strerror or str(error)
    raise InputError(
        f"{folder} cannot be made or written in: {reason}; make its place writable, or set "
        f"{parameter} to another folder."
    )
