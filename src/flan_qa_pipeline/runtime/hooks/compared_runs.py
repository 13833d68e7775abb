"""Hooks that read what two compared versions were made with."""

from kedro.framework.hooks import hook_impl
from kedro.pipeline import Pipeline

from flan_qa_pipeline.runtime.atomic_catalog import AtomicCatalog
from flan_qa_pipeline.runtime.current_run import CurrentRun

COMPARED_RUNS = "compared_runs"


class ComparedRunHooks:
    """Gives both versions of a comparison to its nodes."""

    def __init__(self, run: CurrentRun):
        self._run = run

    @hook_impl
    def before_pipeline_run(self, pipeline: Pipeline, catalog: AtomicCatalog) -> None:
        if COMPARED_RUNS not in pipeline.inputs():
            return
        from flan_qa_pipeline.runtime.saved_runs import read_runs

        compare = self._run.parameters.compare
        versions = [version for version in (compare.first, compare.second) if version]
        catalog.save(COMPARED_RUNS, read_runs(catalog, versions))
