"""Time and memory of the data_engineering pipeline: python benchmarks/tokenization.py OUTPUT_FOLDER

Generates corpora of a given number of questions, with contexts about as long as SQuAD 2.0's. A
separate process runs the pipeline that reads, checks, splits and tokenizes each corpus.
`harness.measured` defines the measured figures. Needs Linux.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from harness import PROJECT, STARTER, facts, measured, write_results

from flan_qa_pipeline.pretraining.starter_corpus import generate_corpus

QUESTIONS_PER_ARTICLE = 25
QUESTIONS_PER_PART = 130_000


def write_corpus(folder: Path, n_questions: int) -> dict[str, float]:
    """Write train.json and validation.json; return the numbers of questions and characters.

    The generator has names for a limited number of questions, so a larger corpus consists of
    parts; titles and ids end with the number of the part.
    """
    kinds = yaml.safe_load((PROJECT / "data/01_raw/starter_kinds.yml").read_text(encoding="utf-8"))
    articles: dict[str, list[dict[str, Any]]] = {"train": [], "validation": []}
    for part in range(-(-n_questions // QUESTIONS_PER_PART)):
        n_of_part = min(QUESTIONS_PER_PART, n_questions - part * QUESTIONS_PER_PART)
        corpus = generate_corpus(
            kinds,
            seed=part,
            n_articles=round(n_of_part / QUESTIONS_PER_ARTICLE),
            paragraphs_per_article=(4, 6),
            questions_per_paragraph=(4, 6),
            impossible_fraction=0.33,
        )
        for number, article in enumerate(corpus["data"]):
            article["title"] += f"_{part}"
            contexts = [paragraph["context"] for paragraph in article["paragraphs"]]
            for i, paragraph in enumerate(article["paragraphs"]):
                paragraph["context"] = " ".join((contexts * 2)[i : i + 2])
                for qa in paragraph["qas"]:
                    qa["id"] += f"_{part}"
            articles["train" if number % 10 else "validation"].append(article)
    for name, some in articles.items():
        with (folder / f"{name}.json").open("w", encoding="utf-8") as file:
            json.dump({"version": "v2.0", "data": some}, file)
    paragraphs = [p for some in articles.values() for a in some for p in a["paragraphs"]]
    lengths = [len(paragraph["context"]) for paragraph in paragraphs]
    return {
        "questions": sum(len(paragraph["qas"]) for paragraph in paragraphs),
        "characters a context": sum(lengths) / len(lengths),
    }


def measure(n_questions: int, work: Path) -> dict[str, Any]:
    """Measure a run on a new corpus; return its row of results."""
    corpus = write_corpus(work, n_questions)
    command = [
        *(sys.executable, "-m", "flan_qa_pipeline", f"--conf-source={PROJECT / 'conf'}"),
        "--pipelines=data_engineering",
        f"--params=model.name={STARTER},"
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
