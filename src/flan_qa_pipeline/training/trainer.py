"""A Trainer that answers questions during training, finds a batch size and uses CUDA graphs."""

import logging
from collections.abc import Callable, Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from accelerate import PartialState
from accelerate.utils import model_has_dtensor
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from datasets import Dataset
from peft import PeftModel
from transformers import (
    PreTrainedTokenizerBase,
    Seq2SeqTrainingArguments,
    TrainerCallback,
    TrainerState,
    set_seed,
)
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import ProgressCallback
from transformers.trainer_utils import EvalLoopOutput, TrainOutput

from flan_qa_pipeline.config.parameters import TrainingParameters
from flan_qa_pipeline.models.adapter import adapter_weights, set_adapter_weights
from flan_qa_pipeline.models.batching import captured_length, collate, round_up
from flan_qa_pipeline.models.device import MIB, free_memory, peak_memory
from flan_qa_pipeline.models.flat_gradients import FlatGradients
from flan_qa_pipeline.training.best_adapter import BestAdapter, EarlyStopping
from flan_qa_pipeline.training.common_lengths import CommonLengths
from flan_qa_pipeline.training.cuda_graphs import GraphedPasses
from flan_qa_pipeline.training.divergence import Divergence
from flan_qa_pipeline.training.progress import (
    LastingTensorBoard,
    LossInProgressBar,
    NumbersInMlflow,
)
from flan_qa_pipeline.training.resuming import ResumableTrainer
from flan_qa_pipeline.training.step_timer import StepTimer

logger = logging.getLogger(__name__)

Callback = TypeVar("Callback", bound=TrainerCallback)
AnswerQuestions = Callable[[PeftModel], Mapping[str, float | str]]


def build_trainer(
    model: PeftModel,
    arguments: Seq2SeqTrainingArguments,
    training: TrainingParameters,
    tokenizer: PreTrainedTokenizerBase,
    *,
    train_windows: Dataset,
    eval_windows: Dataset,
    answer_questions: AnswerQuestions,
    log_folder: Path,
    cuda_graphs: bool,
) -> "AnsweringTrainer":
    """Build the Trainer of a peft model, with the callbacks that the parameters ask for.

    Args:
        model: the model to train.
        arguments: see `build_arguments`.
        training: decides batch size search, best adapter and early stopping.
        tokenizer: the tokenizer of the windows.
        train_windows: columns `input_ids` and `labels`; other columns are left out.
        eval_windows: the same columns, for the loss in evaluations.
        answer_questions: see `AnsweringTrainer`.
        log_folder: where TensorBoard's log is written.
        cuda_graphs: see `AnsweringTrainer`; batches are padded to few lengths for few graphs.
    """
    callbacks = [
        LossInProgressBar("Train the adapter"),
        *_trackers(training, log_folder),
        StepTimer(),
        BestAdapter(keep=training.load_best_model_at_end),
    ]
    if training.early_stopping_patience:
        callbacks.append(
            EarlyStopping(training.early_stopping_patience, training.early_stopping_threshold)
        )
    trainer = AnsweringTrainer(
        model=model,
        args=arguments,
        train_dataset=train_windows,
        eval_dataset=eval_windows,
        processing_class=tokenizer,
        data_collator=partial(
            collate,
            pad_token_id=tokenizer.pad_token_id,
            padded=captured_length if cuda_graphs else round_up,
        ),
        answer_questions=answer_questions,
        find_batch_size=_finds_batch_size(training),
        cuda_graphs=cuda_graphs,
    )
    trainer.remove_callback(ProgressCallback)  # before a subclass of it is added
    for callback in callbacks:
        trainer.add_callback(callback)
    return trainer


def _finds_batch_size(training: TrainingParameters) -> bool:
    """Return whether to search for a batch size that fits, and log what `auto` chooses."""
    if training.auto_find_batch_size != "auto":
        return training.auto_find_batch_size
    processes = PartialState().num_processes
    chosen = "on (one process)" if processes == 1 else f"off ({processes} processes)"
    logger.info("training.auto_find_batch_size auto: %s.", chosen)
    return processes == 1


def _trackers(training: TrainingParameters, log_folder: Path) -> list[TrainerCallback]:
    """Make the callback of the chosen tracker; the Trainer makes the one of wandb."""
    if training.report_to == "tensorboard":
        return [LastingTensorBoard(log_folder)]
    return [NumbersInMlflow()] if training.report_to == "mlflow" else []


class AnsweringTrainer(ResumableTrainer):
    """Adds the scores of answered questions to evaluations, and the peak memory to every log.

    Several processes see in a step the examples that one process sees at the same effective batch;
    only the last batch of an epoch is filled up, with the epoch's first examples. Each computes the
    gradients of its share, and they average them once a step (see `FlatGradients`); FSDP averages
    the gradients of sharded weights.

    Args:
        answer_questions: maps the model to metrics such as `exact` and `f1`, which every evaluation
            logs; TensorBoard shows a string among them as text. None logs the loss alone.
        find_batch_size: restart a training that does not fit in memory with a smaller batch and
            correspondingly more gradient accumulation, so that the optimizer sees the same
            batches. A resumed training keeps the size found. transformers' `auto_find_batch_size`
            changes the effective batch, and with it what the learning rate means, and continues
            from the adapter as the failed attempt left it.
        cuda_graphs: run the forward and backward pass of a step as one CUDA graph (see
            `cuda_graphs`).
    """

    def __init__(
        self,
        *args: Any,
        answer_questions: AnswerQuestions | None,
        find_batch_size: bool = False,
        cuda_graphs: bool = False,
        **kwargs: Any,
    ):
        super().__init__(*args, **kwargs)
        self._divergence = Divergence()
        self.add_callback(self._divergence)
        self._answer_questions = answer_questions
        self._find_batch_size = find_batch_size
        # This leaves the model as it is in several processes, without DistributedDataParallel.
        self.accelerator.prepare_model(self.model, evaluation_mode=True)
        processes = self.accelerator.num_processes
        plain = processes == 1 and not cuda_graphs
        self._gradients = (
            None if plain or model_has_dtensor(self.model) else FlatGradients(self.model)
        )
        self._graphed_passes = (
            GraphedPasses(self.model, self._gradients, processes)
            if cuda_graphs and self._gradients
            else None
        )
        self._common_lengths = (
            CommonLengths(self.processing_class.pad_token_id)
            if cuda_graphs and processes > 1
            else None
        )

    def callback(self, kind: type[Callback]) -> Callback:
        """Return the Trainer's callback of this class."""
        return next(c for c in self.callback_handler.callbacks if isinstance(c, kind))

    def train(self, resume_from_checkpoint: str | None = None) -> TrainOutput:
        """Train, with smaller batches after running out of memory if `find_batch_size`."""
        if (processes := self.accelerator.num_processes) > 1:
            logger.info(
                "%d processes train on batches of %d, accumulated %d times, %d in effect.",
                processes,
                *self._batch_sizes(),
            )
        if not self._find_batch_size:
            return self._train_once(resume_from_checkpoint)
        if resume_from_checkpoint:
            state = TrainerState.load_from_json(Path(resume_from_checkpoint, TRAINER_STATE_NAME))
            self._use_batch_size(state.train_batch_size)
        start = adapter_weights(self.model)
        while True:
            try:
                output = self._train_once(resume_from_checkpoint)
            except RuntimeError as error:
                if not _out_of_memory(error) or self.batch_size == 1:
                    raise
            else:
                logger.info(
                    "Batch size found: %d, accumulated %d times, %d in effect.",
                    *self._batch_sizes(),
                )
                return output
            self._reduce_batch_size()
            set_adapter_weights(self.model, start)
            set_seed(self.args.seed)

    def _train_once(self, resume_from_checkpoint: str | None) -> TrainOutput:
        if self._gradients is not None:
            # The Trainer calls zero_grad after every step; nn.Module's searches all modules.
            self.model.zero_grad = self._gradients.detach
        try:
            return super().train(resume_from_checkpoint)
        finally:
            if self._gradients is not None:
                del self.model.zero_grad
            if self._graphed_passes is not None:
                self._graphed_passes.clear()

    def _batch_sizes(self) -> tuple[int, int, int]:
        """Return a process's batch size, the batches accumulated, and the effective batch size."""
        return (
            self.args.per_device_train_batch_size,
            self.args.gradient_accumulation_steps,
            self.get_total_train_batch_size(self.args),
        )

    def _reduce_batch_size(self) -> None:
        """Go to the largest divisor of the effective batch that is at most half of the batch."""
        size, accumulated, _ = self._batch_sizes()
        smaller = max(n for n in range(1, size // 2 + 1) if size * accumulated % n == 0)
        logger.info("A batch of %d does not fit in memory; trying %d.", size, smaller)
        self._use_batch_size(smaller)
        self.optimizer = self.lr_scheduler = None
        self.model.zero_grad()
        self.model_wrapped = self.model
        clear_device_cache(garbage_collection=True)

    def _use_batch_size(self, size: int) -> None:
        """Change the batch size to a divisor of the effective batch, which stays as it is."""
        effective = self.args.per_device_train_batch_size * self.args.gradient_accumulation_steps
        self.args.gradient_accumulation_steps = effective // size
        self.set_batch_size(size)

    @cached_property
    def _n_parameters(self) -> int:
        return self.model.num_parameters(exclude_embeddings=True)

    def floating_point_ops(self, inputs: dict[str, torch.Tensor]) -> int:
        """Return transformers' own estimate, without counting the parameters at every step."""
        return 6 * inputs["input_ids"].numel() * self._n_parameters

    def training_step(
        self,
        model: PeftModel,
        inputs: dict[str, torch.Tensor],
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """Run the forward and backward pass of a batch; return its loss, a scalar tensor.

        After the last batch of a step, the gradients are averages over the processes.
        """
        if self._graphed_passes is None:
            if self._gradients is not None:
                self._gradients.attach()
            loss = super().training_step(model, inputs, num_items_in_batch)
        else:
            # peft's wrapper is in training mode when its base is still as it was loaded
            if not model.get_base_model().training:
                model.train()
            n_items = cast(torch.Tensor, num_items_in_batch)  # the Trainer counts on the device
            batch = self.on_device(inputs)
            if self._common_lengths is not None:
                batch = self._common_lengths(batch)
            loss = self._graphed_passes({**batch, "num_items_in_batch": n_items})
        if self._gradients is not None and self.accelerator.sync_gradients:
            self._gradients.average()
        self._divergence.note(loss, self.state.global_step + 1)
        return loss

    def clip_gradients(self, largest: float) -> torch.Tensor:
        """Scale the gradients to a norm of at most `largest`; return the norm before, a scalar."""
        if self._gradients is None:
            return super().clip_gradients(largest)
        self.accelerator.unscale_gradients()
        return self._gradients.clip(largest)

    def _leave_room_to_answer(self) -> None:
        """Free the graphs' memory before an evaluation unless half of the GPU is free."""
        if self._graphed_passes is None:
            return
        device = self.args.device
        if free_memory(device) < torch.cuda.get_device_properties(device).total_memory / 2:
            self._graphed_passes.clear()

    def evaluation_loop(
        self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any
    ) -> EvalLoopOutput:
        """Evaluate the loss, then answer questions and add their metrics under the prefix."""
        self._leave_room_to_answer()
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        if self._answer_questions:
            found = self._answer_questions(self.model)
            output.metrics.update({f"{metric_key_prefix}_{key}": v for key, v in found.items()})
        return output

    def log(self, logs: dict[str, Any], start_time: float | None = None) -> None:
        """Log, with the peak memory so far in MiB."""
        prefix = "eval_" if any(key.startswith("eval_") for key in logs) else ""
        for place, size in peak_memory().items():
            logs[f"{prefix}peak_memory_mib_{place.lower()}"] = size / MIB
        super().log(logs, start_time)


def _out_of_memory(error: RuntimeError) -> bool:
    """Return whether torch, or the driver while it builds a graph, has run out of memory."""
    return should_reduce_batch_size(error) or "CUDA error: out of memory" in str(error)
