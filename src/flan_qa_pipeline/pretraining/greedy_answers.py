"""Answers of a pretrained model to annotated questions, and their scores."""

from collections.abc import Sequence
from typing import Any

import torch
from accelerate import PartialState
from datasets import Dataset
from transformers import PreTrainedTokenizerBase, T5ForConditionalGeneration

from flan_qa_pipeline.evaluation.scoring import score_question
from flan_qa_pipeline.models.exchange import gather_json
from flan_qa_pipeline.pretraining.reading_tasks import ReadingTasks
from flan_qa_pipeline.pretraining.span_corruption import Ids
from flan_qa_pipeline.pretraining.training_steps import compute_dtype

END = 1


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
    order = sorted(range(len(rows)), key=lambda row: len(rows[row]))
    written: list[Ids] = [[]] * len(rows)
    for start in range(0, len(order), batch_size):
        numbers = order[start : start + batch_size]
        longest = max(len(rows[number]) for number in numbers) + 1
        ids = torch.zeros(len(numbers), longest, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for place, number in enumerate(numbers):
            closed = [*rows[number], END]
            ids[place, : len(closed)] = torch.tensor(closed)
            mask[place, : len(closed)] = 1
        with compute_dtype():
            output = model.generate(
                input_ids=ids.to(model.device), attention_mask=mask.to(model.device), **options
            )
        for number, tokens in zip(numbers, output[:, 1:].tolist(), strict=True):
            written[number] = tokens[: tokens.index(END)] if END in tokens else tokens
    return written


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

    A context longer than the prompt leaves room for is cut, so its last answers cannot be found.

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
    chosen = questions.select(range(0, len(questions), -(-len(questions) // limit) or 1))
    state = PartialState()
    mine = chosen.select(range(state.process_index, len(chosen), state.num_processes))
    rows = []
    for question in mine:
        room = tasks.max_source - prompt.length - len(question["ids"]) - 1
        context = contexts[question["paragraph"]]["ids"][:room]
        rows.append(prompt.fill(context=context, question=question["ids"]))
    banned = [prompt.abstention[0]] if forced else None
    written = write(
        model,
        rows,
        batch_size,
        do_sample=False,
        max_new_tokens=tasks.max_target,
        begin_suppress_tokens=banned,
    )
    abstention = tokenizer.decode(prompt.abstention)
    scored = []
    for question, ids in zip(mine, written, strict=True):
        text = tokenizer.decode(ids, skip_special_tokens=True).strip()
        answer = "" if text == abstention else text
        scored.append([bool(question["gold"]), *score_question(answer, question["gold"])])
    return _means([score for part in gather_json(scored) for score in part])


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
