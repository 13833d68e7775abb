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


def is_abstention(text: str, abstention: str) -> bool:
    """Whether the text is empty or, but for case and outer white space, the abstention."""
    return text.strip().casefold() in {"", abstention.casefold()}


@dataclass(frozen=True)
class WindowAnswer:
    """What the model generated for one window of the question `id`.

    `text` is the greedy output, `score` its log-probability. `answer` is the best answer that is
    not the abstention, and `no_answer_score` the log-probability of the abstention minus that of
    `answer`.
    """

    id: str
    text: str
    score: float
    answer: str
    no_answer_score: float


def merge_windows(answers: Iterable[WindowAnswer], abstention: str) -> dict[str, WindowAnswer]:
    """Merge window answers to one per question id, in order of first appearance.

    A window that abstains says only that the answer is not in that window, so the most probable
    answer of the other windows wins; the question is abstained on (text "") when all abstain,
    with the least certain abstention as its score, and then the best answer is that of the window
    nearest to answering. A question's no-answer score is its windows' lowest.
    """
    windows: dict[str, list[WindowAnswer]] = {}
    for answer in answers:
        windows.setdefault(answer.id, []).append(answer)
    return {id_: _merge(group, abstention) for id_, group in windows.items()}


def _merge(windows: list[WindowAnswer], abstention: str) -> WindowAnswer:
    nearest = min(windows, key=lambda window: window.no_answer_score)
    answering = [window for window in windows if not is_abstention(window.text, abstention)]
    if answering:
        best = max(answering, key=lambda window: window.score)
        text = answer = best.text.strip()
    else:
        best = min(windows, key=lambda window: window.score)
        text, answer = "", nearest.answer.strip()
    return WindowAnswer(best.id, text, best.score, answer, nearest.no_answer_score)
