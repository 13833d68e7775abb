"""Hooks that refuse `--load-versions` of datasets that a run does not load."""

from typing import Any

from kedro.framework.hooks import hook_impl
from kedro.io import CatalogProtocol
from kedro.pipeline import Pipeline

from flan_qa_pipeline.errors import InputError
from flan_qa_pipeline.runtime import kedro_private


class LoadVersionHooks:
    """Checks that the run loads every dataset of which a version is named."""

    @hook_impl
    def before_pipeline_run(
        self, run_params: dict[str, Any], pipeline: Pipeline, catalog: CatalogProtocol[Any, Any]
    ) -> None:
        for name in sorted(run_params["load_versions"] or {}):
            if name in pipeline.all_outputs():
                problem = f"{name}, which this run makes instead of loading it"
            elif name not in pipeline.inputs():
                problem = f"{name}, which this run does not load"
            elif not kedro_private.is_versioned(catalog.get(name)):
                problem = f"{name}, which has no versions"
            else:
                continue
            loaded = sorted(
                name for name in pipeline.inputs() if kedro_private.is_versioned(catalog.get(name))
            )
            raise InputError(
                f"--load-versions names {problem}; leave it out (versions that this run loads: "
                f"{', '.join(loaded) or 'none'})."
            )
