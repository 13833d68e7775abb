"""Steps captured as CUDA graphs do what they do without; where they cannot be, this is said."""

import pytest
import torch

from flan_qa_pipeline.batches import collate
from flan_qa_pipeline.cuda_graphs import GraphedPasses
from flan_qa_pipeline.errors import InputError
from flan_qa_pipeline.models import load_base_model
from flan_qa_pipeline.pipelines.modeling import nodes
from flan_qa_pipeline.pipelines.modeling.nodes import attach_lora

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="only a GPU has CUDA graphs")


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


def pass_both_ways(model, batch):
    loss = model(**batch).loss
    loss.backward()
    return loss.detach()


@needs_gpu
def test_a_graph_gives_loss_and_gradients_of_the_model(model, batches):
    assert batches[0]["input_ids"].shape == batches[2]["input_ids"].shape
    assert batches[0]["input_ids"].shape != batches[1]["input_ids"].shape
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    passes = GraphedPasses(model)
    for accumulated in (batches, batches[1:2], batches[2:]):
        model.zero_grad()
        losses = [passes(batch) for batch in accumulated]
        found = [weight.grad.clone() for weight in weights]
        model.zero_grad()
        torch.testing.assert_close(losses, [pass_both_ways(model, batch) for batch in accumulated])
        torch.testing.assert_close(found, [weight.grad for weight in weights])
        passes.clear()
        with torch.no_grad():
            for weight in weights:
                weight.add_(0.01 * torch.randn_like(weight))


@needs_gpu
def test_a_graph_draws_dropout_anew(model, batches):
    for part in model.train().modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.1
    passes = GraphedPasses(model)
    losses = {passes(batches[0]).item() for _ in range(4)}
    assert len(losses) == 4


@needs_gpu
def test_training_on_graphs_ends_with_the_same_adapter(train, training, float32):
    base = float32.model_copy(update={"dequantize": True})
    short = training.model_copy(update={"eval_strategy": "no", "learning_rate": 1e-3})
    losses = {}
    for graphs in (True, False):
        _, adapter = train(short.model_copy(update={"cuda_graphs": graphs}), base)
        losses[graphs] = [entry["loss"] for entry in adapter.training["log"] if "loss" in entry]
    assert losses[True] == pytest.approx(losses[False], rel=1e-3)


class EagerPasses:
    """What graphs are captured of."""

    def __init__(self, model):
        self._model = model

    def __call__(self, batch):
        assert all(part.training for part in self._model.modules())
        return pass_both_ways(self._model, batch)

    def clear(self):
        pass


def test_the_trainer_hands_over_all_that_a_step_needs(train, training, monkeypatch):
    """Evaluations between the steps, accumulation over two, padding to few shapes."""
    accumulating = training.model_copy(
        update={"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    )
    _, expected = train(accumulating)
    monkeypatch.setattr("flan_qa_pipeline.training.GraphedPasses", EagerPasses)
    monkeypatch.setattr(nodes, "_captures_graphs", lambda *args: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (1, 4))
    _, found = train(accumulating)
    losses = [
        [(entry.get("loss"), entry.get("eval_loss")) for entry in adapter.training["log"]]
        for adapter in (found, expected)
    ]
    assert losses[0] == losses[1]
    for name, weight in expected.state_dict.items():
        assert torch.equal(found.state_dict[name], weight)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"gradient_checkpointing": True}, "gradient_checkpointing is on"),
        ({}, "activations are computed again" if torch.cuda.is_available() else "no GPU"),
    ],
)
def test_what_cannot_be_captured_is_refused(train, training, float32, changes, reason):
    packed = float32.model_copy(update={"dequantize": False})
    told = training.model_copy(update={"cuda_graphs": True, **changes})
    with pytest.raises(InputError, match=reason):
        train(told, packed)
