"""Answers to windowed questions: each window is answered, then one answer per question stays."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from flan_qa_pipeline.answering.generation import generate_answers, is_abstention
from flan_qa_pipeline.config.parameters import GenerationParameters, PromptParameters


@dataclass(frozen=True)
class WindowAnswer:
    """What the model generated for one window of the question `id`.

    `text` is the greedy output, `score` its log-probability. `answer` is the best answer that is
    not the abstention, `answer_score` its log-probability, and `no_answer_score` the
    log-probability of the abstention minus that of `answer`. `window` is the window's number.
    """

    id: str
    text: str
    score: float
    answer: str
    answer_score: float
    no_answer_score: float
    window: int


def answer_windows(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    windows: Dataset,
    prompt: PromptParameters,
    generation: GenerationParameters,
    description: str | None = None,
) -> dict[str, WindowAnswer]:
    """Answer tokenized windows (columns id, window, input_ids); merge them to one per question."""
    generated = generate_answers(
        model,
        tokenizer,
        windows["input_ids"][:],
        abstention=prompt.abstention,
        batch_tokens=generation.batch_tokens,
        max_new_tokens=generation.max_new_tokens,
        description=description,
    )
    return merge_windows(
        (
            WindowAnswer(id_, window=number, **vars(said))
            for id_, number, said in zip(
                windows["id"][:], windows["window"][:], generated, strict=True
            )
        ),
        prompt.abstention,
    )


def merge_windows(answers: Iterable[WindowAnswer], abstention: str) -> dict[str, WindowAnswer]:
    """Merge window answers to one per question id, in order of first appearance.

    A window that abstains says only that the answer is not in that window, so the most probable
    answer of the other windows wins; the question is abstained on (text "") when all abstain,
    with the least certain abstention as its score, and then the best answer is that of the window
    nearest to answering. A question's no-answer score is its windows' lowest; its window is that
    of its best answer.
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
        text = best.text.strip()
        return replace(best, text=text, answer=text, no_answer_score=nearest.no_answer_score)
    least_certain = min(window.score for window in windows)
    return replace(nearest, text="", score=least_certain, answer=nearest.answer.strip())
