"""Project settings; see https://docs.kedro.org/en/stable/configure/configuration_basics/."""
# ruff: noqa: E402, Ctrl+C and the launcher's death end a command while these imports run, too

from flan_qa_pipeline.runtime import interruption, orphans

interruption.end_at_once()
orphans.end_with_launcher()

from pathlib import Path

from kedro.utils import find_kedro_project

from flan_qa_pipeline.runtime.atomic_catalog import AtomicCatalog
from flan_qa_pipeline.runtime.hooks import ProjectHooks

HOOKS = (ProjectHooks(),)

DATA_CATALOG_CLASS = AtomicCatalog

# .telemetry keeps the command line silent; a packaged run has no such file, nor a project around
# it in which kedro-viz could keep what it notes of a run.
DISABLE_HOOKS_FOR_PLUGINS: tuple[str, ...] = ("kedro-telemetry",)
if find_kedro_project(Path.cwd()) is None:
    DISABLE_HOOKS_FOR_PLUGINS += ("kedro-viz",)

CONFIG_LOADER_ARGS = {
    "base_env": "base",
    "default_run_env": "local",
    "merge_strategy": {"parameters": "soft", "globals": "soft"},
}
