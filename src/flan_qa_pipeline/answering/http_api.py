"""The plain HTTP API: POST /answer, GET /health, and their description at /docs."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.security import HTTPBasic, HTTPBasicCredentials
from fastapi_offline import FastAPIOffline
from pydantic import BaseModel, Discriminator, Tag
from starlette.concurrency import run_in_threadpool

from flan_qa_pipeline import __version__
from flan_qa_pipeline.answering.answerer import Answer
from flan_qa_pipeline.answering.batches import Batches, Query
from flan_qa_pipeline.answering.question_rules import Pair, QuestionRules, fault_of_field
from flan_qa_pipeline.answering.served_model import ServedModel
from flan_qa_pipeline.answering.web_access import Credentials

ONE, MANY = "one pair", "pairs"
Pairs = Annotated[
    Annotated[Pair, Tag(ONE)] | Annotated[list[Pair], Tag(MANY)],
    Discriminator(lambda body: MANY if isinstance(body, list) else ONE),
]
SUMMARY = "Answers questions about contexts with the fine-tuned model."
ANSWER_DESCRIPTION = (
    "The body is one pair of context and question, or a list of pairs. The response is one answer, "
    "or a list of answers in the same order.\n\n"
    "- `text`: the answer, empty if the model abstains\n"
    "- `score`: the model's confidence, 0..1, not calibrated: the probability of the whole answer, "
    "or `no_answer_probability` if the model abstains\n"
    "- `abstained`: whether the model finds no answer in the context\n"
    "- `no_answer_probability`: the probability of abstaining rather than giving the best answer\n"
    "- `start`, `end`: the answer's [start, end) characters in the context, or null"
)


class Health(BaseModel):
    """A server that answers, and what it answers with."""

    status: Literal["ok"] = "ok"
    base: str
    adapter: str | None
    corpus: str | None


class Fault(BaseModel):
    """Why a part of a request cannot be answered."""

    loc: list[str | int]
    msg: str
    type: str


class Faults(BaseModel):
    """All that is wrong with a request."""

    detail: list[Fault]


@dataclass(frozen=True)
class _Endpoints:
    rules: QuestionRules
    batches: Batches
    model: ServedModel

    async def answer(self, body: Pairs) -> Answer | list[Answer]:
        """Answer one pair, or each pair of a list."""
        pairs = body if isinstance(body, list) else [body]
        room = self.rules.serving.max_queue_size
        if len(pairs) > room:
            sentence = f"The list has {len(pairs):,} pairs; send at most {room:,} at a time."
            raise HTTPException(422, [_fault(["body"], sentence, "too_long")])
        if faults := await run_in_threadpool(self._faults, pairs, isinstance(body, list)):
            raise HTTPException(422, faults)
        if self.batches.waiting + len(pairs) > room:
            raise HTTPException(
                503, "Too many questions wait; try again later.", {"Retry-After": "1"}
            )
        futures = self.batches.submit([Query(pair.context, pair.question) for pair in pairs])
        answers = await asyncio.gather(*map(asyncio.wrap_future, futures))
        return answers if isinstance(body, list) else answers[0]

    async def health(self) -> Health:
        """Say which base and adapter answer."""
        model = self.model
        return Health(base=model.base, adapter=model.adapter, corpus=model.corpus)

    def _faults(self, pairs: Sequence[Pair], numbered: bool) -> list[dict[str, Any]]:
        return [
            _fault(["body", *([number] if numbered else []), field], sentence, "value_error")
            for number, pair in enumerate(pairs)
            for field, sentence in self.rules.faults(pair).items()
        ]


def build_api(
    rules: QuestionRules, batches: Batches, model: ServedModel, credentials: Credentials | None
) -> FastAPI:
    """Make the application of `/answer`, `/health` and `/docs`.

    Args:
        rules: what a request may ask.
        batches: answers the questions.
        model: what `/health` names.
        credentials: `/answer` and `/health` ask for them by HTTP's basic authentication; None
            asks for none.
    """
    api = FastAPIOffline(
        title="Question answering",
        summary=SUMMARY,
        version=__version__,
        redoc_url=None,
    )
    api.exception_handler(RequestValidationError)(_refuse)
    endpoints = _Endpoints(rules, batches, model)
    router = APIRouter(dependencies=[Depends(_ask_for(credentials))] if credentials else [])
    router.post(
        "/answer",
        summary="Answer one question or many",
        description=ANSWER_DESCRIPTION,
        responses={
            422: {"model": Faults, "description": "Names each field that cannot be answered"},
            503: {"description": "Too many questions wait"},
        },
    )(endpoints.answer)
    router.get("/health", summary="Base and adapter that answer")(endpoints.health)
    api.include_router(router)
    return api


def _ask_for(credentials: Credentials) -> Any:
    basic = HTTPBasic()

    def check(given: Annotated[HTTPBasicCredentials, Depends(basic)]) -> None:
        if not credentials.match(given.username, given.password):
            headers = {"WWW-Authenticate": "Basic"}
            raise HTTPException(401, "The username or the password is wrong.", headers)

    return check


async def _refuse(request: Request, error: RequestValidationError) -> JSONResponse:
    """Name each field that is wrong, in a sentence; the value itself is left out."""
    faults = []
    for found in error.errors():
        place = [part for part in found["loc"] if part not in (ONE, MANY)]
        field = next(part for part in reversed(place) if isinstance(part, str))
        faults.append(_fault(place, fault_of_field(found, field), found["type"]))
    return JSONResponse({"detail": faults}, 422)


def _fault(place: list[str | int], sentence: str, kind: str) -> dict[str, Any]:
    return {"loc": place, "msg": sentence, "type": kind}
