"""Answers to questions whose contexts are read in windows, merged to one per question."""

from collections.abc import Iterable
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import pyarrow.compute as pc
from datasets import Dataset
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from flan_qa_pipeline.answering.batch_tokens import resolve_batch_tokens
from flan_qa_pipeline.answering.generation import (
    GeneratedAnswer,
    generate_answers,
    is_abstention,
)
from flan_qa_pipeline.config.parameters import GenerationParameters, PromptParameters


class MergedAnswer(NamedTuple):
    """The model's answer to a question.

    Attributes:
        generated: the answer. Its `text` is stripped, and "" if the model abstains; its
            `no_answer_log_odds` are the lowest of all windows.
        window: the number of the window that gave the best answer, from 0.
    """

    generated: GeneratedAnswer
    window: int


def answer_windows(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    windows: Dataset,
    prompt: PromptParameters,
    generation: GenerationParameters,
    description: str | None = None,
) -> dict[str, MergedAnswer]:
    """Answer tokenized windows and merge their answers.

    Args:
        windows: columns id, window (its number) and input_ids.
        description: the progress bar's label; None shows no bar.

    Returns:
        One answer per question id, in the order in which the ids first appear.
    """
    generated = generate_answers(
        model,
        tokenizer,
        _token_ids(windows),
        abstention=prompt.abstention,
        batch_tokens=resolve_batch_tokens(generation.batch_tokens, model),
        max_new_tokens=generation.max_new_tokens,
        description=description,
    )
    return merge_windows(windows["id"][:], windows["window"][:], generated, prompt.abstention)


def _token_ids(windows: Dataset) -> list[Any]:
    """Return the token ids of each window as a NumPy array, without making Python's numbers."""
    if not len(windows):
        return []  # their column has no type
    column = windows.with_format("arrow")[:]["input_ids"]
    ids = pc.list_flatten(column).to_numpy()
    ends = np.cumsum(pc.list_value_length(column).to_numpy()).tolist()
    return [ids[start:end] for start, end in pairwise([0, *ends])]


def merge_windows(
    ids: Iterable[str],
    windows: Iterable[int],
    answers: Iterable[GeneratedAnswer],
    abstention: str,
) -> dict[str, MergedAnswer]:
    """Merge the answers to windows into one answer per question.

    A window that abstains says only that it does not hold the answer, so the most probable answer
    of the other windows wins. If all windows abstain, the merged `text` is "", `log_prob` is the
    lowest log-probability of their abstentions, and the best answer comes from the window that is
    nearest to answering. The merged answer has the lowest `no_answer_log_odds` of the windows.

    Args:
        ids: the id of each window's question.
        windows: the number of each window in its question's context.
        answers: the answer to each window.
        abstention: the text by which the model says that a window holds no answer.

    Returns:
        One answer per question id, in the order in which the ids first appear.
    """
    first: dict[str, MergedAnswer] = {}
    several: dict[str, list[MergedAnswer]] = {}
    for id_, window, answer in zip(ids, windows, answers, strict=True):
        tidied = MergedAnswer(_tidied(answer, abstention), window)
        if id_ in first:
            several.setdefault(id_, [first[id_]]).append(tidied)
        else:
            first[id_] = tidied
    return first | {id_: _merge(group) for id_, group in several.items()}


def _tidied(generated: GeneratedAnswer, abstention: str) -> GeneratedAnswer:
    """Return an answer as a merged answer has it: stripped, and "" for an abstention."""
    text, log_prob, answer, answer_log_prob, odds = generated
    if is_abstention(text, abstention):
        text, answer = "", answer.strip()
    elif text == answer == text.strip():
        return generated
    else:
        text = answer = text.strip()
    return GeneratedAnswer(text, log_prob, answer, answer_log_prob, odds)


def _merge(answers: list[MergedAnswer]) -> MergedAnswer:
    nearest = min(answers, key=lambda merged: merged.generated.no_answer_log_odds)
    answering = [merged for merged in answers if merged.generated.text]
    if answering:
        best = max(answering, key=lambda merged: merged.generated.log_prob)
        odds = nearest.generated.no_answer_log_odds
        return best._replace(generated=best.generated._replace(no_answer_log_odds=odds))
    least_certain = min(merged.generated.log_prob for merged in answers)
    return nearest._replace(generated=nearest.generated._replace(log_prob=least_certain))
