"""Hooks that remove the checkpoints of a finished training."""

from pathlib import Path
from typing import Any

from kedro.framework.hooks import hook_impl

from flan_qa_pipeline.runtime.current_run import CurrentRun


class CheckpointHooks:
    """Removes a training's checkpoints once the whole run has ended well."""

    def __init__(self, run: CurrentRun):
        self._run = run
        self._checkpoints: Path | None = None

    @hook_impl
    def before_pipeline_run(self) -> None:
        self._checkpoints = None

    @hook_impl
    def after_node_run(self, outputs: dict[str, Any]) -> None:
        from flan_qa_pipeline.models.adapter import Adapter

        for output in outputs.values():
            if isinstance(output, Adapter):
                folder = Path(self._run.parameters.training.output_dir)
                self._checkpoints = folder / output.training["fingerprint"]

    @hook_impl
    def after_pipeline_run(self) -> None:
        from accelerate import PartialState

        from flan_qa_pipeline.training.checkpoints import discard_checkpoints

        if self._checkpoints and PartialState().is_main_process:
            discard_checkpoints(self._checkpoints)
