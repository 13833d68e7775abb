"""English at a small size, encoded once for all tests of pretraining."""

import pytest
from datasets import Dataset
from english import read_english, small, train_small_tokenizer

from flan_qa_pipeline.data.squad import flatten
from flan_qa_pipeline.pretraining.encoding import (
    TEXT_FEATURES,
    EncodedQuestions,
    EncodedText,
    encode_by_article,
    encode_paragraphs,
)
from flan_qa_pipeline.pretraining.reading_tasks import ReadingTasks


@pytest.fixture(scope="session")
def articles():
    return read_english(40)


@pytest.fixture(scope="session")
def tokenizer(articles):
    return train_small_tokenizer(articles)


@pytest.fixture
def pretrain(raw_parameters):
    return small(raw_parameters["pretrain"])


@pytest.fixture
def tasks(tokenizer, pretrain):
    return ReadingTasks(tokenizer, pretrain.prompts, pretrain.asking_prompts, 384, 40)


@pytest.fixture(scope="session")
def splits(articles, tokenizer):
    rows = Dataset.from_list(list(flatten({"version": "v2.0", "data": articles}, "the corpus")))
    return encode_by_article(
        {"train": rows, "dev": rows.select([0]), "calibration": rows.select([1])}, tokenizer
    )


@pytest.fixture
def questions(splits, tasks):
    return EncodedQuestions.of(splits, tasks)


@pytest.fixture(scope="session")
def text(articles, tokenizer):
    paragraphs = ((a["title"], [p["context"] for p in a["paragraphs"]]) for a in articles)
    rows = list(encode_paragraphs(paragraphs, tokenizer))
    return EncodedText.of(Dataset.from_list(rows, features=TEXT_FEATURES))


@pytest.fixture(scope="session")
def sentinels(tokenizer):
    return tokenizer.convert_tokens_to_ids([f"<extra_id_{i}>" for i in range(100)])
