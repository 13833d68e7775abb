"""From SQuAD 2.0 input to tokenized windows."""

import logging
from dataclasses import astuple, fields
from pathlib import Path
from typing import Any

import pandas as pd
from datasets import Dataset, DatasetDict, Features, List, Value, concatenate_datasets

from flan_qa_pipeline.errors import InputError
from flan_qa_pipeline.models import load_tokenizer
from flan_qa_pipeline.parameters import (
    DataParameters,
    ModelParameters,
    PromptParameters,
    TokenizationParameters,
)
from flan_qa_pipeline.squad import Rejection, check, flatten, flatten_rows, split_titles
from flan_qa_pipeline.windows import (
    answer_in_window,
    question_windows,
    tokenize_context,
    tokenize_question,
)

logger = logging.getLogger(__name__)

QUESTION_FEATURES = Features(
    {
        "id": Value("string"),
        "title": Value("string"),
        "context": Value("string"),
        "question": Value("string"),
        "answers": {"text": List(Value("string")), "answer_start": List(Value("int32"))},
        "is_impossible": Value("bool"),
    }
)
WINDOW_FEATURES = Features(
    {
        "id": Value("string"),
        "window": Value("int32"),
        "input_ids": List(Value("int32")),
        "labels": List(Value("int32")),
    }
)


def flatten_questions(
    raw: dict[str, Any] | pd.DataFrame | Dataset | DatasetDict, source: str, on_invalid: str
) -> tuple[Dataset, pd.DataFrame]:
    """Flatten SQuAD 2.0 JSON, or squad_v2-shaped rows, to one checked row per question.

    The table lists what was left out: nothing unless `on_invalid` is `skip`.
    """
    if isinstance(raw, DatasetDict):
        raise InputError(
            f"{source} holds a DatasetDict with the splits {', '.join(raw)}; name one of its "
            f"splits, such as {Path(source) / next(iter(raw), 'train')}, in globals.yml."
        )
    if isinstance(raw, pd.DataFrame):
        raw = Dataset.from_pandas(raw, preserve_index=False)
    shape = flatten_rows if isinstance(raw, Dataset) else flatten
    rejected: list[Rejection] = []
    skipped = rejected if on_invalid == "skip" else None
    records = check(shape(raw, source, skipped), source, skipped)
    if rejected:
        logger.warning(
            "%s: %d invalid records were left out (table of rejected questions); the first: %s.",
            source,
            len(rejected),
            rejected[0].problem,
        )
    table = pd.DataFrame(
        [
            [text.encode(errors="backslashreplace").decode() for text in astuple(rejection)]
            for rejection in rejected
        ],
        columns=[field.name for field in fields(Rejection)],
    )
    questions = Dataset.from_list(
        [{column: record[column] for column in QUESTION_FEATURES} for record in records],
        features=QUESTION_FEATURES,
    )
    return questions, table


def split_by_article(train: Dataset, validation: Dataset, data: DataParameters) -> DatasetDict:
    """Split by article, hence by context, into train, dev, calibration and validation.

    Dev and calibration are held out of the training articles, dev to choose the best adapter and
    calibration to choose the no-answer threshold.
    """
    if data.validation_fraction is not None:
        pool = _pool(train, validation)
        train, validation = _hold_out(pool, data.validation_fraction, data.seed)
    for column, thing in (("title", "article"), ("context", "context"), ("id", "question id")):
        shared = sorted(set(train[column]) & set(validation[column]))
        if shared:
            raise InputError(
                f"{len(shared)} {thing}(s) of {data.validation_file} are also in "
                f"{data.train_file}, such as {shared[0][:60]!r}; remove them from one file, or "
                "set data.validation_fraction to split the two files anew by article."
            )
    train, dev = _hold_out(train, data.dev_fraction, data.seed)
    train, calibration = _hold_out(train, data.calibration_fraction, data.seed)
    splits = DatasetDict(train=train, dev=dev, calibration=calibration, validation=validation)
    for name in ("train", "validation"):
        if not len(splits[name]):
            raise InputError(
                f"The {name} split has no article; lower data.dev_fraction, "
                "data.calibration_fraction or data.validation_fraction, or give more articles."
            )
    return splits


def _hold_out(questions: Dataset, fraction: float, seed: int) -> tuple[Dataset, Dataset]:
    """Hold out a fraction of the articles, and with them those that share a context."""
    pairs = set(zip(questions["title"], questions["context"], strict=True))
    held_out, grown = set(), split_titles(questions["title"], fraction, seed)
    while held_out != grown:
        held_out = grown
        contexts = {context for title, context in pairs if title in held_out}
        grown = {title for title, context in pairs if context in contexts}
    return (
        questions.filter(lambda title: title not in held_out, input_columns="title"),
        questions.filter(lambda title: title in held_out, input_columns="title"),
    )


def _pool(train: Dataset, validation: Dataset) -> Dataset:
    """Join two files; a question that is the same in both counts once."""
    rows = {row["id"]: row for row in train}
    new = []
    for i, row in enumerate(validation):
        if row["id"] not in rows:
            new.append(i)
        elif rows[row["id"]] != row:
            raise InputError(
                f"Question id {row['id']!r} stands for different questions in the two files; "
                "give every question an id of its own."
            )
    return concatenate_datasets([train, validation.select(new)])


def apply_unanswerable_policy(splits: DatasetDict, data: DataParameters) -> DatasetDict:
    """Keep, drop or flag unanswerable questions and apply the limits on the number of questions."""
    needed = {"keep": (), "flag": ("train",), "drop": ("train", "validation")}
    for name in needed[data.unanswerable]:
        if all(splits[name]["is_impossible"]):
            raise InputError(
                f"data.unanswerable: {data.unanswerable} leaves nothing of the {name} split, whose "
                "questions are all unanswerable; set it to keep or give other files."
            )
    if data.unanswerable == "drop":
        splits = splits.filter(lambda impossible: not impossible, input_columns="is_impossible")
    limits = {
        "train": data.max_train_questions,
        "dev": data.max_dev_questions,
        "calibration": data.max_calibration_questions,
        "validation": data.max_validation_questions,
    }
    return DatasetDict(
        {
            name: split.shuffle(seed=data.seed).select(range(limits[name])).flatten_indices()
            if limits[name] and limits[name] < len(split)
            else split
            for name, split in splits.items()
        }
    )


def tokenize_questions(
    questions: DatasetDict,
    model: ModelParameters,
    prompt: PromptParameters,
    tokenization: TokenizationParameters,
    unanswerable: str,
) -> DatasetDict:
    """Turn each question into windows of token ids: whole question, part of the context.

    `labels` are the answer's ids, or the abstention's for a window without the answer. Under the
    policy `drop` or `flag` a window without the answer teaches nothing: it is left out of train and
    has no labels elsewhere.
    """
    tokenizer = load_tokenizer(model)
    abstains = unanswerable == "keep"

    def tokenize(batch: dict[str, list], for_training: bool) -> dict[str, list]:
        rows: dict[str, list] = {name: [] for name in WINDOW_FEATURES}
        contexts = {}
        for id_, question, context, answers in zip(
            batch["id"], batch["question"], batch["context"], batch["answers"], strict=True
        ):
            if context not in contexts:
                contexts[context] = tokenize_context(tokenizer, context)
            asked = tokenize_question(
                tokenizer, prompt.template, question, tokenization, f"Question {id_!r}"
            )
            for number, window in enumerate(
                question_windows(asked, contexts[context], tokenization)
            ):
                answer = answer_in_window(answers["text"], answers["answer_start"], window.span)
                teaches = answer is not None or abstains
                if for_training and not teaches:
                    continue
                target = prompt.abstention if answer is None else answer
                rows["id"].append(id_)
                rows["window"].append(number)
                rows["input_ids"].append(window.input_ids)
                rows["labels"].append(
                    tokenizer(target, truncation=True, max_length=tokenization.max_target_length)[
                        "input_ids"
                    ]
                    if teaches
                    else []
                )
        return rows

    return DatasetDict(
        {
            name: split.map(
                tokenize,
                batched=True,
                remove_columns=split.column_names,
                features=WINDOW_FEATURES,
                fn_kwargs={"for_training": name == "train"},
                desc=f"Tokenize {name}",
            )
            for name, split in questions.items()
        }
    )
