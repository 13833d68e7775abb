"""The private parts of transformers that training relies on are in the installed version.

Each message says what is missing; `training/transformers_private.py` is the place to mend.
"""

import inspect
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments, TrainerCallback
from transformers.trainer_pt_utils import LengthGroupedSampler

from flan_qa_pipeline.training.transformers_private import OpenTrainer, use_one_gpu

TRANSFORMERS = f"transformers {version('transformers')}"
OVERRIDDEN = {
    "_save_checkpoint": ["self", "model", "trial"],
    "_load_from_checkpoint": ["self", "resume_from_checkpoint", "model"],
    "_load_optimizer_and_scheduler": ["self", "checkpoint"],
    "_load_rng_state": ["self", "checkpoint"],
    "_clip_grad_norm": ["self", "model"],
    "_get_grad_norm": ["self", "model", "grad_norm"],
    "_finalize_training": ["self", "trial", "num_train_samples", "start_time"],
    "_get_train_sampler": ["self", "train_dataset"],
}
ATTRIBUTES = {
    "_tr_loss": torch.Tensor,
    "_total_loss_scalar": float,
    "_globalstep_last_logged": int,
    "_train_batch_size": int,
}
N_EXAMPLES, LENGTHS = 8, (3, 9)


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def forward(self, input_ids, labels):
        return {"loss": self.weight + labels.float().mean()}


def trainer_of(kind, folder, *callbacks, **options):
    rows = [{"input_ids": [1] * LENGTHS[n % 2], "labels": [n]} for n in range(N_EXAMPLES)]
    arguments = {
        "output_dir": str(folder),
        "max_steps": 4,
        "logging_steps": 3,
        "per_device_train_batch_size": 2,
        "train_sampling_strategy": "group_by_length",
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "dataloader_pin_memory": False,
        "disable_tqdm": True,
        "log_level": "error",
    }
    return kind(
        model=Model(),
        args=Seq2SeqTrainingArguments(**arguments | options),
        train_dataset=Dataset.from_list(rows),
        data_collator=lambda rows: {
            "input_ids": torch.tensor([len(row["input_ids"]) for row in rows]),
            "labels": torch.tensor([row["labels"] for row in rows]),
        },
        callbacks=list(callbacks),
    )


@pytest.mark.parametrize("name", OVERRIDDEN)
def test_an_overridden_method_takes_the_same_arguments(name):
    method = getattr(Seq2SeqTrainer, name, None)
    assert method, f"{TRANSFORMERS} has no Trainer.{name}, which OpenTrainer overrides"
    found = list(inspect.signature(method).parameters)
    assert found == OVERRIDDEN[name], f"{TRANSFORMERS}: Trainer.{name} takes {found}"


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_an_attribute_exists_while_a_plain_trainer_trains(name, tmp_path):
    found = []

    class Look(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            found.append(getattr(trainer, name, None))

    trainer = trainer_of(Seq2SeqTrainer, tmp_path, Look())
    trainer.train()
    assert all(isinstance(value, ATTRIBUTES[name]) for value in found) and len(found) == 4, (
        f"{TRANSFORMERS}: Trainer.{name} is {found[0]!r}, not {ATTRIBUTES[name].__name__}, which "
        "OpenTrainer reads"
    )


class Recording(OpenTrainer):
    """Notes the calls of the steps that a subclass implements."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.calls = []

    def save_checkpoint(self):
        self.calls.append("save_checkpoint")
        folder = Path(self.args.output_dir, "checkpoint")
        folder.mkdir(exist_ok=True)
        self.state.save_to_json(str(folder / "trainer_state.json"))

    def load_checkpoint(self, checkpoint):
        self.calls.append(("load_checkpoint", checkpoint))

    def load_optimizer_and_scheduler(self):
        assert self.optimizer is not None and self.lr_scheduler is not None
        self.calls.append("load_optimizer_and_scheduler")

    def load_random_state(self):
        self.calls.append("load_random_state")


def test_the_training_loop_calls_the_open_steps_and_writes_no_file(tmp_path):
    saving = {"save_strategy": "steps", "save_steps": 3}
    trainer = trainer_of(Recording, tmp_path, **saving)
    trainer.train()
    assert trainer.calls == ["save_checkpoint"] * len(trainer.calls) != [], TRANSFORMERS
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"], TRANSFORMERS

    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step == 3

    trainer = trainer_of(Recording, tmp_path, Stop(), **saving)
    trainer.train()
    trainer = trainer_of(Recording, tmp_path)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint"))
    assert trainer.state.global_step == 4
    assert trainer.calls == [
        ("load_checkpoint", tmp_path / "checkpoint"),
        "load_optimizer_and_scheduler",
        "load_random_state",
    ], f"{TRANSFORMERS} resumes by other steps: {trainer.calls}"


def test_restored_losses_are_those_that_the_loop_logs(tmp_path):
    class Restore(TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            trainer.restore_losses(torch.tensor(300.0), 100.0, -1)

    trainer = trainer_of(OpenTrainer, tmp_path, Restore(), train_sampling_strategy="sequential")
    trainer.earlier_seconds = 100.0
    trainer.train()
    first, last = trainer.state.log_history
    assert first["loss"] == pytest.approx((300 + 0.5 + 2.5 + 4.5) / 4, abs=0.01), TRANSFORMERS
    total = 100 + 300 + 0.5 + 2.5 + 4.5 + 6.5
    assert last["train_loss"] == pytest.approx(total / 4, abs=0.01), TRANSFORMERS
    assert 100 < last["train_runtime"] < 200, TRANSFORMERS
    assert trainer.last_logged_step == 3
    assert trainer.logged_loss == pytest.approx(total, abs=0.01)
    assert trainer.unlogged_loss.item() == pytest.approx(6.5, abs=0.01)


def test_a_batch_size_takes_effect_at_the_next_training(tmp_path):
    trainer = trainer_of(OpenTrainer, tmp_path)
    trainer.set_batch_size(4)
    assert (trainer.batch_size, trainer.get_total_train_batch_size(trainer.args)) == (4, 4)
    sizes = [len(batch["labels"]) for batch in trainer.get_train_dataloader()]
    assert sizes == [4, 4], f"{TRANSFORMERS}: Trainer._train_batch_size has no effect"


def test_similar_lengths_are_drawn_from_the_batch_of_all_processes(tmp_path, monkeypatch):
    trainer = trainer_of(OpenTrainer, tmp_path)
    monkeypatch.setattr(Seq2SeqTrainingArguments, "world_size", 2)
    samplers = []
    get = OpenTrainer._get_train_sampler
    monkeypatch.setattr(
        OpenTrainer, "_get_train_sampler", lambda *a, **k: samplers.append(get(*a, **k))
    )
    trainer.get_train_dataloader()
    [sampler] = samplers
    assert isinstance(sampler, LengthGroupedSampler), TRANSFORMERS
    assert sampler.batch_size == 4, TRANSFORMERS
    assert sampler.lengths == [LENGTHS[n % 2] for n in range(N_EXAMPLES)], TRANSFORMERS


def test_batches_are_not_multiplied_by_the_gpus_seen(tmp_path, monkeypatch):
    arguments = Seq2SeqTrainingArguments(output_dir=str(tmp_path), per_device_train_batch_size=3)
    arguments.device  # noqa: B018  # sets the number of GPUs when it is first read
    arguments._n_gpu = 2
    assert arguments.train_batch_size == 6, f"{TRANSFORMERS}: TrainingArguments._n_gpu is not used"
    use_one_gpu(arguments)
    assert (arguments.n_gpu, arguments.train_batch_size) == (1, 3)


def test_a_batch_is_moved_to_the_device(tmp_path):
    trainer = trainer_of(OpenTrainer, tmp_path)
    moved = trainer.on_device({"labels": torch.ones(2)})
    assert moved["labels"].device == trainer.args.device
