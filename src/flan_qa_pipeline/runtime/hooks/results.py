"""Hooks that print the result of a run."""

from collections.abc import Callable
from pathlib import Path, PurePosixPath

from kedro.framework.hooks import hook_impl
from kedro.pipeline import Pipeline

from flan_qa_pipeline.runtime import kedro_private
from flan_qa_pipeline.runtime.atomic_catalog import AtomicCatalog
from flan_qa_pipeline.runtime.current_run import CurrentRun


class ResultHooks:
    """Shows the tables and the report that the catalog marks with `shown`, then what was saved."""

    def __init__(self, run: CurrentRun):
        self._run = run

    @hook_impl
    def after_pipeline_run(self, pipeline: Pipeline, catalog: AtomicCatalog) -> None:
        from accelerate import PartialState

        from flan_qa_pipeline.reporting.run_summary import print_sentences
        from flan_qa_pipeline.runtime.dataset_notes import notes_of

        if not PartialState().is_main_process:
            return
        outputs = [name for node in pipeline.nodes for name in node.outputs]
        made = [name for name in outputs if name in self._run.saved]
        shown = {name: notes_of(name, catalog.get(name)).shown for name in made}
        for kind, show in PRESENTATIONS.items():
            for name in made:
                if shown[name] == kind:
                    show(name, catalog, self._run)
        paths = {name for name in made if shown[name] == "path"}
        if saved := _describe(made, paths, catalog, self._run.project_path):
            print_sentences(saved, "Saved")


def _show_scores(name: str, catalog: AtomicCatalog, run: CurrentRun) -> None:
    from flan_qa_pipeline.evaluation.subject import subject
    from flan_qa_pipeline.reporting.figures import MODELS
    from flan_qa_pipeline.reporting.run_summary import (
        print_scores,
        print_sentences,
        without_gain,
    )
    from flan_qa_pipeline.reporting.tables import other_abstention_sentences

    given, table = run.parameters, catalog.load(name)
    title = subject(given.model, given.data, catalog.load("questions"))
    print_scores(table, MODELS, given.reporting.confidence, title)
    for sentence in other_abstention_sentences(catalog.load("question_table"), MODELS):
        print_sentences(sentence, "Wording")
    if nothing := without_gain(table):
        print_sentences(nothing, "No gain")


def _show_threshold(name: str, catalog: AtomicCatalog, run: CurrentRun) -> None:
    from flan_qa_pipeline.reporting.figures import MODELS
    from flan_qa_pipeline.reporting.run_summary import print_sentences, tuned

    if scores := tuned(catalog.load(name), MODELS[1]):
        print_sentences(scores, "Tuned")


def _show_comparison(name: str, catalog: AtomicCatalog, run: CurrentRun) -> None:
    from flan_qa_pipeline.reporting.figures import VERSIONS
    from flan_qa_pipeline.reporting.run_summary import print_scores

    given = run.parameters
    title = f"first: {given.compare.first}, second: {given.compare.second}"
    print_scores(catalog.load(name), VERSIONS, given.reporting.confidence, title)


def _show_differences(name: str, catalog: AtomicCatalog, run: CurrentRun) -> None:
    from flan_qa_pipeline.reporting.run_summary import print_table

    print_table(catalog.load(name), "Parameters that differ")


def _show_training(name: str, catalog: AtomicCatalog, run: CurrentRun) -> None:
    """Say that the adapter was trained on a part of the questions, unless of the starter corpus."""
    from flan_qa_pipeline.data.splits import describe_part
    from flan_qa_pipeline.evaluation.subject import recognized
    from flan_qa_pipeline.reporting.run_summary import print_sentences

    questions = catalog.load("questions")
    part = describe_part(questions["train"])
    if part and "train" not in recognized(questions):
        print_sentences(f"on {part}", "Trained")


def _show_rejected(name: str, catalog: AtomicCatalog, run: CurrentRun) -> None:
    from flan_qa_pipeline.reporting.run_summary import print_sentences

    if number := len(catalog.load(name)):
        place = _relative(kedro_private.load_path(catalog[name]), run.project_path)
        records = "1 record" if number == 1 else f"{number:,} records"
        print_sentences(f"{records}, listed in {place}", "Rejected")


def _show_report(name: str, catalog: AtomicCatalog, run: CurrentRun) -> None:
    from flan_qa_pipeline.reporting.run_summary import print_next_steps
    from flan_qa_pipeline.runtime.saved_runs import comparable_versions

    place = _relative(kedro_private.load_path(catalog[name]), run.project_path)
    adapter = catalog.versions(["adapter"]).get("adapter")
    print_next_steps(place, adapter, comparable_versions(catalog))


def _describe(made: list[str], paths: set[str], catalog: AtomicCatalog, project: Path) -> str:
    """List what a run saved; "" if it saved nothing.

    Args:
        made: the outputs that nodes have saved.
        paths: those of which the path of the saved version is given.
        catalog: the run's catalog.
        project: the folder that other paths are relative to.
    """
    from flan_qa_pipeline.reporting.run_summary import describe_saved

    version, places, whole = None, [], []
    for name in made:
        dataset = catalog.get(name)
        if name in paths:
            whole.append(_relative(kedro_private.load_path(catalog[name]), project))
        elif (place := kedro_private.place_of(dataset)) is not None:
            places.append(_relative(place, project))
            if kedro_private.is_versioned(dataset):
                version = kedro_private.save_version(dataset)
    return describe_saved(whole, places, version)


def _relative(place: PurePosixPath | None, project: Path) -> str:
    inside = place is not None and Path(place).is_relative_to(project)
    return str(Path(str(place)).relative_to(project)) if inside else str(place)


PRESENTATIONS: dict[str, Callable[[str, AtomicCatalog, CurrentRun], None]] = {
    "scores": _show_scores,
    "threshold": _show_threshold,
    "differences": _show_differences,
    "comparison": _show_comparison,
    "training": _show_training,
    "rejected": _show_rejected,
    "report": _show_report,
}
