"""Hooks that check whether saved inputs belong to the parameters of a run."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kedro.framework.hooks import hook_impl
from kedro.io.core import Version
from kedro.pipeline import Pipeline

from flan_qa_pipeline.runtime.current_run import CurrentRun

if TYPE_CHECKING:
    from flan_qa_pipeline.runtime.atomic_catalog import AtomicCatalog

logger = logging.getLogger(__name__)


class SavedInputHooks:
    """Refuses windows or an adapter that an earlier run made with other parameters or weights.

    Warns of parameters given to this run that the makers of the saved inputs did not have.
    """

    def __init__(self, run: CurrentRun):
        self._run = run

    @hook_impl
    def before_pipeline_run(
        self, run_params: dict[str, Any], pipeline: Pipeline, catalog: "AtomicCatalog"
    ) -> None:
        from accelerate import PartialState

        from flan_qa_pipeline.data.splits import describe_splits
        from flan_qa_pipeline.data.tokenized import made_with, require_made_with
        from flan_qa_pipeline.datasets.reading import load
        from flan_qa_pipeline.files import weight_digests
        from flan_qa_pipeline.models.adapter import (
            provenance_of,
            require_same_weights,
            require_trained_with,
        )
        from flan_qa_pipeline.models.loading import load_tokenizer

        if not PartialState().is_main_process:
            return
        inputs, given = pipeline.inputs(), self._run.parameters
        if "questions" in inputs:
            version = catalog.versions(["questions"]).get("questions")
            splits = describe_splits(load(catalog["questions"]))
            logger.info("Questions of version %s: %s.", version, splits)
        if "tokenized_questions" in inputs:
            tokenizer = load_tokenizer(given.model)
            require_made_with(
                load(catalog["tokenized_questions"]),
                made_with(tokenizer, given.prompt, given.tokenization, given.data),
            )
        if {"adapter", "params:model", "params:prompt"} <= inputs:
            adapter = load(catalog["adapter"])
            require_trained_with(adapter, provenance_of(given.model, given.prompt))
            base = given.model.name
            require_same_weights(adapter, base, weight_digests(Path(base)))
        self._warn_of_unused(run_params["runtime_params"] or {}, inputs, catalog)

    def _warn_of_unused(
        self, given: dict[str, Any], inputs: set[str], catalog: "AtomicCatalog"
    ) -> None:
        """Warn of given parameters with other values than made the questions or the adapter."""
        parameters = self._run.parameters.model_dump(mode="json")

        def differing(section: str, made: Mapping[str, Any]) -> list[str]:
            keys = given.get(section, {})
            return [f"{section}.{k}" for k in keys if made.get(k) != parameters[section].get(k)]

        if "questions" in inputs and "data" in given:
            if changed := differing("data", _data_parameters(catalog)):
                logger.warning(
                    "This run reads the saved questions, which %s does not change; "
                    "--pipelines=data_engineering makes new ones.",
                    ", ".join(changed),
                )
        unread = [name for name in ("lora", "training") if f"params:{name}" not in inputs]
        if "adapter" in inputs and given.keys() & set(unread):
            made = _training_parameters(catalog)
            changed = [name for part in unread for name in differing(part, made.get(part, {}))]
            if changed := [name for name in changed if not name.endswith("_dir")]:
                logger.warning(
                    "This run reads a saved adapter, which %s does not change; "
                    "--pipelines=modeling trains a new one.",
                    ", ".join(changed),
                )


def _data_parameters(catalog: "AtomicCatalog") -> dict[str, Any]:
    """Return the parameters that made the questions that a run loads; {} if not recorded."""
    from flan_qa_pipeline.data.tokenized import data_parameters_of
    from flan_qa_pipeline.datasets.reading import load

    version = catalog.versions(["questions"]).get("questions")
    windows = catalog.get("tokenized_questions", version=Version(version, None))
    return data_parameters_of(load(windows)) if windows and windows.exists() else {}


def _training_parameters(catalog: "AtomicCatalog") -> dict[str, Any]:
    """Return the parameters of the run that trained an adapter; {} if not recorded."""
    from flan_qa_pipeline.datasets.reading import load

    parameters = load(catalog["adapter"]).training.get("run", {}).get("parameters")
    return parameters if isinstance(parameters, dict) else {}
