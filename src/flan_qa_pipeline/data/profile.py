"""A profile of checked questions: counts, lengths in tokens, windows."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from flan_qa_pipeline.config.parameters import PromptParameters, TokenizationParameters
from flan_qa_pipeline.data.splits import column_values, distinct_values
from flan_qa_pipeline.data.windows import window_columns

ROWS = 1000


@dataclass(frozen=True)
class Lengths:
    """Lengths of the texts of one kind, in tokens."""

    median: int
    percentile_95: int
    longest: int


@dataclass(frozen=True)
class Profile:
    """Numbers about checked questions.

    Attributes:
        counts: of questions, answerable and unanswerable ones, contexts and articles.
        lengths: of contexts and questions, and of their first answers if there are any.
        windows: how many there are; how many hold an answer, how many are labelled with the
            abstention, and how many hold an answer's words only at another place.
        unreadable: answerable questions without a window that holds a whole answer.
        cut: first answers that training cuts, as they exceed `max_target_length` tokens.
    """

    counts: dict[str, int]
    lengths: dict[str, Lengths]
    windows: dict[str, int]
    unreadable: int
    cut: int


def profile_questions(
    questions: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    prompt: PromptParameters,
    lengths: TokenizationParameters,
) -> Profile:
    """Count and measure checked questions as training reads them."""
    texts = {
        "context": distinct_values(questions, "context"),
        "question": column_values(questions, "question"),
        "answer": (t for row in column_values(questions, "answers") for t in row["text"][:1]),
    }
    sizes = {name: _token_counts(values, tokenizer) for name, values in texts.items()}
    windows, answered = _windows(questions, tokenizer, prompt, lengths)
    answerable = len(questions) - sum(questions["is_impossible"])
    return Profile(
        counts={
            "questions": len(questions),
            "answerable": answerable,
            "unanswerable": len(questions) - answerable,
            "contexts": len(sizes["context"]),
            "articles": sum(1 for _ in distinct_values(questions, "title")),
        },
        lengths={name: _lengths(counts) for name, counts in sizes.items() if len(counts)},
        windows=windows,
        unreadable=answerable - answered,
        # the sizes leave out the end token, which takes a place in the target
        cut=int((sizes["answer"] >= lengths.max_target_length).sum()),
    )


def _token_counts(texts: Iterator[str], tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    counts: list[int] = []
    while batch := list(islice(texts, ROWS)):
        ids = tokenizer(
            batch, add_special_tokens=False, return_attention_mask=False, verbose=False
        )["input_ids"]
        counts += map(len, ids)
    return np.array(counts, dtype=np.int64)


def _lengths(counts: np.ndarray) -> Lengths:
    return Lengths(*(int(np.percentile(counts, share, method="higher")) for share in (50, 95, 100)))


def _windows(
    questions: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    prompt: PromptParameters,
    lengths: TokenizationParameters,
) -> tuple[dict[str, int], int]:
    """Count windows by their label, and questions with a window that holds an answer."""
    abstention = tokenizer(
        prompt.abstention, truncation=True, max_length=lengths.max_target_length
    )["input_ids"]
    counts: Counter[str] = Counter()
    answered = 0
    for batch in questions.iter(ROWS):
        columns = window_columns(
            batch, tokenizer, prompt, lengths, abstains=True, for_training=False
        )
        kinds = [
            "words elsewhere" if not ids else "no answer" if ids == abstention else "answer"
            for ids in columns["labels"]
        ]
        counts.update(kinds)
        of_question = zip(columns["id"], kinds, strict=True)
        answered += len({id_ for id_, kind in of_question if kind == "answer"})
    return {
        "all": counts.total(),
        **{kind: counts[kind] for kind in ("answer", "no answer", "words elsewhere")},
    }, answered
