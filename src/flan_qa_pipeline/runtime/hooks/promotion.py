"""Hooks that choose the adapter that answers, and promote a better one."""

import logging
from typing import TYPE_CHECKING, Any

from kedro.framework.hooks import hook_impl
from kedro.io import CachedDataset
from kedro.pipeline import Pipeline

from flan_qa_pipeline.errors import InputError
from flan_qa_pipeline.runtime import kedro_private, node_tags
from flan_qa_pipeline.runtime.current_run import CurrentRun

if TYPE_CHECKING:
    from flan_qa_pipeline.evaluation.adapter_scores import DevScore
    from flan_qa_pipeline.models.adapter import Adapter
    from flan_qa_pipeline.runtime.atomic_catalog import AtomicCatalog

logger = logging.getLogger(__name__)


class ShippedAdapterHooks:
    """Lets the adapter that ships with the base answer new questions where none is saved.

    It is loaded once, to be checked, and stays in memory for the node that uses it.
    """

    def __init__(self, run: CurrentRun):
        self._run = run

    @hook_impl
    def before_pipeline_run(self, pipeline: Pipeline, catalog: "AtomicCatalog") -> None:
        from flan_qa_pipeline.datasets.promotion import (
            ADAPTER,
            SHIPPED,
            answers_as_shipped,
            load_shipped,
        )

        using = [node for node in pipeline.nodes if ADAPTER in node.inputs]
        new_questions = using and all(
            node_tags.ANSWERS_NEW_QUESTIONS in node.tags for node in using
        )
        if new_questions and ADAPTER in pipeline.inputs() and answers_as_shipped(catalog):
            shipped = CachedDataset(catalog[SHIPPED], copy_mode="assign")
            for name in (SHIPPED, ADAPTER):
                kedro_private.replace(catalog, name, shipped)
            load_shipped(catalog, self._run.parameters.model)


class PromotionHooks:
    """Pins the adapter that a run answers with; promotes one that a run has trained.

    A run that answers new questions or merges uses the promoted version, unless
    `--load-versions` names one. A run that scores the questions with which the latest adapter was
    trained uses that one.
    """

    def __init__(self, run: CurrentRun):
        self._run = run

    @hook_impl
    def before_pipeline_run(
        self, run_params: dict[str, Any], pipeline: Pipeline, catalog: "AtomicCatalog"
    ) -> None:
        from accelerate import PartialState

        from flan_qa_pipeline.datasets.promotion import (
            ADAPTER,
            AS_SHIPPED,
            load_answering_adapter,
            promoted_version,
        )

        inputs = pipeline.inputs()
        answers = any(
            ADAPTER in node.inputs and node.tags & node_tags.USES_ADAPTER for node in pipeline.nodes
        )
        if ADAPTER not in inputs or not answers or not PartialState().is_main_process:
            return
        version, why = (run_params["load_versions"] or {}).get(ADAPTER), "named"
        if version is None and "tokenized_questions" in inputs and _latest_was_trained_on(catalog):
            version = catalog.versions([ADAPTER]).get(ADAPTER)
            why = "the latest, trained on these questions"
        elif version is None and promoted_version(catalog) == AS_SHIPPED:
            version = catalog.versions([ADAPTER]).get(ADAPTER)
            why = "the latest; the promoted one, which ships with the base, only answers questions"
        chosen = load_answering_adapter(catalog, version, why)
        if kedro_private.is_versioned(catalog[ADAPTER]):
            catalog.pin(ADAPTER, chosen.version)
        logger.info("%s", chosen.origin)

    @hook_impl
    def after_pipeline_run(self, catalog: "AtomicCatalog") -> None:
        from accelerate import PartialState

        from flan_qa_pipeline.datasets.promotion import ADAPTER, PROMOTED

        trained = ADAPTER in self._run.saved and PROMOTED in catalog
        if not (trained and PartialState().is_main_process):
            return
        dataset = catalog[ADAPTER]
        version = kedro_private.is_versioned(dataset) and kedro_private.save_version(dataset)
        if version:
            _promote_if_better(catalog, catalog.load(ADAPTER), version)


def _latest_was_trained_on(catalog: "AtomicCatalog") -> bool:
    """Whether the latest adapter was trained on the questions that this run loads."""
    from flan_qa_pipeline.data.tokenized import fingerprints_of
    from flan_qa_pipeline.datasets.promotion import ADAPTER
    from flan_qa_pipeline.datasets.reading import load
    from flan_qa_pipeline.evaluation.adapter_scores import training_questions

    loaded = fingerprints_of(load(catalog["tokenized_questions"]))
    return training_questions(load(catalog[ADAPTER]).training) == loaded.get("train")


def _promote_if_better(catalog: "AtomicCatalog", adapter: "Adapter", version: str) -> None:
    """Promote a new version if none is promoted or if it is better on the same dev questions."""
    from flan_qa_pipeline.datasets.promotion import (
        AS_SHIPPED,
        PROMOTED,
        load_promoted,
        promoted_version,
        ships,
    )
    from flan_qa_pipeline.evaluation.adapter_scores import dev_score

    new = dev_score(adapter.provenance, adapter.training)
    by_hand = f"`kedro promote {version}` makes this one answer"
    if new is None:
        logger.info("Not promoted: no dev F1 was recorded; %s.", by_hand)
        return
    try:
        promoted = promoted_version(catalog)
        if promoted == AS_SHIPPED:
            logger.info("Not promoted: the adapter that ships stays; %s.", by_hand)
            return
        before = load_promoted(catalog, promoted) if promoted else None
    except InputError as error:
        logger.warning("Not promoted: %s (%s.)", error, by_hand)
        return
    why = "none was promoted before"
    if ships(catalog):
        why = "`kedro promote shipped` brings back the adapter that ships with the base"
    if before is not None:
        old = dev_score(before.provenance, before.training)
        if reason := _against(new, old):
            logger.info("Not promoted: %s stays, %s; %s.", promoted, reason, by_hand)
            return
        why = f"better on dev questions than {promoted}"
    catalog.save(PROMOTED, version)
    logger.info("Promoted: version %s answers from now on; %s.", version, why)


def _against(new: "DevScore", old: "DevScore | None") -> str | None:
    """Say how the promoted version stands against promoting a new one; None if it does not."""
    if old is None:
        return "without a dev F1"
    if old.base != new.base:
        return "on another base"
    if old.questions != new.questions:
        return "with other dev questions"
    return f"with a dev F1 of {old.f1:.2f}" if new.f1 <= old.f1 else None
