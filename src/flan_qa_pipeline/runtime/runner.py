"""The runner of a run in several processes: which process runs which node."""

from collections import Counter
from collections.abc import Iterable
from itertools import chain
from typing import Any

from accelerate import PartialState
from kedro.pipeline import Pipeline
from kedro.pipeline.node import Node
from kedro.runner import SequentialRunner
from kedro.runner.task import Task
from pluggy import PluginManager

from flan_qa_pipeline.errors import InputError
from flan_qa_pipeline.models.exchange import broadcast_json
from flan_qa_pipeline.runtime import node_tags
from flan_qa_pipeline.runtime.atomic_catalog import AtomicCatalog, FollowersCatalog


class DistributedRunner(SequentialRunner):
    """Runs the nodes one after the other, each in all processes or in the first alone.

    All processes load the versions that the first one loads. The first process alone writes.
    """

    def __init__(self, is_async: bool = False):
        super().__init__(is_async=is_async)
        self.is_async = is_async

    def _run(
        self,
        pipeline: Pipeline,
        catalog: Any,
        hook_manager: PluginManager | None = None,
        run_id: str | None = None,
    ) -> None:
        leads = PartialState().is_main_process
        seen: Any = catalog if leads else FollowersCatalog(catalog)
        loads_left = Counter(chain.from_iterable(node.inputs for node in pipeline.nodes))
        PartialState().wait_for_everyone()
        for node in pipeline.nodes:
            everywhere = bool(node.tags & node_tags.RUNS_IN_ALL_PROCESSES)
            if everywhere:
                _agree_on_versions(catalog, node.inputs)
            if everywhere or leads:
                Task(node, seen, self.is_async, hook_manager, run_id).execute()
            loads_left.subtract(node.inputs)
            _release(node, catalog, loads_left, kept=pipeline.inputs() | pipeline.outputs())


def _release(node: Node, catalog: AtomicCatalog, loads_left: Counter[str], kept: set[str]) -> None:
    """Release what no later node loads, but for the inputs and outputs of the whole pipeline."""
    for name in {*node.inputs, *node.outputs} - kept:
        if loads_left[name] < 1:
            catalog.release(name)


def _agree_on_versions(catalog: AtomicCatalog, names: Iterable[str]) -> None:
    """Wait for all processes; pin the versions that the first one would load.

    Raises:
        InputError: this process does not see such a version.
    """
    versions = broadcast_json(catalog.versions(names) if PartialState().is_main_process else None)
    for name, version in versions.items():
        catalog.pin(name, version)
        if not catalog.exists(name):
            raise InputError(
                f"{name}: process {PartialState().process_index} does not see version {version}, "
                "which process 0 reads; processes on several machines need one project folder that "
                "all of them see, at the same path."
            )
