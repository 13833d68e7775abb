"""The adapter of the best F1 is kept, and training stops early when F1 no longer improves."""

import math
from typing import Any

import torch
from peft import PeftModel
from transformers import (
    EarlyStoppingCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from flan_qa_pipeline.models.adapter import adapter_weights, set_adapter_weights


class BestAdapter(TrainerCallback):
    """Keeps the adapter of the best F1, and the latest one of several that are equally good.

    Args:
        keep: put the best adapter back when training ends; otherwise the last one stays.
    """

    def __init__(self, *, keep: bool):
        self._keep = keep
        self._forget()

    @property
    def kept_step(self) -> int | None:
        """The step of the adapter that is put back; None if the last one stays."""
        return self.best_step if self._keep else None

    def _forget(self) -> None:
        self.best_f1 = -math.inf
        self.best_step: int | None = None
        self._weights: dict[str, torch.Tensor] = {}

    def state_dict(self) -> dict[str, Any]:
        """Return the state that a checkpoint saves."""
        return {"best_f1": self.best_f1, "best_step": self.best_step, "adapter": self._weights}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state that `state_dict` has returned."""
        self.best_f1, self.best_step = state["best_f1"], state["best_step"]
        self._weights = state["adapter"]

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._forget()

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float],
        model: PeftModel | None = None,
        **kwargs: Any,
    ) -> None:
        if metrics["eval_f1"] >= self.best_f1:
            self.best_f1, self.best_step = metrics["eval_f1"], state.global_step
            if self._keep:
                self._weights = adapter_weights(model)

    def on_train_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: PeftModel,
        **kwargs: Any,
    ) -> None:
        if self._weights:
            set_adapter_weights(model, self._weights)


class EarlyStopping(EarlyStoppingCallback):
    """transformers' early stopping, with its count of evaluations in every checkpoint.

    The Trainer's `metric_for_best_model` decides. `load_best_model_at_end`, which transformers'
    callback asks for, stays off: it reads checkpoints, and `BestAdapter` keeps the best weights.
    """

    def state_dict(self) -> dict[str, Any]:
        """Return the state that a checkpoint saves."""
        return {"waited": self.early_stopping_patience_counter}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state that `state_dict` has returned."""
        self.early_stopping_patience_counter = state["waited"]

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.early_stopping_patience_counter = 0
