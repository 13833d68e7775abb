"""Generated questions: which stay, and that training reads them."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import Dataset, DatasetDict

from flan_qa_pipeline.data.arrow_files import rows_on_disk
from flan_qa_pipeline.pretraining import question_generation
from flan_qa_pipeline.pretraining.altered_questions import contains
from flan_qa_pipeline.pretraining.batches import BatchSource
from flan_qa_pipeline.pretraining.encoding import (
    ENCODED_QUESTION_FEATURES,
    TEXT_FEATURES,
    EncodedQuestions,
    EncodedText,
)
from flan_qa_pipeline.pretraining.prompts import encode
from flan_qa_pipeline.pretraining.question_generation import (
    GENERATED_FEATURES,
    generate_questions,
)


@pytest.fixture
def generated(tasks, tokenizer, text, pretrain, monkeypatch):
    """Generate with a writer in place of the model: good questions, every other reply right."""
    question = encode(tokenizer, "What is it that they made?")

    def write(model, rows, batch_size, **options):
        if options["do_sample"]:
            return [question[:-1] if row % 4 == 3 else question for row in range(len(rows))]
        return [answers[n] if n % 2 else encode(tokenizer, "xyz") for n in range(len(rows))]

    answers = []
    ask = question_generation._ask

    def noting(model, tokenizer, tasks, asked, *rest):
        spans = [row.answer for row in asked]
        answers[:] = [span for row, span in enumerate(spans) if row % 4 != 3]
        return ask(model, tokenizer, tasks, asked, *rest)

    monkeypatch.setattr(question_generation, "write", write)
    monkeypatch.setattr(question_generation, "_ask", noting)
    settings = pretrain.generation.model_copy(
        update={"answers": 32, "batch_size": 16, "min_f1": 0.6}
    )
    return generate_questions(None, tokenizer, tasks, text, settings, seed=3)


def test_only_questions_that_lead_back_to_their_answer_stay(generated):
    assert len(generated) == 12  # of 32: 24 end with a question mark, half of their replies agree
    for row in generated:
        assert row["context"][row["start"] : row["end"]] == row["answer"]
        assert 0 < len(row["answer"]) <= 12
    assert any(row["other"] for row in generated)
    assert all(row["other"] != row["context"] for row in generated)


def test_neighbours_follow_or_at_the_end_come_before():
    """Two articles, of paragraphs 0 to 4 and of paragraph 5 alone, 60 tokens each."""
    text = EncodedText(
        ids=np.repeat(np.arange(6, dtype=np.uint16), 60),
        paragraphs=np.arange(7) * 60,
        articles=np.array([0, 5, 6]),
    )

    def found(*paragraphs):
        return sorted(set(question_generation.neighbours(text, range(*paragraphs)).tolist()))

    assert found(0, 1) == [1, 2, 3]
    assert found(2, 4) == [4]
    assert found(4, 5) == [1, 2, 3]
    assert found(0, 5) == found(5, 6) == []
    assert len(question_generation.neighbours(text, range(0, 1))) == 180
    short = dataclasses.replace(text, paragraphs=np.array([0, 60, 120, 180, 240, 289, 360]))
    assert not len(question_generation.neighbours(short, range(3, 4)))


def test_a_generated_question_may_find_its_neighbours_instead(generated, tasks):
    none = DatasetDict(
        paragraphs=Dataset.from_dict({n: [] for n in TEXT_FEATURES}, TEXT_FEATURES),
        train=Dataset.from_dict(
            {n: [] for n in ENCODED_QUESTION_FEATURES}, ENCODED_QUESTION_FEATURES
        ),
    )
    made = rows_on_disk(generated, GENERATED_FEATURES)
    questions = EncodedQuestions.of(none, tasks, made)
    contexts = [row[name] for row in generated for name in ("context", "other") if row[name]]
    assert [ids.tolist() for ids in questions.contexts] == contexts
    for row, question in zip(generated, questions.generated, strict=True):
        first, last = questions.articles[question.context]
        assert contexts[question.context] == row["context"] and first == question.context
        assert contexts[first + 1 : last] == [row["other"]] * bool(row["other"])


def test_a_worker_draws_the_same_answers_as_plain_lists(tasks, text):
    answers = question_generation.AnswersToAsk(tasks, text, 10, 4, seed=5)
    alone, ahead = (
        list(
            torch.utils.data.DataLoader(
                answers,
                batch_size=None,
                collate_fn=question_generation._unchanged,
                num_workers=workers,
            )
        )
        for workers in (0, 1)
    )
    assert alone == ahead and [len(batch) for batch in alone] == [4, 4, 2]
    for row in (row for batch in ahead for row in batch):
        assert type(row.passage) is type(row.prompt) is list
        assert {type(i) for i in (*row.passage, *row.other, *row.prompt, *row.span)} == {int}
        assert contains(np.array(row.prompt), row.answer)


def test_generation_repeats_itself(generated, tasks, tokenizer, text, pretrain):
    settings = pretrain.generation.model_copy(
        update={"answers": 32, "batch_size": 16, "min_f1": 0.6}
    )
    assert generate_questions(None, tokenizer, tasks, text, settings, seed=3) == generated
    other = generate_questions(None, tokenizer, tasks, text, settings, seed=4)
    assert [row["context"] for row in other] != [row["context"] for row in generated]


def test_generated_questions_are_trained_on(generated, tasks, tokenizer, text, pretrain, tmp_path):
    none = DatasetDict(
        paragraphs=Dataset.from_dict({n: [] for n in TEXT_FEATURES}, TEXT_FEATURES),
        train=Dataset.from_dict(
            {n: [] for n in ENCODED_QUESTION_FEATURES}, ENCODED_QUESTION_FEATURES
        ),
    )
    pd.DataFrame(generated).to_parquet(tmp_path / "generated.parquet")  # as the catalog keeps them
    made = rows_on_disk(
        pd.read_parquet(tmp_path / "generated.parquet").to_dict("records"), GENERATED_FEATURES
    )
    questions = EncodedQuestions.of(none, tasks, made)
    mixture = pretrain.base.stages[0].mixture.model_copy(
        update=dict.fromkeys(("cloze", "answerable", "unanswerable", "asking", "denoising"), 0.0)
        | {"generated": 1.0, "edited": 0.0}
    )
    source = BatchSource(
        text, questions, tasks, pretrain.batches, mixture, sentinels=[], seed=1, rank=0
    )
    step = next(step for step in range(50) if source.kind(step) == "short")
    batch = source.batch(step)
    question = encode(tokenizer, "What is it that they made?")
    for ids, labels in zip(batch["input_ids"].numpy(), batch["labels"].tolist(), strict=True):
        answer = labels[: labels.index(1)]
        assert contains(ids, question) and contains(ids, answer)
        assert any(np.array_equal(answer, row["answer"]) for row in generated)
