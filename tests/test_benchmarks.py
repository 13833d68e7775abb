"""A benchmark runs to its end and writes its results, at the smallest size."""

import json
import os
import subprocess
import sys

import pytest
import torch
from conftest import REPOSITORY


def run_script(name, folder, *options):
    """Run a benchmark at the smallest size and return the JSON of its results."""
    done = subprocess.run(  # noqa: S603
        [sys.executable, str(REPOSITORY / f"benchmarks/{name}.py"), str(folder), *options],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr
    return json.loads((folder / f"{name}_tiny.json").read_text(encoding="utf-8"))


@pytest.mark.slow
def test_sharded_trains_saves_and_answers_in_every_number_of_processes(tmp_path):
    count = min(2, torch.cuda.device_count() or 2)
    sizes = ["--size=tiny", "--source-tokens=64", "--steps=3", "--questions=4", "--reload"]
    result = run_script("sharded", tmp_path, *sizes, f"--processes=1,{count}")
    rows = {row["processes"]: row for row in result["results"]}
    assert rows.keys() == {1, count}
    for processes, row in rows.items():
        assert row["questions scored"] == 4
        assert row["samples/s"] == pytest.approx(8 * processes / row["s a step"])
        assert len(result["measured"][str(processes)]["losses"]) == 3


@pytest.mark.slow
def test_scaling_compares_several_processes_with_one(tmp_path):
    count = torch.cuda.device_count() or 2
    sizes = ["--size=tiny", "--batch-size=8", "--samples=32", "--questions=8"]
    result = run_script("scaling", tmp_path, *sizes)
    rows = {(row["part"], row["processes"]): row for row in result["results"]}
    assert {processes for _, processes in rows} >= {1, count}
    whole = "training node, all of SQuAD 2.0, calculated"
    for part in ("training node", whole, "training steps", "evaluation, first time", "evaluation"):
        one, most = rows[part, 1], rows[part, count]
        assert one["ratio"] == 1
        assert most["per second"] == pytest.approx(most["ratio"] * one["per second"])
    alone = result["measured"]["1"]
    assert alone["s a step"] == pytest.approx(alone["training steps"] / 4)
    assert rows[whole, 1]["seconds"] - alone["training node"] == pytest.approx(
        alone["s a step"] * (130319 / 8 - 4)
    )
    if count > 1:
        steps = rows["training steps", count]
        assert steps["all-reduce MB"] > 0 and steps["bus GB/s"] > 0
        assert 1 < steps["limit"] < count
        measured = result["measured"]
        assert measured["1"]["steps"] == 4 and measured[str(count)]["steps"] == -(-4 // count)
    assert (tmp_path / "scaling_tiny.md").read_text(encoding="utf-8").startswith("| part")
