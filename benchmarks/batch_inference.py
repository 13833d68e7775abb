"""Memory of answering files of questions: python benchmarks/batch_inference.py OUTPUT_FOLDER

Trains an adapter on the starter corpus as configured, then answers files with few and many of its
questions, drawn at random. A separate process runs the pipeline `inference` for each file;
`harness.measured` defines the measured figures. Needs Linux.
"""

import argparse
import json
import sys
import tempfile
from itertools import chain
from pathlib import Path
from typing import Any

import pandas as pd
from harness import MIB, PROJECT, STARTER, facts, measured, write_results

from flan_qa_pipeline.data.squad import flatten

RAW = PROJECT / "data/01_raw"
CORPUS = {name: RAW / f"starter_{name}.json" for name in ("train", "validation")}
FILES = [
    ".csv=1000,10000,100000",
    *(f"{kind}=1000,10000" for kind in (".json", ".jsonl", ".parquet")),
]


def starter_questions() -> pd.DataFrame:
    """Read the questions of the starter corpus, with the columns `context` and `question`."""
    records = chain.from_iterable(
        flatten(json.loads(path.read_text(encoding="utf-8")), str(path)) for path in CORPUS.values()
    )
    return pd.DataFrame(records, columns=["context", "question"])


def write_questions(corpus: pd.DataFrame, folder: Path, kind: str, n: int) -> Path:
    """Write a file of n questions drawn from the corpus with replacement; return its path."""
    frame = corpus.sample(n, replace=True, random_state=0, ignore_index=True)
    path = folder / f"questions{kind}"
    if kind == ".csv":
        frame.to_csv(path, index=False)
    elif kind == ".parquet":
        frame.to_parquet(path)
    else:
        frame.to_json(path, orient="records", lines=kind == ".jsonl")
    return path


def kedro_run(pipeline: str, *params: str) -> list[str]:
    """Return the command that runs a pipeline on the starter model with these parameters."""
    return [
        *(sys.executable, "-m", "flan_qa_pipeline", f"--conf-source={PROJECT / 'conf'}"),
        *(f"--pipelines={pipeline}", f"--params={','.join((f'model.name={STARTER}', *params))}"),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("--files", nargs="+", default=FILES, metavar="KIND=ROWS,…")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    given = facts()
    corpus = starter_questions()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="inference_", dir=options.output) as folder:
        work = Path(folder)
        files = [f"data.{name}_file={path}" for name, path in CORPUS.items()]
        training = ["training.eval_strategy=no", "training.save_strategy=no"]
        measured(kedro_run("data_engineering,modeling", *files, *training), work)
        for kind, numbers in (file.split("=") for file in options.files):
            for n in map(int, numbers.split(",")):
                path = write_questions(corpus, work, kind, n)
                run = measured(kedro_run("inference", f"inference.questions_file={path}"), work)
                rows.append({"file": kind, "questions": n, "MiB": path.stat().st_size / MIB} | run)
                print(json.dumps(rows[-1]), flush=True)
                table = write_results(options.output, "batch_inference", given, rows)
    print(f"\n{table}")


if __name__ == "__main__":
    main()
