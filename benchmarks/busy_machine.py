"""Training beside a busy process: python benchmarks/busy_machine.py OUTPUT_FOLDER

Runs the default training for some steps on two pinned cores, alone and beside one process that
keeps a core busy, with each way in which OpenMP's threads may wait. Ways and loads alternate, so
that a machine that grows slower does so for all. Every training is a `kedro run`, because OpenMP
reads its environment once. Needs Linux and two cores that nobody else uses.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from harness import PROJECT, STARTER, facts, write_results

from flan_qa_pipeline.runtime.threads import CHOSEN, NUMBER, WAITING

BEFORE, HERE = "as OpenMP does", "this project"
LEFT_ALONE = {"KMP_BLOCKTIME": "200"}  # libgomp ignores it; the project then chooses no waiting
WAYS = {
    BEFORE: LEFT_ALONE,
    HERE: {},
    "OMP_WAIT_POLICY=PASSIVE": {"OMP_WAIT_POLICY": "PASSIVE"},
    **{f"GOMP_SPINCOUNT={n}": {"GOMP_SPINCOUNT": str(n)} for n in (1000, 4000, 7000, 10000)},
    "OMP_NUM_THREADS=1": LEFT_ALONE | {NUMBER: "1"},
}
BUSY = "while True: pass"


def run(pipeline: str, work: Path, cores: set[int], way: dict[str, str], *options: str) -> None:
    """Run a pipeline of the project in a folder, on some cores, with variables of OpenMP."""
    variables = {NUMBER, CHOSEN, *WAITING}
    inherited = {name: value for name, value in os.environ.items() if name not in variables}
    files = ",".join(
        f"data.{name}_file={PROJECT}/data/01_raw/starter_{name}.json"
        for name in ("train", "validation")
    )
    command = [
        *("taskset", "--cpu-list", ",".join(map(str, sorted(cores)))),
        *(sys.executable, "-m", "flan_qa_pipeline", f"--conf-source={PROJECT / 'conf'}"),
        f"--pipelines={pipeline}",
        f"--params=model.name={STARTER},{files}{''.join(f',{option}' for option in options)}",
    ]
    if pipeline == "modeling":
        command.append("--to-nodes=train_adapter")
    done = subprocess.run(  # noqa: S603
        command, cwd=work, env=inherited | way, capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)


@contextmanager
def beside(busy: bool, cores: set[int]) -> Iterator[None]:
    """Keep a process busy on the cores inside the block."""
    if not busy:
        yield
        return
    process = subprocess.Popen([sys.executable, "-c", BUSY])  # noqa: S603
    os.sched_setaffinity(process.pid, cores)
    try:
        yield
    finally:
        process.kill()
        process.wait()


def seconds_a_step(work: Path, cores: set[int], way: dict[str, str], steps: int) -> float:
    """Train for some steps; return the seconds of one."""
    options = (
        f"training.max_steps={steps}",
        *(f"training.{name}=no" for name in ("eval_strategy", "save_strategy")),
        "training.resume=never",
    )
    run("modeling", work, cores, way, *options)
    newest = max((work / "data/06_models/adapter").iterdir())
    record = json.loads((newest / "adapter/training.json").read_text(encoding="utf-8"))
    return float(record["seconds"] / record["steps"])


def row(way: str, quiet: list[float], busy: list[float], before: float) -> dict[str, Any]:
    """Summarize the trainings of one way of waiting by their medians."""
    alone, shared = statistics.median(quiet), statistics.median(busy)
    return {
        "way": way,
        "quiet s/step": alone,
        "busy s/step": shared,
        "busy / quiet": shared / alone,
        "quiet, slower by %": 100 * (alone / before - 1),
        "quiet": quiet,
        "busy": busy,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ways", default="+".join(WAYS), help="joined by +")
    options = parser.parse_args()
    cores = set(sorted(os.sched_getaffinity(0))[:2])
    ways = {way: WAYS[way] for way in options.ways.split("+")}
    measured: dict[tuple[str, bool], list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        run("data_engineering", work, cores, {})
        for _ in range(options.rounds):
            for way, variables in ways.items():
                for busy in (False, True):
                    with beside(busy, cores):
                        seconds = seconds_a_step(work, cores, variables, options.steps)
                    measured[way, busy].append(seconds)
                    print(f"{way}, {'busy' if busy else 'quiet'}: {seconds:.3f} s", flush=True)
    before = statistics.median(measured[next(iter(ways)), False])
    rows = [row(way, measured[way, False], measured[way, True], before) for way in ways]
    given = facts() | {"steps": options.steps, "rounds": options.rounds, "cores": sorted(cores)}
    print(write_results(options.output, "busy_machine", given, rows))


if __name__ == "__main__":
    main()
