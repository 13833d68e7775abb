"""The private parts of transformers' Trainer that training relies on, under public names.

transformers documents none of them and may change them in any minor release. They are used in this
module only, and `tests/training/test_transformers_private.py` checks each of them against the
installed version. To raise the upper bound on transformers in pyproject.toml, run that file first.
"""

import math
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import torch
from datasets import Dataset
from torch.utils.data import Sampler
from transformers import Seq2SeqTrainer, TrainingArguments
from transformers.trainer_pt_utils import LengthGroupedSampler
from transformers.trainer_utils import TrainOutput


def use_one_gpu(arguments: TrainingArguments) -> None:
    """Keep the Trainer from splitting a batch over all GPUs that the process sees.

    Where a process sees several GPUs, the Trainer wraps the model in `torch.nn.DataParallel` and
    multiplies the batch size by their number.
    """
    arguments._n_gpu = min(arguments.n_gpu, 1)


class OpenTrainer(Seq2SeqTrainer):
    """Seq2SeqTrainer with public names for the private steps and values of its training loop.

    Subclasses implement `save_checkpoint`, `load_checkpoint`, `load_optimizer_and_scheduler` and
    `load_random_state`, which replace transformers' pickled files.

    Gradients are clipped without a search of all modules for weights in every step. Two values
    differ from transformers. The last log counts the loss of all processes, not of the
    first alone, and the seconds in `earlier_seconds`. Batches of similar lengths are drawn from
    the effective batch of all processes, as one process draws them.
    """

    earlier_seconds = 0.0
    """Seconds that the parts of this training before its last interruption took."""

    def save_checkpoint(self) -> None:
        """Save what a later process needs to resume after this step."""
        raise NotImplementedError

    def load_checkpoint(self, checkpoint: Path) -> None:
        """Read a checkpoint and load its weights, before the model is prepared for training."""
        raise NotImplementedError

    def load_optimizer_and_scheduler(self) -> None:
        """Restore the state of optimizer and scheduler after `load_checkpoint`."""
        raise NotImplementedError

    def load_random_state(self) -> None:
        """Restore the random state once the batches trained on before have been skipped."""
        raise NotImplementedError

    @property
    def unlogged_loss(self) -> torch.Tensor:
        """Sum of this process's losses since the last log, as a scalar tensor."""
        return self._tr_loss

    @property
    def logged_loss(self) -> float:
        """Sum of the losses of all steps up to the last log."""
        return self._total_loss_scalar

    @property
    def last_logged_step(self) -> int:
        """The step of the last log of the loss."""
        return self._globalstep_last_logged

    def restore_losses(self, unlogged: torch.Tensor, logged: float, last_logged_step: int) -> None:
        """Restore the sums of losses, which the training loop sets to 0 when it begins."""
        self._tr_loss = unlogged.to(self.args.device)
        self._total_loss_scalar, self._globalstep_last_logged = logged, last_logged_step

    @property
    def batch_size(self) -> int:
        """Examples that a process takes into a batch, which `set_batch_size` changes."""
        return self._train_batch_size

    def set_batch_size(self, size: int) -> None:
        """Change the batch size of the next call of `train`."""
        self.args.per_device_train_batch_size = size
        self._train_batch_size = self.args.train_batch_size

    def on_device(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Move a batch to the device that trains."""
        return self._prepare_inputs(inputs)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        self.save_checkpoint()

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        self.load_checkpoint(Path(resume_from_checkpoint))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            self.load_optimizer_and_scheduler()

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            self.load_random_state()

    @cached_property
    def _trained_weights(self) -> list[torch.nn.Parameter]:
        return [weight for weight in self.model.parameters() if weight.requires_grad]

    def clip_gradients(self, largest: float) -> torch.Tensor:
        """Scale the gradients to a norm of at most `largest`; return the norm before, a scalar."""
        return self.accelerator.clip_grad_norm_(self._trained_weights, largest)

    def _clip_grad_norm(self, model: Any) -> torch.Tensor:
        return self.clip_gradients(self.args.max_grad_norm)

    def _get_grad_norm(self, model: Any, grad_norm: torch.Tensor | None = None) -> torch.Tensor:
        return self.clip_gradients(math.inf) if grad_norm is None else grad_norm

    def _finalize_training(
        self, trial: Any, num_train_samples: int, start_time: float
    ) -> TrainOutput:
        self._tr_loss = self.accelerator.reduce(self._tr_loss, "mean")
        return super()._finalize_training(
            trial, num_train_samples, start_time - self.earlier_seconds
        )

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int] | None:
        dataset = self.train_dataset if train_dataset is None else train_dataset
        if isinstance(dataset, Dataset) and "input_ids" in dataset.column_names:
            # The sampler reads lengths alone; from the dataset it would read row by row.
            column = dataset.with_format("arrow")[:]["input_ids"]
            lengths = pc.list_value_length(column).to_pylist()
            dataset = [{"input_ids": range(length)} for length in lengths]
        sampler = super()._get_train_sampler(dataset)
        if isinstance(sampler, LengthGroupedSampler):
            sampler.batch_size *= self.args.world_size
        return sampler
