"""What a run adds to the MLflow run of kedro-mlflow."""

from unittest.mock import Mock

import pandas as pd
import pytest
from kedro.pipeline import Pipeline, node
from kedro_datasets.json import JSONDataset
from kedro_datasets.text import TextDataset

from flan_qa_pipeline.datasets.previewed import TableDataset
from flan_qa_pipeline.runtime.atomic_catalog import AtomicCatalog
from flan_qa_pipeline.runtime.current_run import CurrentRun
from flan_qa_pipeline.runtime.hooks.mlflow_log import MlflowHooks, cost_metrics, score_metrics

SCORES = pd.DataFrame({"subset": ["overall", "NoAns"], "questions": [4, 2], "EM gain": [50.0, 0.5]})
COSTS = pd.DataFrame(
    [("memory", "peak of this run, process", 7.5, "MiB"), ("speed", "training", 3.0, "samples/s")],
    columns=["kind", "quantity", "value", "unit"],
)


def test_metrics_are_named_after_rows_and_columns():
    assert score_metrics(SCORES) == {
        "overall/questions": 4.0,
        "overall/EM gain": 50.0,
        "NoAns/questions": 2.0,
        "NoAns/EM gain": 0.5,
    }
    assert cost_metrics(COSTS) == {
        "memory/peak of this run, process MiB": 7.5,
        "speed/training samples/s": 3.0,
    }


@pytest.fixture
def run_of_three_outputs(tmp_path):
    catalog = AtomicCatalog(
        {
            "score_table": TableDataset(filepath=str(tmp_path / "score_table.csv")),
            "cost_table": TableDataset(filepath=str(tmp_path / "cost_table.csv")),
            "report": TextDataset(filepath=str(tmp_path / "report.html")),
            "node_times": TableDataset(filepath=str(tmp_path / "node_times.csv")),
            "run_details": JSONDataset(filepath=str(tmp_path / "run_details.json")),
        }
    )
    for name, content in {"score_table": SCORES, "cost_table": COSTS, "report": "<p>"}.items():
        catalog.save(name, content)
    names = ["score_table", "cost_table", "report"]
    pipeline = Pipeline([node(lambda lora: (lora,) * 3, "params:lora.r", names, name="all")])
    return pipeline, catalog


def hooks_of(parameters):
    run = CurrentRun(saved={"score_table", "cost_table", "report"})
    run.parameters = parameters
    return MlflowHooks(run)


def test_without_an_mlflow_run_nothing_happens(parameters, run_of_three_outputs):
    pipeline, catalog = run_of_three_outputs
    catalog.load = Mock(side_effect=AssertionError("an output was read to be logged"))
    hooks = hooks_of(parameters)
    hooks.before_pipeline_run()
    hooks.after_pipeline_run({"run_id": "v1"}, pipeline, catalog)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # mlflow's, about its database
def test_parameters_metrics_tables_and_report_are_logged(
    parameters, run_of_three_outputs, tmp_path
):
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed (.[mlflow])")
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/runs.db")
    mlflow.set_experiment(experiment_id=mlflow.create_experiment("e", (tmp_path / "a").as_uri()))
    pipeline, catalog = run_of_three_outputs
    hooks = hooks_of(parameters)
    with mlflow.start_run() as started:
        hooks.before_pipeline_run()
    hooks.after_pipeline_run({"run_id": "v1"}, pipeline, catalog)
    client, id_ = mlflow.MlflowClient(), started.info.run_id
    run = client.get_run(id_)
    assert run.info.run_name == "v1"
    assert run.data.params["training.learning_rate"] == str(parameters.training.learning_rate)
    assert "lora.alpha" in run.data.params
    assert "lora.r" not in run.data.params  # kedro-mlflow logs what a node reads
    assert run.data.metrics["overall/EM gain"] == 50.0
    assert run.data.metrics["memory/peak of this run process MiB"] == 7.5
    logged = {
        file.path for place in ("tables", "pages") for file in client.list_artifacts(id_, place)
    }
    assert logged == {"tables/score_table.csv", "tables/cost_table.csv", "pages/report.html"}
