"""Steps of pretraining in one process or several, and checkpoints to resume them from."""

import json
import logging
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import set_seed
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import T5ForConditionalGeneration

from flan_qa_pipeline.config.parameters import PhaseParameters, PretrainParameters
from flan_qa_pipeline.errors import InputError
from flan_qa_pipeline.files import refuse_pickles, remove_at_once, written_aside
from flan_qa_pipeline.models.device import multiplies_bfloat16
from flan_qa_pipeline.models.exchange import broadcast_json
from flan_qa_pipeline.models.flat_gradients import FlatGradients
from flan_qa_pipeline.pretraining.batches import Batch, Batches, BatchSource
from flan_qa_pipeline.pretraining.objectives import DENOISING, Objectives
from flan_qa_pipeline.pretraining.optimizers import (
    Optimizers,
    build_optimizers,
    build_part_optimizers,
)

logger = logging.getLogger(__name__)

FLOOR = 0.02  # of the largest learning rate, where a decay ends
CLOCK_STEPS = 10  # steps between looks at the clock
MOST_WORKERS = 15
# The compiler would give up on an online softmax here, with warnings.
COMPILER_OPTIONS: dict[str, Any] = {"online_softmax": False}
TENSORS, PROGRESS = "pretraining.safetensors", "progress.json"
MODEL = "model"


def learning_rate_factor(phase: PhaseParameters, step: int) -> float:
    """Return the learning rate of a phase's step as a share of the largest one.

    A linear warm-up, a constant rate, a linear decay to `FLOOR` that ends at the last step.
    """
    if step < phase.warmup_steps:
        return (step + 1) / phase.warmup_steps
    left = sum(stage.steps for stage in phase.stages) - step
    return 1.0 if left >= phase.decay_steps else max(left / phase.decay_steps, FLOOR)


def stage_of(phase: PhaseParameters, step: int) -> tuple[int, int]:
    """Return the number of the stage that a step belongs to, and that stage's first step."""
    first = 0
    for number, stage in enumerate(phase.stages):
        if step < first + stage.steps:
            return number, first
        first += stage.steps
    raise ValueError(f"step {step} comes after the last one")


def compute_dtype() -> AbstractContextManager[None]:
    """Multiply matrices in bfloat16 where the device has native products, else in float32."""
    autocast: AbstractContextManager[None] = torch.autocast(
        PartialState().device.type, torch.bfloat16, enabled=multiplies_bfloat16()
    )
    return autocast


@contextmanager
def tensor_float32() -> Iterator[None]:
    """Let a GPU multiply float32 matrices in TF32, as the compiler advises."""
    before = torch.get_float32_matmul_precision()
    if PartialState().device.type == "cuda":
        torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@dataclass
class Progress:
    """How far a phase has come: the next step, and the logged rows so far."""

    step: int = 0
    rows: list[dict[str, Any]] = field(default_factory=list)


class Phase:
    """Trains a model, and the parts of its auxiliary losses, through the stages of a phase.

    A step changes only the parts whose loss it computed: Muon would move the others by the momentum
    of earlier steps. Only the model's gradients are scaled down to `max_grad_norm`.

    Every step seeds torch with the seed, the process and the step. A phase that resumes from a
    checkpoint therefore ends with the weights that it would have had without the interruption.

    Args:
        model: In float32, on this process' device.
        objectives: The parts of the auxiliary losses, likewise.
        phase: Learning rates and stages.
        settings: Everything else.
        sources: The batches of each stage, drawn for the phase's steps.
        folder: Where checkpoints are kept, of this phase with these inputs alone.
    """

    def __init__(
        self,
        model: T5ForConditionalGeneration,
        objectives: Objectives,
        phase: PhaseParameters,
        settings: PretrainParameters,
        sources: list[BatchSource],
        folder: Path,
    ) -> None:
        self._model, self._objectives = model, objectives
        self._phase, self._settings = phase, settings
        self._sources, self._folder = sources, folder
        self._parts: dict[str, torch.nn.Module] = {
            MODEL: model,
            **dict(objectives.named_children()),
        }
        self._optimizers = {
            MODEL: build_optimizers(model, phase.optimizer),
            **build_part_optimizers(objectives, phase.optimizer),
        }
        for group in self._groups(self._parts):
            group["initial_lr"] = group["lr"]
        self._gradients = {name: FlatGradients(part) for name, part in self._parts.items()}
        for gradients in self._gradients.values():
            gradients.attach()
        self._state = PartialState()
        compiles = self._state.device.type == "cuda" if settings.compile == "auto" else False
        if settings.compile is True or compiles:
            logger.info("Pretraining compiles forward and backward passes (pretrain.compile).")
            self._forward = torch.compile(
                objectives.losses, dynamic=False, options=COMPILER_OPTIONS
            )
        else:
            self._forward = objectives.losses
        self.progress = Progress()

    def run(self) -> list[dict[str, Any]]:
        """Train to the last step, from the last checkpoint if there is one.

        Returns:
            The logged rows: step, stage, seconds, tokens_per_second, learning_rate, grad_norm, the
            mean loss of the targets of each kind of batch, and those of the auxiliary losses.

        Raises:
            InputError: The loss is not finite, the checkpoint is damaged, or `max_minutes` are
                over: the same command goes on.
        """
        self.progress = load_checkpoint(self._folder, self._parts, self._optimizers)
        if self.progress.step:
            logger.info("Pretraining resumes at step %d from %s.", self.progress.step, self._folder)
        minutes = self._settings.max_minutes
        deadline = time.monotonic() + 60 * minutes if minutes else float("inf")
        last = sum(stage.steps for stage in self._phase.stages)
        for part in self._parts.values():
            part.train()
        with tensor_float32():
            while self.progress.step < last:
                number, first = stage_of(self._phase, self.progress.step)
                if not self._run_stage(number, first, deadline):
                    raise InputError(
                        f"pretrain.max_minutes are over at step {self.progress.step} of {last}; "
                        "give the same command again, which resumes there."
                    )
        for part in self._parts.values():
            part.eval()
        return self.progress.rows

    def _run_stage(self, number: int, first: int, deadline: float) -> bool:
        """Train to a stage's end, or to the deadline; return whether the end was reached."""
        stage, progress, settings = self._phase.stages[number], self.progress, self._settings
        source = self._sources[number]
        losses: dict[str, list[torch.Tensor]] = {}
        norms: list[torch.Tensor] = []
        since, tokens = time.monotonic(), 0
        for batch in self._batches(source, first + stage.steps):
            if progress.step % CLOCK_STEPS == 0 and broadcast_json(time.monotonic() > deadline):
                self._save()
                return False
            factor = learning_rate_factor(self._phase, progress.step)
            kind = source.kind(progress.step)
            step_losses, norm = self._take_step(kind, batch, factor)
            for name, loss in step_losses.items():
                losses.setdefault(kind if name == "target" else name, []).append(loss)
            norms.append(norm)
            tokens += self._state.num_processes * batch["input_ids"].numel()
            progress.step += 1
            ends = progress.step == first + stage.steps
            if progress.step % settings.logging_steps == 0 or ends:
                seconds = time.monotonic() - since
                self._log(
                    {
                        "step": progress.step,
                        "stage": number,
                        "seconds": seconds,
                        "tokens_per_second": tokens / seconds,
                        "learning_rate": factor,
                        "grad_norm": torch.stack(norms).mean().item(),
                    }
                    | {f"loss_{k}": torch.stack(v).mean().item() for k, v in losses.items()}
                )
                losses, norms, tokens, since = {}, [], 0, time.monotonic()
            if progress.step % settings.save_steps == 0 or ends:
                self._save()
        return True

    def _batches(self, source: BatchSource, until: int) -> Iterator[Batch]:
        shared = (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        on_gpu = self._state.device.type == "cuda"
        loader = torch.utils.data.DataLoader(
            Batches(source, self.progress.step, until),
            batch_size=None,
            num_workers=min(shared - 1, MOST_WORKERS) if on_gpu else 0,
            pin_memory=on_gpu,
        )
        return iter(loader)

    def _take_step(
        self, kind: str, batch: Batch, factor: float
    ) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        rank, count = self._state.process_index, self._state.num_processes
        set_seed((self._settings.seed * 1_000_003 + self.progress.step * count + rank) % 2**32)
        placed = {k: v.to(self._state.device, non_blocking=True) for k, v in batch.items()}
        if kind == DENOISING:  # drawn here, not in the compiled step
            placed["noise"] = torch.rand(placed["input_ids"].shape, device=self._state.device)
        with compute_dtype():  # within the compiled function it would break the graph
            total, losses = self._forward(self._model, placed, denoises=kind == DENOISING)
        total.backward()
        trained = [MODEL, *self._objectives.trained_by(kind)]
        for name in trained:
            self._gradients[name].average(torch.bfloat16)
        norm = self._gradients[MODEL].clip(self._phase.optimizer.max_grad_norm)
        for group in self._groups(trained):
            group["lr"] = group["initial_lr"] * factor
        for name in trained:
            for optimizer in self._optimizers[name]:
                optimizer.step()
            self._gradients[name].whole.zero_()
        return losses, norm

    def _groups(self, parts: Iterable[str]) -> Iterator[dict[str, Any]]:
        for name in parts:
            for optimizer in self._optimizers[name]:
                yield from optimizer.param_groups

    def _log(self, row: dict[str, Any]) -> None:
        for name, value in row.items():
            if name.startswith("loss_") and value != value:
                raise InputError(
                    f"Pretraining diverged: {name} is NaN at step {row['step']}; lower the "
                    "learning rates of the phase's optimizer, or lengthen its warmup_steps."
                )
        self.progress.rows.append(row)
        logger.info(
            "Pretraining step %d: %s",
            row["step"],
            ", ".join(f"{k} {v:.4g}" for k, v in row.items() if k != "step"),
        )

    def _save(self) -> None:
        if self._state.is_main_process:
            save_checkpoint(self._folder, self._parts, self._optimizers, self.progress)
        self._state.wait_for_everyone()


def save_checkpoint(
    folder: Path,
    parts: Mapping[str, torch.nn.Module],
    optimizers: Mapping[str, Optimizers],
    progress: Progress,
) -> None:
    """Save weights, optimizers and progress; remove earlier checkpoints.

    A checkpoint appears whole, before the one that it replaces disappears.
    """
    tensors = {key: p.detach().contiguous() for key, p in _weights(parts).items()}
    for number, optimizer in enumerate(_in_order(optimizers)):
        for index, state in optimizer.state_dict()["state"].items():
            for name, value in state.items():
                tensors[f"optimizer/{number}/{index}/{name}"] = value.contiguous()
    place = folder / f"step-{progress.step:08d}"
    earlier = [path for path in saved_steps(folder) if path != place]
    if not place.exists():
        with written_aside(place) as aside:
            save_file(tensors, aside / TENSORS)
            content = {"step": progress.step, "rows": progress.rows}
            (aside / PROGRESS).write_text(json.dumps(content), encoding="utf-8")
    for path in earlier:
        remove_at_once(path, (TENSORS, PROGRESS))


def saved_steps(folder: Path) -> list[Path]:
    """List the checkpoints in a folder, from the first to the last."""
    return sorted(folder.glob("step-*"))


def load_checkpoint(
    folder: Path, parts: Mapping[str, torch.nn.Module], optimizers: Mapping[str, Optimizers]
) -> Progress:
    """Load the last checkpoint of a folder into the parts and their optimizers.

    Returns:
        The progress that it was saved at: step 0 where there is no checkpoint.

    Raises:
        InputError: The checkpoint is damaged or holds a pickle.
    """
    saved = saved_steps(folder)
    last = broadcast_json(str(saved[-1]) if saved else None)
    if last is None:
        return Progress()
    try:
        refuse_pickles(Path(last))
        tensors = load_file(Path(last) / TENSORS)
        content = json.loads((Path(last) / PROGRESS).read_text(encoding="utf-8"))
        with torch.no_grad():
            for key, parameter in _weights(parts).items():
                parameter.copy_(tensors[key])
        for number, optimizer in enumerate(_in_order(optimizers)):
            optimizer.load_state_dict(
                optimizer.state_dict() | {"state": _state_in(tensors, number)}
            )
        return Progress(**content)
    except (OSError, SafetensorError, ValueError, LookupError, TypeError) as error:
        raise InputError(
            f"The checkpoint {last} cannot be read: {error}. Remove it; pretraining then resumes "
            "from the one before or starts from the beginning."
        ) from error


def _weights(parts: Mapping[str, torch.nn.Module]) -> dict[str, torch.nn.Parameter]:
    return {f"{part}/{name}": p for part in parts for name, p in parts[part].named_parameters()}


def _in_order(optimizers: Mapping[str, Optimizers]) -> Optimizers:
    return [optimizer for those in optimizers.values() for optimizer in those]


def _state_in(tensors: dict[str, torch.Tensor], number: int) -> dict[int, dict[str, Any]]:
    state: dict[int, dict[str, Any]] = {}
    for key, value in tensors.items():
        kind, *rest = key.split("/")
        if kind == "optimizer" and int(rest[0]) == number:
            state.setdefault(int(rest[1]), {})[rest[2]] = value
    return state
