"""Steps captured as CUDA graphs compute the same; steps that cannot be captured are refused."""

import logging
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
from conftest import DEVICE, on_gpu

from flan_qa_pipeline.errors import InputError
from flan_qa_pipeline.models.batching import collate
from flan_qa_pipeline.models.flat_gradients import FlatGradients
from flan_qa_pipeline.models.loading import load_base_model
from flan_qa_pipeline.pipelines.modeling.nodes import attach_lora
from flan_qa_pipeline.training.cuda_graphs import GraphedPasses


@pytest.fixture
def model(float32, lora, training):
    base = load_base_model(float32.model_copy(update={"dequantize": True}))
    return attach_lora(base, lora, training)


@pytest.fixture
def batches(windows, tokenizer):
    """Two of one shape and one of another."""
    rows = windows["train"].to_list()[:2]
    longer = [{**row, "input_ids": row["input_ids"] * 3} for row in rows]
    others = [{**row, "input_ids": row["input_ids"][::-1]} for row in rows]
    return [
        {
            **{n: part.cuda() for n, part in collate(some, tokenizer.pad_token_id).items()},
            "num_items_in_batch": torch.tensor(7, device="cuda"),
        }
        for some in (rows, longer, others)
    ]


def pass_both_ways(model, batch, scale=1):
    loss = model(**batch).loss * scale
    loss.backward()
    return loss.detach()


@on_gpu
def test_a_graph_gives_loss_and_gradients_of_the_model(model, batches):
    assert batches[0]["input_ids"].shape == batches[2]["input_ids"].shape
    assert batches[0]["input_ids"].shape != batches[1]["input_ids"].shape
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    passes = GraphedPasses(model, FlatGradients(model))
    for accumulated in (batches, batches[1:], batches[2:], batches[:1]):
        model.zero_grad()
        losses = [passes(batch) for batch in accumulated]
        found = [weight.grad.clone() for weight in weights]
        model.zero_grad()
        torch.testing.assert_close(losses, [pass_both_ways(model, batch) for batch in accumulated])
        torch.testing.assert_close(found, [weight.grad for weight in weights])
        if len(accumulated) == 1:
            passes.clear()
        with torch.no_grad():
            for weight in weights:
                weight.add_(0.01 * torch.randn_like(weight))


def drop_out(model):
    for part in model.train().modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.1


@on_gpu
def test_a_graph_draws_new_dropout_each_time(model, batches):
    drop_out(model)
    passes = GraphedPasses(model, FlatGradients(model))
    losses = {passes(batches[0]).item() for _ in range(4)}
    assert len(losses) == 4


@on_gpu
def test_training_on_graphs_has_the_same_losses(train, training, float32):
    base = float32.model_copy(update={"dequantize": True})
    short = training.model_copy(update={"eval_strategy": "no", "learning_rate": 1e-3})
    losses = {}
    for graphs in (True, False):
        _, adapter = train(short.model_copy(update={"cuda_graphs": graphs}), base)
        losses[graphs] = [entry["loss"] for entry in adapter.training["log"] if "loss" in entry]
    assert losses[True] == pytest.approx(losses[False], rel=1e-3)


@on_gpu
def test_capturing_draws_nothing(model, batches):
    drop_out(model)
    passes, states = GraphedPasses(model, FlatGradients(model)), []
    for clears in (False, True):
        torch.cuda.manual_seed(0)
        for _ in range(2):
            passes(batches[0])
            if clears:
                passes.clear()
        states.append(torch.cuda.get_rng_state())
    assert torch.equal(*states)


@on_gpu
def test_a_capture_leaves_the_dropout_of_waiting_replays_as_it_is(model, batches):
    drop_out(model)
    busy = torch.randn(8192, 8192, device=DEVICE)
    losses = []
    for waits in (True, False):
        passes = GraphedPasses(model, FlatGradients(model))
        torch.cuda.manual_seed(0)
        found = [passes(batches[0])]
        for _ in range(20):  # the replays wait until these end
            busy = busy @ busy
            busy /= busy.norm()
        found += [passes(batches[0]) for _ in range(3)]
        if waits:
            torch.cuda.synchronize()
        found.append(passes(batches[1]))
        losses.append(found)
        model.zero_grad()
    torch.testing.assert_close(*losses)
    assert len({loss.item() for loss in losses[0]}) == 5


class Failing:
    """A model whose first capture fails at its end."""

    def __init__(self, model, error):
        self._model, self._error = model, error

    def __call__(self, **batch):
        output = self._model(**batch)
        if self._error and torch.cuda.is_current_stream_capturing():
            error, self._error = self._error, None
            raise error("broken")
        return output


@on_gpu
@pytest.mark.parametrize("error", [ValueError, torch.OutOfMemoryError])
def test_after_a_capture_that_failed_another_one_works(model, batches, error, caplog):
    caplog.set_level(logging.INFO, logger="flan_qa_pipeline")
    passes = GraphedPasses(Failing(model, error), FlatGradients(model))
    stream = torch.cuda.current_stream()
    if error is ValueError:
        with pytest.raises(ValueError, match="broken"):
            passes(batches[0])
        assert torch.cuda.current_stream() == stream
    loss = passes(batches[0])
    assert ("does not fit in memory" in caplog.text) is (error is torch.OutOfMemoryError)
    model.zero_grad()
    torch.testing.assert_close(loss, pass_both_ways(model, batches[0]))


class EagerPasses:
    """What graphs are captured of."""

    lengths: ClassVar[set[int]] = set()
    n_cleared = 0

    def __init__(self, model, gradients, scale):
        self._model, self._gradients, self._scale = model, gradients, scale

    def __call__(self, batch):
        assert vars(self._model)["zero_grad"] == self._gradients.detach
        self._gradients.attach()
        assert all(part.training for part in self._model.modules())
        self.lengths.add(batch["input_ids"].shape[1])
        return pass_both_ways(self._model, batch, self._scale)

    def clear(self):
        type(self).n_cleared += 1


@pytest.fixture
def captures_eagerly(monkeypatch):
    """Let the trainer take its steps with `EagerPasses`."""
    monkeypatch.setattr(EagerPasses, "lengths", set())
    monkeypatch.setattr(EagerPasses, "n_cleared", 0)
    monkeypatch.setattr("flan_qa_pipeline.training.trainer.GraphedPasses", EagerPasses)
    monkeypatch.setattr(
        "flan_qa_pipeline.pipelines.modeling.nodes.captures_graphs",
        lambda model, training, fsdp: training.cuda_graphs is not False,
    )


@pytest.mark.usefixtures("captures_eagerly")
@pytest.mark.parametrize(("free", "n_cleared"), [(3, 1), (1, 3)])
def test_the_trainer_hands_over_all_that_a_step_needs(
    train, training, monkeypatch, free, n_cleared
):
    """Accumulation over two, evaluations between steps; graphs are given up for lack of memory."""
    accumulating = training.model_copy(
        update={
            "per_device_train_batch_size": 2,
            "gradient_accumulation_steps": 2,
            "save_strategy": "no",
            "max_grad_norm": 0.0,
            "cuda_graphs": "auto",
        }
    )
    _, expected = train(accumulating.model_copy(update={"cuda_graphs": False}))
    assert EagerPasses.lengths == set()
    monkeypatch.setattr("flan_qa_pipeline.training.trainer.free_memory", lambda device: free)
    whole = SimpleNamespace(total_memory=4, major=9)  # torch asks for bfloat16 by `major`
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: whole)
    model, found = train(accumulating)
    assert "zero_grad" not in vars(model)  # the model's own works again
    losses = [
        [(entry.get("loss"), entry.get("eval_loss")) for entry in adapter.training["log"]]
        for adapter in (found, expected)
    ]
    assert losses[0] == losses[1]
    for name, weight in expected.state_dict.items():
        assert torch.equal(found.state_dict[name], weight)
    assert EagerPasses.n_cleared == n_cleared


@pytest.mark.usefixtures("captures_eagerly")
@pytest.mark.parametrize("max_grad_norm", [0.0, 1.0])
def test_the_norms_of_clipped_gradients_are_those_of_the_trainer(train, training, max_grad_norm):
    changes = {"max_grad_norm": max_grad_norm, "eval_strategy": "no", "logging_steps": 1}
    norms = []
    for graphs in ("auto", False):
        given = training.model_copy(update={**changes, "cuda_graphs": graphs})
        log = train(given)[1].training["log"]
        norms.append([entry["grad_norm"] for entry in log if "grad_norm" in entry])
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)
    assert min(norms[0]) > 1  # so that all are clipped to 1


@pytest.mark.usefixtures("captures_eagerly")
def test_batches_to_capture_have_few_lengths(train, training, monkeypatch):
    monkeypatch.setattr("flan_qa_pipeline.training.trainer.captured_length", lambda length: 64)
    short = {"eval_strategy": "no", "save_strategy": "no", "cuda_graphs": "auto"}
    train(training.model_copy(update=short))
    assert EagerPasses.lengths == {64}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"gradient_checkpointing": True}, "gradient_checkpointing is on"),
        ({}, "activations are computed again" if DEVICE.type == "cuda" else "no GPU"),
    ],
)
def test_what_cannot_be_captured_is_refused(train, training, float32, changes, reason):
    packed = float32.model_copy(update={"dequantize": False})
    capturing = training.model_copy(update={"cuda_graphs": True, **changes})
    with pytest.raises(InputError, match=reason):
        train(capturing, packed)
