"""Prompts and context windows: what a model reads of a (question, context) pair.

The question is never cut. A context that does not fit beside it is read in overlapping windows,
and the windows' answers are merged back to one answer per question.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


def split_template(template: str, question: str) -> tuple[str, str]:
    """Fill in the question; return the prompt's text before and after the context.

    >>> split_template("question: {question} context: {context}", "Who?")
    ('question: Who? context:', '')
    """
    before, after = template.split("{context}")
    return (
        before.replace("{question}", question).strip(),
        after.replace("{question}", question).strip(),
    )


def window_spans(n_tokens: int, size: int, stride: int) -> list[tuple[int, int]]:
    """Cover `n_tokens` with [start, end) windows of at most `size` tokens, overlapping by `stride`.

    >>> window_spans(10, 4, 1)
    [(0, 4), (3, 7), (6, 10)]

    Raises:
        ValueError: `size` is not larger than `stride`, so that windows would not advance.
    """
    if size <= stride:
        raise ValueError(f"a window of {size} tokens cannot overlap its neighbour by {stride}")
    spans = [(0, min(size, n_tokens))]
    while spans[-1][1] < n_tokens:
        start = spans[-1][0] + size - stride
        spans.append((start, min(start + size, n_tokens)))
    return spans


def answer_in_window(
    texts: Sequence[str], starts: Sequence[int], window: tuple[int, int]
) -> str | None:
    """Return the first answer that lies wholly inside the window (character span), or None."""
    for text, start in zip(texts, starts, strict=True):
        if window[0] <= start and start + len(text) <= window[1]:
            return text
    return None


@dataclass(frozen=True)
class WindowAnswer:
    """What the model generated for one window; `score` is the sequence's log-probability."""

    id: str
    text: str
    score: float


def merge_windows(answers: Iterable[WindowAnswer], abstention: str) -> dict[str, WindowAnswer]:
    """Merge window answers to one per question id, in order of first appearance.

    A window that abstains says only that the answer is not in that window, so the most probable
    answer of the other windows wins; the question is abstained on (text "") when all abstain,
    with the least certain abstention as its score.
    """
    merged: dict[str, WindowAnswer] = {}
    for answer in answers:
        text = "" if answer.text.strip().casefold() == abstention.casefold() else answer.text
        candidate = WindowAnswer(answer.id, text.strip(), answer.score)
        best = merged.get(answer.id)
        if best is None or _beats(candidate, best):
            merged[answer.id] = candidate
    return merged


def _beats(candidate: WindowAnswer, best: WindowAnswer) -> bool:
    if bool(candidate.text) != bool(best.text):
        return bool(candidate.text)
    return candidate.score > best.score if candidate.text else candidate.score < best.score
