"""Start-up of commands that run nothing: python benchmarks/start_up.py OUTPUT_FOLDER

Compares `kedro --help` and `kedro registry list` in this project with the same commands in a bare
Kedro project, which `kedro new` makes without tools or example in a temporary folder. The two
projects take turns, so that both see the same load of the machine. Each figure is the median of
the user and system CPU seconds of one process. The first round, which fills caches, does not count.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from harness import PROJECT, facts, write_results

KEDRO = (sys.executable, "-m", "kedro")
COMMANDS = ("--version", "--help", "registry list")
SILENT = {**os.environ, "DO_NOT_TRACK": "1"}  # kedro-telemetry sends nothing


def bare_project(folder: Path) -> Path:
    """Make a Kedro project without tools or example."""
    options = ("--name=bare", "--tools=none", "--example=n", "--telemetry=no")
    cpu_seconds(folder, *("new", *options))
    return folder / "bare"


def cpu_seconds(project: Path, *arguments: str) -> float:
    """Run kedro in a project's folder; return its user and system CPU seconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([*KEDRO, *arguments], cwd=project, env=SILENT, capture_output=True, check=True)  # noqa: S603
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def measure(command: str, bare: Path, rounds: int) -> dict[str, str | float]:
    """Run a command in both projects by turns; return its row of results."""
    seconds: dict[Path, list[float]] = {bare: [], PROJECT: []}
    for number in range(rounds + 1):
        for project, measured in seconds.items():
            spent = cpu_seconds(project, *command.split())
            if number:
                measured.append(spent)
    of_bare, here = (statistics.median(measured) for measured in seconds.values())
    row = {
        "command": f"kedro {command}",
        "bare s": of_bare,
        "here s": here,
        "ratio": here / of_bare,
    }
    print(json.dumps(row), flush=True)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("--rounds", type=int, default=10)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bare = bare_project(Path(folder))
        rows = [measure(command, bare, options.rounds) for command in COMMANDS]
    given = facts() | {"rounds": options.rounds}
    print(f"\n{write_results(options.output, 'start_up', given, rows)}")


if __name__ == "__main__":
    main()
