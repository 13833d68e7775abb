"""Run pipelines in a copy of the project and read what they save."""

from pathlib import Path

import pandas as pd
from kedro.framework.session import KedroSession

SELECT = ["data_engineering.apply_unanswerable_policy"]
VERSIONED = {
    "questions": "03_primary/questions",
    "tokenized_questions": "05_model_input/tokenized_questions",
    "adapter": "06_models/adapter",
    "finetuned_predictions": "07_model_output/finetuned_predictions.parquet",
    "score_table": "08_reporting/score_table.csv",
}


def run(project: Path, parameters: dict, *pipelines: str, env: str | None = None, **kwargs) -> str:
    """Run pipelines as `kedro run` does; return the version that the run saved under."""
    with KedroSession.create(project_path=project, env=env, runtime_params=parameters) as session:
        session.run(pipeline_names=list(pipelines) or None, **kwargs)
        return session.session_id


def versions(project: Path) -> dict[str, set[str]]:
    return {
        name: {path.name for path in (project / "data" / folder).glob("*")}
        for name, folder in VERSIONED.items()
    }


def load(project: Path, dataset: str, version: str):
    folder = project / "data" / VERSIONED[dataset]
    path = folder / version / folder.name
    return pd.read_csv(path) if path.suffix == ".csv" else pd.read_parquet(path)


def read(project: Path, name: str, version: str) -> str:
    return (project / f"data/08_reporting/{name}/{version}/{name}").read_text(encoding="utf-8")
