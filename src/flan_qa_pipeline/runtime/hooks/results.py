"""Hooks that print the result of a run."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click
from kedro.framework.hooks import hook_impl
from kedro.io import CatalogProtocol
from kedro.pipeline import Pipeline

from flan_qa_pipeline.runtime import kedro_private
from flan_qa_pipeline.runtime.current_run import CurrentRun

if TYPE_CHECKING:
    from flan_qa_pipeline.config.parameters import Parameters

Catalog = CatalogProtocol[Any, Any]


class ResultHooks:
    """Shows the datasets that the catalog marks with `shown`: tables, the report, then paths."""

    def __init__(self, run: CurrentRun):
        self._run = run

    @hook_impl
    def after_pipeline_run(self, pipeline: Pipeline, catalog: Catalog) -> None:
        from accelerate import PartialState

        from flan_qa_pipeline.runtime.dataset_notes import notes_of

        if not PartialState().is_main_process:
            return
        made = [name for node in pipeline.nodes for name in node.outputs]
        shown = {name: notes_of(name, catalog.get(name)).shown for name in made}
        for kind, show in PRESENTATIONS.items():
            for name in made:
                if shown[name] == kind:
                    show(name, catalog, self._run.parameters)


def _show_scores(name: str, catalog: Catalog, given: "Parameters") -> None:
    from flan_qa_pipeline.evaluation.subject import subject
    from flan_qa_pipeline.reporting.figures import MODELS
    from flan_qa_pipeline.reporting.run_summary import print_scores

    title = subject(given.model, given.data)
    print_scores(catalog.load(name), MODELS, given.reporting.confidence, title)


def _show_comparison(name: str, catalog: Catalog, given: "Parameters") -> None:
    from flan_qa_pipeline.pipelines.compare.nodes import LABELS
    from flan_qa_pipeline.reporting.run_summary import print_scores

    title = f"first: {given.compare.first}, second: {given.compare.second}"
    print_scores(catalog.load(name), LABELS, given.reporting.confidence, title)


def _show_report(name: str, catalog: Catalog, given: "Parameters") -> None:
    from flan_qa_pipeline.reporting.run_summary import print_next_steps

    place = str(kedro_private.load_path(catalog[name]))
    print_next_steps(place, catalog["adapter"].resolve_load_version())


def _show_path(name: str, catalog: Catalog, given: "Parameters") -> None:
    click.echo(kedro_private.load_path(catalog[name]))


PRESENTATIONS: dict[str, Callable[[str, Catalog, "Parameters"], None]] = {
    "scores": _show_scores,
    "comparison": _show_comparison,
    "report": _show_report,
    "path": _show_path,
}
