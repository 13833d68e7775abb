"""The web page in a real browser, and its API under load by a plain HTTP client."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict

import httpx
import pytest
from click.testing import CliRunner
from conftest import copy_project
from hypothesis import given
from hypothesis import strategies as st
from kedro.framework.startup import bootstrap_project
from kedro.io.core import Version
from playwright.sync_api import expect, sync_playwright

import flan_qa_pipeline
from flan_qa_pipeline.answering.answerer import Answer
from flan_qa_pipeline.answering.batches import Batches
from flan_qa_pipeline.answering.question_rules import QuestionRules
from flan_qa_pipeline.answering.served_model import ServedModel
from flan_qa_pipeline.answering.web_page import (
    CAVEAT,
    EMBEDDED_CAVEAT,
    NO_ANSWER,
    build_page,
    highlight,
)
from flan_qa_pipeline.answering.web_server import WebServer
from flan_qa_pipeline.cli import serve
from flan_qa_pipeline.datasets.adapter import AdapterDataset
from flan_qa_pipeline.errors import InputError

# gradio 6 calls pandas in ways that pandas 3 deprecates
pytestmark = pytest.mark.filterwarnings("ignore::pandas.errors.Pandas4Warning")
expect.set_options(timeout=60_000)
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)
HOSTILE = "<img src=x onerror=\"document.title='broken'\"> ${document.title='broken'} {{value}}"
LOAD, CLIENTS = 200, 16


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def serving(parameters):
    limits = {"max_context_characters": 9000, "max_question_characters": 1500}
    return parameters.serving.model_copy(update=limits | {"port": free_port()})


@pytest.fixture(scope="module")
def hosts():
    """Every host that this process looks up."""
    seen = set()
    look_up = socket.getaddrinfo
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            socket,
            "getaddrinfo",
            lambda host, *args, **kw: seen.add(host) or look_up(host, *args, **kw),
        )
        yield seen


@pytest.fixture(scope="module")
def address(answerer, serving, hosts):
    with WebServer(answerer, serving) as server:
        yield server.address
    assert hosts <= {"127.0.0.1"}


@pytest.fixture(scope="module")
def client(address):
    with httpx.Client(base_url=f"{address}gradio_api/call/", timeout=60, trust_env=False) as client:
        yield client


def ask(client, context, question):
    """Ask as README says; return what the final event says."""
    posted = client.post("v2/answer", json={"context": context, "question": question})
    return read(client, posted.raise_for_status().json()["event_id"])


def read(client, event_id):
    stream = client.get(f"answer/{event_id}").text
    *_, (event, data) = re.findall(r"event: (\w+)\ndata: (.*)", stream)
    assert event == "complete", stream
    return json.loads(data)


def like(said):
    """Answers but for what a batch changes in the last digits of probabilities."""
    if isinstance(said, list):
        return [pytest.approx(answer, abs=1e-3) for answer in said]
    return [{model: pytest.approx(answer, abs=1e-3) for model, answer in said.items()}]


@pytest.fixture(scope="module")
def expected(answerer, pairs):
    """Both answers to every pair, as the Python API gives them."""
    both = zip(answerer.answer(pairs, base=True), answerer.answer(pairs), strict=True)
    return [{"base": asdict(base), "fine_tuned": asdict(fine_tuned)} for base, fine_tuned in both]


def test_api_gives_the_answers_of_both_models(client, pairs, expected):
    assert any(answers["base"]["start"] is not None for answers in expected)
    assert any(answers["fine_tuned"]["abstained"] for answers in expected)
    for pair, answers in zip(pairs, expected, strict=True):
        assert ask(client, *pair) == like(answers)


@pytest.mark.slow
def test_no_request_is_lost_under_load(client, pairs, expected):
    asked = [i % 7 for i in range(LOAD)]  # the short contexts
    with ThreadPoolExecutor(CLIENTS) as pool:
        answers = list(pool.map(lambda i: ask(client, *pairs[i]), asked))
    assert len(answers) == LOAD
    for i, said in zip(asked, answers, strict=True):
        assert said == like(expected[i])


@pytest.mark.parametrize(
    ("context", "question", "field", "complaint"),
    [
        ("x" * 9001, "Who?", "context", "The context has 9,001 characters; shorten it to 9,000."),
        ("x", "y" * 1501, "question", "The question has 1,501 characters; shorten it to 1,500."),
        (
            "x",
            "Who was it? " * 90,
            "question",
            "The question takes .* tokens .* shorten the question",
        ),
        (" \n", "Who?", "context", "The context is empty"),
        ("x", "", "question", "The question is empty"),
        (None, "Who?", "context", "The context is missing"),
    ],
)
def test_api_says_what_is_wrong_with_a_question(client, context, question, field, complaint):
    refused = client.post("v2/answer", json={"context": context, "question": question})
    assert refused.status_code == 422
    wrong = [part for part in refused.json()["detail"] if not part["is_valid"]]
    assert [part["parameter_name"] for part in wrong] == [field]
    assert re.match(complaint, wrong[0]["message"])


def test_api_has_no_way_around_queue_and_checks(client, address):
    assert client.post("../run/answer", json={"data": ["x", "y"]}).status_code == 404
    huge = b'{"context": "' + b"x" * 2**24 + b'", "question": "Who?"}'
    assert client.post("v2/answer", content=huge).status_code == 413
    described = httpx.get(f"{address}gradio_api/info", trust_env=False).json()["named_endpoints"]
    assert list(described) == ["/answer"]
    assert "no_answer_probability" in described["/answer"]["description"]


def test_a_full_queue_refuses_and_answers_what_it_took(answerer, serving, pairs, expected):
    changes = {"max_queue_size": 1, "concurrency": 1, "port": free_port()}
    short = serving.model_copy(update=changes)
    body = dict(zip(("context", "question"), pairs[0], strict=True))
    with (
        WebServer(answerer, short) as server,
        httpx.Client(
            base_url=f"{server.address}gradio_api/call/", timeout=60, trust_env=False
        ) as client,
    ):
        posted = [client.post("v2/answer", json=body) for _ in range(20)]
        taken = [post.json()["event_id"] for post in posted if post.status_code == 200]
        refused = [post for post in posted if post.status_code != 200]
        for event_id in taken:
            assert read(client, event_id) == like(expected[0])
    assert taken and refused
    assert {post.status_code for post in refused} == {503}
    assert "Queue is full" in refused[0].json()["detail"]


def test_a_taken_port_is_named(answerer, serving, address):
    with pytest.raises(
        InputError, match=f"127.0.0.1:{serving.port}: Address already in use.*--port"
    ):
        WebServer(answerer, serving)


@pytest.mark.parametrize(
    ("model", "said", "unsaid"),
    [
        (ServedModel("flan-t5-base", "2026", "squad_v2"), ["flan-t5-base", "2026", "squad_v2"],
         [EMBEDDED_CAVEAT]),
        (ServedModel("starter_t5", None, "the embedded starter corpus"), [EMBEDDED_CAVEAT],
         ["None"]),
        (ServedModel("a<b>", None, None), ["a&lt;b&gt;"], ["None", EMBEDDED_CAVEAT]),
    ],
)  # fmt: skip
def test_the_page_says_which_model_answers(answerer, serving, model, said, unsaid):
    batches = Batches(lambda queries: [], size=1)
    page = build_page(QuestionRules(answerer, serving), batches, model)
    batches.close()
    shown = page.get_config_file()["components"][0]["props"]["value"]
    assert all(part in shown for part in (*said, CAVEAT))
    assert not any(part in shown for part in unsaid)


@given(
    context=st.text(min_size=4, max_size=20),
    spans=st.lists(
        st.none() | st.tuples(st.integers(0, 3), st.integers(1, 4)).filter(lambda s: s[0] < s[1]),
        min_size=2,
        max_size=2,
    ),
)
def test_highlighting_keeps_the_context_and_labels_its_characters(context, spans):
    base, fine_tuned = (
        Answer("", 0.0, span is None, 0.0, *(span or (None, None))) for span in spans
    )
    pieces = highlight(context, base, fine_tuned)
    assert "".join(text for text, _ in pieces) == context
    labels = [label for text, label in pieces for _ in text]
    covered = [
        [span is not None and span[0] <= place < span[1] for span in spans]
        for place in range(len(context))
    ]
    names = {(0, 0): None, (1, 0): "base", (0, 1): "fine-tuned", (1, 1): "both"}
    assert labels == [names[tuple(by)] for by in covered]


@pytest.fixture(params=[{}], ids=["desktop"])
def page(address, request):
    """The page in headless Chromium; it may load from the server only and logs no error."""
    if BROWSER is None:
        pytest.skip("chromium is not installed (apt-get install chromium), nothing to run")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        page = browser.new_page(**request.param)
        page.set_default_timeout(60_000)
        loaded, errors = [], []
        page.on("request", lambda request: loaded.append(request.url))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on(
            "console", lambda said: said.type in ("error", "warning") and errors.append(said.text)
        )
        page.goto(address)
        yield page
        browser.close()
    assert len(loaded) > 10
    assert [url for url in loaded if not url.startswith((address, "data:", "blob:"))] == []
    # the browser logs each answer of 422, which the page shows beside the field
    assert [error for error in errors if "status of 422" not in error] == []


class Form:
    """What a person sees of the page and does with it."""

    def __init__(self, page):
        self.context = page.get_by_label(re.compile(r"^\s*Context"))
        self.question = page.get_by_label(re.compile(r"^\s*Question"))
        self.button = page.get_by_role("button", name="Answer", exact=True)
        self.base = page.get_by_label("Base", exact=True)
        self.fine_tuned = page.get_by_label("Fine-tuned", exact=True)
        self.confidence = page.get_by_label("Fine-tuned: confidence")
        self.read = page.locator(".context")
        self.marked = self.read.locator("mark")


@pytest.fixture
def form(page):
    return Form(page)


def test_a_person_asks_and_reads_both_answers(form, pairs, expected):
    (context, question), said = next(
        (pair, said)
        for pair, said in zip(pairs, expected, strict=True)
        if all(answer["start"] is not None for answer in said.values())
    )
    form.context.fill(context)
    form.question.press_sequentially(question)
    form.button.click()
    expect(form.base).to_have_value(said["base"]["text"])
    expect(form.fine_tuned).to_have_value(said["fine_tuned"]["text"])
    expect(form.confidence).to_have_value(f"{said['fine_tuned']['score']:.1%}")
    assert form.read.inner_text() == context
    marked = "".join(form.marked.all_inner_texts())
    assert all(context[answer["start"] : answer["end"]] in marked for answer in said.values())


def test_a_person_sees_that_there_is_no_answer(form, pairs, expected):
    (context, question), said = next(
        (pair, said["fine_tuned"])
        for pair, said in zip(pairs, expected, strict=True)
        if said["fine_tuned"]["abstained"]
    )
    form.context.fill(context)
    form.question.fill(question)
    form.question.press("Enter")
    expect(form.fine_tuned).to_have_value(NO_ANSWER)
    expect(form.confidence).to_have_value(f"{said['no_answer_probability']:.1%}")
    assert form.read.locator("mark.fine-tuned, mark.both").count() == 0


def test_a_person_who_pastes_too_much_is_told_so(page, form, pairs):
    context, question = pairs[0]
    form.context.fill("x" * 9001)
    form.question.fill(question)
    form.button.click()
    expect(
        page.get_by_text("The context has 9,001 characters; shorten it to 9,000.")
    ).to_be_visible()
    expect(form.fine_tuned).to_have_value("")
    form.context.fill(context)
    form.button.click()
    expect(form.fine_tuned).not_to_have_value("")
    expect(page.get_by_text("shorten it")).to_have_count(0)


def test_a_person_takes_an_example(page, form, serving):
    example = serving.examples[0]
    page.get_by_text(example.question).click()
    expect(form.context).to_have_value(example.context)
    expect(form.question).to_have_value(example.question)
    expect(form.read).to_have_text(example.context)
    form.question.press_sequentially(" ")
    expect(form.base).to_have_value("")


@pytest.mark.parametrize(
    "page",
    [{"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True}],
    ids=["phone"],
    indirect=True,
)
def test_on_a_phone_the_answer_comes_into_view(page, form, serving, pairs):
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.get_by_text(serving.examples[1].question).tap()
    expect(form.fine_tuned).not_to_have_value("")
    expect(form.fine_tuned).to_be_in_viewport()
    form.context.fill(pairs[0][0])
    form.question.fill(pairs[0][1])
    expect(form.fine_tuned).to_have_value("")
    form.button.tap()
    expect(form.fine_tuned).not_to_have_value("")
    expect(form.fine_tuned).to_be_in_viewport()


def test_markup_and_templates_in_a_context_stay_text(page, form, pairs):
    form.context.fill(f"{HOSTILE}\n\n{pairs[0][0]}")
    form.question.fill(HOSTILE)
    form.button.click()
    expect(form.read).to_be_visible()
    assert form.read.inner_text() == f"{HOSTILE}\n\n{pairs[0][0]}"
    expect(page).to_have_title("Question answering")


@pytest.fixture(scope="module")
def project(tmp_path_factory, adapter):
    """A copy of the project that has an adapter and an environment of its own."""
    root = tmp_path_factory.mktemp("project")
    copy_project(root)
    AdapterDataset(
        filepath=str(root / "data/06_models/adapter"), version=Version(None, "2026-01-01T00.00.00")
    ).save(adapter)
    return root


def kedro_serve(project, *options):
    return subprocess.Popen(  # noqa: S603
        [sys.executable, "-m", "kedro", "serve", *options],
        cwd=project,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        env=os.environ | {"PYTHONPATH": str(project / "src"), "PYTHONUNBUFFERED": "1"},
    )


@pytest.mark.slow
def test_kedro_serve_answers_until_it_is_interrupted(project, pairs, expected):
    port = free_port()
    params = "--params=model.compute_dtype=float32,serving.port=1"
    server = kedro_serve(project, f"--port={port}", params)
    with (
        server,
        httpx.Client(
            base_url=f"http://127.0.0.1:{port}/gradio_api/call/", timeout=60, trust_env=False
        ) as client,
    ):
        limit = threading.Timer(120, server.kill)
        limit.start()
        try:
            told = ""
            while f"http://127.0.0.1:{port}/" not in told:
                line = server.stdout.readline()
                assert line, told
                told += line
            assert ask(client, *pairs[0]) == like(expected[0])
            server.send_signal(signal.SIGINT)
            told += server.stdout.read()
            server.wait(timeout=60)  # it closes its output before it ends
        finally:
            server.kill()
            limit.cancel()
    assert server.returncode == 0, told
    origin = "(the latest; none is promoted) answers, on the base copying_t5"
    assert " ".join(told.split()).count(origin) == 1
    assert "Traceback" not in told


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--port=70000"], "Parameter serving.port is 70000"),
        (["--host=192.0.2.1"], "192.0.2.1:7860: Cannot assign requested address"),
        (["--load-versions=adapter:2020"], "adapter: there is no 2020"),
        (["--load-versions=questions:2020"], "--load-versions names questions"),
        (["--params=serving.hots=a"], "did you mean host"),
        (["--params=serving.password=a"], "Unknown parameter serving.password"),
        (["--host=0.0.0.0"], "0.0.0.0 without a password; set FLAN_QA_USERNAME"),
    ],
)
def test_kedro_serve_refuses_in_one_line(project, monkeypatch, options, complaint):
    monkeypatch.chdir(project)
    refused = CliRunner().invoke(serve, options, obj=bootstrap_project(project))
    assert refused.exit_code == 1
    assert complaint in refused.output


def test_kedro_serve_reads_the_credentials_of_the_project_before_the_model(project, monkeypatch):
    monkeypatch.chdir(project)
    stored = project / "conf/local/credentials.yml"
    stored.parent.mkdir(exist_ok=True)
    stored.write_text("serving:\n  username: ann\n", encoding="utf-8")
    refused = CliRunner().invoke(serve, ["--host=0.0.0.0"], obj=bootstrap_project(project))
    stored.unlink()
    assert refused.exit_code == 1
    assert "credentials of the web page lack a valid password" in refused.output


def test_kedro_serve_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    for module in ("web_page", "web_server"):
        monkeypatch.delitem(sys.modules, f"flan_qa_pipeline.answering.{module}")
        monkeypatch.delattr(flan_qa_pipeline.answering, module)
    refused = CliRunner().invoke(serve, [], obj=None)
    assert refused.exit_code == 1
    assert "pip install 'flan_qa_pipeline[app]'" in refused.output
