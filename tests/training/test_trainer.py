"""Training that answers questions as it goes: logs, TensorBoard, best adapter, early stopping."""

import pytest
import torch
from conftest import RUN
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import TrainerState

from flan_qa_pipeline.answering.dev_sample import DevSample, answer_sample
from flan_qa_pipeline.models.adapter import attach_adapter
from flan_qa_pipeline.models.batching import round_up
from flan_qa_pipeline.models.loading import load_base_model
from flan_qa_pipeline.training.progress import LossInProgressBar


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
    assert record["attention"] == ("sdpa" if torch.cuda.is_available() else "eager")
    assert record["weights_bytes"] == model.get_memory_footprint()
    assert record["peak_memory"]["process"] > record["weights_bytes"]


def test_operations_are_counted_for_every_token(long_run, windows):
    model, adapter, _ = long_run
    lengths = [len(ids) for ids in windows["train"]["input_ids"]]
    per_token = 6 * model.num_parameters(exclude_embeddings=True)
    tokens = adapter.training["log"][-1]["total_flos"] / per_token
    assert 12 * sum(lengths) <= tokens <= 12 * len(lengths) * round_up(max(lengths))


def test_early_stopping_ends_the_training(train, training):
    stopping = training.model_copy(
        update={
            "num_train_epochs": 12,
            "learning_rate": 1e-12,
            "load_best_model_at_end": False,
            "early_stopping_patience": 2,
        }
    )
    _, adapter = train(stopping)
    assert len(scores_by_step(adapter)) == 3
    assert adapter.training["best_step"] is None


@pytest.mark.parametrize(
    ("scores", "threshold", "stops_at"),
    [
        ([10, 20, 20, 20], 0.0, 3),
        ([10, 20, 20.5, 20.9, 30], 1.0, 3),
        ([10, 11, 12, 13], 0.0, None),
        ([10, 9, 12, 11, 10], 0.0, 4),
    ],
)
def test_patience_counts_evaluations_without_a_better_score(
    train, training, monkeypatch, scores, threshold, stops_at
):
    given = iter([*scores, 1.0])
    monkeypatch.setattr(
        "flan_qa_pipeline.pipelines.modeling.nodes.answer_sample",
        lambda *args, **kwargs: {"f1": next(given)},
    )
    stopping = training.model_copy(
        update={
            "num_train_epochs": len(scores) + 1,
            "save_strategy": "no",
            "early_stopping_patience": 2,
            "early_stopping_threshold": threshold,
        }
    )
    _, adapter = train(stopping)
    seen = list(scores_by_step(adapter).values())
    assert seen == ([*scores, 1.0] if stops_at is None else scores[: stops_at + 1])


def test_one_described_bar_that_leaves_the_terminal(capsys):
    bar, state = LossInProgressBar("Train the adapter"), TrainerState(max_steps=4)
    bar.on_train_begin(None, state, None)
    first = bar.training_bar
    bar.on_train_begin(None, state, None)
    assert first.disable
    bar.on_log(None, state, None, logs={"loss": 2.5, "learning_rate": 0.1})
    assert bar.training_bar.postfix == "loss=2.5"
    bar.on_train_end(None, state, None)
    shown = capsys.readouterr().err
    assert "Train the adapter:   0%" in shown
    assert shown.endswith("\r") and not shown.split("\r")[-2].strip()


def test_without_keeping_the_best_the_last_adapter_stays(train, training):
    model, adapter = train(training.model_copy(update={"load_best_model_at_end": False}))
    held = dict(model.named_parameters())
    for name, tensor in adapter.state_dict.items():
        assert torch.equal(tensor, held[name.replace(".weight", ".default.weight")])
