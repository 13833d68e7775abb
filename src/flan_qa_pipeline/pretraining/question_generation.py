"""Questions that a pretrained model asks about unlabelled text and answers alike itself.

Round-trip filter: Alberti et al. 2019, "Synthetic QA Corpora Generation with Roundtrip
Consistency", arXiv:1906.05416.
"""

import logging
import random
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import set_seed
from datasets import Features
from transformers import PreTrainedTokenizerBase, T5ForConditionalGeneration

from flan_qa_pipeline.config.parameters import QuestionGenerationParameters
from flan_qa_pipeline.evaluation.scoring import score_question
from flan_qa_pipeline.models.exchange import gather_json
from flan_qa_pipeline.pretraining.batches import draw_paragraphs
from flan_qa_pipeline.pretraining.encoding import IDS, SPAN_FEATURES, EncodedText
from flan_qa_pipeline.pretraining.greedy_answers import write
from flan_qa_pipeline.pretraining.reading_tasks import ReadingTasks
from flan_qa_pipeline.pretraining.span_corruption import Ids
from flan_qa_pipeline.pretraining.token_tables import Span

logger = logging.getLogger(__name__)

ENTITY_SHARE = 0.75
LONGEST_ANSWER = 12
QUESTION_TOKENS = (5, 36)
PASSAGE_TOKENS = 300
OTHER_PARAGRAPHS = 3
OTHER_TOKENS = (50, 300)
TRIES = 50  # for each answer

GENERATED_FEATURES = Features({"context": IDS, "other": IDS, **SPAN_FEATURES})


class Asked(NamedTuple):
    """An answer to ask about, in plain lists, which pass cheaply from process to process.

    Attributes:
        passage: Token ids of the context.
        other: Those of the article's next paragraphs, or of those before; empty if it has none.
        span: The answer's [start, end) in the passage.
        prompt: Token ids that ask for a question, without `</s>`.
    """

    passage: Ids
    other: Ids
    span: Span
    prompt: Ids

    @property
    def answer(self) -> Ids:
        """Token ids of the answer."""
        return self.passage[slice(*self.span)]


class AnswersToAsk(torch.utils.data.IterableDataset[list[Asked]]):
    """Random answers in a text, in batches; the same ones whether or not a worker draws them.

    Args:
        tasks: Holds the prompts and chooses answers.
        text: Unlabelled text.
        answers: How many.
        batch_size: How many at a time.
        seed: Seed of this process' draws.
    """

    def __init__(
        self, tasks: ReadingTasks, text: EncodedText, answers: int, batch_size: int, seed: int
    ) -> None:
        self._tasks, self._text = tasks, text
        self._answers, self._batch_size, self._seed = answers, batch_size, seed

    def __iter__(self) -> Iterator[list[Asked]]:
        rng = random.Random(self._seed)  # noqa: S311
        for start in range(0, self._answers, self._batch_size):
            size = min(self._batch_size, self._answers - start)
            drawn = [choose_answer(self._tasks, self._text, rng) for _ in range(size)]
            yield [self._prompted(*chosen, rng) for chosen in drawn if chosen]

    def _prompted(
        self, passage: np.ndarray, other: np.ndarray, span: Span, rng: random.Random
    ) -> Asked:
        ids = passage.tolist()
        prompt = rng.choice(self._tasks.asking)
        return Asked(ids, other.tolist(), span, prompt.fill(context=ids, answer=ids[slice(*span)]))


def _unchanged(batch: list[Asked]) -> list[Asked]:
    """Keep the DataLoader from looking into every row for arrays to turn into tensors."""
    return batch


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
        Token ids `context`, `other` (of neighbouring paragraphs, where a question may find no
        answer), `ids` (of the question) and `answer`, and `start` and `end` of the answer in the
        context, the same in all processes.
    """
    state = PartialState()
    count = generation.answers // state.num_processes
    own_seed = seed * 1_000_003 + state.process_index
    batches = torch.utils.data.DataLoader(
        AnswersToAsk(tasks, text, count, generation.batch_size, own_seed),
        batch_size=None,
        collate_fn=_unchanged,
        num_workers=1 if state.device.type == "cuda" else 0,  # draws ahead while the GPU writes
    )
    drawn = iter(batches)  # takes a number from torch's generator, so before the seed
    set_seed(own_seed % 2**32)
    kept: list[dict[str, Any]] = []
    for answers in drawn:
        kept += _ask(model, tokenizer, tasks, answers, generation)
    made: list[dict[str, Any]] = [row for part in gather_json(kept) for row in part]
    logger.info(
        "%d of %d generated questions lead back to their answer (F1 of at least %g).",
        len(made),
        count * state.num_processes,
        generation.min_f1,
    )
    return made


def choose_answer(
    tasks: ReadingTasks, text: EncodedText, rng: random.Random
) -> tuple[np.ndarray, np.ndarray, Span] | None:
    """Choose words to ask for in a random passage, None where none were found.

    Returns:
        Token ids of the passage and of its neighbours (`neighbours`), and the answer's span.
    """
    for _ in range(TRIES):
        paragraphs = draw_paragraphs(text, rng)
        passage = text.join(paragraphs, PASSAGE_TOKENS)
        span = tasks.phrase(passage, rng, ENTITY_SHARE)
        if span and 0 < span[1] - span[0] <= LONGEST_ANSWER:
            return passage, neighbours(text, paragraphs), span
    return None


def neighbours(text: EncodedText, paragraphs: range) -> np.ndarray:
    """Join the next paragraphs of an article, at its end those before; none if they are short."""
    article, (shortest, longest) = text.article(paragraphs.start), OTHER_TOKENS
    after = range(paragraphs.stop, min(paragraphs.stop + OTHER_PARAGRAPHS, article.stop))
    before = range(max(article.start, paragraphs.start - OTHER_PARAGRAPHS), paragraphs.start)
    joined = text.join(after or before, longest)
    return joined if len(joined) >= shortest else joined[:0]


def _ask(
    model: T5ForConditionalGeneration,
    tokenizer: PreTrainedTokenizerBase,
    tasks: ReadingTasks,
    asked: list[Asked],
    generation: QuestionGenerationParameters,
) -> list[dict[str, Any]]:
    shortest, longest = QUESTION_TOKENS
    questions = write(
        model,
        [answer.prompt for answer in asked],
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
        prompt.fill(context=asked[number].passage, question=questions[number]) for number in good
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
            "context": asked[number].passage,
            "other": asked[number].other,
            "ids": questions[number],
            "answer": asked[number].answer,
            "start": asked[number].span[0],
            "end": asked[number].span[1],
        }
        for number, reply in zip(good, replies, strict=True)
        if _agree(tokenizer, reply, asked[number].answer) >= generation.min_f1
    ]


def _agree(tokenizer: PreTrainedTokenizerBase, reply: Ids, answer: Ids) -> float:
    return score_question(tokenizer.decode(reply), [tokenizer.decode(answer)])[1]
