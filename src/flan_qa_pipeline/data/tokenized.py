"""The inputs of tokenized questions, recorded in their dataset and compared before use."""

import json
from collections.abc import Mapping
from hashlib import sha256
from typing import Any

from datasets import DatasetDict
from transformers import PreTrainedTokenizerBase

from flan_qa_pipeline.config.parameters import (
    DataParameters,
    PromptParameters,
    TokenizationParameters,
)
from flan_qa_pipeline.data.windows import WINDOWING
from flan_qa_pipeline.errors import InputError

QUESTIONS = "questions"
DATA = "data"
REMEDY = (
    "make them again with kedro run --pipelines=data_engineering, or name another version with "
    "--load-versions=tokenized_questions:…"
)


def made_with(
    tokenizer: PreTrainedTokenizerBase,
    prompt: PromptParameters,
    tokenization: TokenizationParameters,
    data: DataParameters,
) -> dict[str, Any]:
    """List everything, except the questions, that windows and labels depend on, with its value."""
    sections = (("prompt", prompt), ("tokenization", tokenization))
    chosen = {
        f"{section}.{key}": value
        for section, parameters in sections
        for key, value in parameters.model_dump().items()
    }
    return chosen | {
        "data.unanswerable": data.unanswerable,
        "the tokenizer's digest": digest_of(tokenizer),
        "the version of the windowing": WINDOWING,
    }


def digest_of(tokenizer: PreTrainedTokenizerBase) -> str:
    """Hash everything that decides which tokens a text becomes, with SHA-256."""
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    content |= {"truncation": None, "padding": None}  # the last call set these
    text = json.dumps([content, tokenizer.eos_token_id], sort_keys=True)
    return sha256(text.encode()).hexdigest()


def describe(
    made: Mapping[str, Any], questions: Mapping[str, str], data: DataParameters | None = None
) -> str:
    """Join what windows were made with in one JSON text.

    Args:
        made: the inputs of the windows, as `made_with` lists them.
        questions: the fingerprints of the questions, by split.
        data: the parameters that made the questions.
    """
    chosen = {DATA: data.model_dump(mode="json")} if data else {}
    return json.dumps({**made, QUESTIONS: questions, **chosen})


def fingerprints_of(tokenized_questions: DatasetDict) -> dict[str, str]:
    """Return the fingerprints of the questions that windows were made of, by split."""
    fingerprints: dict[str, str] = _description(tokenized_questions)[QUESTIONS]
    return fingerprints


def data_parameters_of(tokenized_questions: DatasetDict) -> dict[str, Any]:
    """Return the parameters that made the questions of the windows; {} if not recorded."""
    parameters: dict[str, Any] = _description(tokenized_questions).get(DATA, {})
    return parameters


def require_made_with(tokenized_questions: DatasetDict, wanted: Mapping[str, Any]) -> None:
    """Check that this run would make the windows with the same inputs.

    Raises:
        InputError: names each difference.
    """
    made = _description(tokenized_questions)
    differences = [
        f"{name} is {value!r}, theirs {made.get(name)!r}"
        for name, value in wanted.items()
        if made.get(name) != value
    ]
    if differences:
        raise InputError(
            f"The saved tokenized_questions do not fit this run: {'; '.join(differences)}. Restore "
            f"these, or {REMEDY}."
        )


def require_made_of(tokenized_questions: DatasetDict, fingerprints: Mapping[str, str]) -> None:
    """Check that the windows come from the questions with these fingerprints, split by split.

    Raises:
        InputError: names the first split that differs.
    """
    made = fingerprints_of(tokenized_questions)
    for split, fingerprint in fingerprints.items():
        if made.get(split) != fingerprint:
            raise InputError(
                f"questions and tokenized_questions hold different {split} questions, so they are "
                "of different runs; run kedro run --pipelines=data_engineering again, or name both "
                "versions with --load-versions."
            )


def _description(tokenized_questions: DatasetDict) -> dict[str, Any]:
    described = next(iter(tokenized_questions.values())).info.description
    if not described:
        raise InputError(
            "The saved tokenized_questions do not say what they were made with, so they are of an "
            f"earlier version of this project; {REMEDY}."
        )
    made: dict[str, Any] = json.loads(described)
    return made
