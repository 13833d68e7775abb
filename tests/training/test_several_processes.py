"""Steps of two processes compute what one process computes at the same effective batch.

Over gloo on the CPU, with passes that are not captured; over NCCL on two GPUs, with CUDA graphs.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import steps
import torch
from safetensors.torch import load_file

N_GPUS = torch.cuda.device_count()


@pytest.fixture(scope="module")
def specification(float32, lora, training):
    return {
        "model": float32.model_dump() | {"dequantize": True},
        "lora": lora.model_dump(),
        "training": training.model_dump()
        | {
            "optim": "sgd",
            "learning_rate": 0.2,
            "max_steps": steps.STEPS,
            "eval_strategy": "no",
            "save_strategy": "no",
            "load_best_model_at_end": False,
        },
    }


@pytest.fixture(scope="module")
def alone(specification):
    """What one process comes to, without graphs."""
    whole = {"per_device_train_batch_size": steps.EFFECTIVE_BATCH}
    changed = specification | {"training": specification["training"] | whole}
    return steps.take_steps(changed, graphs=False)


@pytest.fixture(scope="module")
def in_two(specification, tmp_path_factory):
    """What two processes come to, each on two batches of two a step."""
    if N_GPUS == 1:
        pytest.skip("two processes need two GPUs, or none")
    folder = tmp_path_factory.mktemp("in_two")
    shares = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    changed = specification | {"training": specification["training"] | shares}
    launcher = ["-m", "torch.distributed.run", "--standalone", "--local-addr=127.0.0.1"]
    launcher.append("--nproc-per-node=2")
    command = [sys.executable, *launcher, steps.__file__, json.dumps(changed), str(folder)]
    paths = os.pathsep.join(filter(None, sys.path))
    done = subprocess.run(  # noqa: S603
        command,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    return [
        (
            json.loads(Path(folder, f"{rank}.json").read_text()),
            load_file(folder / f"{rank}.safetensors"),
        )
        for rank in range(2)
    ]


@pytest.mark.parametrize("graphs", [False, True])
def test_weights_and_losses_are_those_of_one_process(alone, in_two, graphs):
    expected, logs, _ = alone
    tolerance = {"rtol": 1e-3, "atol": 1e-4} if N_GPUS else {"rtol": 1e-4, "atol": 1e-6}
    assert len(logs) == steps.STEPS
    for name, weight in expected.items():
        torch.testing.assert_close(in_two[0][1][f"{graphs}.{name}"], weight.cpu(), **tolerance)
    for found, entry in zip(in_two[0][0]["logs"][graphs], logs, strict=True):
        assert found == pytest.approx(entry, rel=tolerance["rtol"])


def test_both_processes_hold_the_same_weights(in_two):
    (_, first), (_, second) = in_two
    assert all(torch.equal(second[name], weight) for name, weight in first.items())


def test_batches_of_a_step_have_one_shape(in_two):
    """So that the processes capture a new shape at the same time."""
    assert in_two[0][0]["common"] == {
        "input_ids": [[4, 4, 4, 9]] * 2,
        "attention_mask": [[4, 4, 4, 0]] * 2,
        "labels": [[4, 4]] * 2,
    }
    if N_GPUS == 0:
        assert len(in_two[0][0]["shapes"]) == 2 * steps.STEPS
        assert in_two[0][0]["shapes"] == in_two[1][0]["shapes"]
