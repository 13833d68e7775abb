"""Titles name the model and the corpus that a result is about."""

import pytest
from datasets import Dataset, DatasetDict

from flan_qa_pipeline.data.squad import flatten
from flan_qa_pipeline.evaluation.subject import EMBEDDED_CORPUS, recognized, subject, trained_on

EMBEDDED = "data/01_raw/starter_train.json", "data/01_raw/starter_validation.json"


@pytest.fixture(scope="module")
def starter_rows(corpus):
    """Questions of a small starter corpus, with the ids of the embedded corpus."""
    return Dataset.from_list(list(flatten(corpus, "corpus")))


def changed(rows, column, value, every=1):
    values = [value if i % every == 0 else old for i, old in enumerate(rows[column])]
    return rows.remove_columns(column).add_column(column, values)


@pytest.mark.parametrize(
    ("model", "train", "validation", "fraction", "expected"),
    [
        ("data/06_models/starter_t5", *EMBEDDED, None, "starter_t5 on starter_validation.json"),
        (
            "google/flan-t5-base",
            "data/01_raw/starter_train.json",
            "hf://datasets/rajpurkar/squad_v2@3ffb306f/squad_v2/validation.parquet",
            None,
            "google/flan-t5-base on rajpurkar/squad_v2",
        ),
        ("/models/t5", "a/train.csv", "s3://bucket/dev.csv", 0.5, "t5 on train.csv and dev.csv"),
    ],
)
def test_a_title_names_model_and_corpus(
    parameters, starter_rows, model, train, validation, fraction, expected
):
    def title(rows):
        data = parameters.data.model_copy(
            update={
                "train_file": train,
                "validation_file": validation,
                "validation_fraction": fraction,
            }
        )
        base = parameters.model.model_copy(update={"name": model})
        return subject(base, data, DatasetDict(validation=rows))

    assert title(changed(starter_rows, "question", "Why?")) == expected
    recognized_title = f"{expected.partition(' on ')[0]} on {EMBEDDED_CORPUS}"
    assert title(starter_rows) == recognized_title
    assert title(starter_rows.shuffle(seed=1).select(range(3))) == recognized_title


def test_the_embedded_corpus_is_recognized_by_its_rows(starter_rows):
    splits = {
        "train": starter_rows,
        "other questions": changed(starter_rows, "question", "Why?"),
        "other ids": changed(starter_rows, "id", "a"),
        "mixed": changed(starter_rows, "id", "a", every=7),
        "empty": starter_rows.select([]),
        "without titles": starter_rows.remove_columns("title"),
    }
    assert recognized(DatasetDict(splits)) == {"train": EMBEDDED_CORPUS}


def test_an_adapter_names_the_corpus_of_its_training():
    files = {"parameters": {"data": {"train_file": "a/rows.csv"}}}
    assert trained_on(files | {"corpora": {"train": EMBEDDED_CORPUS}}) == EMBEDDED_CORPUS
    assert trained_on(files | {"corpora": {}}) == trained_on(files) == "rows.csv"
    assert trained_on({}) is None
