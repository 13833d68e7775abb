"""A training stops where its loss or gradient is no longer a finite number."""

import math
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from flan_qa_pipeline.errors import InputError
from flan_qa_pipeline.training.checkpoints import saved_checkpoints


class Divergence(TrainerCallback):
    """Stops a training at its first loss or gradient norm that is not a finite number.

    A GPU notes the step without making the CPU wait. The CPU reads the note before anything is
    logged, evaluated or saved, and at the end of an epoch.
    """

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._first = torch.full((), -1, device=args.device)

    def note(self, loss: torch.Tensor, step: int) -> None:
        """Note the step if the loss of one of its batches, a scalar tensor, is not finite."""
        diverges = ~loss.detach().isfinite() & (self._first < 0)
        self._first = torch.where(diverges, step, self._first)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        read = control.should_log or control.should_evaluate or control.should_save
        if read or args.device.type == "cpu":
            self._require_finite_losses(args)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._require_finite_losses(args)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any],
        **kwargs: Any,
    ) -> None:
        if not math.isfinite(logs.get("grad_norm", 0)):
            raise _diverged("gradient norm", state.global_step, args)

    def _require_finite_losses(self, args: TrainingArguments) -> None:
        if (step := int(self._first)) >= 0:
            raise _diverged("loss", step, args)


def _diverged(value: str, step: int, args: TrainingArguments) -> InputError:
    saved = saved_checkpoints(Path(args.output_dir))
    last = f"the last checkpoint before it is {saved[max(saved)]}" if saved else "none was saved"
    return InputError(
        f"The training diverged: the {value} of step {step} is not a finite number; {last}. Lower "
        f"training.learning_rate ({args.learning_rate:g}) or training.max_grad_norm "
        f"({args.max_grad_norm:g}), or raise training.warmup_steps, and train again."
    )
