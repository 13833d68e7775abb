"""A web page and its HTTP API: both models answer a question about one context.

Gradio queues requests and answers them in turn; see https://www.gradio.app/guides/queuing.
"""

import ipaddress
import logging
import socket
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from html import escape
from itertools import pairwise
from typing import Any

import gradio as gr

from flan_qa_pipeline.answering.answerer import Answer, QuestionAnswerer
from flan_qa_pipeline.config.parameters import ServingParameters
from flan_qa_pipeline.errors import InputError
from flan_qa_pipeline.evaluation.subject import base_name, trained_on

logger = logging.getLogger(__name__)

Pair = tuple[str, str]  # context, question

NO_ANSWER = "No answer in this context"
CAVEAT = (
    "Confidence is the probability of the whole answer or, if a model abstains, the probability of "
    "abstaining rather than giving its best answer. It is not calibrated."
)
CSS = """
.context {white-space: pre-wrap; overflow-wrap: anywhere; max-height: 30rem; overflow-y: auto}
mark {color: black; border-radius: 2px}
mark.base {background: #fde68a}
mark.fine-tuned {background: #86efac}
mark.both {background: #7dd3fc}
"""
MAX_BODY_BYTES = 2**24
API_DESCRIPTION = (
    "Answers a question about a context with the base model and with the fine-tuned model. Each "
    "answer has text (empty if the model abstains), score (its confidence, 0..1), abstained, "
    "no_answer_probability (0..1), and start and end: the answer's [start, end) characters in the "
    "context, or null."
)


@dataclass(frozen=True)
class BothAnswers:
    """The answers of the two models to one question."""

    base: Answer
    fine_tuned: Answer


class Batches:
    """Collects the requests that arrive while a batch is being answered into the next batch.

    (Gradio's `batch=True` cannot check two inputs before it queues them.)
    """

    def __init__(self, answer: Callable[[list[Pair]], list[BothAnswers]]):
        self._answer = answer
        self._waiting: list[tuple[Pair, Future[BothAnswers]]] = []
        self._turn = threading.Lock()

    def call(self, pair: Pair) -> BothAnswers:
        """Wait until the batch that holds this pair is answered.

        Raises:
            Exception: any error of the batch, in each of its threads.
        """
        future: Future[BothAnswers] = Future()
        self._waiting.append((pair, future))
        with self._turn:
            if not future.done():
                self._answer_waiting()
        return future.result()

    def _answer_waiting(self) -> None:
        batch = list(self._waiting)
        del self._waiting[: len(batch)]
        try:
            answers = self._answer([pair for pair, _ in batch])
        except Exception as error:
            for _, future in batch:
                future.set_exception(error)
        else:
            for (_, future), answer in zip(batch, answers, strict=True):
                future.set_result(answer)


class _Endpoints:
    """What the page and the API call."""

    def __init__(self, answerer: QuestionAnswerer, serving: ServingParameters):
        self._answerer, self._serving = answerer, serving
        self._batches = Batches(self._answer_both)

    def check(self, context: str, question: str) -> list[dict[str, Any]]:
        """Validate both fields before the request enters the queue."""
        limits = self._serving
        problems = [
            _too_long("context", context, limits.max_context_characters),
            _too_long("question", question, limits.max_question_characters),
        ]
        if not any(problems) and (problem := self._answerer.problem(context, question)):
            problems = [problem, None] if not (context or "").strip() else [None, problem]
        return [gr.validate(problem is None, problem or "") for problem in problems]

    def answer_as_json(self, context: str, question: str) -> dict[str, Any]:
        """Return the fields of both answers."""
        return asdict(self._batches.call((context, question)))

    def answer_for_page(self, context: str, question: str) -> tuple[str, ...]:
        """Return the texts of the page's output fields."""
        both = self._batches.call((context, question))
        return (
            _shown_answer(both.base),
            _shown_confidence(both.base),
            _shown_answer(both.fine_tuned),
            _shown_confidence(both.fine_tuned),
            _marked(highlight(context, both.base, both.fine_tuned)),
        )

    def _answer_both(self, pairs: list[Pair]) -> list[BothAnswers]:
        return [
            BothAnswers(base, fine_tuned)
            for base, fine_tuned in zip(
                self._answerer.answer(pairs, base=True), self._answerer.answer(pairs), strict=True
            )
        ]


def build_page(answerer: QuestionAnswerer, serving: ServingParameters) -> gr.Blocks:
    """Lay out the page and its API, without serving them.

    The only public endpoint, `answer`, takes a context and a question and returns
    `{"base": …, "fine_tuned": …}`, each with the fields of an `Answer`.
    """
    endpoints = _Endpoints(answerer, serving)
    with gr.Blocks(title="Question answering", analytics_enabled=False) as page:
        gr.Markdown(_introduction(answerer))
        with gr.Row():
            with gr.Column():
                context, question, button = _question_form(serving)
            with gr.Column():
                outputs = _answer_fields()
        request: dict[str, Any] = {
            "inputs": [context, question],
            "validator": endpoints.check,
            "concurrency_id": "model",
            "concurrency_limit": serving.concurrency,
        }
        clear_answers = "() => ['', '', '', '', '']"
        gr.on([context.change, question.change], None, outputs=outputs, js=clear_answers)
        gr.on(
            [button.click, question.submit],
            endpoints.answer_for_page,
            outputs=outputs,
            api_visibility="private",
            **request,
        )
        gr.Button(visible=False).click(
            endpoints.answer_as_json,
            outputs=gr.JSON(label="answers", visible=False),
            api_name="answer",
            api_description=API_DESCRIPTION,
            **request,
        )
    return page.queue(max_size=serving.max_queue_size, api_open=False)


def _introduction(answerer: QuestionAnswerer) -> str:
    adapter = answerer.adapter
    run = adapter.training.get("run", {})
    named = trained_on(run)
    corpus = f" on {named}" if named else ""
    version = f" (adapter {run['run_id']})" if "run_id" in run else ""
    base = base_name(adapter.provenance["model"]["name"])
    models = f"The base model {base} and the same model fine-tuned{corpus}{version} answer."
    return f"# Question answering\n{escape(models)}\n\n{CAVEAT}\n"


def _question_form(serving: ServingParameters) -> tuple[gr.Textbox, gr.Textbox, gr.Button]:
    """Lay out the fields for a context and a question, the button and the examples."""
    context = gr.Textbox(
        "",
        label="Context",
        lines=10,
        max_lines=20,
        info=f"Up to {serving.max_context_characters:,} characters. The models read a long "
        "context in overlapping windows.",
    )
    question = gr.Textbox(
        "", label="Question", info=f"Up to {serving.max_question_characters:,} characters."
    )
    button = gr.Button("Answer", variant="primary")
    if serving.examples:
        gr.Examples(
            [[example.context, example.question] for example in serving.examples],
            [context, question],
        )
    return context, question, button


def _answer_fields() -> list[gr.Component]:
    """Lay out both models' answers and confidences, and the context with the answers marked."""
    fields: list[gr.Component] = []
    with gr.Row():
        for model in ("Base", "Fine-tuned"):
            with gr.Column(min_width=240):
                fields.append(gr.Textbox(label=model, lines=2, interactive=False))
                fields.append(gr.Textbox(label=f"{model}: confidence", interactive=False))
    fields.append(gr.HTML(container=True))
    return fields


def check_address(serving: ServingParameters) -> None:
    """Check the host and the port before a model is loaded.

    Raises:
        InputError: the process cannot listen on them.
    """
    try:
        socket.create_server((serving.host, serving.port)).close()
    except OSError as error:
        raise InputError(
            f"The page cannot be served on {serving.host}:{serving.port}: {error.strerror}; choose "
            "another address with --host or --port."
        ) from error


def launch(page: gr.Blocks, serving: ServingParameters) -> str:
    """Serve the page in the background until `page.close()`.

    The server contacts no other machine. It warns if other machines can reach it, because the page
    asks for no password.

    Returns:
        The page's address.

    Raises:
        InputError: the process cannot listen on the host and the port.
    """
    check_address(serving)
    if not _is_loopback(serving.host):
        logger.warning(
            "Other machines can reach %s, and the page asks for no password; serving.host "
            "127.0.0.1 restricts it to this machine.",
            serving.host,
        )
    _, address, _ = page.launch(
        server_name=serving.host,
        server_port=serving.port,
        prevent_thread_lock=True,
        share=False,
        inline=False,
        quiet=True,
        ssr_mode=False,
        mcp_server=False,
        pwa=False,
        run_history=False,
        enable_monitoring=False,
        footer_links=["api"],
        css=CSS,
        app_kwargs={"max_body_size": MAX_BODY_BYTES},
    )
    return address


def highlight(context: str, base: Answer, fine_tuned: Answer) -> list[tuple[str, str | None]]:
    """Split the context into pieces at the start and end of each answer.

    Returns:
        (piece, label) in order. The label names the models whose answer covers the piece:
        `base`, `fine-tuned`, `both` or None.
    """
    cuts = {0, len(context)}
    for answer in (base, fine_tuned):
        cuts |= {place for place in (answer.start, answer.end) if place is not None}
    pieces = []
    for start, end in pairwise(sorted(cuts)):
        by = [
            name
            for name, answer in (("base", base), ("fine-tuned", fine_tuned))
            if answer.start is not None and answer.end is not None
            if answer.start <= start < answer.end
        ]
        pieces.append((context[start:end], "both" if len(by) == 2 else by[0] if by else None))
    return pieces


def _marked(pieces: list[tuple[str, str | None]]) -> str:
    def mark(text: str, name: str | None) -> str:
        return f'<mark class="{name}">{escape(text)}</mark>' if name else escape(text)

    legend = " ".join(mark(name, name) for name in ("base", "fine-tuned", "both"))
    text = "".join(mark(*piece) for piece in pieces)
    return f"<p>In the context: {legend}</p><div class='context'>{text}</div>"


def _shown_answer(answer: Answer) -> str:
    return NO_ANSWER if answer.abstained else answer.text


def _shown_confidence(answer: Answer) -> str:
    confidence = f"{answer.score:.1%}"
    if answer.abstained or answer.start is not None:
        return confidence
    return f"{confidence}; not word for word in the context"


def _too_long(name: str, text: str, limit: int) -> str | None:
    if len(text or "") <= limit:
        return None
    return f"The {name} has {len(text):,} characters; shorten it to {limit:,}."


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
