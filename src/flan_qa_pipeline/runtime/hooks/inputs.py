"""Hooks that check a run's inputs before any node runs."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kedro.framework.hooks import hook_impl
from kedro.io import AbstractDataset, CatalogProtocol
from kedro.io.core import is_parameter
from kedro.pipeline import Pipeline

from flan_qa_pipeline.errors import InputError
from flan_qa_pipeline.runtime import kedro_private
from flan_qa_pipeline.runtime.current_run import CurrentRun

if TYPE_CHECKING:
    from flan_qa_pipeline.config.parameters import NamedFile
    from flan_qa_pipeline.runtime.dataset_notes import DatasetNotes


class InputHooks:
    """Checks that every input exists, and that catalog and parameters name the same files."""

    def __init__(self, run: CurrentRun):
        self._run = run

    @hook_impl
    def after_catalog_created(self, conf_catalog: dict[str, Any]) -> None:
        """Keep relative paths of the catalog, which may hold a parameter, inside the project."""
        from flan_qa_pipeline.config.parameters import named_files

        files = named_files(self._run.parameters)
        project = self._run.project_path
        for name, entry in conf_catalog.items():
            for key in ("filepath", "path"):
                path = entry.get(key) if isinstance(entry, dict) else None
                named = files[name].file if name in files else None
                if path and not (named and Path(path) == project / named):
                    _require_inside(project, name, path)

    @hook_impl
    def before_pipeline_run(self, pipeline: Pipeline, catalog: CatalogProtocol[Any, Any]) -> None:
        from accelerate import PartialState

        from flan_qa_pipeline.config.parameters import named_files
        from flan_qa_pipeline.hub import PROTOCOL

        if not PartialState().is_main_process:
            return
        files = named_files(self._run.parameters)
        inputs = sorted(pipeline.inputs())
        for name in files.keys() & inputs:
            _require_fetchable(name, catalog.get(name), files[name])
            _require_same_file(name, catalog.get(name), files[name], self._run.project_path)
        for name in inputs:
            file = files[name].file if name in files else None
            on_hub = file is not None and file.startswith(PROTOCOL)
            if not (is_parameter(name) or on_hub):
                _require_input(name, catalog, is_file=file is not None)


def _require_inside(project: Path, name: str, path: str) -> None:
    root = os.path.normpath(project)
    if Path(path).is_relative_to(root) and not Path(os.path.normpath(path)).is_relative_to(root):
        raise InputError(
            f"{name}: {os.path.relpath(path, root)} leads out of the project {root}; name a place "
            "inside it, or give an absolute path."
        )


def _require_fetchable(
    name: str, dataset: AbstractDataset[Any, Any] | None, named: "NamedFile"
) -> None:
    """Refuse a place on the hub for a dataset that cannot read a fetched copy."""
    from flan_qa_pipeline.hub import PROTOCOL

    on_hub = named.file is not None and named.file.startswith(PROTOCOL)
    if on_hub and not hasattr(dataset, "read_from"):
        raise InputError(
            f"{named.parameter}: {name} does not read from the hub, where {named.file} is; fetch "
            "it with `hf download`, and name the copy."
        )


def _require_same_file(
    name: str, dataset: AbstractDataset[Any, Any] | None, named: "NamedFile", project_path: Path
) -> None:
    """Check that an environment did not change the file in the catalog alone, or the parameter."""
    from flan_qa_pipeline.data.filesystems import filesystem_of

    read = kedro_private.place_of(dataset)
    wanted = None
    if named.file is not None:
        url = named.file if "://" in named.file else str(project_path / named.file)
        wanted = Path(filesystem_of(url)[1])
    if read is not None and Path(read) != wanted:
        raise InputError(
            f"{named.parameter} is {named.file}, but the catalog's {name} reads {read}; set "
            f"{named.global_name} in conf/<environment>/globals.yml or by "
            f"--params={named.parameter}=…, which changes both."
        )


def _require_input(name: str, catalog: CatalogProtocol[Any, Any], *, is_file: bool) -> None:
    from flan_qa_pipeline.runtime.dataset_notes import notes_of

    dataset = catalog.get(name)
    notes = notes_of(name, dataset)
    if notes.filled_in:
        return
    if is_file and kedro_private.place_of(dataset) is None:
        raise InputError(
            f"{name} is of type {type(dataset).__name__}, which reads no file, so that every run "
            "would fetch it; save the split once with load_dataset(…, split=…).save_to_disk(…) and "
            "read that folder with huggingface.ArrowDataset."
        )
    if not (dataset is not None and catalog.exists(name)):
        raise _missing(name, dataset, notes, catalog)
    require = getattr(dataset, "require_readable", None)
    if require is not None:
        require()


def _missing(
    name: str,
    dataset: AbstractDataset[Any, Any] | None,
    notes: "DatasetNotes",
    catalog: CatalogProtocol[Any, Any],
) -> InputError:
    place = kedro_private.place_of(dataset)
    if place is None:
        return InputError(
            f"{name} is not kept between runs; start the run at a node that makes it."
        )
    if version := kedro_private.pinned_version(dataset):
        place = place / version
    remedy = notes.remedy
    if notes.versions_of:
        versions = sorted(catalog[notes.versions_of].list_versions(full_path=False))
        remedy += f" (saved: {', '.join(versions) or 'none yet'})"
    return InputError(f"{name}: there is no {place}; {remedy}.")
