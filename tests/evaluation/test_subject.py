"""Titles name the model and the corpus that a result is about."""

import pytest

from flan_qa_pipeline.evaluation.subject import EMBEDDED_CORPUS, subject


@pytest.mark.parametrize(
    ("model", "train", "validation", "fraction", "expected"),
    [
        (
            "data/06_models/starter_t5",
            "data/01_raw/starter_train.json",
            "/clone/data/01_raw/starter_validation.json",
            None,
            f"starter_t5 on {EMBEDDED_CORPUS}",
        ),
        (
            "data/06_models/starter_t5",
            "data/01_raw/starter_train.json",
            "data/01_raw/starter_validation.json",
            0.1,
            f"starter_t5 on {EMBEDDED_CORPUS}",
        ),
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
def test_a_title_names_model_and_corpus(parameters, model, train, validation, fraction, expected):
    data = parameters.data.model_copy(
        update={
            "train_file": train,
            "validation_file": validation,
            "validation_fraction": fraction,
        }
    )
    assert subject(parameters.model.model_copy(update={"name": model}), data) == expected
