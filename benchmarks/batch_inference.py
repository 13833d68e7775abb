"""Memory of answering files of questions: python benchmarks/batch_inference.py OUTPUT_FOLDER

An adapter is trained for one step on the starter model; then files of few and of many questions, of
every kind, are answered by a run of the pipeline `inference` in a process of its own each.
`harness.measured` says what is counted. Needs Linux.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import pandas as pd
from harness import MIB, PROJECT, STARTER, facts, measured, write_results

from flan_qa_pipeline.fingerprint import git_commit, package_versions


def write_questions(folder: Path, kind: str, n: int) -> Path:
    """Write a file of n short questions, each about a context of its own."""
    context = "Town number {0} has {0} wells and lies on a river that has no name. "
    frame = pd.DataFrame(
        {
            "context": [context.format(i) * 3 for i in range(n)],
            "question": [f"How many wells has town number {i}?" for i in range(n)],
        }
    )
    path = folder / f"questions{kind}"
    if kind == ".csv":
        frame.to_csv(path, index=False)
    elif kind == ".parquet":
        frame.to_parquet(path)
    else:
        frame.to_json(path, orient="records", lines=kind == ".jsonl")
    return path


def kedro_run(pipeline: str, *params: str) -> list[str]:
    base = f"model.name={STARTER},generation.max_new_tokens=4"
    return [
        *(sys.executable, "-m", "flan_qa_pipeline", f"--conf-source={PROJECT / 'conf'}"),
        *(f"--pipelines={pipeline}", f"--params={','.join((base, *params))}"),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("--questions", default="10000,40000")
    parser.add_argument("--files", default=".csv,.json,.jsonl,.parquet")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    given = facts() | {"versions": package_versions(), "git": git_commit(PROJECT)}
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="inference_", dir=options.output) as folder:
        work = Path(folder)
        raw = PROJECT / "data/01_raw"
        files = [f"data.{name}_file={raw}/starter_{name}.json" for name in ("train", "validation")]
        training = [
            f"training.{change}"
            for change in ("max_steps=1", "eval_strategy=no", "save_strategy=no")
        ]
        measured(kedro_run("data_engineering,modeling", *files, *training), work)
        for kind in options.files.split(","):
            for n in map(int, options.questions.split(",")):
                path = write_questions(work, kind, n)
                run = measured(kedro_run("inference", f"inference.questions_file={path}"), work)
                rows.append({"file": kind, "questions": n, "MiB": path.stat().st_size / MIB} | run)
                print(json.dumps(rows[-1]), flush=True)
                table = write_results(options.output, "batch_inference", given, rows)
    print(f"\n{table}")


if __name__ == "__main__":
    main()
