"""Hooks that check parameters before anything runs."""

import difflib
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from kedro.framework.hooks import hook_impl
from kedro.pipeline import Pipeline

from flan_qa_pipeline.errors import InputError
from flan_qa_pipeline.runtime import node_tags
from flan_qa_pipeline.runtime.current_run import CurrentRun

if TYPE_CHECKING:
    from kedro.framework.context import KedroContext


class ParameterHooks:
    """Checks all parameters at once, then whether this machine can train with them."""

    def __init__(self, run: CurrentRun):
        self._run = run

    @hook_impl
    def after_context_created(self, context: "KedroContext") -> None:
        from flan_qa_pipeline.config.parameters import named_files
        from flan_qa_pipeline.config.validation import check_parameters

        self._run.project_path = context.project_path
        self._run.parameters = check_parameters(context.config_loader["parameters"])
        named = named_files(self._run.parameters).values()
        check_globals(context.config_loader["globals"], {file.global_name for file in named})

    @hook_impl
    def before_pipeline_run(self, pipeline: Pipeline) -> None:
        from accelerate import PartialState

        from flan_qa_pipeline.training.requirements import require_trainable

        if any(node_tags.TRAINS in node.tags for node in pipeline.nodes):
            require_trainable(self._run.parameters, PartialState().num_processes)


def check_globals(given: Mapping[str, Any], known: Iterable[str]) -> None:
    """Check that no global is a misspelt one; an environment may add others.

    Args:
        given: the globals of the configuration.
        known: the names of the globals that the project's catalog and parameters use.

    Raises:
        InputError: names the misspelt global and the nearest known one.
    """
    for name in given.keys() - known:
        for near in difflib.get_close_matches(name, known, n=1, cutoff=0.8):
            raise InputError(f"Unknown global {name}: did you mean {near}? (conf/*/globals.yml)")
