"""An English base model, pretrained from scratch on text and annotated questions."""

import logging
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import torch
from accelerate import PartialState
from accelerate.utils import set_seed
from datasets import (
    Dataset,
    DatasetDict,
    Features,
    List,
    Value,
    concatenate_datasets,
)
from transformers import PreTrainedTokenizerBase, T5ForConditionalGeneration, T5Tokenizer

import flan_qa_pipeline.pretraining.question_generation as question_generation
from flan_qa_pipeline.config.parameters import (
    DataParameters,
    PhaseParameters,
    PretrainParameters,
)
from flan_qa_pipeline.data.arrow_files import rows_on_disk
from flan_qa_pipeline.data.fingerprints import (
    fingerprint_json,
    fingerprint_rows,
    fingerprint_splits,
    fingerprint_weights,
)
from flan_qa_pipeline.data.row_files import RowFiles
from flan_qa_pipeline.data.splits import column_values, distinct_values, hold_out
from flan_qa_pipeline.data.squad import CHECKED_QUESTION_FEATURES
from flan_qa_pipeline.data.texts import normalized
from flan_qa_pipeline.errors import InputError
from flan_qa_pipeline.models.loading import as_transformers_t5
from flan_qa_pipeline.models.quantization import dequantize
from flan_qa_pipeline.pipelines.data_engineering.nodes import (
    flatten_questions,
    rejection_table,
)
from flan_qa_pipeline.pretraining.batches import BatchSource
from flan_qa_pipeline.pretraining.encoding import (
    SENTINELS,
    EncodedQuestions,
    EncodedText,
    encode_paragraphs,
    encode_questions,
    plain_title,
    read_articles,
    sample_lines,
    train_sentencepiece,
)
from flan_qa_pipeline.pretraining.greedy_answers import score_answers, score_spans
from flan_qa_pipeline.pretraining.objectives import Objectives
from flan_qa_pipeline.pretraining.packing import pack
from flan_qa_pipeline.pretraining.random_t5 import build_random_t5
from flan_qa_pipeline.pretraining.reading_tasks import ReadingTasks
from flan_qa_pipeline.pretraining.training_steps import Phase

logger = logging.getLogger(__name__)

IDS = List(Value("int32"))
TEXT_FEATURES = Features({"article": Value("int32"), "ids": IDS})
SPAN_FEATURES = {"ids": IDS, "answer": IDS, "start": Value("int32"), "end": Value("int32")}
ENCODED_QUESTION_FEATURES = Features(
    {"paragraph": Value("int32"), **SPAN_FEATURES, "gold": List(Value("string"))}
)
GENERATED_FEATURES = Features({"context": IDS, "other": IDS, **SPAN_FEATURES})
Heads = dict[str, torch.Tensor]
Trained = tuple[T5ForConditionalGeneration, Heads, pd.DataFrame]


def hold_out_articles(questions: Dataset, data: DataParameters) -> DatasetDict:
    """Hold out the articles that a later fine-tuning holds out of this file, dev and calibration.

    Raises:
        InputError: `data.validation_fraction` is set, so that a fine-tuning splits other articles.
    """
    if data.validation_fraction is not None:
        raise InputError(
            "data.validation_fraction pools two files, of which pretraining reads one; set it to "
            "null."
        )
    train, dev = hold_out(questions, data.dev_fraction, data.seed)
    train, calibration = hold_out(train, data.calibration_fraction, data.seed)
    if not len(train):
        raise InputError(
            f"{data.train_file} has no article left to pretrain on; give more articles, or lower "
            "data.dev_fraction and data.calibration_fraction."
        )
    return DatasetDict(train=train, dev=dev, calibration=calibration)


def check_question_sets(
    sets: dict[str, RowFiles],
    folder: str | None,
    on_invalid: str,
    columns: Any = None,
) -> tuple[Dataset, pd.DataFrame]:
    """Check every file of the question folder as the training file is checked, and join them."""
    questions, rejected = [rows_on_disk([], CHECKED_QUESTION_FEATURES)], [rejection_table([], "")]
    for name, files in sets.items():
        checked, invalid = flatten_questions(files, f"{folder}/{name}", on_invalid, columns)
        logger.info("%s/%s has %d valid questions.", folder, name, len(checked))
        questions.append(checked)
        rejected.append(invalid)
    return concatenate_datasets(questions), pd.concat(rejected)


def train_tokenizer(
    text: dict[str, Any], splits: DatasetDict, pretrain: PretrainParameters
) -> T5Tokenizer:
    """Train the tokenizer on a share of the text and on the questions that are not held out."""
    lines = sample_lines(read_articles(text), pretrain.text_share, pretrain.seed)

    def all_lines() -> Any:
        yield from lines
        yield from (context.replace("\n", " ") for context in _texts(splits, "context"))
        yield from (question.strip() for question in _texts(splits, "question"))

    return train_sentencepiece(all_lines(), pretrain.architecture.vocab_size)


def _texts(splits: DatasetDict, column: str) -> Any:
    return distinct_values(splits["train"], column)


def encode_text(
    text: dict[str, Any], tokenizer: PreTrainedTokenizerBase, splits: DatasetDict
) -> Dataset:
    """Encode the text once, without the articles that are held out."""
    held_out = {plain_title(t) for name in ("dev", "calibration") for t in splits[name]["title"]}
    dropped = 0

    def kept() -> Any:
        nonlocal dropped
        for title, paragraphs in read_articles(text):
            if plain_title(title) in held_out:
                dropped += 1
            else:
                yield title, paragraphs

    rows = rows_on_disk(encode_paragraphs(kept(), tokenizer), TEXT_FEATURES)
    logger.info(
        "The text has %d paragraphs; %d articles with the title of a held-out one were left out.",
        len(rows),
        dropped,
    )
    return rows


def encode_splits(
    splits: DatasetDict, tokenizer: PreTrainedTokenizerBase, further: Dataset
) -> DatasetDict:
    """Encode paragraphs, article by article, and questions; `held_out` joins dev and calibration.

    `extra` holds the further questions, if there are any, without what is held out.

    Raises:
        InputError: None of the further questions is left.
    """
    sources = dict(splits)
    if len(further):
        sources["extra"] = _leave_out_held_out(further, splits)
    seen: set[str] = set()
    articles: dict[tuple[bool, str], list[str]] = {}
    for name, split in sources.items():
        for title, context in zip(split["title"], split["context"], strict=True):
            if context not in seen:
                seen.add(context)
                articles.setdefault((name == "extra", title), []).append(context)
    paragraphs = [
        {"article": article, "ids": tokenizer(context, add_special_tokens=False)["input_ids"]}
        for article, contexts in enumerate(articles.values())
        for context in contexts
    ]
    numbers = {context: n for n, context in enumerate(chain.from_iterable(articles.values()))}

    def encoded(*names: str) -> Dataset:
        rows = (row for n in names for row in encode_questions(sources[n], tokenizer, numbers))
        return rows_on_disk(rows, ENCODED_QUESTION_FEATURES)

    extra = {"extra": encoded("extra")} if "extra" in sources else {}
    return DatasetDict(
        paragraphs=rows_on_disk(paragraphs, TEXT_FEATURES),
        train=encoded("train"),
        held_out=encoded("dev", "calibration"),
        **extra,
    )


def _leave_out_held_out(further: Dataset, splits: DatasetDict) -> Dataset:
    """Leave out questions on held-out articles and contexts."""
    held_out = [splits["dev"], splits["calibration"]]
    titles = {plain_title(t) for split in held_out for t in distinct_values(split, "title")}
    contexts = {normalized(c) for split in held_out for c in distinct_values(split, "context")}
    kept: list[int] = []
    dropped: set[str] = set()
    columns = (column_values(further, name) for name in ("title", "context"))
    for row, (title, context) in enumerate(zip(*columns, strict=True)):
        if plain_title(title) in titles or normalized(context) in contexts:
            dropped.add(title)
        else:
            kept.append(row)
    logger.info(
        "pretrain.question_folder: %d of %d questions stay; those with the title or the context of "
        "a held-out article were left out, in %d articles.",
        len(kept),
        len(further),
        len(dropped),
    )
    if not kept:
        raise InputError(
            "pretrain.question_folder: all questions are on articles that are held out of "
            "data.train_file; give others, or set it to null."
        )
    return further.select(kept)


def pretrain_reader(
    tokenizer: PreTrainedTokenizerBase,
    text: Dataset,
    questions: DatasetDict,
    pretrain: PretrainParameters,
) -> Trained:
    """Train the reader from random weights through the stages of the first phase."""
    set_seed(pretrain.seed)
    model = build_random_t5(pretrain.architecture, dropout=pretrain.dropout)
    objectives = Objectives(model, pretrain, _sentinels(tokenizer))
    return _train(model, objectives, pretrain.reader, tokenizer, text, questions, None, pretrain)


def generate_questions(
    reader: T5ForConditionalGeneration,
    tokenizer: PreTrainedTokenizerBase,
    text: Dataset,
    pretrain: PretrainParameters,
) -> pd.DataFrame:
    """Let the reader ask about the text, and keep the questions that it answers as expected."""
    if not any(stage.mixture.generated for stage in pretrain.base.stages):
        logger.info("No stage of pretrain.base uses generated questions: none are generated.")
        return pd.DataFrame(columns=list(GENERATED_FEATURES))
    rows = question_generation.generate_questions(
        reader.to(PartialState().device).eval(),
        tokenizer,
        _tasks(tokenizer, pretrain),
        EncodedText.of(text),
        pretrain.generation,
        pretrain.seed,
    )
    return pd.DataFrame(rows, columns=list(GENERATED_FEATURES))


def pretrain_base(
    reader: T5ForConditionalGeneration,
    reader_heads: Heads,
    tokenizer: PreTrainedTokenizerBase,
    text: Dataset,
    questions: DatasetDict,
    generated: pd.DataFrame,
    pretrain: PretrainParameters,
) -> tuple[T5ForConditionalGeneration, PreTrainedTokenizerBase, Heads, pd.DataFrame]:
    """Train the reader's weights on through the second phase; return them in bfloat16.

    A packed reader is unpacked first. The tokenizer is returned to be saved beside the weights.
    """
    made = (
        rows_on_disk(generated.to_dict("records"), GENERATED_FEATURES) if len(generated) else None
    )
    if getattr(reader, "is_quantized", False):
        reader.config.dropout_rate = pretrain.dropout  # the shipped configuration turns it off
        reader = as_transformers_t5(dequantize(reader))
    model = reader.float().requires_grad_(True)
    objectives = _restore(reader_heads, model, tokenizer, pretrain)
    model, heads, log = _train(
        model, objectives, pretrain.base, tokenizer, text, questions, made, pretrain
    )
    return model.bfloat16(), tokenizer, heads, log


def _restore(
    heads: Heads,
    model: T5ForConditionalGeneration,
    tokenizer: PreTrainedTokenizerBase,
    pretrain: PretrainParameters,
) -> Objectives:
    objectives = Objectives(model, pretrain, _sentinels(tokenizer))
    try:
        objectives.restore(heads)
    except ValueError as error:
        raise InputError(
            "The saved heads of the auxiliary losses are not those of pretrain.replaced_tokens and "
            f"pretrain.span_head: {error}; restore these parameters, or run again with "
            "--from-nodes=pretrain_reader, which trains the heads."
        ) from error
    return objectives


def _train(
    model: T5ForConditionalGeneration,
    objectives: Objectives,
    phase: PhaseParameters,
    tokenizer: PreTrainedTokenizerBase,
    text: Dataset,
    questions: DatasetDict,
    generated: Dataset | None,
    pretrain: PretrainParameters,
) -> Trained:
    tasks = _tasks(tokenizer, pretrain)
    encoded = EncodedText.of(text)
    asked = EncodedQuestions.of(questions, tasks, generated)
    sources = [
        BatchSource(
            encoded,
            asked,
            tasks,
            pretrain.batches,
            stage.mixture,
            sentinels=_sentinels(tokenizer),
            seed=pretrain.seed + number,
            rank=PartialState().process_index,
        )
        for number, stage in enumerate(phase.stages)
    ]
    made_with = {
        "phase": phase.model_dump(exclude_defaults=True),
        "settings": pretrain.model_dump(
            include={"prompts", "asking_prompts", "batches", "dropout", "seed"}
        ),
        "processes": PartialState().num_processes,
        "start": fingerprint_weights(model),
        "tokenizer": tokenizer.get_vocab(),
        "text": fingerprint_rows(text),
        "questions": fingerprint_splits(questions),
        "generated": fingerprint_rows(generated) if generated is not None else None,
    }
    if parts := [name for name, _ in objectives.named_children()]:
        made_with["objectives"] = pretrain.model_dump(include=set(parts))
        made_with["heads"] = fingerprint_weights(objectives)
    folder = Path(pretrain.checkpoint_dir) / fingerprint_json(made_with)[:16]
    device = PartialState().device
    training = Phase(model.to(device), objectives.to(device), phase, pretrain, sources, folder)
    rows = training.run()
    return model.to("cpu"), objectives.cpu().weights(), pd.DataFrame(rows)


def evaluate_base(
    base: T5ForConditionalGeneration,
    base_heads: Heads,
    tokenizer: PreTrainedTokenizerBase,
    questions: DatasetDict,
    pretrain: PretrainParameters,
) -> dict[str, Any]:
    """Score base and span head on held-out articles, also when forced, and the base on trained."""
    device = PartialState().device
    model = base.to(device).eval()
    head = _restore(base_heads, base, tokenizer, pretrain).to(device).eval().span_head
    tasks = _tasks(tokenizer, pretrain)
    evaluation = pretrain.evaluation

    def scores(split: str, *, forced: bool = False) -> dict[str, Any]:
        return score_answers(
            model,
            tokenizer,
            tasks,
            questions[split],
            questions["paragraphs"],
            limit=evaluation.questions,
            batch_size=evaluation.batch_size,
            forced=forced,
        )

    def span_scores(*, forced: bool) -> dict[str, Any] | None:
        if head is None:
            return None
        return score_spans(
            model,
            head,
            tokenizer,
            tasks,
            questions["held_out"],
            questions["paragraphs"],
            limit=evaluation.questions,
            batch_size=evaluation.batch_size,
            forced=forced,
        )

    found = {
        "held_out": scores("held_out"),
        "held_out_forced": scores("held_out", forced=True),
        "held_out_span_head": span_scores(forced=False),
        "held_out_span_head_forced": span_scores(forced=True),
        "trained_on": scores("train"),
    }
    for name, values in found.items():
        logger.info("%s: %s", name, _in_words(values))
    return {name: values for name, values in found.items() if values is not None}


def _in_words(scores: dict[str, Any] | None) -> str:
    if scores is None:
        return "pretrain.span_head is off"
    rounded = {k: round(v, 1) if isinstance(v, float) else v for k, v in scores.items()}
    return ", ".join(f"{name} {value}" for name, value in rounded.items())


def pack_base(
    base: T5ForConditionalGeneration,
    tokenizer: PreTrainedTokenizerBase,
    float8: list[Literal["wo", "shared"]],
) -> tuple[T5ForConditionalGeneration, PreTrainedTokenizerBase]:
    """Pack the base to NF4 and float8, to be saved beside its tokenizer."""
    return pack(base, float8), tokenizer


def _tasks(tokenizer: PreTrainedTokenizerBase, pretrain: PretrainParameters) -> ReadingTasks:
    longest = pretrain.batches.long
    return ReadingTasks(
        tokenizer, pretrain.prompts, pretrain.asking_prompts, longest.source, longest.target
    )


def _sentinels(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    ids: list[int] = tokenizer.convert_tokens_to_ids([f"<extra_id_{i}>" for i in range(SENTINELS)])
    return ids
