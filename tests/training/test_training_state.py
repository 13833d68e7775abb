"""State passes through JSON and tensors unchanged, the random number generators' too."""

import json
import random

import numpy as np
import pytest
import torch
from transformers import Trainer, TrainingArguments

from flan_qa_pipeline.training.training_state import (
    pack,
    random_state,
    set_random_state,
    unpack,
)


def test_random_state_passes_through_a_checkpoint():
    def draw():
        return random.random(), np.random.rand(), torch.rand(3).tolist(), torch.randperm(9).tolist()

    tensors = {}
    state = json.loads(json.dumps(pack(random_state(), tensors)))
    first = draw()
    assert draw() != first
    set_random_state(unpack(state, tensors))
    assert draw() == first


@pytest.mark.parametrize("name", ["adamw_torch", "adafactor", "sgd", "rmsprop", "adagrad"])
def test_optimizer_state_passes_through_a_checkpoint(name, tmp_path):
    def steps(model, optimizer, n):
        for i in range(n):
            model(torch.full((2, 8), 0.1 * i + 0.1)).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()

    def fresh_optimizer():
        model = torch.nn.Linear(8, 8)
        arguments = TrainingArguments(optim=name, output_dir=str(tmp_path), report_to="none")
        kind, options = Trainer.get_optimizer_cls_and_kwargs(arguments)
        return model, kind(model.parameters(), **options)

    model, optimizer = fresh_optimizer()
    steps(model, optimizer, 3)
    tensors = {}
    packed = json.loads(json.dumps(pack(optimizer.state_dict(), tensors)))
    again, other = fresh_optimizer()
    again.load_state_dict(model.state_dict())
    other.load_state_dict(unpack(packed, tensors))
    steps(model, optimizer, 2)
    steps(again, other, 2)
    assert torch.equal(model.weight, again.weight)


def test_what_json_cannot_hold_is_named():
    with pytest.raises(TypeError, match="/a/1 is a object, which JSON cannot hold"):
        pack({"a": [1, object()]}, {})
