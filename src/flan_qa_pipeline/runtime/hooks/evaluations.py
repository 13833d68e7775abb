"""Hooks that find the scores of the adapter that a run uses."""

import logging
from typing import Any

from kedro.framework.hooks import hook_impl
from kedro.io import CatalogProtocol
from kedro.pipeline import Pipeline

ADAPTER_EVALUATION = "adapter_evaluation"

logger = logging.getLogger(__name__)


class EvaluationHooks:
    """Gives the adapter's newest evaluation, or {}, to the node that describes the adapter."""

    @hook_impl
    def before_pipeline_run(self, pipeline: Pipeline, catalog: CatalogProtocol[Any, Any]) -> None:
        if ADAPTER_EVALUATION not in pipeline.inputs():
            return
        from flan_qa_pipeline.datasets.reading import load, newest_evaluation

        version = load(catalog["adapter"]).training.get("run", {}).get("run_id")
        evaluation = newest_evaluation(catalog, version)
        if evaluation:
            logger.info("The model card has the scores of version %s.", evaluation["version"])
        else:
            logger.info(
                "The model card has no scores, for no evaluation of adapter %s is saved; "
                "kedro run --pipelines=evaluate makes one.",
                version,
            )
        catalog.save(ADAPTER_EVALUATION, evaluation)
