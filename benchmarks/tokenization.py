"""Time and memory of the data_engineering pipeline: python benchmarks/tokenization.py OUTPUT_FOLDER

Corpora of a given number of questions are generated, each context two paragraphs long as in
SQuAD 2.0. Each is read, checked, split and tokenized twice by `kedro run`, in a process of its own:
anew, and again with nothing changed. Of that process are taken the wall time from its start to its
end, and three peaks of memory: `all` is ru_maxrss; `own`, what the process itself allocated
(RssAnon), and `files`, pages of files that it has mapped, Arrow's among them, which the kernel
takes back when memory is short (RssFile), are sampled. Needs Linux.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from flan_qa_pipeline.fingerprint import git_commit, package_versions
from flan_qa_pipeline.starter_corpus import generate_corpus

PROJECT = Path(__file__).resolve().parents[1]
QUESTIONS_PER_ARTICLE = 25
MIB = 2**20
SAMPLED_EVERY = 0.02  # seconds


def write_corpus(folder: Path, n_questions: int) -> dict[str, float]:
    """Write train.json and validation.json; return how many questions, how long the contexts."""
    kinds = PROJECT / "data/01_raw/starter_kinds.yml"
    corpus = generate_corpus(
        yaml.safe_load(kinds.read_text(encoding="utf-8")),
        seed=1,
        n_articles=round(n_questions / QUESTIONS_PER_ARTICLE),
        paragraphs_per_article=(4, 6),
        questions_per_paragraph=(4, 6),
        impossible_fraction=0.33,
    )
    for article in corpus["data"]:
        contexts = [paragraph["context"] for paragraph in article["paragraphs"]]
        for i, paragraph in enumerate(article["paragraphs"]):
            paragraph["context"] = " ".join((contexts * 2)[i : i + 2])
    held_out = max(1, len(corpus["data"]) // 10)
    files = {"train": corpus["data"][held_out:], "validation": corpus["data"][:held_out]}
    for name, articles in files.items():
        text = json.dumps({"version": corpus["version"], "data": articles})
        (folder / f"{name}.json").write_text(text, encoding="utf-8")
    paragraphs = [p for article in corpus["data"] for p in article["paragraphs"]]
    lengths = [len(paragraph["context"]) for paragraph in paragraphs]
    return {
        "questions": sum(len(paragraph["qas"]) for paragraph in paragraphs),
        "characters a context": sum(lengths) / len(lengths),
    }


def measured(command: list[str], folder: Path) -> dict[str, float]:
    """Run a command in a folder; return its seconds and its peaks of memory in MiB."""
    started = time.perf_counter()
    peaks = {"RssAnon": 0, "RssFile": 0}
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log)  # noqa: S603
        status = Path(f"/proc/{process.pid}/status")
        while os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
            for name in peaks.keys() & fields.keys():
                peaks[name] = max(peaks[name], int(fields[name].split()[0]) * 1024)
            time.sleep(SAMPLED_EVERY)
        _, code, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(code)
    seconds = time.perf_counter() - started
    if process.returncode:
        raise SystemExit((folder / "log").read_text())
    return {
        "seconds": seconds,
        "all MiB": usage.ru_maxrss * 1024 / MIB,
        "own MiB": peaks["RssAnon"] / MIB,
        "files MiB": peaks["RssFile"] / MIB,
    }


def measure(n_questions: int, work: Path) -> list[dict[str, Any]]:
    """Rows of the result: the first run on a new corpus, and the second."""
    facts = write_corpus(work, n_questions)
    command = [
        *(sys.executable, "-m", "flan_qa_pipeline", f"--conf-source={PROJECT / 'conf'}"),
        "--pipelines=data_engineering",
        f"--params=model.name={PROJECT / 'data/06_models/starter_t5'},"
        f"data.train_file={work / 'train.json'},data.validation_file={work / 'validation.json'}",
    ]
    rows = []
    for run in ("first", "again"):
        rows.append(facts | {"run": run} | measured(command, work) | node_seconds(work))
        print(json.dumps(rows[-1]), flush=True)
    return rows


def node_seconds(folder: Path) -> dict[str, float]:
    """The nodes' own times, which the project saves with every run."""
    latest = max((folder / "data/08_reporting/node_times.csv").glob("*/node_times.csv"))
    times = pd.read_csv(latest)
    return dict(zip(times["node"] + " s", times["seconds"], strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("--questions", default="13000,130000")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    facts = {
        "machine": f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores",
        "versions": package_versions(),
        "git": git_commit(PROJECT),
    }
    rows: list[dict[str, Any]] = []
    for n_questions in map(int, options.questions.split(",")):
        work = Path(tempfile.mkdtemp(prefix="tokenization_", dir=options.output))
        try:
            rows += measure(n_questions, work)
        finally:
            shutil.rmtree(work)
        text = json.dumps({**facts, "results": rows}, indent=2)
        (options.output / "tokenization.json").write_text(f"{text}\n", encoding="utf-8")
    shown = pd.DataFrame(rows).round(1).to_markdown(index=False)
    (options.output / "tokenization.md").write_text(
        f"{json.dumps(facts)}\n\n{shown}\n", encoding="utf-8"
    )
    print(f"\n{shown}")


if __name__ == "__main__":
    main()
