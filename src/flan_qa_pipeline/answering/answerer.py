"""The Python API: a saved adapter answers new questions, on the base and prompt it records."""

import logging
import math
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

from datasets import Dataset
from pydantic import BaseModel, ValidationError

from flan_qa_pipeline.answering.batch_tokens import resolve_batch_tokens
from flan_qa_pipeline.answering.generation import GeneratedAnswer
from flan_qa_pipeline.answering.window_answers import answer_windows
from flan_qa_pipeline.config.parameters import (
    AttnImplementation,
    ComputeDtype,
    GenerationParameters,
    ModelParameters,
    PromptParameters,
    TokenizationParameters,
)
from flan_qa_pipeline.config.validation import check_parameters
from flan_qa_pipeline.data.texts import text_problem
from flan_qa_pipeline.data.windows import (
    question_windows,
    tokenize_contexts,
    tokenize_question,
)
from flan_qa_pipeline.errors import InputError
from flan_qa_pipeline.evaluation.no_answer_threshold import no_answer_probability
from flan_qa_pipeline.models.adapter import WEIGHTS, Adapter, attach_adapter, load_adapter
from flan_qa_pipeline.models.loading import load_base_model
from flan_qa_pipeline.models.sharding import shard

logger = logging.getLogger(__name__)

Parameters = TypeVar("Parameters", bound=BaseModel)


@dataclass(frozen=True)
class Answer:
    """A model's answer to one question about one context.

    Attributes:
        text: the answer; "" if the model abstains.
        score: the model's confidence, 0..1, not calibrated. For an answer, the probability of its
            whole text; for an abstention, `no_answer_probability`.
        abstained: whether the model finds no answer in the context.
        no_answer_probability: probability of the abstention, 0..1, if the model could choose only
            between abstaining and its best answer. A long context has the probability of the
            window that is nearest to answering.
        start: offset of the answer's first character in the context. None if the model abstains,
            or if the window that it read does not hold the answer word for word.
        end: offset after the answer's last character, so `context[start:end]` equals the answer
            except for case and white space. None if `start` is None.
    """

    text: str
    score: float
    abstained: bool
    no_answer_probability: float
    start: int | None
    end: int | None


class QuestionAnswerer:
    """A saved adapter on its base model, ready to answer questions. Threads may share one.

    It reads contexts of any length in windows and decodes greedily, as the evaluation does. The
    adapter records its base model, quantization, prompt and tokenizer.

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
            tokenization: window length and overlap, in tokens. None takes the training's.
            generation: tokens per batch, and the longest answer in tokens. None takes the
                training's.
            no_answer_threshold: 0..1. The adapter abstains above this `no_answer_probability` and
                otherwise gives its best answer. None: it abstains when its greedy output does.
            base_model: folder or hub id of the base, if it has moved since the training.
            dequantize: the parameter `model.dequantize`.
            compute_dtype: the parameter `model.compute_dtype`.
            attn_implementation: the parameter `model.attn_implementation`.
            fsdp: the parameter `distributed.fsdp`.

        Raises:
            InputError: the base model cannot be loaded, or is not the adapter's, or another
                version of the project saved the adapter.
        """
        overrides: dict[str, Any] = {
            "dequantize": dequantize,
            "compute_dtype": compute_dtype,
            "attn_implementation": attn_implementation,
        }
        if base_model:
            overrides["name"] = base_model
        model = _recorded(adapter, "model", ModelParameters, overrides)
        self.prompt = _recorded(adapter, "prompt", PromptParameters)
        self.tokenization = tokenization or _recorded(
            adapter, "tokenization", TokenizationParameters
        )
        self.generation = generation or _recorded(adapter, "generation", GenerationParameters)
        self.adapter = adapter
        self.no_answer_threshold = no_answer_threshold
        base = load_base_model(model, to_shard=fsdp)
        self._model = attach_adapter(base, adapter, adapter.provenance)
        if fsdp:
            shard(self._model)
        batch_tokens = resolve_batch_tokens(self.generation.batch_tokens, self._model)
        self.generation = self.generation.model_copy(update={"batch_tokens": batch_tokens})
        self._lock = threading.Lock()

    @classmethod
    def from_project(
        cls,
        project_path: str | Path | None = None,
        *,
        adapter_version: str | None = None,
        env: str | None = None,
        runtime_params: dict[str, Any] | None = None,
        tell: Callable[[str], Any] = logger.info,
    ) -> Self:
        """Load the promoted adapter of a Kedro project, or a pinned version, from its catalog.

        In a project that has none yet, the adapter that ships with the base answers.

        Args:
            project_path: the project or a folder in it. None: the current folder.
            adapter_version: the time stamp of a saved version. None: the promoted version, or the
                latest if none is promoted.
            env: configuration environment, as in `kedro run --env`.
            runtime_params: parameters that override the configuration, as in `--params`.
            tell: receives one line: which version answers and why, on which base, with which F1.

        Raises:
            InputError: no project, no such version, an invalid parameter, or no adapter that was
                trained on `model.name`.
        """
        from kedro.framework.session import KedroSession
        from kedro.framework.startup import bootstrap_project
        from kedro.utils import find_kedro_project

        from flan_qa_pipeline.datasets.promotion import load_answering_adapter

        folder = Path(project_path or Path.cwd()).resolve()
        root = find_kedro_project(folder)
        if root is None:
            raise InputError(f"{folder} is not in a Kedro project; give project_path.")
        bootstrap_project(root)
        session = KedroSession.create(root, env=env, runtime_params=runtime_params)
        with session:
            context = session.load_context()
            parameters = check_parameters(context.config_loader["parameters"])
            loaded = load_answering_adapter(
                context.catalog, adapter_version, model=parameters.model
            )
        if parameters.distributed.fsdp:
            logger.info("distributed.fsdp affects kedro run only; this process holds the base.")
        base_model = root / str(loaded.adapter.provenance["model"].get("name"))
        answerer = cls(
            loaded.adapter,
            tokenization=parameters.tokenization,
            generation=parameters.generation,
            no_answer_threshold=parameters.inference.no_answer_threshold,
            base_model=str(base_model) if base_model.is_dir() else None,
            dequantize=parameters.model.dequantize,
            compute_dtype=parameters.model.compute_dtype,
            attn_implementation=parameters.model.attn_implementation,
        )
        tell(loaded.origin)
        return answerer

    @classmethod
    def from_folder(cls, folder: str | Path, **options: Any) -> Self:
        """Load an adapter from the folder that holds its weights, outside any Kedro project.

        Args:
            folder: the folder of a saved adapter.
            options: the constructor's options. `base_model` is necessary if the adapter records
                its base by a path relative to the project.

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
        """Return one sentence on why a pair cannot be answered, or None if it can."""
        try:
            self._tokenize_question(context, question)
        except InputError as error:
            return str(error)
        return None

    def answer(self, pairs: Sequence[tuple[str, str]], *, base: bool = False) -> list[Answer]:
        """Answer questions about contexts.

        Args:
            pairs: (context, question), neither of them empty. Pairs may share a context.
            base: answer with the untouched base model, the adapter switched off. The base abstains
                when its greedy output does, whatever the threshold.

        Returns:
            One answer per pair, in their order.

        Raises:
            InputError: a pair cannot be answered (see `problem`). The error names the first such
                pair, and no pair is answered.
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
            merged = answer_windows(
                self._model, self.adapter.tokenizer, rows, self.prompt, self.generation
            )
        threshold = None if base else self.no_answer_threshold
        return [
            _to_answer(generated, context, group[window].span, threshold)
            for (generated, window), (context, _), group in zip(
                merged.values(), pairs, windows, strict=True
            )
        ]

    def _tokenize_question(self, context: Any, question: Any) -> tuple[list[int], list[int]]:
        for name, value in (("context", context), ("question", question)):
            if problem := text_problem(value, f"The {name}"):
                raise InputError(problem)
        return tokenize_question(
            self.adapter.tokenizer, self.prompt.template, question, self.tokenization
        )


def _recorded(
    adapter: Adapter,
    section: str,
    parameters: type[Parameters],
    overrides: Mapping[str, Any] | None = None,
) -> Parameters:
    """Read a section of the parameters that the adapter records."""
    try:
        return parameters.model_validate({**adapter.provenance[section], **(overrides or {})})
    except (KeyError, ValidationError) as error:
        raise InputError(
            "Another version of the project saved the adapter, so its provenance.json does not "
            f"say how to use it ({' '.join(str(error).split())}); train again."
        ) from error


def _to_answer(
    generated: GeneratedAnswer, context: str, window: tuple[int, int], threshold: float | None
) -> Answer:
    probability = float(no_answer_probability(generated.no_answer_log_odds))
    abstains = not generated.text if threshold is None else probability > threshold
    if abstains or not generated.answer:
        return Answer("", probability, True, probability, None, None)
    start, end = find_answer(generated.answer, context, window) or (None, None)
    confidence = math.exp(generated.answer_log_prob)
    return Answer(generated.answer, confidence, False, probability, start, end)


def find_answer(answer: str, context: str, window: tuple[int, int]) -> tuple[int, int] | None:
    """Find an answer in a window of the context.

    Whole words win over parts of words, and the same case over another. White space may differ.

    Args:
        window: the [start, end) characters of the context to search.

    Returns:
        The answer's [start, end) characters, or None if the window does not hold it.

    >>> find_answer("5 May", "On 15 May. On 5\\nMay.", (0, 21))
    (14, 19)
    """
    words = r"\s+".join(re.escape(word) for word in answer.split())
    for flags in (re.NOFLAG, re.IGNORECASE):
        for pattern in (rf"(?<!\w){words}(?!\w)", words):
            if found := re.compile(pattern, flags).search(context, *window):
                return found.span()
    return None
