"""Hooks that fetch a run's inputs from the Hugging Face hub and pin their commits."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kedro.framework.hooks import hook_impl
from kedro.io import CatalogProtocol
from kedro.pipeline import Pipeline

from flan_qa_pipeline.runtime.current_run import CurrentRun

if TYPE_CHECKING:
    from flan_qa_pipeline.config.parameters import Parameters
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
        leads = PartialState().is_main_process
        pins = broadcast_json(_fetch(self._run.parameters, inputs, catalog) if leads else None)
        self._run.parameters = _pinned(self._run.parameters, pins)
        if "params:model" in inputs:
            catalog.save("params:model", self._run.parameters.model)


def _fetch(
    parameters: "Parameters", inputs: Collection[str], catalog: CatalogProtocol[Any, Any]
) -> dict[str, dict[str, str]]:
    """Fetch the inputs of a run that the hub has.

    Returns:
        The parameters that pin the commits, by section and name.

    Raises:
        InputError: an input cannot be fetched, or the base cannot be trained so.
    """
    from flan_qa_pipeline.config.parameters import named_files
    from flan_qa_pipeline.hub import PROTOCOL, DataFiles, fetch
    from flan_qa_pipeline.models.loading import check_base, hub_files

    reads_base = "params:model" in inputs
    files = {
        name: named
        for name, named in sorted(named_files(parameters).items())
        if name in inputs and named.file and named.file.startswith(PROTOCOL)
    }
    wanted: dict[str, HubFiles] = {}
    if reads_base and not Path(parameters.model.name).is_dir():
        wanted["params:model"] = hub_files(parameters.model)
    wanted |= {name: DataFiles.of(str(named.file)) for name, named in files.items()}
    pins: dict[str, dict[str, str]] = {}
    for name, fetched in zip(wanted, fetch(*wanted.values()), strict=True):
        if name in files:
            catalog[name].read_from(str(fetched.path))
            section, _, key = files[name].parameter.partition(".")
            pins.setdefault(section, {})[key] = fetched.files.pinned
        else:
            pins["model"] = {"revision": fetched.files.revision}
    if reads_base:
        trains = "params:lora" in inputs
        check_base(_pinned(parameters, pins).model, parameters.lora if trains else None)
    return pins


def _pinned(parameters: "Parameters", pins: Mapping[str, Mapping[str, str]]) -> "Parameters":
    sections = {
        name: getattr(parameters, name).model_copy(update=values) for name, values in pins.items()
    }
    return parameters.model_copy(update=sections)
