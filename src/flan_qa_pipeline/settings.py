"""Project settings; see https://docs.kedro.org/en/stable/configure/configuration_basics/."""
# ruff: noqa: E402, Ctrl+C and the launcher's death end a command while these imports run, too,
# and torch reads the environment when it is imported

from flan_qa_pipeline.runtime import interruption, orphans, threads

interruption.end_at_once()
orphans.end_with_launcher()
threads.choose()

import os
from pathlib import Path

import yaml
from kedro.framework.project import LOGGING
from kedro.utils import find_config_file, find_kedro_project

from flan_qa_pipeline.runtime.atomic_catalog import AtomicCatalog
from flan_qa_pipeline.runtime.configuration import ProjectConfigLoader
from flan_qa_pipeline.runtime.current_run import CurrentRun
from flan_qa_pipeline.runtime.hooks.checkpoints import CheckpointHooks
from flan_qa_pipeline.runtime.hooks.compared_runs import ComparedRunHooks
from flan_qa_pipeline.runtime.hooks.costs import NodeCostHooks, RunRecordHooks
from flan_qa_pipeline.runtime.hooks.evaluations import EvaluationHooks
from flan_qa_pipeline.runtime.hooks.failures import FailureHooks
from flan_qa_pipeline.runtime.hooks.garbage import GarbageHooks
from flan_qa_pipeline.runtime.hooks.hub_inputs import HubInputHooks
from flan_qa_pipeline.runtime.hooks.inputs import InputHooks
from flan_qa_pipeline.runtime.hooks.load_versions import LoadVersionHooks
from flan_qa_pipeline.runtime.hooks.logs import (
    DeviceChoiceHooks,
    FailureLogHooks,
    QuantizationLogHooks,
    QuietHooks,
)
from flan_qa_pipeline.runtime.hooks.mlflow_log import MlflowHooks
from flan_qa_pipeline.runtime.hooks.outputs import OutputHooks
from flan_qa_pipeline.runtime.hooks.parameters import ParameterHooks
from flan_qa_pipeline.runtime.hooks.processes import ProcessHooks
from flan_qa_pipeline.runtime.hooks.promotion import PromotionHooks, ShippedAdapterHooks
from flan_qa_pipeline.runtime.hooks.results import ResultHooks
from flan_qa_pipeline.runtime.hooks.saved_inputs import SavedInputHooks
from flan_qa_pipeline.runtime.hooks.threads import ThreadHooks
from flan_qa_pipeline.runtime.launched import leads

run = CurrentRun()
in_order = (
    ParameterHooks(run),
    LoadVersionHooks(),
    ProcessHooks(run),
    QuietHooks(),
    ShippedAdapterHooks(run),
    InputHooks(run),
    PromotionHooks(run),
    HubInputHooks(run),
    SavedInputHooks(run),
    RunRecordHooks(run),
    ComparedRunHooks(run),
    NodeCostHooks(),
    DeviceChoiceHooks(run),
    QuantizationLogHooks(),
    OutputHooks(run),
    CheckpointHooks(run),
    ThreadHooks(),
    EvaluationHooks(),
    MlflowHooks(run),
    ResultHooks(run),
    GarbageHooks(),
    FailureLogHooks(),
    FailureHooks(),
)
HOOKS = tuple(reversed(in_order))  # pluggy calls the hooks registered last first

CONFIG_LOADER_CLASS = ProjectConfigLoader
CONFIG_LOADER_ARGS = {
    "base_env": "base",
    "default_run_env": "local",
    "merge_strategy": {"parameters": "soft", "globals": "soft"},
}

DATA_CATALOG_CLASS = AtomicCatalog

# .telemetry keeps the command line silent. A packaged run has no such file, and no project in which
# kedro-viz could keep its notes of a run.
DISABLE_HOOKS_FOR_PLUGINS: tuple[str, ...] = ("kedro-telemetry",)
project = find_kedro_project(Path.cwd())
if project is None:
    DISABLE_HOOKS_FOR_PLUGINS += ("kedro-viz",)
elif not (os.environ.get("KEDRO_LOGGING_CONFIG") or find_config_file("conf/logging")):
    # Kedro looks for this file in the current folder, which may lie below the project's.
    if path := find_config_file(str(project / "conf/logging")):
        LOGGING.configure(yaml.safe_load(path.read_text(encoding="utf-8")))
if not leads():  # of several processes, one logs
    DISABLE_HOOKS_FOR_PLUGINS += ("kedro_mlflow",)
