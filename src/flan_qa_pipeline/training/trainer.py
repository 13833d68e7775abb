"""What cannot be trained with; a trainer that answers questions meanwhile; the best adapter."""

import logging
import math
import time
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any, cast, get_args

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from peft import PeftModel
from torch.utils.data import Sampler
from transformers import (
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    set_seed,
)
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_pt_utils import LengthGroupedSampler
from transformers.trainer_utils import EvalLoopOutput, TrainOutput

from flan_qa_pipeline.config.parameters import OfBitsandbytes, Parameters, TrainingParameters
from flan_qa_pipeline.errors import InputError
from flan_qa_pipeline.models.adapter import adapter_weights, set_adapter_weights
from flan_qa_pipeline.models.device import MIB, free_memory, peak_memory
from flan_qa_pipeline.training.checkpoints import CheckpointingTrainer, saved_checkpoints
from flan_qa_pipeline.training.cuda_graphs import GraphedPasses

logger = logging.getLogger(__name__)

NOT_FOR_SHARDS = {*get_args(OfBitsandbytes), "adafactor"}


def require_trainable(parameters: Parameters, processes: int) -> None:
    """Check whether so many processes can train with these parameters on this machine.

    Raises:
        InputError: names the parameter in the way.
    """
    training = parameters.training
    if parameters.distributed.fsdp and training.optim in NOT_FOR_SHARDS:
        raise InputError(
            f"training.optim: {training.optim} does not know the sharded weights of "
            "distributed.fsdp; choose adamw_torch."
        )
    if training.optim.startswith("paged") and not torch.cuda.is_available():
        raise InputError(
            f"training.optim: {training.optim} pages its state between GPU and CPU, and there is "
            "no GPU; choose adamw_8bit or adamw_torch."
        )
    if training.auto_find_batch_size and processes > 1:
        raise InputError(
            f"training.auto_find_batch_size: {processes} processes cannot look for a batch size, "
            "as one may run out of memory alone; set it to false and lower "
            "training.per_device_train_batch_size."
        )
    if training.cuda_graphs is True:
        require_capturable(
            graph_obstacles(
                training,
                processes=processes,
                use_dora=parameters.lora.use_dora,
                keeps_activations=parameters.model.dequantize is not False,
            )
        )


def graph_obstacles(
    training: TrainingParameters, *, processes: int, use_dora: bool, keeps_activations: bool
) -> list[str]:
    """What keeps steps from being captured as CUDA graphs."""
    obstacles = {
        "there is no GPU": not torch.cuda.is_available(),
        "several processes train": processes > 1,
        "training.gradient_checkpointing is on": training.gradient_checkpointing,
        "lora.use_dora is on": use_dora,
        "activations are computed again (see model.dequantize)": not keeps_activations,
    }
    return [obstacle for obstacle, stands in obstacles.items() if stands]


def require_capturable(obstacles: list[str]) -> None:
    """Raise InputError if anything stands in the way of CUDA graphs."""
    if obstacles:
        raise InputError(
            f"training.cuda_graphs: steps cannot be captured: {'; '.join(obstacles)}; set it to "
            "auto or false."
        )


class AnsweringTrainer(CheckpointingTrainer):
    """Adds to every evaluation what `answer_questions` finds, and to every log the peak memory.

    `answer_questions` maps the model to metrics such as exact and f1; a text among them becomes a
    text in TensorBoard. With `find_batch_size` a training that does not fit in memory starts again
    with a smaller batch and as much more gradient accumulation: the optimizer sees the same
    batches. A training that is resumed keeps the size found. (transformers' own
    `auto_find_batch_size` leaves accumulation, hence the effective batch and the learning rate's
    meaning, to chance, and goes on with the adapter as it was left.)

    Several processes see in a step the examples that one process sees at the same effective batch;
    only the last batch of an epoch is filled up, with the epoch's first examples.

    With `cuda_graphs` forward and backward pass of a step are one CUDA graph (see `cuda_graphs`).
    """

    def __init__(
        self,
        *args: Any,
        answer_questions: Callable[[PeftModel], dict[str, float | str]] | None,
        find_batch_size: bool = False,
        cuda_graphs: bool = False,
        **kwargs: Any,
    ):
        super().__init__(*args, **kwargs)
        self._answer_questions = answer_questions
        self._find_batch_size = find_batch_size
        self._graphed_passes = GraphedPasses(self.model) if cuda_graphs else None
        self._divergence = Divergence()
        self.add_callback(self._divergence)

    def train(self, resume_from_checkpoint: str | None = None) -> TrainOutput:
        if not self._find_batch_size:
            return super().train(resume_from_checkpoint)
        if resume_from_checkpoint:
            state = TrainerState.load_from_json(Path(resume_from_checkpoint, TRAINER_STATE_NAME))
            self._use_batch_size(state.train_batch_size)
        start = adapter_weights(self.model)
        while True:
            try:
                output = super().train(resume_from_checkpoint)
            except RuntimeError as error:
                if not _out_of_memory(error) or self._train_batch_size == 1:
                    raise
            else:
                logger.info(
                    "Batch size found: %d, accumulated %d times, %d in effect.",
                    self.args.per_device_train_batch_size,
                    self.args.gradient_accumulation_steps,
                    self.get_total_train_batch_size(self.args),
                )
                return output
            self._reduce_batch_size()
            set_adapter_weights(self.model, start)
            set_seed(self.args.seed)

    @cached_property
    def _n_parameters(self) -> int:
        return self.model.num_parameters(exclude_embeddings=True)

    def floating_point_ops(self, inputs: dict[str, torch.Tensor]) -> int:
        """transformers' own estimate; its method counts the parameters anew at every step."""
        return 6 * inputs["input_ids"].numel() * self._n_parameters

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Sampler[int] | None:
        sampler = super()._get_train_sampler(*args, **kwargs)
        if isinstance(sampler, LengthGroupedSampler):
            sampler.batch_size *= self.args.world_size
        return sampler

    def _reduce_batch_size(self) -> None:
        """Go to the largest share of the effective batch that is at most half of the batch."""
        size, accumulated = (
            self.args.per_device_train_batch_size,
            self.args.gradient_accumulation_steps,
        )
        smaller = max(n for n in range(1, size // 2 + 1) if size * accumulated % n == 0)
        logger.info("A batch of %d does not fit in memory; trying %d.", size, smaller)
        self._use_batch_size(smaller)
        self.optimizer = self.lr_scheduler = None
        self.model.zero_grad()
        self.model_wrapped = self.model
        clear_device_cache(garbage_collection=True)

    def _use_batch_size(self, size: int) -> None:
        """Change the batch, not the effective batch, of which it is a share."""
        effective = self.args.per_device_train_batch_size * self.args.gradient_accumulation_steps
        self.args.per_device_train_batch_size = size
        self.args.gradient_accumulation_steps = effective // size
        self._train_batch_size = self.args.train_batch_size

    def training_step(
        self,
        model: PeftModel,
        inputs: dict[str, torch.Tensor],
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        if self._graphed_passes is None:
            loss = super().training_step(model, inputs, num_items_in_batch)
        else:
            # peft's wrapper is in training mode when its base is still as it was loaded
            if not model.get_base_model().training:
                model.train()
            n_items = cast(torch.Tensor, num_items_in_batch)  # the Trainer counts on the device
            batch = {**self._prepare_inputs(inputs), "num_items_in_batch": n_items}
            loss = self._graphed_passes(batch)
        self._divergence.note(loss, self.state.global_step + 1)
        return loss

    def _inner_training_loop(self, *args: Any, **kwargs: Any) -> TrainOutput:
        try:
            return super()._inner_training_loop(*args, **kwargs)
        finally:
            if self._graphed_passes is not None:
                self._graphed_passes.clear()

    def _leave_room_to_answer(self) -> None:
        """Give up the graphs for an evaluation unless half of the GPU is free beside them."""
        if self._graphed_passes is None:
            return
        device = self.args.device
        if free_memory(device) < torch.cuda.get_device_properties(device).total_memory / 2:
            self._graphed_passes.clear()

    def evaluation_loop(
        self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any
    ) -> EvalLoopOutput:
        self._leave_room_to_answer()
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        if self._answer_questions:
            found = self._answer_questions(self.model)
            output.metrics.update({f"{metric_key_prefix}_{key}": v for key, v in found.items()})
        return output

    def log(self, logs: dict[str, Any], start_time: float | None = None) -> None:
        prefix = "eval_" if any(key.startswith("eval_") for key in logs) else ""
        for place, size in peak_memory().items():
            logs[f"{prefix}peak_memory_mib_{place.lower()}"] = size / MIB
        super().log(logs, start_time)


def _out_of_memory(error: RuntimeError) -> bool:
    """Whether torch, or the driver as it makes a graph, has too little memory."""
    return should_reduce_batch_size(error) or "CUDA error: out of memory" in str(error)


class Divergence(TrainerCallback):
    """Stops a training at its first loss or gradient norm that is no finite number.

    A GPU notes the step itself, and is asked for it before anything is logged, answered or saved.
    """

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._first = torch.full((), -1, device=args.device)

    def note(self, loss: torch.Tensor, step: int) -> None:
        """Look at the loss of a batch of this step."""
        diverges = ~loss.detach().isfinite() & (self._first < 0)
        self._first = torch.where(diverges, step, self._first)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        asked = control.should_log or control.should_evaluate or control.should_save
        if (asked or args.device.type == "cpu") and (step := int(self._first)) >= 0:
            raise _diverged("loss", step, args)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if (step := int(self._first)) >= 0:
            raise _diverged("loss", step, args)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float],
        **kwargs: Any,
    ) -> None:
        if not math.isfinite(logs.get("grad_norm", 0)):
            raise _diverged("gradient norm", state.global_step, args)


def _diverged(value: str, step: int, args: TrainingArguments) -> InputError:
    saved = saved_checkpoints(Path(args.output_dir))
    last = f"the last checkpoint before it is {saved[max(saved)]}" if saved else "none was saved"
    return InputError(
        f"The training diverged: the {value} of step {step} is no finite number; {last}. Lower "
        f"training.learning_rate ({args.learning_rate:g}) or training.max_grad_norm "
        f"({args.max_grad_norm:g}), or raise training.warmup_steps, and train again."
    )


class BestAdapter(TrainerCallback):
    """Keeps the adapter of the best F1 (of equals the last); stops when no better one comes.

    Args:
        keep: put the best adapter back when training has ended (otherwise the last one stays).
        patience: stop after so many evaluations in a row without a better F1; None: never.
        threshold: how much higher, in points, an F1 must be to be better.
    """

    def __init__(self, *, keep: bool, patience: int | None, threshold: float):
        self._keep, self._patience, self._threshold = keep, patience, threshold
        self._forget()

    def _forget(self) -> None:
        self.best_f1, self.best_step, self._waited = -math.inf, None, 0
        self._state_dict: dict[str, torch.Tensor] = {}

    def state_dict(self) -> dict[str, Any]:
        return {
            "best_f1": self.best_f1,
            "best_step": self.best_step,
            "waited": self._waited,
            "adapter": self._state_dict,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best_f1, self.best_step = state["best_f1"], state["best_step"]
        self._waited, self._state_dict = state["waited"], state["adapter"]

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
        f1 = metrics["eval_f1"]
        self._waited = 0 if f1 > self.best_f1 + self._threshold else self._waited + 1
        if f1 >= self.best_f1:
            self.best_f1, self.best_step = f1, state.global_step
            if self._keep:
                self._state_dict = adapter_weights(model)
        if self._patience and self._waited >= self._patience:
            control.should_training_stop = True

    def on_train_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: PeftModel,
        **kwargs: Any,
    ) -> None:
        if self._state_dict:
            set_adapter_weights(model, self._state_dict)


class StepTimer(TrainerCallback):
    """Adds up the seconds of training: steps, and batches; evaluations, logs, checkpoints left out.

    A GPU is waited for only where the clock stops.
    """

    seconds = 0.0
    _started: float | None = None

    def state_dict(self) -> dict[str, float]:
        return {"seconds": self.seconds}

    def load_state_dict(self, state: dict[str, float]) -> None:
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
