"""A training that is stopped and resumed ends like one that was not, to the last bit."""

import json
import logging
import math
import shutil
from pathlib import Path
from time import sleep
from types import SimpleNamespace
from uuid import uuid4

import pytest
import torch
from conftest import RUN
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import flan_qa_pipeline.training.checkpoints
from flan_qa_pipeline.errors import InputError
from flan_qa_pipeline.training.best_adapter import BestAdapter
from flan_qa_pipeline.training.checkpoints import discard_checkpoints
from flan_qa_pipeline.training.trainer import AnsweringTrainer
from flan_qa_pipeline.training.training_state import unpack

VARIES = ("train_runtime", "_per_second", "peak_memory", "eval_runtime")
STEPS = {"eval_strategy": "steps", "eval_steps": 7, "save_strategy": "steps", "save_steps": 4}
SHARES = STEPS | {"eval_steps": 0.5, "save_steps": 0.3}
EPOCHS = {"eval_strategy": "epoch", "save_strategy": "steps", "save_steps": 6}
RANDOM = {"train_sampling_strategy": "random", "gradient_accumulation_steps": 2} | {
    "eval_strategy": "no",
    "save_strategy": "steps",
    "save_steps": 4,
}


class Killed(BaseException):
    """Stops a training where a kill would, past every `except Exception`."""


@pytest.fixture(scope="module")
def lora(lora):
    return lora.model_copy(update={"dropout": 0.2})  # so that the random state counts


@pytest.fixture(scope="module")
def fresh(training, tmp_path_factory):
    """Two epochs of six batches, with checkpoints of their own, by options that may be changed."""

    def parameters(**options):
        return training.model_copy(
            update={
                "output_dir": str(tmp_path_factory.mktemp("checkpoints")),
                "per_device_train_batch_size": 2,
                "learning_rate": 0.02,
                "logging_steps": 3,
                "save_total_limit": 2,
                "load_best_model_at_end": True,
            }
            | options
        )

    return parameters


def train_until(step, train, training):
    """Train and stop without warning in the step after `step`."""

    def stop(self, args, state, control, **kwargs):
        if state.global_step == step:
            raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BestAdapter, "on_step_begin", stop)
        with pytest.raises(Killed):
            train(training)


def saved(training):
    return sorted(
        path.parent.name for path in Path(training.output_dir).rglob("trainer_state.json")
    )


def log_of(adapter):
    return [
        {key: value for key, value in entry.items() if not any(v in key for v in VARIES)}
        for entry in adapter.training["log"]
    ]


@pytest.mark.parametrize(
    ("options", "stops"),
    [
        pytest.param(
            STEPS, [(5, ["checkpoint-4"]), (9, ["checkpoint-4", "checkpoint-8"])], id="steps"
        ),
        pytest.param(SHARES, [(5, ["checkpoint-4"])], id="shares"),
        pytest.param(EPOCHS, [(7, ["checkpoint-6"])], id="end of epoch"),
        pytest.param(RANDOM, [(5, ["checkpoint-4"])], id="random"),
    ],
)
def test_a_stopped_training_ends_as_one_that_was_not(train, fresh, caplog, options, stops):
    _, whole = train(fresh(**options))
    training = fresh(**options)
    for step, checkpoints in stops:
        train_until(step, train, training)
        assert saved(training) == checkpoints
    with caplog.at_level(logging.INFO, logger="flan_qa_pipeline"):
        _, resumed = train(training)
    assert f"resumes from the checkpoint {training.output_dir}" in caplog.text
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    for name, tensor in whole.state_dict.items():
        assert torch.equal(tensor, resumed.state_dict[name]), name
    assert log_of(resumed) == log_of(whole)
    for key in ("best_step", "steps", "samples", "fingerprint"):
        assert resumed.training[key] == whole.training[key]


def test_a_resumed_training_stops_early_where_it_would_have(train, fresh, monkeypatch):
    """The evaluation that did not improve before the interruption counts after it."""
    scores = {2: 10.0, 4: 9.0, 6: 10.5, 8: 30.0}  # by step; 10.5 is no better by the threshold
    monkeypatch.setattr(
        "flan_qa_pipeline.pipelines.modeling.nodes.answer_sample",
        lambda *args, **kwargs: {"f1": scores[step[-1]]},
    )
    step = []

    def count(self, args, state, control, **kwargs):
        step.append(state.global_step)

    monkeypatch.setattr(BestAdapter, "on_step_end", count)
    stopping = {"early_stopping_patience": 2, "early_stopping_threshold": 1.0, "eval_steps": 2}
    training = fresh(**STEPS | stopping)
    train_until(5, train, training)
    assert saved(training) == ["checkpoint-4"]
    _, resumed = train(training)
    assert resumed.training["steps"] == 6


def test_a_checkpoint_without_the_state_of_a_callback_is_refused(train, stopped):
    (path,) = Path(stopped.output_dir).glob("*/checkpoint-4/training_state.json")
    path.write_text(path.read_text().replace('"StepTimer"', '"Unknown"'))
    with pytest.raises(InputError, match="checkpoint-4 cannot be read: it has no state of StepTi"):
        train(stopped)


@pytest.fixture
def memory(monkeypatch):
    """Memory for batches of 2; `full_after` many steps also for larger ones. Lists the batches."""
    memory = SimpleNamespace(full_after=0, batches=[])
    step = AnsweringTrainer.training_step

    def limited(self, model, inputs, *args, **kwargs):
        loss = step(self, model, inputs, *args, **kwargs)
        memory.batches.append(len(inputs["labels"]))
        if memory.batches[-1] > 2 and self.state.global_step >= memory.full_after:
            raise RuntimeError("CUDA out of memory. Tried to allocate 1 GiB.")
        return loss

    monkeypatch.setattr(AnsweringTrainer, "training_step", limited)
    return memory


def test_the_log_of_a_resumed_training_is_that_of_the_whole(train, fresh, tmp_path):
    """Nothing is missing or logged twice, in the adapter or TensorBoard; times add up."""

    def logged(name):
        folder = tmp_path / name / RUN
        events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0})
        events.Reload()
        varies = ("runtime", *VARIES)
        tags = [tag for tag in events.Tags()["scalars"] if not any(v in tag for v in varies)]
        scalars = {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in tags}
        return scalars, [e.step for e in events.Tensors("eval/answers/text_summary")]

    def stop(self, args, state, control, **kwargs):
        if state.global_step == 2:
            sleep(1)
        if state.global_step == 9:
            raise Killed

    def logging_to(name, training):
        return training.model_copy(update={"logging_dir": str(tmp_path / name)})

    training = fresh(**STEPS)
    _, whole = train(logging_to("whole", fresh(**STEPS)))
    with pytest.MonkeyPatch.context() as stopping, pytest.raises(Killed):
        stopping.setattr(BestAdapter, "on_step_begin", stop)
        train(logging_to("stopped", training))
    _, resumed = train(logging_to("resumed", training))
    assert logged("resumed") == logged("whole")
    logs = [adapter.training["log"] for adapter in (whole, resumed)]
    assert [sorted(entry) for entry in logs[1]] == [sorted(entry) for entry in logs[0]]
    assert log_of(resumed) == log_of(whole)
    last = logs[1][-1]
    assert last["train_runtime"] > 1
    per_second = resumed.training["samples"] / last["train_runtime"]
    assert last["train_samples_per_second"] == pytest.approx(per_second, abs=0.01)


FOUND = {"per_device_train_batch_size": 4, "auto_find_batch_size": True, "num_train_epochs": 4}


def test_a_resumed_training_keeps_the_batch_size_found(train, fresh, memory, caplog):
    _, whole = train(fresh(**STEPS, **FOUND))
    assert memory.batches == [4, *[2] * 24]
    training = fresh(**STEPS, **FOUND)
    train_until(5, train, training)
    memory.batches.clear()
    caplog.clear()
    _, resumed = train(training)
    assert memory.batches == [2] * 16
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    for name, tensor in whole.state_dict.items():
        assert torch.equal(tensor, resumed.state_dict[name]), name
    assert log_of(resumed) == log_of(whole)


def test_a_resumed_training_that_runs_out_of_memory_goes_back(train, fresh, memory):
    memory.full_after = 9
    training = fresh(**STEPS, **FOUND)
    train_until(5, train, training)
    _, resumed = train(training)
    assert memory.batches == [*[4] * 5, *[4] * 6, *[2] * 16]
    assert (resumed.training["batch_size"], resumed.training["steps"]) == (2, 12)
    assert saved(training) == ["checkpoint-4", "checkpoint-8"]
    steps = [entry["step"] for entry in log_of(resumed) if "loss" in entry]
    assert steps == [3, 6, 9, 12]


@pytest.fixture(scope="module")
def stopped_once(train, fresh):
    training = fresh(**STEPS)
    train_until(5, train, training)
    return training


@pytest.fixture
def stopped(stopped_once, tmp_path):
    """A training that was stopped after its first checkpoint."""
    shutil.copytree(stopped_once.output_dir, tmp_path / "checkpoints")
    return stopped_once.model_copy(update={"output_dir": str(tmp_path / "checkpoints")})


def test_checkpoints_are_safetensors_and_json(stopped, float32):
    (checkpoint,) = Path(stopped.output_dir).glob("*/checkpoint-4")
    suffixes = {path.suffix for path in Path(stopped.output_dir).rglob("*") if path.is_file()}
    assert suffixes == {".safetensors", ".json", ".lock"}
    for path in checkpoint.glob("*.json"):
        json.loads(path.read_text(encoding="utf-8"))
    state = json.loads((checkpoint / "training_state.json").read_text(encoding="utf-8"))
    tensors = load_file(checkpoint / "training_state.safetensors")
    assert unpack(state, tensors)["scheduler"]["last_epoch"] == 4


def folder_of(training):
    (checkpoint,) = Path(training.output_dir).glob("*/checkpoint-4")
    return checkpoint.parent


def test_discarded_checkpoints_leave_nothing_behind(stopped):
    folder = folder_of(stopped)
    for _ in "12":
        discard_checkpoints(folder)
        assert not list(Path(stopped.output_dir).iterdir())


@pytest.mark.parametrize(
    "change",
    [{"seed": 14}, {"learning_rate": 0.01}, {"max_steps": 11}, {"resume": "never"}],
    ids=str,
)
def test_another_training_does_not_go_on_from_a_checkpoint(train, stopped, caplog, change):
    with caplog.at_level(logging.INFO, logger="flan_qa_pipeline"):
        train_until(0, train, stopped.model_copy(update=change))
    assert "resumes from" not in caplog.text
    assert saved(stopped) == ([] if "resume" in change else ["checkpoint-4"])


def test_other_data_do_not_go_on_from_a_checkpoint(train, stopped, windows, caplog):
    questions = windows["train"]
    with pytest.MonkeyPatch.context() as patch, caplog.at_level(logging.INFO):
        patch.setitem(windows, "train", questions.select(reversed(range(len(questions)))))
        train_until(0, train, stopped)
    assert "resumes from" not in caplog.text


def test_a_checkpoint_with_a_pickle_is_refused(train, stopped):
    (checkpoint,) = Path(stopped.output_dir).glob("*/checkpoint-4")
    torch.save({"a": 1}, checkpoint / "optimizer.pt")
    with pytest.raises(InputError, match="checkpoint-4/optimizer.pt is neither safetensors nor"):
        train(stopped)


@pytest.mark.parametrize("name", ["training_state.safetensors", "training_state.json"])
def test_a_damaged_checkpoint_is_named(train, stopped, name):
    (path,) = Path(stopped.output_dir).glob(f"*/checkpoint-4/{name}")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(InputError, match="checkpoint-4 cannot be read.*training.resume=never"):
        train(stopped)


def test_a_training_that_runs_already_is_not_disturbed(train, fresh):
    training = fresh(**STEPS)
    inner = []

    def train_again(self, args, state, control, **kwargs):
        if state.global_step == 5 and not inner:
            inner.append(True)
            with pytest.raises(InputError, match="already runs.*training.save_strategy=no"):
                train(training)
            discard_checkpoints(folder_of(training))
            train_until(2, train, training.model_copy(update={"save_strategy": "no"}))
            raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BestAdapter, "on_step_begin", train_again)
        with pytest.raises(Killed):
            train(training)
    assert saved(training) == ["checkpoint-4"]


def test_a_full_disk_stops_the_training_in_one_sentence(train, stopped):
    def fail(*args, **kwargs):
        raise OSError(28, "No space left on device")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flan_qa_pipeline.training.checkpoints, "save_file", fail)
        with pytest.raises(InputError, match="step 8 was not saved.*No space left.*output_dir"):
            train(stopped)
    assert saved(stopped) == ["checkpoint-4"]
    assert not list(Path(stopped.output_dir).glob("*/.*"))


def test_half_written_checkpoints_are_cleared(train, stopped):
    (checkpoint,) = Path(stopped.output_dir).glob("*/checkpoint-4")
    half = checkpoint.with_name(f".checkpoint-8.{uuid4().hex}")
    shutil.copytree(checkpoint, half)
    train_until(5, train, stopped)
    assert not half.exists()


BESIDE_CHECKPOINTS = (
    "notes.txt",
    "{training}/notes.txt",
    "{training}/checkpoint-final/weights.safetensors",
    "{training}/checkpoint-3-of-mine/adapter_config.json",
    "{training}/checkpoint-99/notes.txt",
    "{training}/checkpoint-2",
    "{training}/checkpoint-4/notes.txt",
    "{training}/.checkpoint-8/notes.txt",
    "{training}/.checkpoint-8.mine/training_state.json",
    "other.lock",
)


def test_nothing_but_checkpoints_is_removed_from_their_folders(train, stopped):
    """By a training that clears, rotates and discards its checkpoints among files of others."""
    folder = folder_of(stopped)
    others = [folder.parent / name.format(training=folder.name) for name in BESIDE_CHECKPOINTS]
    for path in others:
        path.parent.mkdir(exist_ok=True)
        path.write_text(path.name)
    (folder / "checkpoint-8").mkdir()
    (folder / f".checkpoint-8.{uuid4().hex}").mkdir()
    _, adapter = train(stopped.model_copy(update={"save_total_limit": 1}))
    assert adapter.training["steps"] == 12
    assert saved(stopped) == ["checkpoint-8"]
    discard_checkpoints(folder)
    assert sorted(path for path in folder.parent.rglob("*") if path.is_file()) == sorted(others)
    assert all(path.read_text() == path.name for path in others)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_training_that_diverges_stops_at_that_step(train, fresh, value, capsys):
    """A weight that is no number from step 6 on; it is neither logged nor saved until step 9."""
    training = fresh(**STEPS | {"save_steps": 4})

    def damage(self, args, state, control, model=None, **kwargs):
        if state.global_step == 5:
            with torch.no_grad():
                next(w for n, w in model.named_parameters() if "lora_B" in n)[0] = value

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BestAdapter, "on_step_begin", damage)
        with pytest.raises(InputError) as stopped:
            train(training)
    checkpoint = folder_of(training) / "checkpoint-4"
    assert "diverged: the loss of step 6 is not a finite number; the last" in str(stopped.value)
    assert f"before it is {checkpoint}. Lower training.learning_rate (0.02)" in str(stopped.value)
    assert saved(training) == ["checkpoint-4"]
    shown = capsys.readouterr().err
    assert "Train the adapter:" in shown and not shown.split("\r")[-1].strip()  # the bar is gone


@pytest.mark.parametrize(("step", "words"), [(8, "in step 8: .* no checkpoint"), (12, "last step")])
def test_weights_that_are_no_numbers_are_not_saved(train, fresh, step, words):
    """They may have become so in the very step that is saved, whose loss was still a number."""

    def damage(self, args, state, control, model=None, **kwargs):
        if state.global_step == step:
            with torch.no_grad():
                next(w for n, w in model.named_parameters() if "lora_B" in n)[0] = math.nan

    training = fresh(**STEPS | {"load_best_model_at_end": False, "eval_strategy": "no"})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BestAdapter, "on_step_end", damage)
        with pytest.raises(InputError, match=f"diverged .*{words}"):
            train(training)
    assert ("checkpoint-8" in saved(training)) is (step == 12)


@pytest.mark.parametrize("value", [1e30, 1e38])
def test_a_learning_rate_that_is_far_too_high_stops_the_training(train, fresh, value):
    """Configured values have bounds, but what is too high depends on the model."""
    training = fresh(**STEPS | {"save_strategy": "no"}, learning_rate=value, warmup_steps=0)
    with pytest.raises(InputError, match=r"the loss of step [23] .*; none was saved. Lower train"):
        train(training)
