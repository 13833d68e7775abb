"""Time and memory of the data_engineering pipeline: python benchmarks/tokenization.py OUTPUT_FOLDER

Repeats the embedded corpus to a given number of questions; every copy of an article has a number. A
separate process runs the pipeline that reads, checks, splits and tokenizes each corpus.
`harness.measured` defines the measured figures. Needs Linux.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pandas as pd
from harness import PROJECT, STARTER, facts, measured, write_results

SHARES = {"train": 0.9, "validation": 0.1}  # of the questions


def write_corpus(folder: Path, n_questions: int) -> dict[str, float]:
    """Write train.json and validation.json; return the numbers of questions and characters."""
    asked, lengths = 0, []
    for name, share in SHARES.items():
        embedded = PROJECT / f"data/01_raw/starter_{name}.json"
        articles = json.loads(embedded.read_text(encoding="utf-8"))["data"]
        written, n_written = [], 0
        for article in numbered(articles):
            if n_written >= share * n_questions:
                break
            written.append(article)
            n_written += sum(len(paragraph["qas"]) for paragraph in article["paragraphs"])
            lengths += [len(paragraph["context"]) for paragraph in article["paragraphs"]]
        asked += n_written
        with (folder / f"{name}.json").open("w", encoding="utf-8") as file:
            json.dump({"version": "v2.0", "data": written}, file)
    return {"questions": asked, "characters a context": sum(lengths) / len(lengths)}


def numbered(articles: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield the articles again and again; titles, contexts and ids end with a number."""
    for number in count():
        for article in articles:
            paragraphs = [
                {
                    "context": f"{paragraph['context']} {number}",
                    "qas": [qa | {"id": f"{qa['id']}_{number}"} for qa in paragraph["qas"]],
                }
                for paragraph in article["paragraphs"]
            ]
            yield {"title": f"{article['title']}_{number}", "paragraphs": paragraphs}


def measure(n_questions: int, work: Path) -> dict[str, Any]:
    """Measure a run on a new corpus; return its row of results."""
    corpus = write_corpus(work, n_questions)
    command = [
        *(sys.executable, "-m", "flan_qa_pipeline", f"--conf-source={PROJECT / 'conf'}"),
        "--pipelines=data_engineering",
        f"--params=model.name={STARTER},data.max_train_questions=null,data.unanswerable_share=null,"
        f"data.train_file={work / 'train.json'},data.validation_file={work / 'validation.json'}",
    ]
    row = corpus | measured(command, work) | node_seconds(work)
    print(json.dumps(row), flush=True)
    return row


def node_seconds(folder: Path) -> dict[str, float]:
    """Read the times of the nodes, which the project saves with every run."""
    latest = max((folder / "data/08_reporting/node_times.csv").glob("*/node_times.csv"))
    times = pd.read_csv(latest)
    return dict(zip(times["node"] + " s", times["seconds"], strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("--questions", default="13000,130000")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    given = facts()
    rows: list[dict[str, Any]] = []
    for n_questions in map(int, options.questions.split(",")):
        with tempfile.TemporaryDirectory(prefix="tokenization_", dir=options.output) as work:
            rows.append(measure(n_questions, Path(work)))
        table = write_results(options.output, "tokenization", given, rows)
    print(f"\n{table}")


if __name__ == "__main__":
    main()
