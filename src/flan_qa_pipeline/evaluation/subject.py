"""What a result is about, as titles name it: the base model and the corpus."""

import hashlib
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict

from flan_qa_pipeline.config.parameters import DataParameters, ModelParameters
from flan_qa_pipeline.hub import PROTOCOL, DataFiles

EMBEDDED_CORPUS = "the embedded starter corpus"
ROWS_READ = 50  # of a split, to recognize its corpus
PARAGRAPHS_SEARCHED, QUESTIONS_SEARCHED = 16, 12  # for the place that an id holds


def base_name(model: str) -> str:
    """Return a hub id as it is, and the last part of a folder's path.

    >>> base_name("google/flan-t5-base"), base_name("data/06_models/starter_t5")
    ('google/flan-t5-base', 'starter_t5')
    """
    path = PurePath(model)
    return path.name if path.is_absolute() or len(path.parts) > 2 else model


def corpus_name(file: str) -> str:
    """Name the corpus of a file that is not recognized: a dataset of the hub, or the file itself.

    >>> corpus_name("hf://datasets/rajpurkar/squad_v2/a.parquet"), corpus_name("../squad/dev.json")
    ('rajpurkar/squad_v2', 'dev.json')
    """
    return DataFiles.of(file).repo_id if file.startswith(PROTOCOL) else PurePath(file).name


def recognized(questions: DatasetDict) -> dict[str, str]:
    """Map the splits that hold an embedded corpus to its name, whatever their files are called."""
    return {name: EMBEDDED_CORPUS for name, split in questions.items() if _is_starter(split)}


def _is_starter(split: Dataset) -> bool:
    if not len(split) or "title" not in split.column_names:
        return False
    rows = np.unique(np.linspace(0, len(split) - 1, ROWS_READ).astype(int))
    columns = split.select_columns(["title", "question", "id"])[rows]
    return all(map(_is_embedded, columns["title"], columns["question"], columns["id"]))


def _is_embedded(title: str, question: str, id_: str) -> bool:
    return any(
        question_id(title, paragraph, index, question) == id_
        for paragraph in range(PARAGRAPHS_SEARCHED)
        for index in range(QUESTIONS_SEARCHED)
    )


def question_id(title: str, paragraph: int, index: int, question: str) -> str:
    """Return the id that a question has in the embedded corpus.

    Args:
        title: The article's title.
        paragraph: The paragraph's place in its article, from 0.
        index: The question's place in its paragraph, from 0.
        question: The question's text.
    """
    key = f"{title}\n{paragraph}\n{index}\n{question}"
    return hashlib.sha1(key.encode(), usedforsecurity=False).hexdigest()[:24]


def trained_on(run: Mapping[str, Any]) -> str | None:
    """Name the corpus of a training from its adapter's record of the run; None: it is not known."""
    if corpus := run.get("corpora", {}).get("train"):
        return str(corpus)
    parameters = run.get("parameters")
    return corpus_name(parameters["data"]["train_file"]) if parameters else None


def scored_on(data: DataParameters, questions: DatasetDict) -> str:
    """Name the corpora of the validation questions, which may come from both files."""
    if corpus := recognized(questions).get("validation"):
        return corpus
    files = [data.validation_file]
    if data.validation_fraction is not None:
        files.insert(0, data.train_file)
    return " and ".join(dict.fromkeys(map(corpus_name, files)))


def subject(model: ModelParameters, data: DataParameters, questions: DatasetDict) -> str:
    """Name the base model and the corpus, as in "starter_t5 on the embedded starter corpus"."""
    return f"{base_name(model.name)} on {scored_on(data, questions)}"
