"""The saved versions of a project's runs, read from its catalog."""

import json
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pandas as pd
from kedro.io.core import Version, VersionNotFoundError

from flan_qa_pipeline.datasets.reading import load
from flan_qa_pipeline.evaluation.breakdown import METRICS
from flan_qa_pipeline.models.adapter import TRAINING
from flan_qa_pipeline.reporting.figures import MODELS
from flan_qa_pipeline.reporting.runs import SavedRun
from flan_qa_pipeline.runtime import kedro_private
from flan_qa_pipeline.runtime.atomic_catalog import AtomicCatalog
from flan_qa_pipeline.runtime.hooks.costs import RUN_DETAILS

OF_THE_TRAINING = ("data", "model", "prompt", "tokenization", "lora", "training")


def scored_versions(catalog: AtomicCatalog) -> list[str]:
    """List the versions that saved scores, newest first."""
    return _versions_of(catalog, "score_table")


def comparable_versions(catalog: AtomicCatalog) -> list[str]:
    """List the versions that saved what the pipeline `compare` reads, newest first."""
    costs = set(_versions_of(catalog, "cost_table"))
    return [version for version in _versions_of(catalog, "question_table") if version in costs]


def _versions_of(catalog: AtomicCatalog, name: str) -> list[str]:
    with suppress(VersionNotFoundError):
        table: Any = catalog[name]
        return list(table.list_versions(full_path=False))
    return []


def read_runs(
    catalog: AtomicCatalog, versions: Iterable[str], promoted: str | None = None
) -> list[SavedRun]:
    """Read what these versions saved; what a version did not save stays empty.

    Args:
        catalog: the project's catalog.
        versions: the versions to read.
        promoted: the version of the adapter that is marked as the promoted one.

    Raises:
        InputError: a file is there but cannot be read.
    """
    return [_read_run(catalog, version, promoted) for version in versions]


def _read_run(catalog: AtomicCatalog, version: str, promoted: str | None) -> SavedRun:
    details = _saved(catalog, RUN_DETAILS, version) or {}
    adapter = details.get("loaded", {}).get("adapter", version)
    training = _training(catalog, adapter)
    trained = (training or {}).get("run", {}).get("parameters", {})
    parameters = details.get("parameters", {}) | {
        section: trained[section] for section in OF_THE_TRAINING if section in trained
    }
    times = _saved(catalog, "node_times", version)
    return SavedRun(
        version=version,
        adapter=adapter if training else None,
        promoted=training is not None and adapter == promoted,
        parameters=parameters or trained,
        training=training or {},
        scores=_scores(_saved(catalog, "score_table", version)),
        seconds=None if times is None else times["seconds"].sum(),
        memory_mib=None if times is None else _peak(times),
    )


def _saved(catalog: AtomicCatalog, name: str, version: str) -> Any:
    """Load a version of a dataset; None if there is none."""
    dataset = catalog.get(name, version=Version(version, None))
    return load(dataset) if dataset is not None and dataset.exists() else None


def _training(catalog: AtomicCatalog, version: str) -> dict[str, Any] | None:
    """Read an adapter's record of its training, without its weights."""
    dataset = catalog.get("adapter", version=Version(version, None))
    path = Path(str(kedro_private.load_path(dataset)), TRAINING) if dataset is not None else None
    if path is None or not path.is_file():
        return None
    record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return record


def _scores(table: pd.DataFrame | None) -> dict[str, dict[str, float]]:
    if table is None:
        return {}
    return {
        row["subset"]: {metric: row[f"{metric} {MODELS[1]}"] for metric in METRICS}
        for row in table.to_dict("records")
    }


def _peak(times: pd.DataFrame) -> float:
    peaks = times.filter(regex="^peak MiB").max()
    return float(peaks.get("peak MiB, GPU", peaks.max()))
