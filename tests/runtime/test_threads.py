"""The number of CPU threads and how they wait: chosen from affinity, quotas and the environment."""

import logging
import os
import subprocess
import sys

import pytest
import torch
from conftest import REPOSITORY, write_files
from kedro.pipeline import Pipeline, node

from flan_qa_pipeline.runtime import threads
from flan_qa_pipeline.runtime.hooks.threads import ThreadHooks
from flan_qa_pipeline.runtime.threads import (
    CHOSEN,
    NUMBER,
    ON_FREE_CORES,
    WAITING,
    chosen,
    others_compute,
)


def test_the_smallest_limit_counts(tmp_path, monkeypatch):
    write_files(tmp_path, {"proc/self/cgroup": "0::/\n"})
    affinity = os.sched_getaffinity(0)
    assert threads.available_cores(tmp_path) == len(affinity)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)))
    for limit, cores in (("250000 100000", 2), ("20000 100000", 1), ("9900000 100000", 64)):
        write_files(tmp_path, {"sys/fs/cgroup/cpu.max": limit})
        assert threads.available_cores(tmp_path) == cores


@pytest.mark.parametrize(
    ("environment", "usable", "known", "number"),
    [
        ({}, 2, 2, None),
        ({}, 2, 64, "2"),
        ({"LOCAL_WORLD_SIZE": "2"}, 8, 8, "4"),
        ({"LOCAL_WORLD_SIZE": "4"}, 2, 2, "1"),
        ({NUMBER: "7"}, 2, 64, None),
        ({NUMBER: "2", CHOSEN: "2", "LOCAL_WORLD_SIZE": "2"}, 2, 64, "1"),  # of the launcher
    ],
)
def test_the_number_is_set_where_openmp_would_take_more(environment, usable, known, number):
    values = chosen(environment, usable, known, lambda: WAITING)
    assert values.get(NUMBER) == number
    assert values.items() >= WAITING.items()


@pytest.mark.parametrize("name", WAITING)
def test_a_users_way_of_waiting_stays(name):
    assert chosen({name: "x"}, 2, 2, pytest.fail) == {}


@pytest.mark.parametrize(
    ("running", "usable", "answer"),
    [(1, 2, False), (2, 2, True), (62, 2, False), (64, 2, True), (1, 1, False)],
)
def test_threads_sleep_sooner_where_others_compute(tmp_path, monkeypatch, running, usable, answer):
    monkeypatch.setattr(os, "cpu_count", lambda: 2 if running < 3 else 64)
    write_files(tmp_path, {"proc/loadavg": f"0.50 1.20 3.00 {running}/345 6789\n"})
    assert others_compute(usable, tmp_path) is answer


def test_without_a_count_of_running_processes_cores_pass_for_free(tmp_path):
    assert others_compute(2, tmp_path) is False


def test_one_busy_moment_is_not_a_busy_machine(monkeypatch):
    lines = iter(["9 9 9 7/300 1", *["9 9 9 1/300 1"] * 9])
    monkeypatch.setattr(threads, "text_or_empty", lambda path: next(lines))
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    assert others_compute(2) is False


def test_the_environment_is_set_before_torch_is_imported():
    code = (
        "import flan_qa_pipeline.settings, os, sys\n"
        "assert 'torch' not in sys.modules\n"
        f"print([os.environ[name] for name in {list(WAITING)}])"
    )
    unset = {name: value for name, value in os.environ.items() if name not in WAITING}
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-c", code], env=unset, cwd=REPOSITORY, capture_output=True, text=True
    )
    ways = [f"{list(way.values())}\n" for way in (WAITING, ON_FREE_CORES)]
    assert done.stdout in ways, done.stderr


def test_a_run_with_a_model_logs_the_choice_in_one_line(caplog, monkeypatch):
    for name in (NUMBER, *WAITING):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GOMP_SPINCOUNT", "1000")
    with caplog.at_level(logging.INFO, logger="flan_qa_pipeline"):
        for tag in ("report", "train"):
            computes = Pipeline([node(lambda: 1, None, "a", name="a", tags=[tag])])
            ThreadHooks().before_pipeline_run(computes)
    cores = threads.available_cores()
    assert caplog.messages == [
        f"CPU threads: {torch.get_num_threads()} on {cores} usable cores (GOMP_SPINCOUNT=1000)."
    ]
