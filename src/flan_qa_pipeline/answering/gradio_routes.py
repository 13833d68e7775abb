"""The part of gradio's HTTP routes that the page and its API need, with strict bodies.

Gradio has routes for files, streams, proxies and more, turns any value into text, and prints a
traceback for some requests that it cannot answer.
"""

import logging
import re
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from flan_qa_pipeline.answering.question_rules import Pair, fault_of_field

logger = logging.getLogger(__name__)

API = "/gradio_api"
SESSION = r"[A-Za-z0-9]{1,64}"
READ = re.compile(
    r"/|/config/?|/theme\.css|/robots\.txt|/favicon\.ico|/manifest\.json|/logout"
    r"|/(static|assets|svelte)/.+"
    rf"|{API}/(info/?|openapi\.json|startup-events|theme\.css|app_id/?|user/?|login_check/?)"
    rf"|{API}/heartbeat/{SESSION}|{API}/queue/data|{API}/call/(v2/)?answer/{SESSION}"
)


class _Body(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")


class Call(_Body):
    """The values of a call, in the order of the endpoint's fields."""

    data: tuple[str, str]


class Join(Call):
    """A call of the page, in its session."""

    session_hash: Annotated[str, Field(pattern=f"^{SESSION}$")]
    fn_index: int
    trigger_id: int | None = None
    event_data: Any = None


WRITE: dict[str, type[BaseModel]] = {
    f"{API}/call/v2/answer": Pair,
    f"{API}/call/answer": Call,
    f"{API}/queue/join": Join,
}
LOGIN = "/login"


class NeededRoutes:
    """Lets through what the page needs, in the form that the page sends it."""

    def __init__(self, app: ASGIApp, functions: frozenset[int]):
        """Wrap gradio's application.

        Args:
            app: the application.
            functions: the indices of the functions that the page may call.
        """
        self._app, self._functions = app, functions

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        path = scope["path"].removeprefix(scope.get("root_path", "").rstrip("/"))
        method, body = scope["method"], WRITE.get(path.rstrip("/"))
        if method in ("GET", "HEAD") and READ.fullmatch(path):
            return await _answered(self._app, scope, receive, send)
        if method == "POST" and path.rstrip("/") == LOGIN:
            return await self._app(scope, receive, send)
        if method != "POST" or body is None:
            return await JSONResponse({"detail": "Not Found"}, 404)(scope, receive, send)
        try:
            raw = await Request(scope, receive).body()
        except ClientDisconnect:
            return
        if faults := self._faults(body, scope, raw):
            return await JSONResponse({"detail": faults}, 422)(scope, receive, send)
        await self._app(scope, _replayed(raw, receive), send)

    def _faults(self, body: type[BaseModel], scope: Scope, raw: bytes) -> list[dict[str, Any]]:
        """List what is wrong with a body, as gradio lists what its validators find."""
        kind = Request(scope).headers.get("content-type", "")
        if kind.partition(";")[0].strip().lower() != "application/json":
            return [_fault("body", "The body is not JSON; send it as application/json.")]
        try:
            read = body.model_validate_json(raw)
        except ValidationError as error:
            return [_fault_of(found) for found in error.errors(include_url=False)]
        if isinstance(read, Join) and read.fn_index not in self._functions:
            return [_fault("fn_index", "The page has no such function.")]
        return []


def _fault_of(error: Any) -> dict[str, Any]:
    place = error["loc"]
    if place[:1] == ("data",) and place[1:]:
        field = ("context", "question")[place[1]]
    else:
        field = next((part for part in place if isinstance(part, str)), "body")
    return _fault(field, fault_of_field(error, field))


def _fault(field: str, sentence: str) -> dict[str, Any]:
    return {"is_valid": False, "message": sentence, "parameter_name": field}


def _replayed(raw: bytes, receive: Receive) -> Receive:
    """Return a `receive` that gives the body that was read, then what follows it."""
    messages: list[Message] = [{"type": "http.request", "body": raw, "more_body": False}]

    async def replay() -> Message:
        return messages.pop() if messages else await receive()

    return replay


async def _answered(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer, and end a stream whose session does not exist without a traceback.

    Gradio raises the status after the stream has begun.
    """
    try:
        await app(scope, receive, send)
    except RuntimeError as error:
        if not isinstance(error.__cause__, HTTPException):
            raise
        logger.info("%s ended: %s", scope["path"], error.__cause__.detail)
        await send({"type": "http.response.body", "body": b"", "more_body": False})
