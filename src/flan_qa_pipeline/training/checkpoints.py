"""The folders of checkpoints on disk: written, read, listed, locked and removed.

transformers saves optimizer, scheduler, random states and arguments with `torch.save`, which
pickles. A checkpoint here holds safetensors and JSON only. It is a folder in peft's layout
(`adapter_model.safetensors`, `adapter_config.json`) with transformers' `trainer_state.json`;
`training_state.safetensors` holds the remaining tensors and `training_state.json` all other state.
"""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from peft import PeftConfig
from peft.utils import CONFIG_NAME
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import TrainerState
from transformers.trainer import TRAINER_STATE_NAME

from flan_qa_pipeline.errors import InputError
from flan_qa_pipeline.files import remove_at_once, written_aside
from flan_qa_pipeline.models.adapter import WEIGHTS
from flan_qa_pipeline.training.training_state import pack, unpack

TENSORS = "training_state.safetensors"
STATE = "training_state.json"
FILES = (WEIGHTS, CONFIG_NAME, TENSORS, STATE, TRAINER_STATE_NAME)
HALF_WRITTEN = re.compile(r"\.checkpoint-\d+\.[0-9a-f]{32}")  # see `written_aside`


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Lock a folder of checkpoints for one training, and remove half-written checkpoints.

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
            f"The same training already runs and saves its checkpoints in {folder}; wait until it "
            "ends, or start this one with --params=training.save_strategy=no."
        ) from None


def discard_checkpoints(folder: Path) -> None:
    """Remove the checkpoints of a training whose adapter is saved, unless it is running again."""
    lock = folder.with_suffix(".lock")
    if folder.exists():
        with suppress(Timeout), FileLock(lock, timeout=0):
            for checkpoint in saved_checkpoints(folder).values():
                remove_at_once(checkpoint, FILES)
            with suppress(OSError):  # the folder holds other files
                folder.rmdir()
            lock.unlink(missing_ok=True)


def saved_checkpoints(folder: Path) -> dict[int, Path]:
    """Map steps to the checkpoints of a training, in ascending order of steps.

    Only folders that hold a file of a checkpoint count.
    """
    found = {
        int(match[1]): place
        for place in folder.glob("checkpoint-*")
        if (match := re.fullmatch(r"checkpoint-(\d+)", place.name))
        and any((place / name).exists() for name in FILES)
    }
    return dict(sorted(found.items()))


def remove_checkpoints_after(folder: Path, step: int) -> None:
    """Remove the checkpoints of a training that were saved after a step."""
    for saved_at, checkpoint in saved_checkpoints(folder).items():
        if saved_at > step:
            remove_at_once(checkpoint, FILES)


def write_checkpoint(
    folder: Path,
    weights: dict[str, torch.Tensor],
    config: PeftConfig,
    state: dict[str, Any],
    trainer_state: TrainerState,
    *,
    keep: int,
) -> None:
    """Save a checkpoint, whole or not at all, then remove all but the last `keep` checkpoints.

    Args:
        folder: the training's folder; the checkpoint becomes `checkpoint-<step>` in it.
        weights: the adapter's weights under peft's names.
        config: the adapter's configuration.
        state: all other state to resume from; see `pack` for the types it may hold.
        trainer_state: transformers' own state, which counts steps and holds the log.
        keep: how many checkpoints remain.

    Raises:
        InputError: the checkpoint cannot be written.
    """
    step = trainer_state.global_step
    tensors: dict[str, torch.Tensor] = {}
    packed = pack(state, tensors)
    try:
        with written_aside(folder / f"checkpoint-{step}") as aside:
            save_file(weights, aside / WEIGHTS, metadata={"format": "pt"})
            config.save_pretrained(str(aside))
            save_file(tensors, aside / TENSORS)
            (aside / STATE).write_text(json.dumps(packed), encoding="utf-8")
            trainer_state.save_to_json(str(aside / TRAINER_STATE_NAME))
    except (OSError, SafetensorError) as error:
        raise InputError(
            f"The checkpoint of step {step} was not saved in {folder}: {error}. Earlier "
            "checkpoints are intact; free space, or set training.output_dir to another disk, then "
            "run again."
        ) from error
    for old in list(saved_checkpoints(folder).values())[:-keep]:
        remove_at_once(old, FILES)


def read_checkpoint(
    checkpoint: Path, process: int
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Read the adapter's weights and the state that `write_checkpoint` has saved.

    Args:
        checkpoint: the checkpoint's folder.
        process: the index of a process, whose item of the state's `processes` joins the state.

    Raises:
        InputError: a file is missing or damaged.
    """
    try:
        weights = load_file(checkpoint / WEIGHTS)
        packed = json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
        state = unpack(packed, load_file(checkpoint / TENSORS))
        return weights, state | state.pop("processes")[process]
    except (OSError, SafetensorError, ValueError, LookupError) as error:
        raise unreadable(checkpoint, error) from error


def unreadable(checkpoint: Path, reason: object) -> InputError:
    """Word the error of a checkpoint that no training can resume from."""
    return InputError(
        f"The checkpoint {checkpoint} cannot be read: {reason}. Remove it, or train from the "
        "beginning with --params=training.resume=never."
    )
