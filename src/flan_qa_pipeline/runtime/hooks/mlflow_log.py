"""Hooks that add a run's parameters, scores, tables and pages to the MLflow run of kedro-mlflow."""

import re
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kedro.framework.hooks import hook_impl
from kedro.io import CatalogProtocol
from kedro.pipeline import Pipeline

from flan_qa_pipeline.runtime import kedro_private
from flan_qa_pipeline.runtime.current_run import CurrentRun
from flan_qa_pipeline.runtime.hooks.costs import NODE_TIMES, RUN_DETAILS

if TYPE_CHECKING:
    import pandas as pd

FOLDERS = {".csv": "tables", ".md": "tables", ".html": "pages", ".json": "records and figures"}
NOT_IN_METRICS = re.compile(r"[^\w\-. :/]")
Catalog = CatalogProtocol[Any, Any]


class MlflowHooks:
    """Logs to the MLflow run that kedro-mlflow has started, if it is installed.

    kedro-mlflow logs whole sections of parameters, and datasets only through its own classes.
    This adds each parameter by name, scores and costs as metrics, and the run's tables, figures and
    pages as artifacts.
    """

    def __init__(self, run: CurrentRun):
        self._run = run
        self._id: str | None = None

    @hook_impl
    def before_pipeline_run(self) -> None:
        mlflow = sys.modules.get("mlflow")
        active = mlflow.active_run() if mlflow else None
        self._id = active.info.run_id if active else None

    @hook_impl
    def after_pipeline_run(
        self, run_params: dict[str, Any], pipeline: Pipeline, catalog: Catalog
    ) -> None:
        """Log to the run by its id, since kedro-mlflow has ended it by now."""
        if self._id is None:
            return
        from mlflow import MlflowClient

        from flan_qa_pipeline.reporting.runs import flat_parameters

        client, made = MlflowClient(), self._run.saved | {NODE_TIMES, RUN_DETAILS}
        client.update_run(self._id, name=run_params["run_id"])
        logged = {name.removeprefix("params:") for name in pipeline.inputs()}
        for name, value in flat_parameters(self._run.parameters.model_dump()).items():
            if name not in logged:
                client.log_param(self._id, name, value)
        for name in METRICS_OF.keys() & made:
            for metric, number in METRICS_OF[name](catalog.load(name)).items():
                client.log_metric(self._id, NOT_IN_METRICS.sub("", metric), number)
        for path in _files(catalog, made):
            client.log_artifact(self._id, str(path), FOLDERS[path.suffix])


def _files(catalog: Catalog, names: Iterable[str]) -> Iterable[Path]:
    for name in sorted(names):
        dataset = catalog.get(name)
        place = kedro_private.place_of(dataset)
        is_logged = dataset is not None and place is not None and place.suffix in FOLDERS
        if is_logged and catalog.exists(name):
            path = Path(str(kedro_private.load_path(catalog[name])))
            if path.is_file():  # and not in an object store
                yield path


def score_metrics(table: "pd.DataFrame") -> Mapping[str, float]:
    """Name every score, such as `overall/EM fine-tuned`."""
    return {
        f"{row['subset']}/{column}": float(value)
        for row in table.to_dict("records")
        for column, value in row.items()
        if column != "subset"
    }


def cost_metrics(table: "pd.DataFrame") -> Mapping[str, float]:
    """Name every cost with its unit, such as `speed/training samples/s`."""
    return {
        f"{row['kind']}/{row['quantity']} {row['unit']}": float(row["value"])
        for row in table.to_dict("records")
    }


METRICS_OF: dict[str, Callable[["pd.DataFrame"], Mapping[str, float]]] = {
    "score_table": score_metrics,
    "cost_table": cost_metrics,
}
