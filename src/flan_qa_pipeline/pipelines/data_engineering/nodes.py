"""From files of questions to tokenized windows."""

import logging
from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import astuple, fields
from pathlib import Path
from typing import Any

import pandas as pd
from datasets import Dataset, DatasetDict, DatasetInfo, Features, List, Value
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from flan_qa_pipeline.config.parameters import (
    DataParameters,
    ModelParameters,
    PromptParameters,
    TokenizationParameters,
)
from flan_qa_pipeline.data.arrow_files import on_disk, rows_on_disk
from flan_qa_pipeline.data.fingerprints import fingerprint_splits
from flan_qa_pipeline.data.row_files import RowFiles
from flan_qa_pipeline.data.splits import (
    NEAR,
    SHINGLE,
    column_values,
    describe_splits,
    hold_out,
    near_duplicates,
    note_part,
    pool,
    shared_values,
    thin_out,
)
from flan_qa_pipeline.data.squad import (
    CHECKED_QUESTION_FEATURES,
    LEAVE_OUT,
    Rejection,
    check,
    read_records,
)
from flan_qa_pipeline.data.tokenized import describe, made_with
from flan_qa_pipeline.data.windows import question_problems, window_columns
from flan_qa_pipeline.errors import InputError
from flan_qa_pipeline.models.loading import load_tokenizer

logger = logging.getLogger(__name__)

ROWS = 1000  # in memory at a time
FROM_TRAINING_ARTICLES = ("train", "dev", "calibration")
LATE_BAR = {"delay": 2, "leave": False}  # a step under 2 s shows no progress bar

WINDOW_FEATURES = Features(
    {
        "id": Value("string"),
        "window": Value("int32"),
        "input_ids": List(Value("int32")),
        "labels": List(Value("int32")),
    }
)


def flatten_questions(
    raw: RowFiles | dict[str, Any] | Dataset | DatasetDict,
    source: str,
    on_invalid: str,
    columns: Any = None,  # Kedro cannot set a TrainingColumns within the DataParameters of others
) -> tuple[Dataset, pd.DataFrame]:
    """Read SQuAD JSON or rows of any supported file into one checked row per question.

    Args:
        raw: What the dataset loaded.
        source: The file's name, for messages.
        on_invalid: `error` or `skip`.
        columns: `TrainingColumns`, where the file names them otherwise.

    Returns:
        The questions, and a table of rejected ones, empty unless `on_invalid` is `skip`.

    Raises:
        InputError: a record is invalid and `on_invalid` is `error`, or none is valid.
    """
    if isinstance(raw, DatasetDict):
        raise InputError(
            f"{source} holds a DatasetDict with the splits {', '.join(raw)}; name one of its "
            f"splits, such as {Path(source) / next(iter(raw), 'train')}, in globals.yml."
        )
    named = columns.model_dump(exclude_none=True) if columns else {}
    rejected: list[Rejection] = []
    skipped = rejected if on_invalid == "skip" else None
    records = check(read_records(raw, source, named, skipped), source, skipped)
    shown = tqdm(records, desc="Check questions", unit="question", **LATE_BAR)
    questions = rows_on_disk(shown, CHECKED_QUESTION_FEATURES)
    return questions, rejection_table(rejected, source)


def reject_long_questions(
    questions: Dataset,
    rejected: pd.DataFrame,
    source: str,
    on_invalid: str,
    model: ModelParameters,
    prompt: PromptParameters,
    tokenization: TokenizationParameters,
) -> tuple[Dataset, pd.DataFrame]:
    """Leave out, and list, questions so long that no room is left for their context."""
    tokenizer = load_tokenizer(model)
    good, long = array("q"), []
    batches = questions.select_columns(["id", "question"]).iter(ROWS)
    rows = (
        (id_, problem)
        for batch in batches
        for id_, problem in zip(
            batch["id"],
            question_problems(batch["question"], tokenizer, prompt.template, tokenization),
            strict=True,
        )
    )
    for number, (id_, problem) in enumerate(rows):
        if problem is None:
            good.append(number)
        elif on_invalid == "skip":
            long.append(Rejection(source, "", id_, f"it {problem}"))
        else:
            raise InputError(f"{source}: question {id_!r} {problem}; {LEAVE_OUT}.")
    if not good:
        raise InputError(f"{source} holds no valid questions; the first: {long[0].problem}.")
    if not long:
        return questions, rejected
    return questions.select(good), pd.concat([rejected, rejection_table(long, source)])


def rejection_table(rejected: list[Rejection], source: str) -> pd.DataFrame:
    """List what was left out of a file, and warn of it."""
    if rejected:
        logger.warning(
            "%s: %d invalid records were left out; the first: %s.",
            source,
            len(rejected),
            rejected[0].problem,
        )
    return pd.DataFrame(
        [
            [text.encode(errors="backslashreplace").decode() for text in astuple(rejection)]
            for rejection in rejected
        ],
        columns=[field.name for field in fields(Rejection)],
    )


def split_by_article(train: Dataset, validation: Dataset, data: DataParameters) -> DatasetDict:
    """Split by article, hence by context, into train, dev, calibration and validation.

    Dev and calibration are held out of the training articles: dev chooses the best adapter,
    calibration the no-answer threshold.

    Raises:
        InputError: the files share an article, context or id; or a split has no article.
    """
    if data.validation_fraction is not None:
        train, validation = hold_out(pool(train, validation), data.validation_fraction, data.seed)
    for column, thing in (("title", "article"), ("context", "context"), ("id", "question id")):
        shared = shared_values(train, validation, column)
        if shared:
            but = " (but for spaces, case and Unicode form)" if column == "context" else ""
            raise InputError(
                f"{len(shared)} {thing}(s) of {data.validation_file} are also in "
                f"{data.train_file}{but}, such as {shared[0][:60]!r}; remove them from one file, "
                "or set data.validation_fraction to split both files together by article."
            )
    near, of, first = near_duplicates(train, validation)
    if near:
        logger.warning(
            "%d of %d contexts of the validation split stand almost word for word in training "
            "articles (%.0f%% of their runs of %d words), such as %r.",
            near,
            of,
            100 * NEAR,
            SHINGLE,
            first[:60],
        )
    train, dev = hold_out(train, data.dev_fraction, data.seed)
    train, calibration = hold_out(train, data.calibration_fraction, data.seed)
    splits = DatasetDict(train=train, dev=dev, calibration=calibration, validation=validation)
    for name in ("train", "validation"):
        if not len(splits[name]):
            raise InputError(
                f"The {name} split has no article; lower data.dev_fraction, "
                "data.calibration_fraction or data.validation_fraction, or give more articles."
            )
    return splits


def apply_unanswerable_policy(splits: DatasetDict, data: DataParameters) -> DatasetDict:
    """Keep, drop or flag unanswerable questions, in a given share, and limit each split's size."""
    needed = {"keep": (), "flag": ("train",), "drop": ("train", "validation")}
    for name in needed[data.unanswerable]:
        if all(splits[name]["is_impossible"]):
            raise InputError(
                f"data.unanswerable: {data.unanswerable} leaves nothing of the {name} split, whose "
                "questions are all unanswerable; set it to keep or give other files."
            )
    if data.unanswerable == "drop":
        splits = splits.filter(lambda impossible: not impossible, input_columns="is_impossible")
    whole = len(splits["train"])
    if data.unanswerable_share is not None:
        if data.unanswerable == "keep":
            splits = _thinned_out(splits, data.unanswerable_share, data.seed)
        else:
            logger.info(
                "data.unanswerable_share concerns questions that are kept; data.unanswerable is "
                "%s.",
                data.unanswerable,
            )
    limits: dict[str, Any] = {
        "train": data.max_train_questions,
        "dev": data.max_dev_questions,
        "calibration": data.max_calibration_questions,
        "validation": data.max_validation_questions,
    }
    limited = {}
    for name, split in splits.items():
        limit = limits[name]
        if limit and limit < len(split):
            logger.info(
                "data.max_%s_questions: %d of %d questions are used.", name, limit, len(split)
            )
            split = split.shuffle(seed=data.seed).select(range(limit)).flatten_indices()
        limited[name] = split
    leaving_out = {
        "data.unanswerable_share": len(splits["train"]) < whole,
        "data.max_train_questions": (limits["train"] or whole) < whole,
    }
    if parameters := [name for name, leaves_out in leaving_out.items() if leaves_out]:
        note_part(limited["train"], whole, parameters)
    return DatasetDict(limited)


def _thinned_out(splits: DatasetDict, share: float, seed: int) -> DatasetDict:
    thinned = {
        name: thin_out(splits[name], share, seed).flatten_indices()
        for name in FROM_TRAINING_ARTICLES
        if len(set(column_values(splits[name], "is_impossible"))) > 1
    }
    if thinned:
        left = (f"{len(s):,} of {len(splits[name]):,} {name}" for name, s in thinned.items())
        logger.info("data.unanswerable_share=%g leaves %s.", share, ", ".join(left))
    if whole := [n for n in FROM_TRAINING_ARTICLES if n not in thinned and len(splits[n])]:
        logger.info(
            "data.unanswerable_share changes nothing in %s: all questions there are answerable, or "
            "all unanswerable.",
            ", ".join(whole),
        )
    return DatasetDict({**splits, **thinned})


def tokenize_questions(
    questions: DatasetDict,
    model: ModelParameters,
    prompt: PromptParameters,
    tokenization: TokenizationParameters,
    data: DataParameters,
) -> DatasetDict:
    """Turn each question into windows of token ids: whole question, part of the context.

    `labels` are the ids of the answer, or of the abstention for a window without the answer. Under
    the policy `drop` or `flag` a window without the answer teaches nothing: train leaves it out,
    and in other splits it has no labels. The description of each split records the inputs.
    """
    tokenizer = load_tokenizer(model)
    info = DatasetInfo(
        description=describe(
            made_with(tokenizer, prompt, tokenization, data), fingerprint_splits(questions), data
        ),
        features=WINDOW_FEATURES,
    )
    n_questions = sum(map(len, questions.values()))
    with tqdm(total=n_questions, desc="Tokenize", unit="question", **LATE_BAR) as bar:

        def tokenize(split: Dataset, for_training: bool) -> Iterator[dict[str, list[Any]]]:
            for batch in split.iter(ROWS):
                yield window_columns(
                    batch,
                    tokenizer,
                    prompt,
                    tokenization,
                    abstains=data.unanswerable == "keep",
                    for_training=for_training,
                )
                bar.update(len(batch["id"]))

        tokenized = DatasetDict(
            {
                name: on_disk(tokenize(split, name == "train"), info)
                for name, split in questions.items()
            }
        )
    logger.info("Questions: %s.", describe_splits(questions))
    _warn_of_unknown_characters(tokenized, tokenizer)
    return tokenized


def _warn_of_unknown_characters(tokenized: DatasetDict, tokenizer: PreTrainedTokenizerBase) -> None:
    """Warn about answers with characters that the tokenizer lacks."""
    counts: Counter[bool] = Counter()
    for split in tokenized.values():
        for batch in split.select_columns("labels").iter(ROWS):
            counts.update(tokenizer.unk_token_id in labels for labels in batch["labels"] if labels)
    if counts[True]:
        logger.warning(
            "The tokenizer lacks a character of the answer in %s of %s windows (%.1f%%): the model "
            "cannot write these answers.",
            f"{counts[True]:,}",
            f"{counts.total():,}",
            100 * counts[True] / counts.total(),
        )
