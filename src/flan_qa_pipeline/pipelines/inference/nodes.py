"""Answer files of new questions, chunk by chunk."""

import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import pandas as pd
from accelerate import PartialState
from tqdm.auto import tqdm

from flan_qa_pipeline.answering.answerer import QuestionAnswerer
from flan_qa_pipeline.config.parameters import (
    AttnImplementation,
    ComputeDtype,
    GenerationParameters,
    InferenceParameters,
    TokenizationParameters,
)
from flan_qa_pipeline.data.question_files import QuestionFile
from flan_qa_pipeline.data.texts import name_problem
from flan_qa_pipeline.models.adapter import Adapter

logger = logging.getLogger(__name__)

ANSWER_DTYPES = {
    "text": "object",
    "score": "Float64",
    "abstained": "boolean",
    "no_answer_probability": "Float64",
    "start": "Int64",
    "end": "Int64",
    "error": "object",
}


def load_question_answerer(
    adapter: Adapter,
    dequantize: Any,
    compute_dtype: ComputeDtype,
    attn_implementation: AttnImplementation,
    tokenization: TokenizationParameters,
    generation: GenerationParameters,
    inference: InferenceParameters,
    fsdp: bool = False,
) -> QuestionAnswerer:
    """Load the base model and the prompt that the adapter records, and attach the adapter."""
    return QuestionAnswerer(
        adapter,
        tokenization=tokenization,
        generation=generation,
        no_answer_threshold=inference.no_answer_threshold,
        dequantize=dequantize,
        compute_dtype=compute_dtype,
        attn_implementation=attn_implementation,
        fsdp=fsdp,
    )


def answer_questions(
    question_answerer: QuestionAnswerer, new_questions: QuestionFile, inference: InferenceParameters
) -> Iterator[pd.DataFrame]:
    """Yield the file's rows with their answers, chunk by chunk.

    A row that cannot be answered has the reason in `error`.

    Yields:
        Columns id, context, question, the fields of `Answer` (its text as `answer`), and error.

    Raises:
        InputError: the file cannot be read to its end; nothing has been answered.
    """
    new_questions = new_questions.named(inference.columns.model_dump(exclude_none=True))
    counts: Counter[str] = Counter()
    with tqdm(
        total=len(new_questions),
        desc="Answer new questions",
        unit="question",
        disable=not PartialState().is_main_process,
    ) as bar:
        for chunk in new_questions.chunks(inference.chunk_size):
            answered = answer_chunk(question_answerer, chunk)
            counts["error"] += int(answered["error"].notna().sum())
            counts["abstained"] += int(answered["abstained"].sum())
            counts["all"] += len(answered)
            yield answered
            bar.update(len(chunk))
    logger.info(
        "%d questions: %d answered, %d abstained on, %d with an error.",
        counts["all"],
        counts["all"] - counts["abstained"] - counts["error"],
        counts["abstained"],
        counts["error"],
    )


def answer_chunk(question_answerer: QuestionAnswerer, chunk: pd.DataFrame) -> pd.DataFrame:
    """Answer the rows that can be answered; keep all rows, in order."""
    pairs = list(zip(chunk["context"], chunk["question"], strict=True))
    problems = [
        _id_problem(id_) or question_answerer.problem(*pair)
        for id_, pair in zip(chunk["id"], pairs, strict=True)
    ]
    answers = iter(
        question_answerer.answer(
            [pair for pair, problem in zip(pairs, problems, strict=True) if not problem]
        )
    )
    rows = [{"error": problem} if problem else asdict(next(answers)) for problem in problems]
    answered = pd.DataFrame(rows, columns=list(ANSWER_DTYPES), index=chunk.index)
    return chunk.join(answered.astype(ANSWER_DTYPES)).rename(columns={"text": "answer"})


def _id_problem(id_: str) -> str | None:
    problem = name_problem(id_, "The id")
    return problem and f"{problem}."
