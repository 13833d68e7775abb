"""Hooks that log how torch uses the CPU."""

import logging

from kedro.framework.hooks import hook_impl
from kedro.pipeline import Pipeline

from flan_qa_pipeline.runtime import node_tags, threads

logger = logging.getLogger(__name__)


class ThreadHooks:
    """Logs the number of CPU threads and how they wait, if a node computes with a model."""

    @hook_impl
    def before_pipeline_run(self, pipeline: Pipeline) -> None:
        if not any(node.tags & node_tags.COMPUTES for node in pipeline.nodes):
            return
        import torch

        logger.info(
            "CPU threads: %d on %d usable cores (%s).",
            torch.get_num_threads(),
            threads.available_cores(),
            threads.describe(),
        )
