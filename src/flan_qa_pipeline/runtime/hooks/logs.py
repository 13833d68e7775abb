"""Hooks that decide what a run logs."""

import logging
from typing import Any

from kedro.framework.hooks import hook_impl
from kedro.io import DatasetError
from kedro.pipeline import Pipeline
from kedro.pipeline.node import Node

from flan_qa_pipeline.errors import InputError
from flan_qa_pipeline.runtime import node_tags
from flan_qa_pipeline.runtime.current_run import CurrentRun
from flan_qa_pipeline.runtime.launched import is_one_of_several

logger = logging.getLogger(__name__)

ABOUT_FAILURES = ("kedro.pipeline.node", "kedro.runner", "flan_qa_pipeline.runtime.runner")


class QuietHooks:
    """Hides the libraries' progress bars and cache files; lets only the first process log."""

    @hook_impl
    def after_context_created(self) -> None:
        import datasets
        import transformers
        from accelerate import PartialState

        datasets.disable_progress_bars()
        datasets.disable_caching()
        transformers.logging.disable_progress_bar()
        if is_one_of_several() and not PartialState().is_main_process:
            for handler in logging.getLogger().handlers:
                handler.setLevel(logging.ERROR)


class FailureLogHooks:
    """Drops what Kedro logs about an error that the command reports anyway.

    Kedro logs the failed node, and how to resume, before the error is known here. A filter holds
    these records back until the run ends. They are logged then, unless the error is a bad input or
    the run is one of several processes, of which the launcher reports the first that failed.
    """

    def __init__(self) -> None:
        self._held = HeldRecords()

    @hook_impl
    def before_pipeline_run(self) -> None:
        self._held.start()

    @hook_impl
    def on_pipeline_error(self, error: Exception) -> None:
        reported = isinstance(error, InputError | DatasetError) or is_one_of_several()
        self._held.end(log=not reported)

    @hook_impl
    def after_pipeline_run(self) -> None:
        self._held.end(log=True)


class HeldRecords(logging.Filter):
    """Holds back warnings and errors of Kedro's nodes and runners, in all of the root's handlers.

    `start` begins to hold them; `end` stops and, if `log` is set, logs what was held.
    """

    def __init__(self) -> None:
        super().__init__()
        self._records: list[logging.LogRecord] = []

    def start(self) -> None:
        self._records.clear()
        for handler in logging.getLogger().handlers:
            handler.addFilter(self)

    def end(self, *, log: bool) -> None:
        for handler in logging.getLogger().handlers:
            handler.removeFilter(self)
        if log:
            for record in self._records:
                logging.getLogger(record.name).handle(record)
        self._records.clear()

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno < logging.WARNING or not record.name.startswith(ABOUT_FAILURES):
            return True
        if record not in self._records:  # several handlers
            self._records.append(record)
        return False


class FirstOfItsKind(logging.Filter):
    """Passes a record unless one with the same text and first argument has passed."""

    def __init__(self) -> None:
        super().__init__()
        self._passed: set[tuple[Any, ...]] = set()

    def forget(self) -> None:
        self._passed.clear()

    def filter(self, record: logging.LogRecord) -> bool:
        first = record.args[0] if isinstance(record.args, tuple) and record.args else None
        kind = (record.msg, first)
        is_new = kind not in self._passed
        self._passed.add(kind)
        return is_new


class QuantizationLogHooks:
    """Lets a run log each automatic choice of unpacking once, though several nodes load a base."""

    def __init__(self) -> None:
        self._first = FirstOfItsKind()

    @hook_impl
    def before_pipeline_run(self) -> None:
        self._first.forget()
        logging.getLogger("flan_qa_pipeline.models.quantization").addFilter(self._first)

    @hook_impl
    def after_pipeline_run(self) -> None:
        self._end()

    @hook_impl
    def on_pipeline_error(self) -> None:
        self._end()

    def _end(self) -> None:
        logging.getLogger("flan_qa_pipeline.models.quantization").removeFilter(self._first)


class DeviceChoiceHooks:
    """Logs, before the base is loaded, its name and what `auto` parameters mean on this device."""

    def __init__(self, run: CurrentRun):
        self._run = run
        self._is_logged = self._names_base = False

    @hook_impl
    def before_pipeline_run(self, pipeline: Pipeline) -> None:
        self._is_logged = False
        self._names_base = (
            "adapter" not in pipeline.inputs()
        )  # else the adapter's line has named it

    @hook_impl
    def before_node_run(self, node: Node) -> None:
        if self._is_logged or not node.tags & node_tags.LOADS_BASE:
            return
        import torch

        from flan_qa_pipeline.models.device import resolve_attention, resolve_compute_dtype

        self._is_logged = True
        model = self._run.parameters.model
        if self._names_base:
            at = f" at {model.revision}" if model.revision else ""
            logger.info("Base: %s%s.", model.name, at)
        device = "GPU" if torch.cuda.is_available() else "CPU"
        if model.compute_dtype == "auto":
            dtype: Any = resolve_compute_dtype("auto")
            native = "has" if dtype is torch.bfloat16 else "has no"
            logger.info(
                "Compute dtype auto: %s (this %s %s native bfloat16 matrix products).",
                dtype,
                device,
                native,
            )
        if model.attn_implementation == "auto":
            logger.info("Attention auto: %s (on a %s).", resolve_attention("auto"), device)
