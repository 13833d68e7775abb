"""Benchmarks that measure in several numbers of processes, one number after another.

All processes start at once, so that they import side by side. Each number of them computes in its
turn, alone on the machine.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from datasets import DatasetDict, load_from_disk
from harness import CUDA, facts, free, run_node, write_results

from flan_qa_pipeline.config.parameters import Parameters
from flan_qa_pipeline.runtime.provenance import package_versions

READY, WAITING = "ready", "waiting_"
POLLED_EVERY = 0.1  # seconds
Found = dict[str, Any]


def numbers(text: str) -> list[int]:
    """Parse numbers of processes such as 1,2,4, in rising order."""
    return sorted(set(map(int, text.split(","))))


def powers_of_two() -> list[int]:
    """Return the powers of two up to the number of GPUs, and that number; 1 and 2 on a CPU."""
    most = torch.cuda.device_count() if CUDA else 2
    return sorted({*(2**i for i in range(most.bit_length()) if 2**i <= most), most})


def timed(parameters: Parameters, data: dict[str, Any], pipeline: Any, name: str) -> float:
    """Run a node in all processes; return the seconds until all have ended it."""
    free()
    PartialState().wait_for_everyone()
    started = time.perf_counter()
    run_node(pipeline, parameters, data, name)
    PartialState().wait_for_everyone()
    return time.perf_counter() - started


def write_questions(data: dict[str, Any], folder: Path) -> None:
    """Save questions and windows for the processes."""
    data["questions"].save_to_disk(str(folder / "questions"))
    data["tokenized_questions"].save_to_disk(str(folder / "windows"))


def read_questions(folder: Path) -> dict[str, Any]:
    """Load what `write_questions` saved, with the record of a run, as inputs of the nodes."""
    return {
        "questions": DatasetDict(load_from_disk(str(folder / "questions"))),
        "tokenized_questions": DatasetDict(load_from_disk(str(folder / "windows"))),
        "run_record": {"run_id": "benchmark", "versions": package_versions()},
    }


def await_turn(options: argparse.Namespace) -> None:
    """Wait until all have started and fewer processes have measured; the GPUs stay idle."""
    process = PartialState()
    (options.work / f"{WAITING}{process.num_processes}_{process.process_index}").touch()
    earlier = [count for count in options.processes if count < process.num_processes]
    awaited = options.work / (f"{earlier[-1]}.json" if earlier else READY)
    while not awaited.exists():
        time.sleep(POLLED_EVERY)


def end_turn(options: argparse.Namespace, found: dict[str, Any]) -> None:
    """Write what was measured, which begins the turn of more processes."""
    process = PartialState()
    process.wait_for_everyone()
    if process.is_main_process:
        written = options.work / "written"
        written.write_text(json.dumps(found), encoding="utf-8")
        written.rename(options.work / f"{process.num_processes}.json")
    if process.num_processes > 1:
        process.destroy_process_group()


def start(count: int, options: argparse.Namespace) -> subprocess.Popen[bytes]:
    """Start so many processes of this script."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--local-addr=127.0.0.1"]
    launcher.append(f"--nproc-per-node={count}")
    command = [sys.executable, *(launcher if count > 1 else []), *sys.argv]
    command += ["--work", str(options.work)]
    threads = str(max(1, (os.cpu_count() or 1) // count))
    return subprocess.Popen(  # noqa: S603
        command, env=os.environ | {"OMP_NUM_THREADS": threads}
    )


@contextmanager
def started(options: argparse.Namespace) -> Iterator[dict[int, subprocess.Popen[bytes]]]:
    """Start every number of processes, and end those that are left when the block ends."""
    running = {count: start(count, options) for count in options.processes}
    try:
        yield running
    finally:
        for process in running.values():
            process.terminate()
        for process in running.values():
            process.wait()


def begin(running: dict[int, subprocess.Popen[bytes]], options: argparse.Namespace) -> None:
    """Begin the first turn once all processes wait for theirs."""
    while len(list(options.work.glob(f"{WAITING}*"))) < sum(running):
        for count, process in running.items():
            if process.poll() is not None:
                raise SystemExit(f"{count} processes ended before their turn")
        time.sleep(POLLED_EVERY)
    (options.work / READY).touch()


def measured_in(
    count: int, process: subprocess.Popen[bytes], options: argparse.Namespace
) -> dict[str, Any]:
    """Wait for so many processes to end; return what the first of them measured."""
    if code := process.wait():
        raise SystemExit(f"{count} processes failed: exit status {code}")
    found: dict[str, Any] = json.loads((options.work / f"{count}.json").read_text(encoding="utf-8"))
    return found


def measure_in_turns(
    name: str,
    options: argparse.Namespace,
    prepare: Callable[[argparse.Namespace], None],
    rows_of: Callable[[int, dict[int, Found], argparse.Namespace], list[Found]],
    facts_of: Callable[[list[Found], argparse.Namespace], Found],
) -> None:
    """Measure in every number of processes of `options`, and write and print the results.

    Args:
        name: of the files of the results in `options.output`, written after every turn.
        options: `processes`, `output`, and what the script itself needs.
        prepare: writes what the processes read into `options.work`.
        rows_of: makes the rows of a number of processes from what each number has measured.
        facts_of: returns what the results depend on.
    """
    with tempfile.TemporaryDirectory() as folder:
        options.work = Path(folder)
        with started(options) as running:
            prepare(options)
            begin(running, options)
            found: dict[int, Found] = {}
            results: list[Found] = []
            for count, process in running.items():
                found[count] = measured_in(count, process, options)
                rows = rows_of(count, found, options)
                results += rows
                for row in rows:
                    print(json.dumps(row), flush=True)
                given = facts() | {"measured": found} | facts_of(results, options)
                table = write_results(options.output, name, given, results)
    print(f"\n{table}")
