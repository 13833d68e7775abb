"""A benchmark runs to its end and writes its results, at the smallest size."""

import json
import os
import subprocess
import sys

import pytest
import torch
from conftest import REPOSITORY


@pytest.mark.slow
def test_scaling_compares_several_processes_with_one(tmp_path):
    count = torch.cuda.device_count() or 2
    sizes = ["--size=tiny", "--batch-size=8", "--samples=32", "--questions=8"]
    done = subprocess.run(  # noqa: S603
        [sys.executable, str(REPOSITORY / "benchmarks/scaling.py"), str(tmp_path), *sizes],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "scaling_tiny.json").read_text(encoding="utf-8"))
    rows = {(row["part"], row["processes"]): row for row in result["results"]}
    assert {processes for _, processes in rows} >= {1, count}
    for part in ("training node", "training steps", "evaluation, first time", "evaluation"):
        one, most = rows[part, 1], rows[part, count]
        assert one["ratio"] == 1
        assert most["per second"] == pytest.approx(most["ratio"] * one["per second"])
    if count > 1:
        steps = rows["training steps", count]
        assert steps["all-reduce MB"] > 0 and steps["bus GB/s"] > 0
        assert 1 < steps["limit"] < count
        measured = result["measured"]
        assert measured["1"]["steps"] == 4 and measured[str(count)]["steps"] == -(-4 // count)
    assert (tmp_path / "scaling_tiny.md").read_text(encoding="utf-8").startswith("| part")
