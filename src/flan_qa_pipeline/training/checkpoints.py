"""Checkpoints of a training in safetensors and JSON, and the resuming from them.

transformers saves optimizer, scheduler, random states and arguments by `torch.save`, which
pickles. Here a checkpoint is a folder in peft's layout (`adapter_model.safetensors`,
`adapter_config.json`) with `trainer_state.json` and, for the rest of the training's state, the
tensors in `training_state.safetensors` and everything else in `training_state.json`.
"""

import json
import logging
import random
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from accelerate.utils import RNGType, synchronize_rng_states
from filelock import FileLock, Timeout
from peft.utils import CONFIG_NAME
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import (
    Seq2SeqTrainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import SaveStrategy, TrainOutput

from flan_qa_pipeline.errors import InputError
from flan_qa_pipeline.files import refuse_pickles, remove_at_once, written_aside
from flan_qa_pipeline.models.adapter import (
    WEIGHTS,
    adapter_weights,
    not_finite,
    set_adapter_weights,
)
from flan_qa_pipeline.models.exchange import broadcast_json, gather_tensors
from flan_qa_pipeline.models.sharded_tensors import sharded_like, whole

logger = logging.getLogger(__name__)

TENSORS = "training_state.safetensors"
STATE = "training_state.json"
FILES = (WEIGHTS, CONFIG_NAME, TENSORS, STATE, TRAINER_STATE_NAME)
HALF_WRITTEN = re.compile(r"\.checkpoint-\d+\.[0-9a-f]{32}")  # see `written_aside`


def pack(value: Any, tensors: dict[str, torch.Tensor], place: str = "") -> Any:
    """Turn nested state into JSON's types; its tensors go into `tensors` under their place.

    Dictionaries keep keys that are not strings, tuples stay tuples and NumPy arrays arrays.
    """
    if isinstance(value, torch.Tensor):
        tensors[place] = value.detach().to("cpu", copy=True).contiguous()
        return {"tensor": place}
    if isinstance(value, np.ndarray):
        return {"array": pack(torch.from_numpy(value), tensors, place)}
    if isinstance(value, Mapping):
        items = value.items()
        return {"dict": [[key, pack(item, tensors, f"{place}/{key}")] for key, item in items]}
    if isinstance(value, list | tuple):
        packed = [pack(item, tensors, f"{place}/{i}") for i, item in enumerate(value)]
        return packed if isinstance(value, list) else {"tuple": packed}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{place} is a {type(value).__name__}, which JSON cannot hold")


def unpack(value: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    """Undo `pack`."""
    if isinstance(value, list):
        return [unpack(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    match kind:
        case "tensor":
            return tensors[content]
        case "array":
            return unpack(content, tensors).numpy()
        case "tuple":
            return tuple(unpack(item, tensors) for item in content)
        case "dict":
            return {key: unpack(item, tensors) for key, item in content}
    raise ValueError(f"unknown kind {kind!r}")


def random_state() -> dict[str, Any]:
    """The state of every random number generator that a process draws from in training."""
    return {
        "python": random.getstate(),
        "numpy": np.random.get_state(),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    }


def set_random_state(state: Mapping[str, Any]) -> None:
    """Put every generator back into a state that `random_state` has returned."""
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


@contextmanager
def _claimed(folder: Path) -> Iterator[None]:
    """Keep a folder of checkpoints to one training at a time; clear what a killed one half wrote.

    Raises:
        InputError: another process trains with the same parameters on the same data.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder.with_suffix(".lock"), timeout=0):
            folder.mkdir(exist_ok=True)
            for half in folder.iterdir():
                if HALF_WRITTEN.fullmatch(half.name):
                    remove_at_once(half, FILES)
            yield
    except Timeout:
        raise InputError(
            f"The same training already runs and keeps its checkpoints in {folder}; wait for it, "
            "or start this one with --params=training.save_strategy=no."
        ) from None


def discard_checkpoints(folder: Path) -> None:
    """Remove the checkpoints of a training whose adapter is saved, unless it runs once more."""
    lock = folder.with_suffix(".lock")
    if folder.exists():
        with suppress(Timeout), FileLock(lock, timeout=0):
            for checkpoint in saved_checkpoints(folder).values():
                remove_at_once(checkpoint, FILES)
            with suppress(OSError):  # others keep files in it
                folder.rmdir()
            lock.unlink(missing_ok=True)


def saved_checkpoints(folder: Path) -> dict[int, Path]:
    """Map steps to the checkpoints of a training, from the first to the last.

    Only folders that hold a file of a checkpoint count.
    """
    found = {
        int(match[1]): place
        for place in folder.glob("checkpoint-*")
        if (match := re.fullmatch(r"checkpoint-(\d+)", place.name))
        and any((place / name).exists() for name in FILES)
    }
    return dict(sorted(found.items()))


class CheckpointingTrainer(Seq2SeqTrainer):
    """Seq2SeqTrainer for a peft model whose checkpoints hold nothing pickled.

    A training that is resumed goes on exactly as if it had not been interrupted: callbacks that
    have `state_dict` and `load_state_dict` are saved and restored with it, the order of the
    examples is that of the interrupted epoch, and logged losses are means over the same steps. A
    checkpoint that falls on the end of an epoch is made after the epoch's evaluation. None is
    made when training ends: its result is the adapter.

    Of several processes the first writes the checkpoints, with the random state of each, and all
    read them. At the start of an epoch they agree on torch's random state on the CPU, from which
    each draws the order of the examples.
    """

    _tr_loss: torch.Tensor

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._resumed: dict[str, Any] = {}
        self._flow = _CheckpointFlow(self)

    def train_or_resume(self, resume: Literal["auto", "never"]) -> None:
        """Train, from the last checkpoint in `args.output_dir` if there is one and it may be used.

        Raises:
            InputError: another process trains into this folder, the checkpoint is damaged or
                holds a pickle, or a file cannot be read or written in training.
        """
        self.add_callback(self._flow)  # the last one: it restores what others have reset
        if self.args.save_strategy == SaveStrategy.NO:
            self._train_with_files(None)
            return
        folder = Path(self.args.output_dir)
        leads = self.is_world_process_zero()
        with _claimed(folder) if leads else nullcontext():
            saved = saved_checkpoints(folder) if leads and resume == "auto" else {}
            last = broadcast_json(str(saved[max(saved)]) if saved else None)
            if last:
                refuse_pickles(Path(last))
                logger.info("An interrupted training goes on from %s.", last)
            self._train_with_files(last)

    def _train_with_files(self, checkpoint: str | None) -> None:
        try:
            self.train(resume_from_checkpoint=checkpoint)
        except OSError as error:
            raise InputError(
                f"The training stopped after step {self.state.global_step}: {error}. Restore that "
                "place, then run again; a training goes on from its last checkpoint."
            ) from error

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        if self.control.should_training_stop:
            return
        self.store_flos()
        own: dict[str, torch.Tensor] = {}
        packed = pack(
            {
                "random": random_state(),
                "random_of_epoch": self._flow.random_of_epoch,
                "loss": self._tr_loss,
            },
            own,
        )
        processes = [unpack(*of_one) for of_one in gather_tensors(packed, own)]
        optimizer, weights = whole(self.optimizer.state_dict()), adapter_weights(self.model)
        if not self.is_world_process_zero():
            return
        if name := not_finite(weights):
            raise InputError(
                f"The training diverged in step {self.state.global_step}: {name} holds NaN or "
                "infinity, so no checkpoint is made of it; lower training.learning_rate and train "
                "again."
            )
        tensors: dict[str, torch.Tensor] = {}
        state = pack(
            {
                "optimizer": optimizer,
                "scheduler": self.lr_scheduler.state_dict(),
                "processes": processes,
                "losses": [self._total_loss_scalar, self._globalstep_last_logged],
                "seconds": self._resumed.get("seconds", 0.0) + time.time() - self._flow.began,
                "callbacks": {type(c).__name__: c.state_dict() for c in self._stateful()},
            },
            tensors,
        )
        folder = Path(self.args.output_dir)
        checkpoint = folder / f"checkpoint-{self.state.global_step}"
        try:
            with written_aside(checkpoint) as aside:
                save_file(weights, aside / WEIGHTS, metadata={"format": "pt"})
                self.model.peft_config["default"].save_pretrained(str(aside))
                save_file(tensors, aside / TENSORS)
                (aside / STATE).write_text(json.dumps(state), encoding="utf-8")
                self._state_as_given().save_to_json(str(aside / TRAINER_STATE_NAME))
        except (OSError, SafetensorError) as error:
            raise InputError(
                f"The checkpoint of step {self.state.global_step} was not saved in {folder}: "
                f"{error}. Earlier checkpoints are whole; free space, or set training.output_dir "
                "to another disk, then run again."
            ) from error
        for old in list(saved_checkpoints(folder).values())[: -self.args.save_total_limit]:
            remove_at_once(old, FILES)

    def _finalize_training(
        self, trial: Any, num_train_samples: int, start_time: float
    ) -> TrainOutput:
        """Log the loss of all processes, and the time since the training first began.

        (transformers adds the first process's loss since the last log, and counts the time from
        when it was resumed.)
        """
        self._tr_loss = self.accelerator.reduce(self._tr_loss, "mean")
        earlier = self._resumed.get("seconds", 0.0)
        return super()._finalize_training(trial, num_train_samples, start_time - earlier)

    def _state_as_given(self) -> TrainerState:
        """Give intervals as the arguments do, such as in shares: a resumed training compares."""
        intervals = ("logging_steps", "eval_steps", "save_steps")
        return replace(self.state, **{name: getattr(self.args, name) for name in intervals})

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        checkpoint = Path(resume_from_checkpoint)
        try:
            weights = load_file(checkpoint / WEIGHTS)
            packed = json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
            self._resumed = unpack(packed, load_file(checkpoint / TENSORS))
            self._resumed |= self._resumed.pop("processes")[self.args.process_index]
        except (OSError, SafetensorError, ValueError, LookupError) as error:
            raise InputError(
                f"The checkpoint {checkpoint} cannot be read: {error}. Remove it, or start anew "
                "with --params=training.resume=never."
            ) from error
        set_adapter_weights(self.model, weights)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            state = self._resumed["optimizer"]
            weights = [w for group in self.optimizer.param_groups for w in group["params"]]
            for index, held in state["state"].items():
                for name, value in held.items():
                    if getattr(value, "shape", None) == weights[index].shape:
                        held[name] = sharded_like(value, weights[index])
            self.optimizer.load_state_dict(state)
            self.lr_scheduler.load_state_dict(self._resumed["scheduler"])

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            set_random_state(self._resumed["random"])

    def _stateful(self) -> list[TrainerCallback]:
        return [c for c in self.callback_handler.callbacks if hasattr(c, "load_state_dict")]


class _CheckpointFlow(TrainerCallback):
    """Restores what the training loop resets, and moves saving to the end of the epoch."""

    def __init__(self, trainer: CheckpointingTrainer):
        self._trainer = trainer
        self._postponed = False
        self.random_of_epoch: dict[str, Any] = {}
        self.began = 0.0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.began = time.time()
        trainer, resumed = self._trainer, self._trainer._resumed
        if state.is_world_process_zero:
            for step, old in saved_checkpoints(Path(args.output_dir)).items():
                if step > state.global_step:
                    remove_at_once(old, FILES)
        if not resumed:
            return
        state.compute_steps(args, state.max_steps)
        trainer._total_loss_scalar, trainer._globalstep_last_logged = resumed["losses"]
        trainer._tr_loss = resumed["loss"].to(args.device)
        for callback in trainer._stateful():
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
