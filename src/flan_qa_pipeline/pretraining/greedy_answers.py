"""Answers of a pretrained model and of its span head to annotated questions, and their scores."""

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from accelerate import PartialState
from datasets import Dataset, DatasetDict
from transformers import PreTrainedTokenizerBase, T5ForConditionalGeneration

from flan_qa_pipeline.config.parameters import PretrainEvaluationParameters
from flan_qa_pipeline.evaluation.scoring import score_question
from flan_qa_pipeline.models.exchange import gather_json
from flan_qa_pipeline.pretraining.reading_tasks import ReadingTasks
from flan_qa_pipeline.pretraining.span_corruption import Ids
from flan_qa_pipeline.pretraining.span_head import SpanHead, best_spans
from flan_qa_pipeline.pretraining.training_steps import compute_dtype

logger = logging.getLogger(__name__)

END = 1
Inputs = tuple[list[int], torch.Tensor, torch.Tensor]


@torch.no_grad()
def write(
    model: T5ForConditionalGeneration, rows: Sequence[Ids], batch_size: int, **options: Any
) -> list[Ids]:
    """Let a model write to inputs, longest together.

    Args:
        model: On this process' device.
        rows: Inputs without `</s>`.
        batch_size: Rows at a time.
        options: Further arguments of `generate`.

    Returns:
        What it wrote without `</s>`; without an end, everything.
    """
    written: list[Ids] = [[]] * len(rows)
    for numbers, ids, mask in _batches(rows, batch_size, model.device):
        with compute_dtype():
            output = model.generate(input_ids=ids, attention_mask=mask, **options)
        for number, tokens in zip(numbers, output[:, 1:].tolist(), strict=True):
            written[number] = tokens[: tokens.index(END)] if END in tokens else tokens
    return written


@torch.no_grad()
def mark(
    model: T5ForConditionalGeneration,
    head: SpanHead,
    rows: Sequence[Ids],
    batch_size: int,
    *,
    forced: bool,
) -> list[Ids]:
    """Let the span head find the answer in inputs, longest together.

    Args:
        model: On this process' device.
        head: Likewise.
        rows: Inputs without `</s>`.
        batch_size: Rows at a time.
        forced: Whether it must not abstain.

    Returns:
        The tokens that it found, none where it abstained.
    """
    marked: list[Ids] = [[]] * len(rows)
    for numbers, ids, mask in _batches(rows, batch_size, model.device):
        with compute_dtype():
            states = model.encoder(input_ids=ids, attention_mask=mask).last_hidden_state
            scores = head(states.to(head.layers[0].weight.dtype), mask)
        for number, span in zip(numbers, best_spans(scores, mask, forced=forced), strict=True):
            marked[number] = rows[number][slice(*span)] if span else []
    return marked


def _batches(rows: Sequence[Ids], batch_size: int, device: torch.device) -> Iterator[Inputs]:
    """Yield numbers of rows, their padded inputs and the mask, from the shortest rows on."""
    order = sorted(range(len(rows)), key=lambda row: len(rows[row]))
    for start in range(0, len(order), batch_size):
        numbers = order[start : start + batch_size]
        longest = max(len(rows[number]) for number in numbers) + 1
        ids = torch.zeros(len(numbers), longest, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for place, number in enumerate(numbers):
            closed = [*rows[number], END]
            ids[place, : len(closed)] = torch.tensor(closed)
            mask[place, : len(closed)] = 1
        yield numbers, ids.to(device), mask.to(device)


def score_model_and_head(
    model: T5ForConditionalGeneration,
    head: SpanHead | None,
    tokenizer: PreTrainedTokenizerBase,
    tasks: ReadingTasks,
    questions: DatasetDict,
    evaluation: PretrainEvaluationParameters,
) -> dict[str, Any]:
    """Score model and span head on held-out questions, and the model on trained ones; log scores.

    Args:
        model: On this process' device.
        head: Likewise; None if it is off.
        tokenizer: The model's tokenizer.
        tasks: Holds the prompts and the longest input.
        questions: Splits of `encode_by_article`.
        evaluation: How many questions to answer, and how many at a time.

    Returns:
        What `score_answers` returns for `held_out` and `trained_on`, for `held_out_forced`, where
        the model must not abstain, and, where there is a head, for `held_out_span_head` and
        `held_out_span_head_forced`.
    """

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


def score_answers(
    model: T5ForConditionalGeneration,
    tokenizer: PreTrainedTokenizerBase,
    tasks: ReadingTasks,
    questions: Dataset,
    contexts: Dataset,
    *,
    limit: int,
    batch_size: int,
    forced: bool = False,
) -> dict[str, float | int | None]:
    """Score greedy answers to the first prompt; every process answers its share.

    Args:
        model: On this process' device.
        tokenizer: Its tokenizer.
        tasks: Holds the prompts and the longest input.
        questions: Rows of `encode_questions`.
        contexts: Rows with `ids` of the paragraphs.
        limit: Questions to answer at most, equally spaced.
        batch_size: Questions at a time.
        forced: Whether the model must not begin with the abstention's first token.

    Returns:
        Number, exact match and F1 in percent of questions with an answer, number and accuracy of
        those without; None for the scores of no question.
    """
    prompt = tasks.prompts[0]
    abstention = tokenizer.decode(prompt.abstention)

    def answer(rows: list[Ids]) -> list[Ids]:
        written = write(
            model,
            rows,
            batch_size,
            do_sample=False,
            max_new_tokens=tasks.max_target,
            begin_suppress_tokens=[prompt.abstention[0]] if forced else None,
        )
        return [[] if _text(tokenizer, ids) == abstention else ids for ids in written]

    return _score(answer, tokenizer, tasks, questions, contexts, limit)


def score_spans(
    model: T5ForConditionalGeneration,
    head: SpanHead,
    tokenizer: PreTrainedTokenizerBase,
    tasks: ReadingTasks,
    questions: Dataset,
    contexts: Dataset,
    *,
    limit: int,
    batch_size: int,
    forced: bool = False,
) -> dict[str, float | int | None]:
    """Score the answers that a span head finds in the first prompt, as `score_answers` does."""

    def answer(rows: list[Ids]) -> list[Ids]:
        return mark(model, head, rows, batch_size, forced=forced)

    return _score(answer, tokenizer, tasks, questions, contexts, limit)


def _score(
    answer: Callable[[list[Ids]], list[Ids]],
    tokenizer: PreTrainedTokenizerBase,
    tasks: ReadingTasks,
    questions: Dataset,
    contexts: Dataset,
    limit: int,
) -> dict[str, float | int | None]:
    """Score the answers to equally spaced questions, `[]` for an abstention.

    A context longer than the prompt leaves room for is cut, so its last answers cannot be found.
    """
    prompt = tasks.prompts[0]
    chosen = questions.select(range(0, len(questions), -(-len(questions) // limit) or 1))
    state = PartialState()
    mine = chosen.select(range(state.process_index, len(chosen), state.num_processes))
    rows = []
    for question in mine:
        room = tasks.max_source - prompt.length - len(question["ids"]) - 1
        context = contexts[question["paragraph"]]["ids"][:room]
        rows.append(prompt.fill(context=context, question=question["ids"]))
    scored = []
    for question, ids in zip(mine, answer(rows), strict=True):
        text = _text(tokenizer, ids)
        scored.append([bool(question["gold"]), *score_question(text, question["gold"])])
    return _means([score for part in gather_json(scored) for score in part])


def _text(tokenizer: PreTrainedTokenizerBase, ids: Ids) -> str:
    text: str = tokenizer.decode(ids, skip_special_tokens=True)
    return text.strip()


def _means(scored: Sequence[Sequence[Any]]) -> dict[str, float | int | None]:
    has = [(exact, f1) for answerable, exact, f1 in scored if answerable]
    no = [exact for answerable, exact, _ in scored if not answerable]

    def mean(values: Sequence[float]) -> float | None:
        return 100 * sum(values) / len(values) if values else None

    return {
        "has_answer": len(has),
        "has_answer_exact_match": mean([exact for exact, _ in has]),
        "has_answer_f1": mean([f1 for _, f1 in has]),
        "no_answer": len(no),
        "no_answer_accuracy": mean(no),
    }
