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
from flan_qa_pipeline.answering.generation import generate_answers, is_abstention
from flan_qa_pipeline.config.parameters import GenerationParameters, PromptParameters


class WindowAnswer(NamedTuple):
    """The model's answer to one window of a question.

    Attributes:
        text, log_prob, answer, answer_log_prob, no_answer_log_odds: as in `GeneratedAnswer`.
        id: the question's id.
        window: the window's number, from 0.
    """

    text: str
    log_prob: float
    answer: str
    answer_log_prob: float
    no_answer_log_odds: float
    id: str
    window: int


def answer_windows(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    windows: Dataset,
    prompt: PromptParameters,
    generation: GenerationParameters,
    description: str | None = None,
) -> dict[str, WindowAnswer]:
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
    return merge_windows(
        (
            WindowAnswer(*answer, id_, number)
            for id_, number, answer in zip(
                windows["id"][:], windows["window"][:], generated, strict=True
            )
        ),
        prompt.abstention,
    )


def _token_ids(windows: Dataset) -> list[Any]:
    """Return the token ids of each window as a NumPy array, without making Python's numbers."""
    if not len(windows):
        return []  # their column has no type
    column = windows.with_format("arrow")[:]["input_ids"]
    ids = pc.list_flatten(column).to_numpy()
    ends = np.cumsum(pc.list_value_length(column).to_numpy()).tolist()
    return [ids[start:end] for start, end in pairwise([0, *ends])]


def merge_windows(answers: Iterable[WindowAnswer], abstention: str) -> dict[str, WindowAnswer]:
    """Merge the answers to windows into one answer per question.

    A window that abstains says only that it does not hold the answer, so the most probable answer
    of the other windows wins. If all windows abstain, the merged `text` is "", `log_prob` is the
    lowest log-probability of their abstentions, and the best answer comes from the window that is
    nearest to answering. The merged answer has the lowest `no_answer_log_odds` of the windows, and
    the number of the window that gave its best answer.

    Args:
        answers: one answer per window.
        abstention: the text by which the model says that a window holds no answer.

    Returns:
        One answer per question id, in the order in which the ids first appear.
    """
    windows: dict[str, list[WindowAnswer]] = {}
    for answer in answers:
        windows.setdefault(answer.id, []).append(answer)
    return {
        id_: _merge(group, abstention) if len(group) > 1 else _tidied(group[0], abstention)
        for id_, group in windows.items()
    }


def _tidied(window: WindowAnswer, abstention: str) -> WindowAnswer:
    """Return a window's answer as a merged answer has it: stripped, and "" for an abstention."""
    text, log_prob, answer, answer_log_prob, odds, id_, number = window
    if is_abstention(text, abstention):
        text, answer = "", answer.strip()
    elif text == answer == text.strip():
        return window
    else:
        text = answer = text.strip()
    return WindowAnswer(text, log_prob, answer, answer_log_prob, odds, id_, number)


def _merge(windows: list[WindowAnswer], abstention: str) -> WindowAnswer:
    nearest = min(windows, key=lambda window: window.no_answer_log_odds)
    answering = [window for window in windows if not is_abstention(window.text, abstention)]
    if answering:
        best = _tidied(max(answering, key=lambda window: window.log_prob), abstention)
        return best._replace(no_answer_log_odds=nearest.no_answer_log_odds)
    least_certain = min(window.log_prob for window in windows)
    return _tidied(nearest, abstention)._replace(log_prob=least_certain)
