"""An English base model, pretrained from scratch on text and annotated questions."""

import logging
from itertools import chain
from typing import Any, Literal

import pandas as pd
from accelerate import PartialState
from accelerate.utils import set_seed
from datasets import Dataset, DatasetDict, concatenate_datasets
from transformers import PreTrainedTokenizerBase, T5ForConditionalGeneration, T5Tokenizer

import flan_qa_pipeline.pretraining.question_generation as question_generation
from flan_qa_pipeline.config.parameters import DataParameters, PretrainParameters
from flan_qa_pipeline.data.arrow_files import rows_on_disk
from flan_qa_pipeline.data.row_files import RowFiles
from flan_qa_pipeline.data.splits import distinct_values, hold_out
from flan_qa_pipeline.data.squad import CHECKED_QUESTION_FEATURES
from flan_qa_pipeline.errors import InputError
from flan_qa_pipeline.pipelines.data_engineering.nodes import (
    flatten_questions,
    rejection_table,
)
from flan_qa_pipeline.pretraining.encoding import (
    TEXT_FEATURES,
    EncodedText,
    encode_by_article,
    encode_paragraphs,
    read_articles,
    sample_lines,
    sentinel_ids,
    train_sentencepiece,
)
from flan_qa_pipeline.pretraining.greedy_answers import score_model_and_head
from flan_qa_pipeline.pretraining.held_out import leave_out_articles, leave_out_questions
from flan_qa_pipeline.pretraining.objectives import Heads, Objectives
from flan_qa_pipeline.pretraining.packing import pack, unpack
from flan_qa_pipeline.pretraining.phases import Trained, train_phase
from flan_qa_pipeline.pretraining.question_generation import GENERATED_FEATURES
from flan_qa_pipeline.pretraining.random_t5 import build_random_t5
from flan_qa_pipeline.pretraining.reading_tasks import ReadingTasks

logger = logging.getLogger(__name__)


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
    lines = chain(
        sample_lines(read_articles(text), pretrain.text_share, pretrain.seed),
        (context.replace("\n", " ") for context in distinct_values(splits["train"], "context")),
        (question.strip() for question in distinct_values(splits["train"], "question")),
    )
    return train_sentencepiece(lines, pretrain.architecture.vocab_size)


def encode_text(
    text: dict[str, Any], tokenizer: PreTrainedTokenizerBase, splits: DatasetDict
) -> Dataset:
    """Encode the text once, without the articles that are held out."""
    left_out: list[str] = []
    articles = leave_out_articles(read_articles(text), splits, left_out)
    rows = rows_on_disk(encode_paragraphs(articles, tokenizer), TEXT_FEATURES)
    logger.info(
        "The text has %d paragraphs; %d articles with the title of a held-out one were left out.",
        len(rows),
        len(left_out),
    )
    return rows


def encode_splits(
    splits: DatasetDict, tokenizer: PreTrainedTokenizerBase, further: Dataset
) -> DatasetDict:
    """Encode questions with their contexts, and as `extra` further ones that are not held out."""
    extra = {"extra": leave_out_questions(further, splits)} if len(further) else {}
    return encode_by_article({**splits, **extra}, tokenizer)


def pretrain_reader(
    tokenizer: PreTrainedTokenizerBase,
    text: Dataset,
    questions: DatasetDict,
    pretrain: PretrainParameters,
) -> Trained:
    """Train the reader from random weights through the stages of the first phase."""
    set_seed(pretrain.seed)
    model = build_random_t5(pretrain.architecture, dropout=pretrain.dropout)
    objectives = Objectives(model, pretrain, sentinel_ids(tokenizer))
    return train_phase(
        model, objectives, pretrain.reader, tokenizer, text, questions, None, pretrain
    )


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
        ReadingTasks.of(tokenizer, pretrain),
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
    """Train the reader's weights on through the second phase, and return them in bfloat16."""
    made = (
        rows_on_disk(generated.to_dict("records"), GENERATED_FEATURES) if len(generated) else None
    )
    if getattr(reader, "is_quantized", False):
        reader = unpack(reader, pretrain.dropout)
    model = reader.float().requires_grad_(True)
    objectives = Objectives(model, pretrain, sentinel_ids(tokenizer))
    objectives.restore(reader_heads)
    model, heads, log = train_phase(
        model, objectives, pretrain.base, tokenizer, text, questions, made, pretrain
    )
    return model.bfloat16(), tokenizer, heads, log


def evaluate_base(
    base: T5ForConditionalGeneration,
    base_heads: Heads,
    tokenizer: PreTrainedTokenizerBase,
    questions: DatasetDict,
    pretrain: PretrainParameters,
) -> dict[str, Any]:
    """Score base and span head on held-out articles, also when forced, and the base on trained."""
    device = PartialState().device
    objectives = Objectives(base, pretrain, sentinel_ids(tokenizer))
    objectives.restore(base_heads)
    return score_model_and_head(
        base.to(device).eval(),
        objectives.to(device).eval().span_head,
        tokenizer,
        ReadingTasks.of(tokenizer, pretrain),
        questions,
        pretrain.evaluation,
    )


def pack_base(
    base: T5ForConditionalGeneration,
    tokenizer: PreTrainedTokenizerBase,
    float8: list[Literal["wo", "shared"]],
) -> tuple[T5ForConditionalGeneration, PreTrainedTokenizerBase]:
    """Pack the base to NF4 and float8, to be saved beside its tokenizer."""
    return pack(base, float8), tokenizer
