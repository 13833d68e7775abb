"""What saves memory in training takes effect and changes nothing else."""

import logging

import pytest
import torch
from bitsandbytes.optim import AdamW
from conftest import on_cpu

from flan_qa_pipeline.config.validation import check_parameters
from flan_qa_pipeline.errors import InputError
from flan_qa_pipeline.training.requirements import require_trainable
from flan_qa_pipeline.training.trainer import AnsweringTrainer


@pytest.fixture(scope="module")
def short(training):
    return training.model_copy(
        update={
            "max_steps": 2,
            "eval_strategy": "no",
            "load_best_model_at_end": False,
            "save_strategy": "no",
        }
    )


@pytest.fixture(scope="module")
def plain(train, short):
    return train(short)[1]


@pytest.fixture
def trainers(monkeypatch):
    """The trainers made, each with the sizes of the batches that it saw."""
    made = []
    step = AnsweringTrainer.training_step

    def spy(self, model, inputs, *args, **kwargs):
        if self not in made:
            made.append(self)
            self.sizes = []
        self.sizes.append(len(inputs["labels"]))
        return step(self, model, inputs, *args, **kwargs)

    monkeypatch.setattr(AnsweringTrainer, "training_step", spy)
    return made


def assert_same_adapter(adapter, expected):
    for name, tensor in expected.state_dict.items():
        torch.testing.assert_close(adapter.state_dict[name], tensor, rtol=1e-3, atol=1e-4)


def test_gradient_checkpointing_computes_blocks_twice(train, short, plain, trainers, monkeypatch):
    runs = []
    step = AnsweringTrainer.training_step

    def count(self, model, *args, **kwargs):
        block = model.get_base_model().encoder.block[0].layer[0].SelfAttention.q
        with_hook = block.register_forward_hook(lambda *_: runs.append(torch.is_grad_enabled()))
        loss = step(self, model, *args, **kwargs)
        with_hook.remove()
        return loss

    monkeypatch.setattr(AnsweringTrainer, "training_step", count)
    train(short)
    once = len(runs)
    runs.clear()
    _, adapter = train(short.model_copy(update={"gradient_checkpointing": True}))
    assert once == short.max_steps
    assert len(runs) == 2 * once
    assert trainers[-1].args.gradient_checkpointing_kwargs == {"use_reentrant": False}
    assert_same_adapter(adapter, plain)


@on_cpu
def test_paged_optimizer_needs_a_gpu(raw_parameters):
    raw_parameters["training"]["optim"] = "paged_adamw_8bit"
    with pytest.raises(InputError, match="paged_adamw_8bit pages .* no GPU; choose adamw_8bit"):
        require_trainable(check_parameters(raw_parameters), 1)


def test_8_bit_optimizer_keeps_its_state_in_bytes(train, short, trainers, monkeypatch):
    kwargs = AnsweringTrainer.get_optimizer_cls_and_kwargs

    def small_too(args, model=None):
        kind, options = kwargs(args, model)
        return kind, options | {"min_8bit_size": 1}

    monkeypatch.setattr(AnsweringTrainer, "get_optimizer_cls_and_kwargs", staticmethod(small_too))
    _, adapter = train(short.model_copy(update={"optim": "adamw_8bit"}))
    optimizer = trainers[-1].optimizer.optimizer
    assert isinstance(optimizer, AdamW)
    assert {state["state1"].dtype for state in optimizer.state.values()} == {torch.uint8}
    assert all(tensor.isfinite().all() for tensor in adapter.state_dict.values())


@pytest.mark.parametrize("chosen", [True, "auto"])
def test_found_batch_size_keeps_the_effective_batch(
    train, short, plain, trainers, monkeypatch, caplog, chosen
):
    step = AnsweringTrainer.training_step

    def full_above_one(self, model, inputs, *args, **kwargs):
        loss = step(self, model, inputs, *args, **kwargs)
        if len(inputs["labels"]) > 1 and self.state.global_step > 0:
            by_torch = len(inputs["labels"]) > 2
            raise RuntimeError(
                "CUDA out of memory. Tried to allocate 1 GiB."
                if by_torch
                else "CUDA error: out of memory\nCUDA kernel errors might be reported later."
            )
        return loss

    monkeypatch.setattr(AnsweringTrainer, "training_step", full_above_one)
    with caplog.at_level(logging.INFO, logger="flan_qa_pipeline"):
        _, adapter = train(short.model_copy(update={"auto_find_batch_size": chosen}))
    assert short.per_device_train_batch_size == 4
    assert trainers[-1].sizes == [4, 4, 2, 2, 2, *[1] * 8]
    said = "training.auto_find_batch_size auto: on (one process)."
    assert caplog.messages.count(said) == (chosen == "auto")
    assert "A batch of 4 does not fit in memory; trying 2." in caplog.messages
    assert "Batch size found: 1, accumulated 4 times, 4 in effect." in caplog.messages
    record = adapter.training
    assert (record["batch_size"], record["gradient_accumulation_steps"]) == (1, 4)
    assert (plain.training["batch_size"], plain.training["gradient_accumulation_steps"]) == (4, 1)
    assert_same_adapter(adapter, plain)


def test_an_error_that_is_not_of_memory_is_not_retried(train, short, trainers, monkeypatch):
    def fail(self, *args, **kwargs):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(AnsweringTrainer, "training_step", fail)
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        train(short.model_copy(update={"auto_find_batch_size": True}))
