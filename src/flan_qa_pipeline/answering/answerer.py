"""Answers to new questions by a saved adapter, on the base model and prompt that it records."""

import logging
import math
import re
import threading
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from datasets import Dataset
from pydantic import ValidationError

from flan_qa_pipeline.answering.generation import answer_windows
from flan_qa_pipeline.config.parameters import (
    AttnImplementation,
    ComputeDtype,
    GenerationParameters,
    ModelParameters,
    PromptParameters,
    TokenizationParameters,
)
from flan_qa_pipeline.config.validation import check_parameters
from flan_qa_pipeline.data.texts import has_text, is_unicode
from flan_qa_pipeline.data.windows import (
    WindowAnswer,
    question_windows,
    tokenize_contexts,
    tokenize_question,
)
from flan_qa_pipeline.errors import InputError
from flan_qa_pipeline.evaluation.thresholds import no_answer_probability
from flan_qa_pipeline.models.adapter import WEIGHTS, Adapter, attach_adapter, load_adapter
from flan_qa_pipeline.models.loading import load_base_model
from flan_qa_pipeline.models.sharding import shard

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Answer:
    """What a model answers to one question about one context.

    Attributes:
        text: the answer; "" if the model abstains.
        score: 0..1, how sure the model is of what it says: of an answer, the probability of its
            whole text; of an abstention, `no_answer_probability`. Not calibrated.
        abstained: whether the context does not answer the question, in the model's opinion.
        no_answer_probability: 0..1, probability of abstaining, were abstention and the best answer
            the only two choices; of a long context, that of the window nearest to answering.
        start: first character of the answer in the context; None if the model abstains or its
            words do not stand in the part of the context that it read them from.
        end: the character after the last, so that `context[start:end]` is the answer but for case
            and white space; None where `start` is.
    """

    text: str
    score: float
    abstained: bool
    no_answer_probability: float
    start: int | None
    end: int | None


class QuestionAnswerer:
    """A saved adapter on its base model, ready to answer; threads may share one.

    Contexts of any length are read in windows, as in evaluation, with the same greedy decoding.
    The adapter says which base model, quantization, prompt and tokenizer belong to it.

    Example:
        >>> answerer = QuestionAnswerer.from_project()  # doctest: +SKIP
        >>> answerer.answer([("Ada was born in London.", "Where was Ada born?")])  # doctest: +SKIP
        [Answer(text='London', score=0.98, abstained=False, ..., start=16, end=22)]
    """

    def __init__(
        self,
        adapter: Adapter,
        *,
        tokenization: TokenizationParameters | None = None,
        generation: GenerationParameters | None = None,
        no_answer_threshold: float | None = None,
        base_model: str | None = None,
        dequantize: Literal["auto"] | bool = "auto",
        compute_dtype: ComputeDtype = "auto",
        attn_implementation: AttnImplementation = "auto",
        fsdp: bool = False,
    ):
        """Load the adapter's base model and attach the adapter.

        Args:
            adapter: as a catalog's `adapter` dataset loads it.
            tokenization: window length and overlap, in tokens; None: those of the training.
            generation: tokens answered at a time, and the longest answer in tokens; None: those
                of the training.
            no_answer_threshold: 0..1; the adapter abstains above this `no_answer_probability` and
                otherwise gives its best answer. None: it abstains when its greedy output does.
            base_model: folder or hub id, if the base is not where it was in training.
            dequantize: as the parameter `model.dequantize`.
            compute_dtype: as the parameter `model.compute_dtype`.
            attn_implementation: as the parameter `model.attn_implementation`.
            fsdp: as the parameter `distributed.fsdp`.

        Raises:
            InputError: the base model cannot be loaded, or is not the adapter's.
        """
        recorded = adapter.provenance
        try:
            model = ModelParameters.model_validate(
                recorded["model"]
                | ({"name": base_model} if base_model else {})
                | {
                    "dequantize": dequantize,
                    "compute_dtype": compute_dtype,
                    "attn_implementation": attn_implementation,
                }
            )
            self.prompt = PromptParameters.model_validate(recorded["prompt"])
            self.tokenization = tokenization or TokenizationParameters.model_validate(
                recorded["tokenization"]
            )
            self.generation = generation or GenerationParameters.model_validate(
                recorded["generation"]
            )
        except (KeyError, ValidationError) as error:
            raise InputError(
                "The adapter was not saved by this version of the project, so that its "
                f"provenance.json does not say how to use it ({' '.join(str(error).split())}); "
                "train again."
            ) from error
        self.adapter = adapter
        self.no_answer_threshold = no_answer_threshold
        base = load_base_model(model, to_shard=fsdp)
        self._model = attach_adapter(base, adapter, recorded)
        if fsdp:
            shard(self._model)
        self._lock = threading.Lock()

    @classmethod
    def from_project(
        cls,
        project_path: str | Path | None = None,
        *,
        adapter_version: str | None = None,
        env: str | None = None,
        runtime_params: dict[str, Any] | None = None,
    ) -> Self:
        """Load the latest adapter of a Kedro project, or a pinned version, by its catalog.

        Args:
            project_path: the project or a folder in it; None: the current folder.
            adapter_version: a saved version's time stamp; None: the latest.
            env: configuration environment, as in `kedro run --env`.
            runtime_params: parameters that differ from the configuration, as in `--params`.

        Raises:
            InputError: no project, no such version, or an invalid parameter.
        """
        from kedro.framework.session import KedroSession
        from kedro.framework.startup import bootstrap_project
        from kedro.utils import find_kedro_project

        from flan_qa_pipeline.datasets.reading import load_version

        folder = Path(project_path or Path.cwd()).resolve()
        root = find_kedro_project(folder)
        if root is None:
            raise InputError(f"{folder} is not in a Kedro project; give project_path.")
        bootstrap_project(root)
        session = KedroSession.create(root, env=env, runtime_params=runtime_params)
        with session:
            context = session.load_context()
            parameters = check_parameters(context.config_loader["parameters"])
            adapter = load_version(context.catalog, "adapter", adapter_version)
        if parameters.distributed.fsdp:
            logger.info("distributed.fsdp is of kedro run: this process holds the whole base.")
        base_model = root / str(adapter.provenance["model"].get("name"))
        return cls(
            adapter,
            tokenization=parameters.tokenization,
            generation=parameters.generation,
            no_answer_threshold=parameters.inference.no_answer_threshold,
            base_model=str(base_model) if base_model.is_dir() else None,
            dequantize=parameters.model.dequantize,
            compute_dtype=parameters.model.compute_dtype,
            attn_implementation=parameters.model.attn_implementation,
        )

    @classmethod
    def from_folder(cls, folder: str | Path, **options: Any) -> Self:
        """Load an adapter from the folder that holds its weights, outside any Kedro project.

        `options` are those of the constructor. Give `base_model` if the adapter's base is a folder
        that was named relative to the project.

        Raises:
            InputError: the folder holds no adapter of this project, or its base cannot be loaded.
        """
        folder = Path(folder).resolve()
        if not (folder / WEIGHTS).is_file():
            raise InputError(
                f"{folder} holds no adapter; give a folder such as "
                "data/06_models/adapter/<version>/adapter."
            )
        return cls(load_adapter(folder), **options)

    def problem(self, context: Any, question: Any) -> str | None:
        """Say in one sentence why a pair cannot be answered; None if it can."""
        try:
            self._tokenize_question(context, question)
        except InputError as error:
            return str(error)
        return None

    def answer(self, pairs: Sequence[tuple[str, str]], *, base: bool = False) -> list[Answer]:
        """Answer questions about contexts, in order; one answer for each pair.

        Args:
            pairs: (context, question), each not empty; the same context may occur many times.
            base: answer with the untouched base model, the adapter switched off; it abstains when
                its greedy output does, whatever the threshold.

        Raises:
            InputError: names the first pair that cannot be answered (see `problem`), before any
                is.
        """
        questions = []
        for number, pair in enumerate(pairs):
            try:
                questions.append(self._tokenize_question(*pair))
            except InputError as error:
                raise InputError(f"Pair {number} of {len(pairs)}: {error}") from error
        contexts = tokenize_contexts(self.adapter.tokenizer, (context for context, _ in pairs))
        windows = [
            question_windows(question, contexts[context], self.tokenization)
            for question, (context, _) in zip(questions, pairs, strict=True)
        ]
        numbered = [
            (str(pair), number, window.input_ids)
            for pair, group in enumerate(windows)
            for number, window in enumerate(group)
        ]
        columns = zip(*numbered, strict=True) if numbered else ((), (), ())
        rows = Dataset.from_dict(dict(zip(("id", "window", "input_ids"), columns, strict=True)))
        with self._lock, self._model.disable_adapter() if base else nullcontext():
            said = answer_windows(
                self._model, self.adapter.tokenizer, rows, self.prompt, self.generation
            )
        threshold = None if base else self.no_answer_threshold
        return [
            _typed(answer, context, group[answer.window].span, threshold)
            for answer, (context, _), group in zip(said.values(), pairs, windows, strict=True)
        ]

    def _tokenize_question(self, context: Any, question: Any) -> tuple[list[int], list[int]]:
        for name, value in (("context", context), ("question", question)):
            if value is None or value != value:
                raise InputError(f"The {name} is missing; give it as text.")
            if not isinstance(value, str):
                raise InputError(f"The {name} is of type {type(value).__name__}; give it as text.")
            if not has_text(value):
                raise InputError(f"The {name} is empty; give it as text.")
            if not is_unicode(value):
                raise InputError(f"The {name} holds half a surrogate pair; remove it.")
        return tokenize_question(
            self.adapter.tokenizer, self.prompt.template, question, self.tokenization
        )


def _typed(
    said: WindowAnswer, context: str, window: tuple[int, int], threshold: float | None
) -> Answer:
    probability = float(no_answer_probability(said.no_answer_score))
    abstained = not said.answer or (not said.text if threshold is None else probability > threshold)
    if abstained:
        return Answer("", probability, True, probability, None, None)
    start, end = find_answer(said.answer, context, window) or (None, None)
    return Answer(said.answer, math.exp(said.answer_score), False, probability, start, end)


def find_answer(answer: str, context: str, window: tuple[int, int]) -> tuple[int, int] | None:
    """Find the [start, end) characters of the answer in a window of the context.

    Whole words are preferred to parts of words, the same case to another; white space may differ.

    >>> find_answer("5 May", "On 15 May. On 5\\nMay.", (0, 21))
    (14, 19)
    """
    words = r"\s+".join(re.escape(word) for word in answer.split())
    for flags in (re.NOFLAG, re.IGNORECASE):
        for pattern in (rf"(?<!\w){words}(?!\w)", words):
            if found := re.compile(pattern, flags).search(context, *window):
                return found.span()
    return None
