"""The seconds that training takes, without evaluations, logs and checkpoints."""

import time
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class StepTimer(TrainerCallback):
    """Adds up the seconds of training: batches and steps, not evaluations, logs and checkpoints.

    The clock waits for a GPU only where it stops.
    """

    seconds = 0.0
    _started: float | None = None

    def state_dict(self) -> dict[str, float]:
        """Return the state that a checkpoint saves."""
        return {"seconds": self.seconds}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Restore a state that `state_dict` has returned."""
        self.seconds = state["seconds"]

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.seconds, self._started = 0.0, None

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._started is None:
            self._started = time.perf_counter()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if control.should_log or control.should_evaluate or control.should_save:
            self._stop()

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._stop()

    def _stop(self) -> None:
        if self._started is not None:
            if torch.accelerator.is_available():
                torch.accelerator.synchronize()
            self.seconds += time.perf_counter() - self._started
            self._started = None
