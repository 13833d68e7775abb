"""The web page, and gradio's API: both models answer a question about one context.

Gradio queues requests and answers them in turn; see https://www.gradio.app/guides/queuing.
"""

import asyncio
import json
from dataclasses import asdict
from html import escape
from itertools import pairwise
from typing import Any

import gradio as gr

from flan_qa_pipeline.answering.answerer import Answer
from flan_qa_pipeline.answering.batches import Batches, Query
from flan_qa_pipeline.answering.question_rules import Pair, QuestionRules
from flan_qa_pipeline.answering.served_model import ServedModel
from flan_qa_pipeline.config.parameters import ServingParameters

NO_ANSWER = "No answer in this context"
CAVEAT = (
    "Confidence is the probability of the whole answer or, if a model abstains, the probability of "
    "abstaining rather than giving its best answer. It is not calibrated. Models err: check an "
    "answer in the context."
)
EMBEDDED_CAVEAT = (
    "The adapter learned from the embedded starter corpus alone, which is small: expect more wrong "
    "answers than from one that learned from a large corpus."
)
CSS = """
.context {white-space: pre-wrap; overflow-wrap: anywhere; max-height: 30rem; overflow-y: auto}
mark {color: black; border-radius: 2px}
mark.base {background: #fde68a}
mark.fine-tuned {background: #86efac}
mark.both {background: #7dd3fc}
"""
API_DESCRIPTION = (
    "Answers a question about a context with the base model and with the fine-tuned model. Each "
    "answer has text (empty if the model abstains), score (its confidence, 0..1), abstained, "
    "no_answer_probability (0..1), and start and end: the answer's [start, end) characters in the "
    "context, or null."
)


class _Endpoints:
    """What the page and gradio's API call."""

    def __init__(self, rules: QuestionRules, batches: Batches):
        self._rules, self._batches = rules, batches

    def check(self, context: str, question: str) -> list[dict[str, Any]]:
        """Validate both fields before the request enters the queue."""
        faults = self._rules.faults(Pair(context=context, question=question))
        sentences = [faults.get(field) for field in ("context", "question")]
        return [gr.validate(sentence is None, sentence or "") for sentence in sentences]

    async def answer_as_json(self, context: str, question: str) -> dict[str, Any]:
        """Return the fields of both answers."""
        base, fine_tuned = await self._answer_both(context, question)
        return {"base": asdict(base), "fine_tuned": asdict(fine_tuned)}

    async def answer_for_page(self, context: str, question: str) -> tuple[str, ...]:
        """Return the texts of the page's output fields."""
        base, fine_tuned = await self._answer_both(context, question)
        return (
            _shown_answer(base),
            _shown_confidence(base),
            _shown_answer(fine_tuned),
            _shown_confidence(fine_tuned),
            _marked(highlight(context, base, fine_tuned)),
        )

    async def _answer_both(self, context: str, question: str) -> list[Answer]:
        queries = [Query(context, question, base) for base in (True, False)]
        return await asyncio.gather(*map(asyncio.wrap_future, self._batches.submit(queries)))


def build_page(rules: QuestionRules, batches: Batches, model: ServedModel) -> gr.Blocks:
    """Lay out the page and gradio's API, without serving them.

    The only public endpoint, `answer`, takes a context and a question and returns
    `{"base": …, "fine_tuned": …}`, each with the fields of an `Answer`.
    """
    serving, endpoints = rules.serving, _Endpoints(rules, batches)
    request: dict[str, Any] = {
        "validator": endpoints.check,
        "concurrency_id": "model",
        "concurrency_limit": serving.concurrency,
    }
    with gr.Blocks(title="Question answering", analytics_enabled=False) as page:
        gr.Markdown(_introduction(model))
        with gr.Row():
            with gr.Column():
                context, question, button = _question_form(serving)
            with gr.Column():
                outputs = _answer_fields()
        taken = _examples(serving, [context, question], outputs)
        gr.Markdown("Programs ask by [HTTP](docs).")
        clear_answers = "() => ['', '', '', '', '']"
        gr.on([context.change, question.change], None, outputs=outputs, js=clear_answers)
        for event in (button.click, question.submit, taken):
            event(
                endpoints.answer_for_page,
                inputs=[context, question],
                outputs=outputs,
                api_visibility="private",
                scroll_to_output=True,
                **request,
            )
        gr.Button(visible=False).click(
            endpoints.answer_as_json,
            inputs=[context, question],
            outputs=gr.JSON(label="answers", visible=False),
            api_name="answer",
            api_description=API_DESCRIPTION,
            **request,
        )
    return page.queue(max_size=serving.max_queue_size, api_open=False)


def _introduction(model: ServedModel) -> str:
    corpus = f" on {model.corpus}" if model.corpus else ""
    version = f" (adapter {model.adapter})" if model.adapter else ""
    models = f"The base model {model.base} and the same model fine-tuned{corpus}{version} answer."
    caveats = f"{EMBEDDED_CAVEAT} {CAVEAT}" if model.learned_from_embedded_corpus else CAVEAT
    return f"# Question answering\n{escape(models)}\n\n{caveats}\n"


def _question_form(serving: ServingParameters) -> tuple[gr.Textbox, gr.Textbox, gr.Button]:
    """Lay out the fields for a context and a question, and the button."""
    context = gr.Textbox(
        "",
        label="Context",
        placeholder="Paste the text that the question is about, or choose an example below.",
        lines=8,
        max_lines=20,
        info=f"Up to {serving.max_context_characters:,} characters. The models read a long "
        "context in overlapping windows.",
    )
    question = gr.Textbox(
        "",
        label="Question",
        placeholder="Ask what the text says, for example when, where or how many.",
        info=f"Up to {serving.max_question_characters:,} characters.",
    )
    return context, question, gr.Button("Answer", variant="primary")


def _answer_fields() -> list[gr.Component]:
    """Lay out both models' answers and confidences, and the context with the answers marked."""
    fields: list[gr.Component] = []
    with gr.Row():
        for model in ("Base", "Fine-tuned"):
            with gr.Column(min_width=140):
                fields.append(gr.Textbox(label=model, lines=2, interactive=False))
                fields.append(gr.Textbox(label=f"{model}: confidence", interactive=False))
    fields.append(gr.HTML(container=True))
    return fields


def _examples(serving: ServingParameters, fields: list[gr.Textbox], answers: list[Any]) -> Any:
    """Offer the examples; a click fills the fields in and empties the answers.

    Returns:
        The event after that.
    """
    samples = [[example.context, example.question] for example in serving.examples]
    examples = gr.Dataset(
        label="Examples: a click answers",
        components=fields,
        samples=samples,
        type="index",
        visible=bool(samples),
    )
    emptied = [""] * len(answers)
    filled_in = json.dumps([[*sample, *emptied] for sample in samples])
    return examples.click(
        None, examples, [*fields, *answers], js=f"(number) => {filled_in}[number]"
    ).then


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
