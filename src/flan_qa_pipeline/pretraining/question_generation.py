"""Questions that a pretrained model asks about unlabelled text and answers alike itself.

Round-trip filter: Alberti et al. 2019, "Synthetic QA Corpora Generation with Roundtrip
Consistency", arXiv:1906.05416.
"""

import logging
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
from accelerate import PartialState
from accelerate.utils import set_seed
from transformers import PreTrainedTokenizerBase, T5ForConditionalGeneration

from flan_qa_pipeline.config.parameters import QuestionGenerationParameters
from flan_qa_pipeline.evaluation.scoring import score_question
from flan_qa_pipeline.models.exchange import gather_json
from flan_qa_pipeline.pretraining.batches import draw_passage
from flan_qa_pipeline.pretraining.encoding import EncodedText
from flan_qa_pipeline.pretraining.greedy_answers import write
from flan_qa_pipeline.pretraining.reading_tasks import ReadingTasks
from flan_qa_pipeline.pretraining.span_corruption import Ids
from flan_qa_pipeline.pretraining.token_tables import Span

logger = logging.getLogger(__name__)

ENTITY_SHARE = 0.75
LONGEST_ANSWER = 12
QUESTION_TOKENS = (5, 36)
PASSAGE_TOKENS = 300
TRIES = 50  # for each answer

Asked = tuple[np.ndarray, Span]


def generate_questions(
    model: T5ForConditionalGeneration,
    tokenizer: PreTrainedTokenizerBase,
    tasks: ReadingTasks,
    text: EncodedText,
    generation: QuestionGenerationParameters,
    seed: int,
) -> list[dict[str, Any]]:
    """Ask about random answers in the text, and keep questions that lead back to the answer.

    Every process asks its share.

    Args:
        model: On this process' device.
        tokenizer: Its tokenizer.
        tasks: Holds the prompts and chooses answers.
        text: Unlabelled text.
        generation: How many answers to ask about, how to sample, and the least F1 of the model's
            own answer.
        seed: Seed of all processes.

    Returns:
        Token ids `context`, `ids` (of the question) and `answer`, and `start` and `end` of the
        answer in the context, the same in all processes.
    """
    state = PartialState()
    count = generation.answers // state.num_processes
    rng = random.Random(seed * 1_000_003 + state.process_index)  # noqa: S311
    set_seed((seed * 1_000_003 + state.process_index) % 2**32)
    kept: list[dict[str, Any]] = []
    for start in range(0, count, generation.batch_size):
        size = min(generation.batch_size, count - start)
        answers = [chosen for _ in range(size) if (chosen := choose_answer(tasks, text, rng))]
        kept += _ask(model, tokenizer, tasks, answers, generation, rng)
    made: list[dict[str, Any]] = [row for part in gather_json(kept) for row in part]
    logger.info(
        "%d of %d generated questions lead back to their answer (F1 of at least %g).",
        len(made),
        count * state.num_processes,
        generation.min_f1,
    )
    return made


def choose_answer(tasks: ReadingTasks, text: EncodedText, rng: random.Random) -> Asked | None:
    """Choose words to ask for in a random passage, None where none were found."""
    for _ in range(TRIES):
        passage = draw_passage(text, rng)[:PASSAGE_TOKENS]
        span = tasks.phrase(passage, rng, ENTITY_SHARE)
        if span and 0 < span[1] - span[0] <= LONGEST_ANSWER:
            return passage, span
    return None


def _ask(
    model: T5ForConditionalGeneration,
    tokenizer: PreTrainedTokenizerBase,
    tasks: ReadingTasks,
    asked: Sequence[Asked],
    generation: QuestionGenerationParameters,
    rng: random.Random,
) -> list[dict[str, Any]]:
    shortest, longest = QUESTION_TOKENS
    answers = [passage[start:end].tolist() for passage, (start, end) in asked]
    rows = [
        rng.choice(tasks.asking).fill(context=passage.tolist(), answer=answer)
        for (passage, _), answer in zip(asked, answers, strict=True)
    ]
    questions = write(
        model,
        rows,
        generation.batch_size,
        do_sample=True,
        temperature=generation.temperature,
        top_k=generation.top_k,
        max_new_tokens=longest + 1,
    )
    good = [
        number
        for number, question in enumerate(questions)
        if shortest <= len(question) <= longest and question[-1] == tasks.question_mark
    ]
    prompt = tasks.prompts[0]
    back = [
        prompt.fill(context=asked[number][0].tolist(), question=questions[number])
        for number in good
    ]
    replies = write(
        model,
        back,
        generation.batch_size,
        do_sample=False,
        max_new_tokens=tasks.max_target,
        begin_suppress_tokens=[prompt.abstention[0]],
    )
    return [
        {
            "context": asked[number][0].tolist(),
            "ids": questions[number],
            "answer": answers[number],
            "start": asked[number][1][0],
            "end": asked[number][1][1],
        }
        for number, reply in zip(good, replies, strict=True)
        if _agree(tokenizer, reply, answers[number]) >= generation.min_f1
    ]


def _agree(tokenizer: PreTrainedTokenizerBase, reply: Ids, answer: Ids) -> float:
    return score_question(tokenizer.decode(reply), [tokenizer.decode(answer)])[1]
