"""Hooks that fetch a run's inputs from the Hugging Face hub and pin their commits."""

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kedro.framework.hooks import hook_impl
from kedro.io import CatalogProtocol
from kedro.pipeline import Pipeline

from flan_qa_pipeline.config.parameters import Parameters, named_files
from flan_qa_pipeline.runtime.current_run import CurrentRun

if TYPE_CHECKING:
    from flan_qa_pipeline.hub import HubFiles


class HubInputHooks:
    """Fetches the base and data files of a run; the run's parameters then name their commits."""

    def __init__(self, run: CurrentRun):
        self._run = run

    @hook_impl
    def before_pipeline_run(self, pipeline: Pipeline, catalog: CatalogProtocol[Any, Any]) -> None:
        """Let the first process fetch; give every process the parameters with the commits."""
        from accelerate import PartialState

        from flan_qa_pipeline.models.exchange import broadcast_json

        inputs = pipeline.inputs()
        pinned = None
        if PartialState().is_main_process:
            pinned = _fetched(self._run.parameters, inputs, catalog).model_dump(mode="json")
        self._run.parameters = Parameters.model_validate(broadcast_json(pinned))
        if "params:model" in inputs:
            catalog.save("params:model", self._run.parameters.model)


def _fetched(
    parameters: Parameters, inputs: Collection[str], catalog: CatalogProtocol[Any, Any]
) -> Parameters:
    """Fetch what the hub has of a run's inputs; return the parameters with the commits.

    Raises:
        InputError: an input cannot be fetched, or the base is not one that can be trained.
    """
    from flan_qa_pipeline.hub import PROTOCOL, DataFiles, fetch
    from flan_qa_pipeline.models.loading import check_base, hub_files

    reads_base = "params:model" in inputs
    files = {
        name: named
        for name, named in named_files(parameters).items()
        if name in inputs and named.file.startswith(PROTOCOL)
    }
    wanted: dict[str, HubFiles] = {
        name: DataFiles.of(named.file) for name, named in sorted(files.items())
    }
    if reads_base and not Path(parameters.model.name).is_dir():
        wanted = {"params:model": hub_files(parameters.model), **wanted}
    model, data = parameters.model, {}
    for name, fetched in zip(wanted, fetch(*wanted.values()), strict=True):
        if name == "params:model":
            model = model.model_copy(update={"revision": fetched.files.revision})
        else:
            catalog[name].read_from(str(fetched.path))
            data[files[name].parameter] = fetched.files.pinned
    if reads_base:
        check_base(model)
    return _with_files(parameters.model_copy(update={"model": model}), data)


def _with_files(parameters: Parameters, files: dict[str, str]) -> Parameters:
    """Replace files by the parameters that name them, such as `data.train_file`."""
    for parameter, file in files.items():
        section, _, key = parameter.partition(".")
        changed = getattr(parameters, section).model_copy(update={key: file})
        parameters = parameters.model_copy(update={section: changed})
    return parameters
