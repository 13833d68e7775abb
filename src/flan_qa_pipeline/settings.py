"""Project settings; see https://docs.kedro.org/en/stable/configure/configuration_basics/."""

from flan_qa_pipeline.hooks import ProjectHooks
from flan_qa_pipeline.storage import AtomicCatalog

HOOKS = (ProjectHooks(),)

DATA_CATALOG_CLASS = AtomicCatalog

# .telemetry keeps the command line silent; a packaged run has no such file.
DISABLE_HOOKS_FOR_PLUGINS = ("kedro-telemetry",)

CONFIG_LOADER_ARGS = {
    "base_env": "base",
    "default_run_env": "local",
    "merge_strategy": {"parameters": "soft", "globals": "soft"},
}
