"""Hooks that check whether saved inputs belong to the parameters of a run."""

from typing import Any

from kedro.framework.hooks import hook_impl
from kedro.io import CatalogProtocol
from kedro.pipeline import Pipeline

from flan_qa_pipeline.runtime.current_run import CurrentRun


class SavedInputHooks:
    """Refuses windows or an adapter that an earlier run made with other parameters."""

    def __init__(self, run: CurrentRun):
        self._run = run

    @hook_impl
    def before_pipeline_run(self, pipeline: Pipeline, catalog: CatalogProtocol[Any, Any]) -> None:
        from accelerate import PartialState

        from flan_qa_pipeline.data.tokenized import made_with, require_made_with
        from flan_qa_pipeline.datasets.reading import load
        from flan_qa_pipeline.models.adapter import provenance_of, require_trained_with
        from flan_qa_pipeline.models.loading import load_tokenizer

        if not PartialState().is_main_process:
            return
        inputs, given = pipeline.inputs(), self._run.parameters
        if "tokenized_questions" in inputs:
            tokenizer = load_tokenizer(given.model)
            require_made_with(
                load(catalog["tokenized_questions"]),
                made_with(tokenizer, given.prompt, given.tokenization, given.data),
            )
        if {"adapter", "params:model", "params:prompt"} <= inputs:
            adapter = load(catalog["adapter"])
            require_trained_with(adapter, provenance_of(given.model, given.prompt))
