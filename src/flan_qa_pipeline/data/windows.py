"""Build the model's inputs for a question and its context: a prompt with a window of the context.

The question is never truncated. A context that does not fit beside it is split into overlapping
windows.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from flan_qa_pipeline.config.parameters import PromptParameters, TokenizationParameters
from flan_qa_pipeline.errors import InputError

WINDOWING = 1  # version; increase it when a change alters the windows or labels of any input


class ContextTokens(NamedTuple):
    """The token ids of a context and the [start, end) character span of each token."""

    input_ids: list[int]
    offsets: list[tuple[int, int]]


class Window(NamedTuple):
    """One model input: its token ids and the [start, end) characters of the context it covers."""

    input_ids: list[int]
    span: tuple[int, int]


def tokenize_contexts(
    tokenizer: PreTrainedTokenizerBase, contexts: Iterable[str]
) -> dict[str, ContextTokens]:
    """Tokenize each distinct context once, however many questions ask about it.

    Returns:
        A mapping from each context to its tokens.
    """
    distinct = list(dict.fromkeys(contexts))
    if not distinct:
        return {}
    encodings = tokenizer(
        distinct,
        add_special_tokens=False,
        return_attention_mask=False,
        return_offsets_mapping=True,
        verbose=False,
    )
    tokens = zip(encodings["input_ids"], encodings["offset_mapping"], strict=True)
    return {context: ContextTokens(*pair) for context, pair in zip(distinct, tokens, strict=True)}


def tokenize_prompts(
    tokenizer: PreTrainedTokenizerBase, template: str, questions: Sequence[str]
) -> list[tuple[list[int], list[int]]]:
    """Insert each question into the prompt template and tokenize the result without the context.

    Args:
        template: the prompt, with the placeholders `{question}` and `{context}`.

    Returns:
        For each question, the token ids before and after the context; the latter include the end
        token.
    """
    parts = zip(*(split_template(template, question) for question in questions), strict=True)
    before, after = (
        tokenizer(
            list(texts), add_special_tokens=False, return_attention_mask=False, verbose=False
        )["input_ids"]
        for texts in parts
    )
    return [
        (ids, [*ids_after, tokenizer.eos_token_id])
        for ids, ids_after in zip(before, after, strict=True)
    ]


def tokenize_question(
    tokenizer: PreTrainedTokenizerBase,
    template: str,
    question: str,
    lengths: TokenizationParameters,
) -> tuple[list[int], list[int]]:
    """Tokenize the prompt of one question, as `tokenize_prompts` does.

    Raises:
        InputError: the question leaves too few tokens for the context.
    """
    [prompt] = tokenize_prompts(tokenizer, template, [question])
    if problem := _lack_of_room(prompt, lengths):
        raise InputError(f"The question {problem}.")
    return prompt


def _lack_of_room(
    prompt: tuple[list[int], list[int]], lengths: TokenizationParameters
) -> str | None:
    taken = sum(map(len, prompt))
    left = lengths.max_source_length - taken
    if left > lengths.doc_stride:
        return None
    return (
        f"takes {taken} of {lengths.max_source_length} tokens and leaves {max(left, 0)} for the "
        f"context, not more than doc_stride {lengths.doc_stride}; raise "
        "tokenization.max_source_length or shorten the question"
    )


def question_problems(
    questions: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    template: str,
    lengths: TokenizationParameters,
) -> list[str | None]:
    """Return, for each question, why it leaves too few tokens for a context, or None if it fits."""
    return [
        _lack_of_room(prompt, lengths)
        for prompt in tokenize_prompts(tokenizer, template, questions)
    ]


def window_columns(
    questions: Mapping[str, list[Any]],
    tokenizer: PreTrainedTokenizerBase,
    prompt: PromptParameters,
    lengths: TokenizationParameters,
    *,
    abstains: bool,
    for_training: bool,
) -> dict[str, list[Any]]:
    """Convert columns of questions to columns of windows.

    The labels of a window are the token ids of the first answer that lies in it. A window without
    an answer is labelled with the abstention if the model `abstains`; otherwise it gets no labels.
    A window that contains an answer's words, but not at the annotated position, also gets no
    labels: it may or may not answer the question (docs/large_corpora.md).

    Args:
        questions: the columns id, question, context and answers.
        abstains: whether the model learns to abstain.
        for_training: whether to drop windows without labels.

    Returns:
        The columns id, window (its index within the question), input_ids and labels.

    Raises:
        InputError: a question leaves too few tokens for its context; the message gives its id.
    """
    contexts = tokenize_contexts(tokenizer, questions["context"])
    prompts = tokenize_prompts(tokenizer, prompt.template, questions["question"])
    columns: dict[str, list[Any]] = {"id": [], "window": [], "input_ids": []}
    targets = []
    for id_, asked, context, answers in zip(
        questions["id"], prompts, questions["context"], questions["answers"], strict=True
    ):
        if problem := _lack_of_room(asked, lengths):
            raise InputError(f"Question {id_!r} {problem}.")
        words = answer_words(answers["text"])
        for number, window in enumerate(question_windows(asked, contexts[context], lengths)):
            target = answer_in_window(answers["text"], answers["answer_start"], window.span)
            if target is None and abstains and not words.search(context, *window.span):
                target = prompt.abstention
            if target is None and for_training:
                continue
            targets.append(target)
            columns["id"].append(id_)
            columns["window"].append(number)
            columns["input_ids"].append(window.input_ids)
    distinct = list(dict.fromkeys(target for target in targets if target is not None))
    labels: dict[str | None, list[int]] = {None: []}
    if distinct:
        encoding = tokenizer(distinct, truncation=True, max_length=lengths.max_target_length)
        labels |= zip(distinct, encoding["input_ids"], strict=True)
    return columns | {"labels": [labels[target] for target in targets]}


def question_windows(
    question: tuple[list[int], list[int]], context: ContextTokens, lengths: TokenizationParameters
) -> list[Window]:
    """Combine a tokenized question with each window of its tokenized context, in order."""
    before, after = question
    ids, offsets = context
    size = lengths.max_source_length - len(before) - len(after)
    return [
        Window(
            [*before, *ids[start:end], *after],
            (offsets[start][0], offsets[end - 1][1]) if start < end else (0, 0),
        )
        for start, end in window_spans(len(ids), size, lengths.doc_stride)
    ]


def split_template(template: str, question: str) -> tuple[str, str]:
    """Insert the question and return the parts of the prompt before and after the context.

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
        ValueError: `size` does not exceed `stride`, so the windows would never advance.
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
    """Return the first answer that lies entirely within the window, or None."""
    for text, start in zip(texts, starts, strict=True):
        if window[0] <= start and start + len(text) <= window[1]:
            return text
    return None


def answer_words(texts: Iterable[str]) -> re.Pattern[str]:
    """Compile a pattern that matches any of the answers as whole words, whatever the white space.

    >>> bool(answer_words(["5 May"]).search("On 5\\nMay.")), bool(answer_words([]).search("5"))
    (True, False)
    """
    words = (r"\s+".join(map(re.escape, text.split())) for text in texts)
    return re.compile("|".join(rf"(?<!\w){answer}(?!\w)" for answer in words) or r"(?!)")
