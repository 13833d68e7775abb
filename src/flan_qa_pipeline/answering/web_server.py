"""The server of the page and the API."""

import logging
import socket
import threading
from typing import Self

import gradio as gr
import uvicorn
from fastapi import FastAPI
from gradio.routes import App
from starlette.middleware import Middleware
from starlette.middleware.body_limit import RequestBodyLimitMiddleware
from starlette.routing import Mount

from flan_qa_pipeline.answering.answerer import QuestionAnswerer
from flan_qa_pipeline.answering.batches import Batches, answer_queries
from flan_qa_pipeline.answering.gradio_routes import NeededRoutes
from flan_qa_pipeline.answering.http_api import build_api
from flan_qa_pipeline.answering.question_rules import QuestionRules
from flan_qa_pipeline.answering.served_model import ServedModel
from flan_qa_pipeline.answering.web_access import Credentials, SameOrigin, allowed_hosts
from flan_qa_pipeline.answering.web_page import CSS, build_page
from flan_qa_pipeline.config.parameters import ServingParameters
from flan_qa_pipeline.errors import InputError

logger = logging.getLogger(__name__)

MAX_BODY_BYTES = 2**24
SHUTDOWN_SECONDS = 5


def check_address(serving: ServingParameters) -> None:
    """Check the host and the port before a model is loaded.

    Raises:
        InputError: the process cannot listen on them.
    """
    _listen(serving).close()


def _listen(serving: ServingParameters) -> socket.socket:
    family = socket.AF_INET6 if ":" in serving.host else socket.AF_INET
    try:
        return socket.create_server((serving.host, serving.port), family=family, backlog=128)
    except OSError as error:
        raise InputError(
            f"The page cannot be served on {serving.host}:{serving.port}: {error.strerror}; choose "
            "another address with --host or --port."
        ) from error


class WebServer:
    """Serves the page and the API in the background until it is closed.

    The server contacts no other machine.
    """

    def __init__(
        self,
        answerer: QuestionAnswerer,
        serving: ServingParameters,
        credentials: Credentials | None = None,
    ):
        """Start to serve.

        Args:
            answerer: answers the questions.
            serving: where to listen, and what to accept.
            credentials: what the page and the API ask for; None asks for nothing.

        Raises:
            InputError: the process cannot listen on the host and the port.
        """
        listening = _listen(serving)
        self._batches = Batches(
            lambda queries: answer_queries(answerer, queries),
            size=2 * serving.concurrency,  # the page asks both models
        )
        rules, model = QuestionRules(answerer, serving), ServedModel.of(answerer.adapter)
        api = build_api(rules, self._batches, model, credentials)
        api.add_middleware(SameOrigin, hosts=allowed_hosts(serving, credentials))
        api.add_middleware(RequestBodyLimitMiddleware, max_body_size=MAX_BODY_BYTES)
        page = build_page(rules, self._batches, model)
        self._page = _mount(page, api, credentials)
        self._server = uvicorn.Server(
            uvicorn.Config(
                api,
                ws="none",
                log_config=None,
                log_level="warning",
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=SHUTDOWN_SECONDS,
            )
        )
        host = f"[{serving.host}]" if ":" in serving.host else serving.host
        self.address = f"http://{host}:{serving.port}/"
        self._ended = threading.Event()
        threading.Thread(target=self._run, args=(listening,), daemon=True).start()

    def _run(self, listening: socket.socket) -> None:
        try:
            self._server.run([listening])
        finally:
            self._ended.set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def wait(self) -> None:
        """Wait until the server ends."""
        self._ended.wait()  # Ctrl+C during Thread.join would mark the thread as ended

    def close(self) -> None:
        """Stop serving: open streams end, and what waits is not answered."""
        self._page.stop_event.set()
        self._server.should_exit = True
        self._batches.close()
        self._ended.wait()


def _mount(page: gr.Blocks, api: FastAPI, credentials: Credentials | None) -> App:
    """Add gradio's application beside the API's routes, and return it."""
    functions = frozenset(
        event["id"] for event in page.get_config_file()["dependencies"] if event["backend_fn"]
    )
    gr.mount_gradio_app(
        api,
        page,
        path="/",
        auth=credentials.match if credentials else None,
        show_error=False,
        ssr_mode=False,
        mcp_server=False,
        pwa=False,
        run_history=False,
        enable_monitoring=False,
        footer_links=[],
        css=CSS,
        app_kwargs={"middleware": [Middleware(NeededRoutes, functions=functions)]},
    )
    mounted = [route.app for route in api.routes if isinstance(route, Mount)]
    return next(app for app in mounted if isinstance(app, App))
