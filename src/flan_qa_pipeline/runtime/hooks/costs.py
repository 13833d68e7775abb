"""Hooks that record what a run was made of and what its nodes cost."""

import time
from datetime import UTC, datetime
from typing import Any

from kedro.framework.hooks import hook_impl
from kedro.io import CatalogProtocol
from kedro.pipeline import Pipeline
from kedro.pipeline.node import Node

from flan_qa_pipeline.runtime.atomic_catalog import AtomicCatalog
from flan_qa_pipeline.runtime.current_run import CurrentRun

NODE_COSTS = "node_costs"
NODE_TIMES = "node_times"
RUN_RECORD = "run_record"
RUN_DETAILS = "run_details"


class RunRecordHooks:
    """Gives the run's parameters, package versions and commit to the nodes that save them.

    When all nodes have ended, `run_details` keeps them with the versions that the run loaded.
    """

    def __init__(self, run: CurrentRun):
        self._run = run
        self._record: dict[str, Any] | None = None

    @hook_impl
    def before_pipeline_run(
        self, run_params: dict[str, Any], pipeline: Pipeline, catalog: CatalogProtocol[Any, Any]
    ) -> None:
        self._record = None
        if RUN_RECORD not in pipeline.inputs():
            return
        from flan_qa_pipeline.runtime.provenance import git_commit, package_versions

        record = {
            "run_id": run_params["run_id"],
            "started": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
            "device": _device(),
            "parameters": self._run.parameters.model_dump(mode="json"),
            "versions": package_versions(),
            "git": git_commit(self._run.project_path),
        }
        catalog.save(RUN_RECORD, record)
        self._record = record

    @hook_impl
    def after_pipeline_run(self, pipeline: Pipeline, catalog: AtomicCatalog) -> None:
        from accelerate import PartialState

        if self._record is not None and PartialState().is_main_process:
            loaded = catalog.versions(sorted(pipeline.inputs()))
            catalog.save(RUN_DETAILS, self._record | {"loaded": loaded})


def _device() -> str:
    """Name the devices of a run, such as "2 x NVIDIA H100" or "CPU, 2 thread(s)"."""
    import torch
    from accelerate import PartialState

    from flan_qa_pipeline.models.device import device_name

    processes = PartialState().num_processes
    name = (
        device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} thread(s)"
    )
    return f"{processes} x {name}" if processes > 1 else name


class NodeCostHooks:
    """Times the nodes and notes the peak memory after each.

    Whenever a node ends, the catalog gets a new `node_costs`: by node, its wall time in `seconds`
    and the `peak_memory` in bytes. The table `node_times` is saved after the last node.
    """

    def __init__(self) -> None:
        self._started: dict[str, float] = {}
        self._costs: dict[str, dict[str, Any]] = {}
        self._is_read = False

    @hook_impl
    def before_pipeline_run(self, pipeline: Pipeline, catalog: CatalogProtocol[Any, Any]) -> None:
        self._started, self._costs = {}, {}
        self._is_read = NODE_COSTS in pipeline.inputs()
        self._hand_over(catalog)

    @hook_impl
    def before_node_run(self, node: Node) -> None:
        self._started[node.short_name] = time.perf_counter()

    @hook_impl
    def after_node_run(self, node: Node, catalog: CatalogProtocol[Any, Any]) -> None:
        from flan_qa_pipeline.models.device import peak_memory

        seconds = time.perf_counter() - self._started[node.short_name]
        cost = {"seconds": seconds, "peak_memory": peak_memory()}
        self._costs[node.short_name] = cost
        self._hand_over(catalog)

    @hook_impl
    def after_pipeline_run(self, catalog: CatalogProtocol[Any, Any]) -> None:
        from accelerate import PartialState

        from flan_qa_pipeline.evaluation.run_costs import node_times

        if PartialState().is_main_process:
            catalog.save(NODE_TIMES, node_times(self._costs))

    def _hand_over(self, catalog: CatalogProtocol[Any, Any]) -> None:
        if self._is_read:
            catalog.save(NODE_COSTS, dict(self._costs))
