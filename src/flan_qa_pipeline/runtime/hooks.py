"""What concerns every run: parameters and input files checked first, logs, the table at the end."""

import difflib
import logging
import os
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import click
import datasets
import torch
import transformers
from accelerate import PartialState
from kedro.framework.context import KedroContext
from kedro.framework.hooks import hook_impl
from kedro.io import CatalogProtocol, DatasetError
from kedro.pipeline import Pipeline
from kedro.pipeline.node import Node

from flan_qa_pipeline.config.parameters import DistributedParameters, Parameters
from flan_qa_pipeline.config.validation import check_parameters
from flan_qa_pipeline.data.filesystems import filesystem_of
from flan_qa_pipeline.data.row_files import RowFiles
from flan_qa_pipeline.data.tokenized import made_with, require_made_with
from flan_qa_pipeline.datasets.reading import in_a_sentence, load
from flan_qa_pipeline.errors import InputError, in_one_line
from flan_qa_pipeline.evaluation.run_costs import node_times
from flan_qa_pipeline.evaluation.subject import subject
from flan_qa_pipeline.hub import PROTOCOL, DataFiles, HubFiles, fetch
from flan_qa_pipeline.models.adapter import provenance_of, require_trained_with
from flan_qa_pipeline.models.device import peak_memory, resolve_attention, resolve_compute_dtype
from flan_qa_pipeline.models.exchange import broadcast_json
from flan_qa_pipeline.models.loading import check_base, hub_files, load_tokenizer
from flan_qa_pipeline.pipelines.compare.nodes import LABELS
from flan_qa_pipeline.reporting.figures import MODELS
from flan_qa_pipeline.reporting.run_summary import print_next_steps, print_scores
from flan_qa_pipeline.runtime.atomic_catalog import VersionNotSavedError
from flan_qa_pipeline.runtime.processes import DistributedRunner, is_one_of_several, join
from flan_qa_pipeline.runtime.provenance import git_commit, package_versions
from flan_qa_pipeline.training.checkpoints import discard_checkpoints
from flan_qa_pipeline.training.trainer import require_trainable

logger = logging.getLogger(__name__)

FILLED_IN = {"parameters", "node_costs", "run_record"}  # by Kedro and by the hooks


class ProjectHooks:
    """Checks before a run, quiet libraries during it, its result after it."""

    @hook_impl
    def after_context_created(self, context: KedroContext) -> None:
        """Check all parameters at once; keep the libraries' bars and cache files out of sight.

        Of several processes only the first one logs, and the others tell of errors.
        """
        parameters = check_parameters(context.config_loader["parameters"])
        leads = not is_one_of_several() or join(parameters.distributed).is_main_process
        self._parameters, self._project_path = parameters, context.project_path
        self._told_choices = False
        self._named_files = {  # dataset: the parameter that names its file, and that file
            "raw_train": ("data.train_file", parameters.data.train_file),
            "raw_validation": ("data.validation_file", parameters.data.validation_file),
            "new_questions": ("inference.questions_file", parameters.inference.questions_file),
        }
        _check_globals(
            context.config_loader["globals"],
            [parameter.partition(".")[2] for parameter, _ in self._named_files.values()],
        )
        datasets.disable_progress_bars()
        datasets.disable_caching()
        transformers.logging.disable_progress_bar()
        for handler in logging.getLogger().handlers:
            handler.addFilter(_is_told_nowhere_else)
            if not leads:
                handler.setLevel(logging.ERROR)

    @hook_impl
    def after_catalog_created(self, conf_catalog: dict[str, Any]) -> None:
        """Keep relative paths of the catalog, which may hold a parameter, inside the project."""
        for name, entry in conf_catalog.items():
            for key in ("filepath", "path"):
                path = entry.get(key) if isinstance(entry, dict) else None
                _, given = self._named_files.get(name, (None, None))
                if path and not (given and Path(path) == self._project_path / given):
                    _require_inside(self._project_path, name, path)

    @hook_impl
    def before_pipeline_run(
        self, run_params: dict[str, Any], pipeline: Pipeline, catalog: CatalogProtocol[Any, Any]
    ) -> None:
        """Start the records of the run; check that inputs exist; claim the run's version."""
        _require_processes(self._parameters.distributed, run_params["runner"])
        trains = "train_adapter" in {node.name for node in pipeline.nodes}
        if trains:
            require_trainable(self._parameters, PartialState().num_processes)
        self._node_costs: dict[str, dict[str, Any]] = {}
        self._checkpoints: Path | None = None
        inputs = sorted(pipeline.inputs())
        leads = PartialState().is_main_process
        if leads:
            self._require_inputs(inputs, catalog)
        pins = broadcast_json(self._fetch_inputs(inputs, catalog) if leads else None)
        self._parameters = _pinned(self._parameters, pins)
        if "params:model" in inputs:
            catalog.save("params:model", self._parameters.model)
        if leads:
            self._require_fitting(inputs, catalog)
        if "node_costs" in pipeline.inputs():
            catalog.save("node_costs", self._node_costs)
        if "run_record" in pipeline.inputs():
            catalog.save("run_record", self._record(run_params["run_id"]))
        self._logs = Path(self._parameters.training.logging_dir) / run_params["run_id"]
        if not leads:
            return
        _tell_what_changes_nothing(run_params["runtime_params"], inputs)
        for name in sorted(pipeline.all_outputs() | {"node_times"}):
            _require_writable_output(name, catalog)
        if trains:
            _make_folder(self._parameters.training.output_dir, "training.output_dir")
        _make_folder(self._parameters.training.logging_dir, "training.logging_dir")
        try:
            self._logs.mkdir()
        except FileExistsError:
            raise InputError(
                f"Another run was started in the same millisecond and saves the version "
                f"{run_params['run_id']}; start this one again."
            ) from None
        os.environ["TENSORBOARD_LOGGING_DIR"] = str(self._logs)

    def _require_inputs(self, inputs: Sequence[str], catalog: CatalogProtocol[Any, Any]) -> None:
        for name in self._named_files.keys() & inputs:
            _require_same_file(name, catalog, *self._named_files[name], self._project_path)
        for name in inputs:
            filled_in = name.startswith("params:") or name in FILLED_IN
            if not (filled_in or self._is_on_hub(name)):
                _require_input(name, catalog)
                files = getattr(catalog.get(name), "files", None)
                if isinstance(files, RowFiles):
                    files.find()

    def _is_on_hub(self, name: str) -> bool:
        _, file = self._named_files.get(name, ("", ""))
        return file.startswith(PROTOCOL)

    def _fetch_inputs(
        self, inputs: Sequence[str], catalog: CatalogProtocol[Any, Any]
    ) -> dict[str, dict[str, str]]:
        """Fetch what the hub has of a run's inputs; return the parameters that pin the commits."""
        model = self._parameters.model
        pins: dict[str, dict[str, str]] = {}
        wanted: dict[str, HubFiles] = {}
        if "params:model" in inputs and not Path(model.name).is_dir():
            wanted["params:model"] = hub_files(model)
        for name in inputs:
            if self._is_on_hub(name):
                wanted[name] = DataFiles.of(self._named_files[name][1])
        for name, fetched in zip(wanted, fetch(*wanted.values()), strict=True):
            if name == "params:model":
                pins["model"] = {"revision": fetched.files.revision}
            else:
                catalog[name].read_from(str(fetched.path))
                section, _, parameter = self._named_files[name][0].partition(".")
                pins.setdefault(section, {})[parameter] = fetched.files.pinned
        if "params:model" in inputs:
            check_base(_pinned(self._parameters, pins).model)
        return pins

    def _require_fitting(self, inputs: Sequence[str], catalog: CatalogProtocol[Any, Any]) -> None:
        """Check that saved windows and the saved adapter belong to the parameters of this run."""
        given = self._parameters
        if "tokenized_questions" in inputs:
            tokenizer = load_tokenizer(given.model)
            require_made_with(
                load(catalog["tokenized_questions"]),
                made_with(tokenizer, given.prompt, given.tokenization, given.data),
            )
        if {"adapter", "params:model", "params:prompt"} <= set(inputs):
            adapter = load(catalog["adapter"])
            require_trained_with(adapter, provenance_of(given.model, given.prompt))

    def _record(self, run_id: str) -> dict[str, Any]:
        return {
            "run_id": run_id,
            "parameters": self._parameters.model_dump(mode="json"),
            "versions": package_versions(),
            "git": git_commit(self._project_path),
        }

    @hook_impl
    def before_node_run(self, node: Node) -> None:
        """Note when the node starts; tell what the device decides before the base is loaded."""
        self._node_costs[node.name] = {"started": time.perf_counter()}
        if not self._told_choices and node.tags & {"quantize", "predict"}:
            self._told_choices = True
            self._tell_choices()

    def _tell_choices(self) -> None:
        device = "GPU" if torch.cuda.is_available() else "CPU"
        if self._parameters.model.compute_dtype == "auto":
            dtype = resolve_compute_dtype("auto")
            logger.info(
                "Compute dtype auto: %s (this %s %s native bfloat16 matrix products).",
                dtype,
                device,
                "has" if dtype is torch.bfloat16 else "has no",
            )
        if self._parameters.model.attn_implementation == "auto":
            logger.info("Attention auto: %s (on a %s).", resolve_attention("auto"), device)

    @hook_impl
    def after_node_run(self, node: Node, outputs: dict[str, Any]) -> None:
        """Note the node's wall time and the peak memory so far, and a training's checkpoints."""
        seconds = time.perf_counter() - self._node_costs[node.name]["started"]
        self._node_costs[node.name] = {"seconds": seconds, "peak_memory": peak_memory()}
        if "adapter" in outputs:
            folder = Path(self._parameters.training.output_dir)
            self._checkpoints = folder / outputs["adapter"].training["fingerprint"]

    @hook_impl
    def on_pipeline_error(self, error: Exception, catalog: CatalogProtocol[Any, Any]) -> None:
        """Tell of a dataset that cannot be read or written in one line, without a traceback."""
        self._remove_empty_logs()
        if isinstance(error, VersionNotSavedError):
            raise InputError(
                f"{in_one_line(error)}. Earlier versions are whole; free space or clear the "
                "place, then run again."
            ) from error
        if isinstance(error, DatasetError):
            dataset = catalog.get(str(error).partition(":")[0])
            raise in_a_sentence(error, dataset) from error

    @hook_impl
    def after_pipeline_run(self, pipeline: Pipeline, catalog: CatalogProtocol[Any, Any]) -> None:
        """Save the nodes' times; remove a finished training's checkpoints; print the result."""
        if not PartialState().is_main_process:
            return
        catalog.save("node_times", node_times(self._node_costs))
        self._remove_empty_logs()
        if self._checkpoints:
            discard_checkpoints(self._checkpoints)
        self._print_result(pipeline.all_outputs(), catalog)

    def _print_result(self, outputs: set[str], catalog: CatalogProtocol[Any, Any]) -> None:
        """Print the scores, where the results lie and what to do next."""
        given = self._parameters
        for table, labels, title in (
            ("score_table", MODELS, subject(given.model, given.data)),
            (
                "comparison_table",
                LABELS,
                f"first: {given.compare.first}, second: {given.compare.second}",
            ),
        ):
            if table in outputs:
                print_scores(catalog.load(table), labels, given.reporting.confidence, title)
        if "report" in outputs:
            adapter: Any = catalog["adapter"]
            print_next_steps(
                str(catalog["report"]._get_load_path()), adapter.resolve_load_version()
            )
        for name in ("comparison_report", "answers"):
            if name in outputs:
                click.echo(catalog[name]._get_load_path())
        if "merged_model" in outputs:
            click.echo(catalog["merged_model"]._filepath)

    def _remove_empty_logs(self) -> None:
        with suppress(OSError):
            self._logs.rmdir()


def _pinned(parameters: Parameters, pins: Mapping[str, Mapping[str, str]]) -> Parameters:
    sections = {
        name: getattr(parameters, name).model_copy(update=values) for name, values in pins.items()
    }
    return parameters.model_copy(update=sections)


def _is_told_nowhere_else(record: logging.LogRecord) -> bool:
    """Drop what Kedro logs of an error that `kedro run` tells of at its end."""
    error = sys.exc_info()[1]
    passing = isinstance(error, InputError | DatasetError) or (error and is_one_of_several())
    return not (passing and record.name.startswith("kedro."))


def _check_globals(given: Mapping[str, Any], known: Sequence[str]) -> None:
    """An environment may have globals of its own, but not the misspelt name of one of these."""
    for name in given.keys() - known:
        for near in difflib.get_close_matches(name, known, n=1, cutoff=0.8):
            raise InputError(f"Unknown global {name}: did you mean {near}? (conf/*/globals.yml)")


def _require_processes(distributed: DistributedParameters, runner: str) -> None:
    if "ParallelRunner" in runner:
        raise InputError(
            "ParallelRunner runs each node in a process of its own, and models and checked "
            "questions are handed on in memory; use SequentialRunner or ThreadRunner, or several "
            "processes by --params=distributed.num_processes=…."
        )
    if is_one_of_several():
        if DistributedRunner.__name__ not in runner:
            raise InputError(
                f"This is one of {PartialState().num_processes} processes, whose nodes are run by "
                f"{DistributedRunner.__module__}.{DistributedRunner.__name__}; use kedro run, or "
                "give session.run(runner=…) that one."
            )
    elif distributed.num_processes > 1:
        raise InputError(
            f"distributed.num_processes is {distributed.num_processes}, but this session is one "
            "process; use kedro run, which starts the others, or set it to 1."
        )
    if distributed.fsdp and PartialState().num_processes == 1:
        raise InputError(
            "distributed.fsdp spreads the base over several processes, but there is one; set "
            "distributed.num_processes, or fsdp to false."
        )


def _tell_what_changes_nothing(runtime_params: dict[str, Any], inputs: Sequence[str]) -> None:
    if "questions" in inputs and (given := runtime_params.get("data")):
        logger.warning(
            "This run reads the saved questions, which %s does not change; "
            "--pipelines=data_engineering makes them anew.",
            ", ".join(f"data.{key}" for key in given),
        )


def _require_writable_output(name: str, catalog: CatalogProtocol[Any, Any]) -> None:
    """Check that the place where a dataset is saved is writable, made or still to be made."""
    dataset = catalog.get(name)
    place = getattr(dataset, "_filepath", None)
    if place is None or getattr(dataset, "_protocol", "file") != "file":
        return
    existing = next(parent for parent in Path(place).absolute().parents if parent.exists())
    if Path(place).is_dir():
        existing = Path(place)
    if not (existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)):
        raise InputError(
            f"{name}: nothing can be saved in {existing}, which is no writable folder; make it "
            f"one, or name another place for {name} in the catalog."
        )


def _make_folder(folder: str, parameter: str) -> None:
    reason = "Permission denied"
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK | os.X_OK):
            return
    except OSError as error:
        reason = error.strerror or str(error)
    raise InputError(
        f"{folder} cannot be made or written in: {reason}; make its place writable, or set "
        f"{parameter} to another folder."
    )


def _require_inside(project: Path, name: str, path: str) -> None:
    root = os.path.normpath(project)
    if Path(path).is_relative_to(root) and not Path(os.path.normpath(path)).is_relative_to(root):
        raise InputError(
            f"{name}: {os.path.relpath(path, root)} leads out of the project {root}; name a place "
            "inside it, or give an absolute path."
        )


def _require_same_file(
    name: str, catalog: CatalogProtocol[Any, Any], parameter: str, wanted: str, project_path: Path
) -> None:
    """The catalog and the parameters name the file apart; an environment may change only one."""
    read = getattr(catalog.get(name), "_filepath", None) if name in catalog else None
    _, named = filesystem_of(wanted if "://" in wanted else str(project_path / wanted))
    if read is not None and Path(read) != Path(named):
        raise InputError(
            f"{parameter} is {wanted}, but the catalog's {name} reads {read}; set "
            f"{parameter.partition('.')[2]} in conf/<environment>/globals.yml or by "
            f"--params={parameter}=…, which changes both."
        )


def _require_input(name: str, catalog: CatalogProtocol[Any, Any]) -> None:
    dataset = catalog.get(name) if name in catalog else None
    place: Any = getattr(dataset, "_filepath", None)
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
        remedy = "set data.train_file and data.validation_file to files of questions"
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
