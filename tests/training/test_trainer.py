"""Training that answers questions as it goes: logs, TensorBoard, record, best adapter."""

import pytest
import torch
from conftest import DEVICE, RUN
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from flan_qa_pipeline.answering.dev_sample import DevSample, answer_sample
from flan_qa_pipeline.models.adapter import attach_adapter
from flan_qa_pipeline.models.batching import round_up
from flan_qa_pipeline.models.loading import load_base_model
from flan_qa_pipeline.training.trainer import AnsweringTrainer


@pytest.fixture(scope="module")
def long_run(train, training, tmp_path_factory):
    """A training that goes wrong half-way: its adapter, the scores over it, its TensorBoard."""
    folder = tmp_path_factory.mktemp("events")
    longer = training.model_copy(
        update={
            "num_train_epochs": 12,
            "learning_rate": 0.3,
            "lr_scheduler_type": "constant",
            "warmup_steps": 0,
            "max_grad_norm": 0,
            "load_best_model_at_end": True,
            "logging_dir": str(folder),
        }
    )
    model, adapter = train(longer)
    events = EventAccumulator(str(folder / RUN), size_guidance={"tensors": 0})
    events.Reload()
    return model, adapter, events


def scores_by_step(adapter):
    log = adapter.training["log"]
    return {entry["step"]: entry["eval_f1"] for entry in log if "eval_f1" in entry}


def test_the_adapter_kept_is_the_last_of_the_best(
    long_run,
    parameters,
    float32,
    provenance,
    questions,
    windows,
    tokenizer,
):
    _, adapter, _ = long_run
    scores = scores_by_step(adapter)
    assert len(scores) == 12
    best = max(scores.values())
    assert adapter.training["best_step"] == max(s for s, f1 in scores.items() if f1 == best)
    again = attach_adapter(load_base_model(float32), adapter, provenance)
    found = answer_sample(
        again,
        tokenizer=tokenizer,
        sample=DevSample(list(questions["dev"]), windows["dev"]),
        prompt=parameters.prompt,
        generation=parameters.generation,
    )
    assert found["f1"] == best


def test_tensorboard_has_loss_rate_scores_memory_and_answers(long_run):
    _, adapter, events = long_run
    scalars = set(events.Tags()["scalars"])
    assert {
        "train/loss",
        "train/learning_rate",
        "train/peak_memory_mib_process",
        "eval/loss",
        "eval/f1",
        "eval/exact",
    } <= scalars
    logged = {event.step: event.value for event in events.Scalars("eval/f1")}
    assert logged == pytest.approx(scores_by_step(adapter), rel=1e-5)
    texts = events.Tensors("eval/answers/text_summary")
    assert len(texts) == 12
    assert b"Who was the referee?" in texts[0].tensor_proto.string_val[0]
    assert all(event.value > 100 for event in events.Scalars("train/peak_memory_mib_process"))


def test_the_record_says_what_training_took(long_run, training, windows):
    model, adapter, _ = long_run
    record = adapter.training
    assert record["samples"] == 12 * len(windows["train"])
    assert record["steps"] == 12 * len(windows["train"]) // training.per_device_train_batch_size
    assert record["seconds"] > 0
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert record["trainable_parameters"] == trainable
    assert record["attention"] == ("triton" if DEVICE.type == "cuda" else "eager")
    assert record["weights_bytes"] == model.get_memory_footprint()
    assert record["peak_memory"]["process"] > record["weights_bytes"]


def test_operations_are_counted_for_every_token(long_run, windows):
    model, adapter, _ = long_run
    lengths = [len(ids) for ids in windows["train"]["input_ids"]]
    per_token = 6 * model.num_parameters(exclude_embeddings=True)
    tokens = adapter.training["log"][-1]["total_flos"] / per_token
    assert 12 * sum(lengths) <= tokens <= 12 * len(lengths) * round_up(max(lengths))


def test_without_keeping_the_best_the_last_adapter_stays(train, training):
    model, adapter = train(training.model_copy(update={"load_best_model_at_end": False}))
    held = dict(model.named_parameters())
    for name, tensor in adapter.state_dict.items():
        assert torch.equal(tensor, held[name.replace(".weight", ".default.weight")].cpu())


def test_callbacks_are_called_in_their_order_and_transformers_bar_is_not(
    train, training, monkeypatch
):
    """Divergence is noticed before anything is logged; checkpoints restore what others reset."""
    made = []
    run = AnsweringTrainer.train_or_resume
    monkeypatch.setattr(
        AnsweringTrainer,
        "train_or_resume",
        lambda self, resume: (made.append(self), run(self, resume)),
    )
    short = {"max_steps": 1, "eval_strategy": "no", "save_strategy": "no"}
    train(training.model_copy(update=short | {"early_stopping_patience": 2}))
    [trainer] = made
    assert [type(callback).__name__ for callback in trainer.callback_handler.callbacks] == [
        "DefaultFlowCallback",
        "Divergence",
        "LossInProgressBar",
        "LastingTensorBoard",
        "StepTimer",
        "BestAdapter",
        "EarlyStopping",
        "_CheckpointFlow",
    ]
