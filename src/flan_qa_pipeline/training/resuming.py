"""A Trainer that saves checkpoints without pickles and resumes exactly where a training stopped."""

import logging
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate.utils import RNGType, synchronize_rng_states
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import SaveStrategy

from flan_qa_pipeline.errors import InputError
from flan_qa_pipeline.files import refuse_pickles
from flan_qa_pipeline.models.adapter import adapter_weights, not_finite, set_adapter_weights
from flan_qa_pipeline.models.exchange import broadcast_json, gather_tensors
from flan_qa_pipeline.models.sharded_tensors import sharded_like, whole
from flan_qa_pipeline.training.checkpoints import (
    claimed,
    read_checkpoint,
    remove_checkpoints_after,
    saved_checkpoints,
    unreadable,
    write_checkpoint,
)
from flan_qa_pipeline.training.progress import LossInProgressBar
from flan_qa_pipeline.training.training_state import (
    pack,
    random_state,
    set_random_state,
    unpack,
)
from flan_qa_pipeline.training.transformers_private import OpenTrainer

logger = logging.getLogger(__name__)


class ResumableTrainer(OpenTrainer):
    """Seq2SeqTrainer for a peft model whose interrupted training resumes as if it had not stopped.

    A resumed training restores callbacks that have `state_dict` and `load_state_dict`, repeats the
    interrupted epoch's order of examples, and logs losses that are means over the same steps. A
    checkpoint that falls on the end of an epoch is saved after the epoch's evaluation. The end of a
    training saves no checkpoint, since the adapter is its result.

    Of several processes, the first writes the checkpoints, with the random state of each process,
    and all read them. At the start of an epoch they agree on torch's random state on the CPU, from
    which each draws the order of the examples.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.resumed: dict[str, Any] = {}
        self._flow = _CheckpointFlow(self)

    def train_or_resume(self, resume: Literal["auto", "never"]) -> None:
        """Train, from the last checkpoint in `args.output_dir` unless `resume` is "never".

        Raises:
            InputError: another process trains into this folder, the checkpoint is damaged or
                holds a pickle, or a file cannot be read or written during training.
        """
        self.add_callback(self._flow)  # the last one: it restores what the others have reset
        if self.args.save_strategy == SaveStrategy.NO:
            self._train_from(None)
            return
        folder = Path(self.args.output_dir)
        leads = self.is_world_process_zero()
        with claimed(folder) if leads else nullcontext():
            saved = saved_checkpoints(folder) if leads and resume == "auto" else {}
            last = broadcast_json(str(saved[max(saved)]) if saved else None)
            if last:
                refuse_pickles(Path(last))
                logger.info("Training resumes from the checkpoint %s.", last)
            self._train_from(last)

    def _train_from(self, checkpoint: str | None) -> None:
        try:
            self.train(resume_from_checkpoint=checkpoint)
        except OSError as error:
            raise InputError(
                f"The training stopped after step {self.state.global_step}: {error}. Make that "
                "place readable and writable, then run again; training resumes from its last "
                "checkpoint."
            ) from error
        finally:
            for callback in self.callback_handler.callbacks:
                if isinstance(callback, LossInProgressBar):
                    callback.close()

    def save_checkpoint(self) -> None:
        """Save a checkpoint of this step, unless training ends with it.

        Raises:
            InputError: a weight is NaN or infinite, or the checkpoint cannot be written.
        """
        if self.control.should_training_stop:
            return
        self.store_flos()
        processes = self._gather_own_states()
        optimizer, weights = whole(self.optimizer.state_dict()), adapter_weights(self.model)
        if not self.is_world_process_zero():
            return
        if name := not_finite(weights):
            raise InputError(
                f"The training diverged in step {self.state.global_step}: {name} holds NaN or "
                "infinity, so no checkpoint is saved; lower training.learning_rate and train again."
            )
        state = {
            "optimizer": optimizer,
            "scheduler": self.lr_scheduler.state_dict(),
            "processes": processes,
            "losses": [self.logged_loss, self.last_logged_step],
            "seconds": self.earlier_seconds + time.time() - self._flow.began,
            "callbacks": {type(c).__name__: c.state_dict() for c in self.stateful_callbacks()},
        }
        write_checkpoint(
            Path(self.args.output_dir),
            weights,
            self.model.peft_config["default"],
            state,
            self._state_with_given_intervals(),
            keep=self.args.save_total_limit,
        )

    def _gather_own_states(self) -> list[dict[str, Any]]:
        """Collect the state that differs between processes, in the processes' order."""
        tensors: dict[str, torch.Tensor] = {}
        packed = pack(
            {
                "random": random_state(),
                "random_of_epoch": self._flow.random_of_epoch,
                "loss": self.unlogged_loss,
            },
            tensors,
        )
        return [unpack(*gathered) for gathered in gather_tensors(packed, tensors)]

    def _state_with_given_intervals(self) -> TrainerState:
        """Return the state with intervals as configured, such as shares of all steps.

        A resumed training compares them with its arguments and would warn of a difference.
        """
        intervals = ("logging_steps", "eval_steps", "save_steps")
        return replace(self.state, **{name: getattr(self.args, name) for name in intervals})

    def load_checkpoint(self, checkpoint: Path) -> None:
        """Load the adapter's weights, and keep the rest of the state for the steps that need it.

        Raises:
            InputError: a file is missing or damaged, or a callback's state is missing.
        """
        weights, self.resumed = read_checkpoint(checkpoint, self.args.process_index)
        for callback in self.stateful_callbacks():
            if (name := type(callback).__name__) not in self.resumed["callbacks"]:
                raise unreadable(checkpoint, f"it has no state of {name}")
        self.earlier_seconds = self.resumed.get("seconds", 0.0)
        set_adapter_weights(self.model, weights)

    def load_optimizer_and_scheduler(self) -> None:
        """Restore optimizer and scheduler; a sharded weight's state is sharded like the weight."""
        state = self.resumed["optimizer"]
        weights = [w for group in self.optimizer.param_groups for w in group["params"]]
        for index, held in state["state"].items():
            for name, value in held.items():
                if getattr(value, "shape", None) == weights[index].shape:
                    held[name] = sharded_like(value, weights[index])
        self.optimizer.load_state_dict(state)
        self.lr_scheduler.load_state_dict(self.resumed["scheduler"])

    def load_random_state(self) -> None:
        """Restore the random state of this process at the checkpoint."""
        set_random_state(self.resumed["random"])

    def stateful_callbacks(self) -> list[TrainerCallback]:
        """Return the callbacks whose state belongs to a checkpoint."""
        return [c for c in self.callback_handler.callbacks if hasattr(c, "load_state_dict")]


class _CheckpointFlow(TrainerCallback):
    """Restores what the training loop resets, and postpones saving to the end of the epoch."""

    def __init__(self, trainer: ResumableTrainer):
        self._trainer = trainer
        self._postponed = False
        self.random_of_epoch: dict[str, Any] = {}
        self.began = 0.0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.began = time.time()
        trainer, resumed = self._trainer, self._trainer.resumed
        if state.is_world_process_zero:
            remove_checkpoints_after(Path(args.output_dir), state.global_step)
        if not resumed:
            return
        state.compute_steps(args, state.max_steps)
        trainer.restore_losses(resumed["loss"], *resumed["losses"])
        for callback in trainer.stateful_callbacks():
            callback.load_state_dict(resumed["callbacks"][type(callback).__name__])
        between_epochs = float(state.epoch).is_integer()
        set_random_state(resumed["random" if between_epochs else "random_of_epoch"])

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        synchronize_rng_states([RNGType.TORCH])
        self.random_of_epoch = random_state()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._postponed = control.should_save and float(state.epoch).is_integer()
        if self._postponed:
            control.should_save = False

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._postponed:
            control.should_save = True
