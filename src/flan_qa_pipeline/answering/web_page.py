"""A web page, and the HTTP API behind it, that ask both models about one context.

Gradio queues what is asked and answers it in turn; see https://www.gradio.app/guides/queuing.
"""

import ipaddress
import logging
import socket
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import asdict
from html import escape
from itertools import pairwise
from typing import Any

import gradio as gr

from flan_qa_pipeline.answering.answerer import Answer, QuestionAnswerer
from flan_qa_pipeline.config.parameters import ServingParameters
from flan_qa_pipeline.errors import InputError

logger = logging.getLogger(__name__)

Pair = tuple[str, str]
Answers = tuple[Answer, Answer]

NO_ANSWER = "No answer in this context"
INTRODUCTION = """# Question answering
The base model and the fine-tuned one, side by side. Confidence is the probability of the words
of an answer, or of abstaining rather than giving the best answer; it is not calibrated.
"""
CSS = """
.context {white-space: pre-wrap; overflow-wrap: anywhere; max-height: 30rem; overflow-y: auto}
mark {color: black; border-radius: 2px}
mark.base {background: #fde68a}
mark.fine-tuned {background: #86efac}
mark.both {background: #7dd3fc}
"""
MAX_BODY_BYTES = 2**24
API_DESCRIPTION = (
    "Answer a question about a context with the base model and with the fine-tuned one. Both "
    "answers have text (empty if the model abstains), score (0..1), abstained, "
    "no_answer_probability (0..1), and start and end: the answer's [start, end) characters in the "
    "context, or null."
)


class Batches:
    """Gathers what threads ask while a batch is being answered into the next batch.

    (Gradio's own `batch=True` cannot check two inputs before they are queued.)
    """

    def __init__(self, answer: Callable[[list[Pair]], list[Answers]]):
        self._answer = answer
        self._waiting: list[tuple[Pair, Future[Answers]]] = []
        self._turn = threading.Lock()

    def call(self, pair: Pair) -> Answers:
        """Wait for the answer, with all that wait by the time of the next batch.

        Raises:
            Exception: whatever answering the batch raises, in each of its threads.
        """
        future: Future[Answers] = Future()
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


def build_page(answerer: QuestionAnswerer, serving: ServingParameters) -> gr.Blocks:
    """Lay out the page and its API; nothing is served yet.

    The one public endpoint, `answer`, takes a context and a question and gives
    `{"base": …, "fine_tuned": …}`, each with the fields of an `Answer`.
    """

    def check(context: str, question: str) -> list[dict[str, Any]]:
        problems = [
            _too_long("context", context, serving.max_context_characters),
            _too_long("question", question, serving.max_question_characters),
        ]
        if not any(problems) and (problem := answerer.problem(context, question)):
            problems = [problem, None] if not (context or "").strip() else [None, problem]
        return [gr.validate(problem is None, problem or "") for problem in problems]

    def answer_both(pairs: list[Pair]) -> list[Answers]:
        return list(zip(answerer.answer(pairs, base=True), answerer.answer(pairs), strict=True))

    batches = Batches(answer_both)

    def as_json(context: str, question: str) -> dict[str, dict[str, Any]]:
        base, fine_tuned = batches.call((context, question))
        return {"base": asdict(base), "fine_tuned": asdict(fine_tuned)}

    def as_page(context: str, question: str) -> tuple[Any, ...]:
        base, fine_tuned = batches.call((context, question))
        shown = (text for said in (base, fine_tuned) for text in (_said(said), _confidence(said)))
        return *shown, _marked(highlight(context, base, fine_tuned))

    with gr.Blocks(title="Question answering", analytics_enabled=False) as page:
        gr.Markdown(INTRODUCTION)
        with gr.Row():
            with gr.Column():
                context = gr.Textbox(
                    "",
                    label="Context",
                    lines=10,
                    max_lines=20,
                    info=f"At most {serving.max_context_characters:,} characters; a long one is "
                    "read in overlapping windows.",
                )
                question = gr.Textbox(
                    "",
                    label="Question",
                    info=f"At most {serving.max_question_characters:,} characters.",
                )
                button = gr.Button("Answer", variant="primary")
                if serving.examples:
                    gr.Examples(
                        [[example.context, example.question] for example in serving.examples],
                        [context, question],
                    )
            with gr.Column():
                with gr.Row():
                    outputs = [
                        component
                        for model in ("Base", "Fine-tuned")
                        for component in _answer_column(model)
                    ]
                outputs.append(gr.HTML(container=True))
        gr.on(
            [context.change, question.change],
            None,
            outputs=outputs,
            js="() => ['', '', '', '', '']",  # answers to what was asked before
        )
        asked: dict[str, Any] = {
            "inputs": [context, question],
            "validator": check,
            "concurrency_id": "model",
            "concurrency_limit": serving.concurrency,
        }
        gr.on(
            [button.click, question.submit],
            as_page,
            outputs=outputs,
            api_visibility="private",
            **asked,
        )
        gr.Button(visible=False).click(
            as_json,
            outputs=gr.JSON(label="answers", visible=False),
            api_name="answer",
            api_description=API_DESCRIPTION,
            **asked,
        )
    return page.queue(max_size=serving.max_queue_size, api_open=False)


def check_address(serving: ServingParameters) -> None:
    """Raise InputError if nothing can listen on the host and the port, before a model is loaded."""
    try:
        socket.create_server((serving.host, serving.port)).close()
    except OSError as error:
        raise InputError(
            f"The page cannot be served on {serving.host}:{serving.port}: {error.strerror}; give "
            "another place with --host or --port."
        ) from error


def launch(page: gr.Blocks, serving: ServingParameters) -> str:
    """Serve the page in the background until `page.close()`; return its address.

    Nothing is fetched from or reported to other machines. A host beyond this machine is warned
    of, because whoever reaches the page may use it.

    Raises:
        InputError: see `check_address`.
    """
    check_address(serving)
    if not _is_loopback(serving.host):
        logger.warning(
            "%s is reached from other machines, and the page asks for no password; "
            "serving.host 127.0.0.1 keeps it on this one.",
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
    """Cut the context where answers begin and end; label each piece with who answers it.

    The pieces put together are the context. Labels: `base`, `fine-tuned`, `both`, None.
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


def _answer_column(model: str) -> list[gr.Component]:
    with gr.Column(min_width=240):
        return [
            gr.Textbox(label=model, lines=2, interactive=False),
            gr.Textbox(label=f"{model}: confidence", interactive=False),
        ]


def _said(answer: Answer) -> str:
    return NO_ANSWER if answer.abstained else answer.text


def _confidence(answer: Answer) -> str:
    sure = f"{answer.score:.1%}"
    if answer.abstained or answer.start is not None:
        return sure
    return f"{sure}; not word for word in the context"


def _too_long(name: str, text: str, limit: int) -> str | None:
    if len(text or "") <= limit:
        return None
    return f"The {name} has {len(text):,} characters; shorten it to {limit:,}."


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
