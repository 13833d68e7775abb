"""Hooks that print the result of a run."""

from typing import Any

import click
from kedro.framework.hooks import hook_impl
from kedro.io import CatalogProtocol
from kedro.pipeline import Pipeline

from flan_qa_pipeline.runtime import kedro_private
from flan_qa_pipeline.runtime.dataset_notes import notes_of


class ResultHooks:
    """Prints the tables and paths that the catalog marks with `shown`, tables first."""

    @hook_impl
    def after_pipeline_run(self, pipeline: Pipeline, catalog: CatalogProtocol[Any, Any]) -> None:
        from accelerate import PartialState

        if not PartialState().is_main_process:
            return
        made = [name for node in pipeline.nodes for name in node.outputs]
        shown = {name: notes_of(name, catalog.get(name)).shown for name in made}
        for name in made:
            if shown[name] == "content":
                place = kedro_private.load_path(catalog[name])
                click.echo(f"\n{catalog.load(name)}\n{place}")
        for name in made:
            if shown[name] == "path":
                click.echo(kedro_private.load_path(catalog[name]))
