"""What concerns every run: parameters and input files checked first, logs, the table at the end."""

import difflib
import logging
import os
import sys
import time
from pathlib import Path
from typing import Any, get_args

import click
import datasets
import torch
import transformers
from kedro.framework.context import KedroContext
from kedro.framework.hooks import hook_impl
from kedro.io import CatalogProtocol, DatasetError
from kedro.pipeline import Pipeline
from kedro.pipeline.node import Node
from pydantic import ValidationError

from flan_qa_pipeline.costs import node_times, peak_memory
from flan_qa_pipeline.errors import InputError
from flan_qa_pipeline.models import resolve_compute_dtype
from flan_qa_pipeline.parameters import Parameters

logger = logging.getLogger(__name__)


class ProjectHooks:
    """Checks before a run, quiet libraries during it, its result after it."""

    @hook_impl
    def after_context_created(self, context: KedroContext) -> None:
        """Check all parameters at once; keep the libraries' bars and cache files out of sight."""
        parameters = check_parameters(context.config_loader["parameters"])
        self._logging_dir = Path(parameters.training.logging_dir)
        self._compute_dtype = parameters.model.compute_dtype
        self._raw_files = {
            "raw_train": context.project_path / parameters.data.train_file,
            "raw_validation": context.project_path / parameters.data.validation_file,
        }
        datasets.disable_progress_bars()
        datasets.disable_caching()
        transformers.logging.disable_progress_bar()
        for handler in logging.getLogger().handlers:
            handler.addFilter(_is_told_nowhere_else)

    @hook_impl
    def before_pipeline_run(
        self, run_params: dict[str, Any], pipeline: Pipeline, catalog: CatalogProtocol
    ) -> None:
        """Start the record of costs; check that inputs exist; name this run's TensorBoard logs."""
        self._node_costs: dict[str, dict[str, Any]] = {}
        if "node_costs" in pipeline.inputs():
            catalog.save("node_costs", self._node_costs)
        for name in sorted(pipeline.inputs()):
            if not name.startswith("params:") and name != "parameters":
                _require_same_file(name, catalog, self._raw_files.get(name))
                _require_input(name, catalog)
        os.environ["TENSORBOARD_LOGGING_DIR"] = str(self._logging_dir / run_params["run_id"])

    @hook_impl
    def before_node_run(self, node: Node) -> None:
        """Note when the node starts; tell the compute dtype before the base is first loaded."""
        self._node_costs[node.name] = {"started": time.perf_counter()}
        if self._compute_dtype == "auto" and node.tags & {"quantize", "predict"}:
            self._compute_dtype = resolve_compute_dtype("auto")
            logger.info(
                "Compute dtype auto: %s (this %s %s native bfloat16 matrix products).",
                self._compute_dtype,
                "GPU" if torch.cuda.is_available() else "CPU",
                "has" if self._compute_dtype is torch.bfloat16 else "has no",
            )

    @hook_impl
    def after_node_run(self, node: Node) -> None:
        """Note the node's wall time and the peak memory so far, for the table of costs."""
        seconds = time.perf_counter() - self._node_costs[node.name]["started"]
        self._node_costs[node.name] = {"seconds": seconds, "peak_memory": peak_memory()}

    @hook_impl
    def on_pipeline_error(self, error: Exception, catalog: CatalogProtocol) -> None:
        """Tell of a dataset that cannot be read or written in one line, without a traceback."""
        if isinstance(error, DatasetError):
            message = str(error)
            dataset = catalog.get(message.partition(":")[0])
            if hasattr(dataset, "_filepath"):
                message = message.replace(str(dataset), str(dataset._filepath))
            reason = " ".join(message.split()).rstrip(".")
            raise InputError(f"{reason}. Repair or replace the file, then run again.") from error

    @hook_impl
    def after_pipeline_run(self, pipeline: Pipeline, catalog: CatalogProtocol) -> None:
        """Save the times of all nodes; print the result's table and where it and the report are."""
        catalog.save("node_times", node_times(self._node_costs))
        for name in ("score_table_markdown", "comparison_table_markdown"):
            if name in pipeline.all_outputs():
                click.echo(f"\n{catalog.load(name)}\n{catalog.get(name)._get_load_path()}")
        for name in ("report", "comparison_report", "answers"):
            if name in pipeline.all_outputs():
                click.echo(catalog.get(name)._get_load_path())


def _is_told_nowhere_else(record: logging.LogRecord) -> bool:
    """Drop what Kedro logs of an error that `kedro run` prints in one sentence at its end."""
    passing = isinstance(sys.exc_info()[1], InputError | DatasetError)
    return not (passing and record.name.startswith("kedro."))


def check_parameters(raw: dict[str, Any]) -> Parameters:
    """Check the parameters of all files and of `--params` against their models.

    Raises:
        InputError: names every unknown or invalid parameter, with the nearest known name.
    """
    try:
        return Parameters.model_validate(raw)
    except ValidationError as error:
        problems = {_place(problem): _explain(problem) for problem in error.errors()}
        raise InputError(
            f"{'; '.join(problems.values())} (conf/*/parameters*.yml or --params)."
        ) from None


def _place(problem: dict[str, Any]) -> str:
    """Join the location's keys and list indices; pydantic adds tags of the types it tried."""
    parts = (str(part) for part in problem["loc"])
    return ".".join(part for part in parts if part.isidentifier() or part.isdigit())


def _explain(problem: dict[str, Any]) -> str:
    place = _place(problem)
    if problem["type"] == "extra_forbidden":
        *section, name = place.split(".")
        known = _fields_at(section)
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known here: {', '.join(known)}"
        return f"Unknown parameter {place}: {hint}"
    if problem["type"] == "missing":
        return f"Parameter {place} is missing"
    reason = problem["msg"].removeprefix("Value error, ")
    return f"Parameter {place} is {problem['input']!r}: {reason}"


def _fields_at(section: list[str]) -> list[str]:
    model: Any = Parameters
    for name in section:
        if not name.isdigit():
            annotation = model.model_fields[name].annotation
            model = next(iter(get_args(annotation)), annotation)
    return list(model.model_fields)


def _require_same_file(name: str, catalog: CatalogProtocol, wanted: Path | None) -> None:
    """The catalog and the parameters name the file apart; an environment may change only one."""
    read = getattr(catalog.get(name), "_filepath", None) if name in catalog else None
    if wanted is not None and read is not None and Path(read) != wanted:
        file = name.replace("raw_", "") + "_file"
        raise InputError(
            f"data.{file} is {wanted}, but the catalog's {name} reads {read}; set {file} in "
            f"conf/<environment>/globals.yml or by --params=data.{file}=…, which changes both."
        )


def _require_input(name: str, catalog: CatalogProtocol) -> None:
    dataset = catalog.get(name) if name in catalog else None
    place = getattr(dataset, "_filepath", None)
    if name.startswith("raw_") and place is None:
        raise InputError(
            f"{name} is of type {type(dataset).__name__}, which reads no file, so that every run "
            "would fetch it; save the split once with load_dataset(…, split=…).save_to_disk(…) and "
            "read that folder with huggingface.ArrowDataset."
        )
    if dataset is not None and catalog.exists(name):
        return
    pinned = getattr(dataset, "_version", None)
    if pinned and pinned.load:
        place = Path(place) / pinned.load
    if place is None:
        raise InputError(f"{name} is not kept between runs; start the run at a node that makes it.")
    if name.startswith("raw_"):
        remedy = "set data.train_file and data.validation_file to SQuAD 2.0 JSON files"
    elif name == "new_questions":
        remedy = "name a file with --params=inference.questions_file=…"
    elif name.startswith(("first_", "second_")):
        saved = sorted(folder.name for folder in Path(place).parents[1].glob("*"))
        remedy = (
            "name two saved versions with --params=compare.first=…,compare.second=… "
            f"(saved: {', '.join(saved) or 'none yet'})"
        )
    else:
        remedy = "make it with `kedro run` or name an existing version with --load-versions"
    raise InputError(f"{name}: there is no {place}; {remedy}.")
