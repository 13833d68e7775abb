"""The HTTP API beside the page, and what clients may not do, on a real server."""

import json
import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path

import httpx
import pytest
from test_web_page import free_port, like

from flan_qa_pipeline.answering.served_model import ServedModel
from flan_qa_pipeline.answering.web_access import Credentials
from flan_qa_pipeline.answering.web_server import WebServer

# gradio 6 calls pandas in ways that pandas 3 deprecates
pytestmark = pytest.mark.filterwarnings("ignore::pandas.errors.Pandas4Warning")
GRADIO = "gradio_api"
JSON = {"content-type": "application/json"}
NOT_TEXTS = [(5, "int"), (1.5, "float"), (True, "bool"), (["a"], "list"), ({"a": 1}, "dict")]
NOT_TEXTS = [(json.dumps(value), kind) for value, kind in NOT_TEXTS] + [("NaN", "float")]


@pytest.fixture(scope="module")
def serving(parameters):
    limits = {"max_context_characters": 9000, "max_queue_size": 40, "port": free_port()}
    return parameters.serving.model_copy(update=limits)


@pytest.fixture(scope="module")
def server(answerer, serving):
    with WebServer(answerer, serving) as server:
        yield server


@pytest.fixture(scope="module")
def client(server):
    with httpx.Client(base_url=server.address, timeout=60, trust_env=False) as client:
        yield client


@pytest.fixture(scope="module")
def expected(answerer, pairs):
    return [asdict(answer) for answer in answerer.answer(pairs)]


def as_pair(pair):
    return dict(zip(("context", "question"), pair, strict=True))


def test_one_pair_gives_one_answer_and_a_list_gives_a_list(client, pairs, expected):
    assert any(answer["abstained"] for answer in expected)
    answer = client.post("answer", json=as_pair(pairs[0]))
    assert answer.status_code == 200
    assert [answer.json()] == like(expected[:1])
    answers = client.post("answer", json=[as_pair(pair) for pair in pairs])
    assert answers.json() == like(expected)
    assert client.post("answer", json=[]).json() == []


def test_32_requests_at_a_time_come_back_right(client, pairs, expected):
    asked = [i % 7 for i in range(32)]  # the short contexts
    with ThreadPoolExecutor(32) as pool:
        answers = list(pool.map(lambda i: client.post("answer", json=as_pair(pairs[i])), asked))
    assert [answer.json() for answer in answers] == like([expected[i] for i in asked])


def test_health_names_what_answers(client, answerer):
    health = client.get("health").json()
    assert health == {"status": "ok", "base": "copying_t5", "adapter": None, "corpus": None}


def test_what_the_adapter_records_is_named(answerer):
    run = {
        "run_id": "2026",
        "corpora": {"train": "the embedded starter corpus"},
    }
    model = ServedModel.of(replace(answerer.adapter, training={"run": run}))
    assert model == ServedModel("copying_t5", "2026", "the embedded starter corpus")
    assert model.learned_from_embedded_corpus


def test_the_description_is_complete_and_needs_no_other_machine(client):
    page = client.get("docs").text
    assert "https://" not in page and "swagger-ui-bundle.js" in page
    assert client.get("static-offline-docs/swagger-ui-bundle.js").status_code == 200
    described = client.get("openapi.json").json()
    assert list(described["paths"]) == ["/answer", "/health"]
    pair = described["components"]["schemas"]["Pair"]
    assert set(pair["required"]) == {"context", "question"}
    assert set(described["components"]["schemas"]["Answer"]["properties"]) == {
        *("text", "score", "abstained", "no_answer_probability", "start", "end")
    }


def refused(response):
    """The fields that a response refuses, with the reason."""
    assert response.status_code == 422, response.text
    return {
        part.get("parameter_name") or part["loc"][-1]: part.get("message") or part["msg"]
        for part in response.json()["detail"]
        if not part.get("is_valid")
    }


@pytest.mark.parametrize(("value", "kind"), NOT_TEXTS)
@pytest.mark.parametrize("field", ["context", "question"])
def test_only_text_is_taken_for_text(client, field, value, kind):
    other = "question" if field == "context" else "context"
    pair = f'{{"{field}": {value}, "{other}": "Who?"}}'
    values = f'[{value}, "Who?"]' if field == "context" else f'["Who?", {value}]'
    join = f'{{"data": {values}, "fn_index": 1, "session_hash": "a"}}'
    for path, body in (
        ("answer", pair),
        ("answer", f"[{pair}]"),
        (f"{GRADIO}/call/v2/answer", pair),
        (f"{GRADIO}/call/answer", f'{{"data": {values}}}'),
        (f"{GRADIO}/queue/join", join),
    ):
        response = client.post(path, content=body, headers=JSON)
        assert refused(response) == {field: f"The {field} is of type {kind}; give it as text."}


@pytest.mark.parametrize(
    ("pair", "field", "complaint"),
    [
        ({"context": None, "question": "Who?"}, "context", "is missing"),
        ({"context": "x"}, "question", "is missing"),
        ({"context": "\u200b", "question": "Who?"}, "context", "is empty"),
        ({"context": "x", "question": " "}, "question", "is empty"),
        ({"context": "x" * 9001, "question": "Who?"}, "context", "shorten it to 9,000"),
        ({"context": "x", "question": "Who? " * 99}, "question", "shorten the question"),
        ({"context": "x", "question": "Who?", "session_hash": "a"}, "session_hash", "is unknown"),
        ({"context": "x", "question": "Who?", "more": {}}, "more", "is unknown"),
    ],
)
def test_a_fault_is_named_with_its_field(client, pair, field, complaint):
    good = {"context": "x", "question": "Who?"}
    for path, body, place in (
        ("answer", pair, ["body", field]),
        ("answer", [good, pair], ["body", 1, field]),
        (f"{GRADIO}/call/v2/answer", pair, None),
    ):
        response = client.post(path, json=body)
        faults = refused(response)
        assert list(faults) == [field]
        assert complaint in faults[field]
        assert place is None or response.json()["detail"][0]["loc"] == place


def test_more_pairs_than_may_wait_are_refused(client):
    pairs = [{"context": "x", "question": "Who?"}] * 41
    assert refused(client.post("answer", json=pairs)) == {
        "body": "The list has 41 pairs; send at most 40 at a time."
    }


def test_questions_that_find_no_room_are_refused_and_the_others_answered(
    answerer, serving, pairs, expected
):
    short = serving.model_copy(update={"max_queue_size": 2, "port": free_port()})
    with (
        WebServer(answerer, short) as server,
        httpx.Client(base_url=server.address, timeout=60, trust_env=False) as client,
        ThreadPoolExecutor(16) as pool,
    ):
        answers = list(pool.map(lambda _: client.post("answer", json=as_pair(pairs[0])), range(16)))
    taken = [answer.json() for answer in answers if answer.status_code == 200]
    full = [answer for answer in answers if answer.status_code != 200]
    assert taken == like(expected[:1] * len(taken)) and taken and full
    assert {(answer.status_code, answer.headers["retry-after"]) for answer in full} == {(503, "1")}


HOSTILE = [
    *[("POST", path, {"content": content, "headers": JSON}) for path in (
        "answer", "gradio_api/call/v2/answer", "gradio_api/call/answer", "gradio_api/queue/join"
    ) for content in (
        b"", b"{", b"null", b"5", b'"text"', b"\xff\xfe", b"[" * 100_000, b'{"data": []}',
        b'{"context": "\\ud800", "question": "Who?"}', b'{"data": {"context": "x"}}',
        b'{"data": ["x", "Who?"], "session_hash": "a"}', b'{"data": ["x", "Who?", "more"]}',
        b'{"data": ["x", "Who?"], "fn_index": 99, "session_hash": "a"}',
        b'{"data": ["x", "Who?"], "fn_index": 1, "session_hash": "../a"}',
        b'{"data": ["x", "Who?"], "fn_index": NaN, "session_hash": 5}',
        b'{"context": "x", "question": "Who?", "session_hash": "a"}',
    )],
    ("POST", "answer", {"content": b"\xff", "headers": {"content-type": "text/plain"}}),
    ("POST", "answer", {"data": {"context": "x", "question": "Who?"}}),
    ("POST", "gradio_api/call/answer", {"data": {"data": "x"}}),
    ("POST", "login", {"files": {"username": b"x" * 2_000_000, "password": b"y"}}),
    ("GET", "answer", {}),
    ("GET", "gradio_api/call/answer/unknown", {}),
    ("GET", "gradio_api/queue/data", {"params": {"session_hash": "unknown"}}),
    ("GET", "gradio_api/queue/data", {}),
    ("GET", "config", {"params": {"deep_link": "../../etc"}}),
]  # fmt: skip


def test_nothing_that_a_client_sends_is_an_error_of_the_server(client, caplog, capfd):
    statuses = [client.request(method, path, **sent).status_code for method, path, sent in HOSTILE]
    assert max(statuses) < 500
    assert all(status >= 400 for status, (method, _, _) in zip(statuses, HOSTILE, strict=True)
               if method == "POST")  # fmt: skip
    shown = "".join(capfd.readouterr()) + caplog.text
    assert "Traceback" not in shown
    assert not [record for record in caplog.records if record.exc_info]


def test_a_client_that_hangs_up_leaves_no_traceback(server, client, pairs, caplog, capfd):
    with httpx.Client(base_url=server.address, trust_env=False, timeout=0.001) as hasty:
        for path in ("answer", f"{GRADIO}/call/v2/answer"):
            with pytest.raises(httpx.TimeoutException):
                hasty.post(path, json=as_pair(pairs[-1]))
    assert client.get("health").status_code == 200
    assert "Traceback" not in "".join(capfd.readouterr()) + caplog.text


def test_there_is_nothing_to_upload_to_and_no_file_to_read(client, tmp_path):
    secret = tmp_path / "secret.txt"
    secret.write_text("a secret of the host", encoding="utf-8")
    before = set(os.listdir(tempfile.gettempdir()))
    megabytes = {"files": ("large.bin", b"x" * 15_000_000)}
    for path in ("upload", "upload/", "component_server", "process_recording", "stream/a"):
        assert client.post(f"{GRADIO}/{path}", files=megabytes).status_code == 404
    assert {n for n in set(os.listdir(tempfile.gettempdir())) - before if "gradio" in n} == set()
    for place in (secret, Path("/etc/passwd"), Path.cwd() / "pyproject.toml"):
        for route in ("file=", "file/", "file%3D", "proxy=http://127.0.0.1:1", "stream/a/1/1/"):
            assert client.get(f"{GRADIO}/{route}{place}").status_code in (403, 404)
        for route in ("static/", "assets/", "svelte/", "custom_component/", ""):
            answer = client.get(f"{route}..%2f..%2f..%2f..%2f..%2f..{place}")
            assert answer.status_code in (403, 404)
    for path in ("run/answer", "api/answer", "cancel", "reset", "vibe-edit"):
        assert client.post(f"{GRADIO}/{path}", json={"data": ["x", "y"]}).status_code == 404
    assert str(Path.cwd()) not in client.get("config").text


@pytest.mark.parametrize("path", ["health", "", f"{GRADIO}/info", f"{GRADIO}/heartbeat/a"])
def test_other_origins_and_names_are_refused(server, client, path):
    port = server.address.rsplit(":", 1)[1].rstrip("/")
    origins = ["http://localhost:3000", "http://127.0.0.1:1", "https://example.com", "null", "x["]
    for headers in (*({"origin": origin} for origin in origins), {"host": f"example.com:{port}"}):
        answer = client.get(path, headers=headers)
        assert answer.status_code == 403
        assert "access-control-allow-origin" not in answer.headers
    asked = {"origin": "http://localhost:3000", "access-control-request-method": "POST"}
    preflight = client.options(path, headers=asked)
    assert preflight.status_code == 403
    assert "access-control-allow-origin" not in preflight.headers
    if "heartbeat" not in path:
        own = {"origin": f"http://127.0.0.1:{port}"}
        assert client.get(path, headers=own).status_code == 200
        local = {"origin": f"http://localhost:{port}", "host": f"localhost:{port}"}
        assert client.get(path, headers=local).status_code == 200


def test_page_and_api_ask_for_the_same_password(answerer, serving, pairs, expected):
    credentials = Credentials(username="ann", password="a pass")  # noqa: S106
    settings = serving.model_copy(update={"port": free_port()})
    pair = as_pair(pairs[0])
    with (
        WebServer(answerer, settings, credentials) as server,
        httpx.Client(base_url=server.address, timeout=60, trust_env=False) as client,
    ):
        for given in (None, ("ann", "apass"), ("bob", "a pass")):
            assert client.post("answer", json=pair, auth=given).status_code == 401
            assert client.get("health", auth=given).status_code == 401
        answer = client.post("answer", json=pair, auth=("ann", "a pass"))
        assert [answer.json()] == like(expected[:1])
        assert client.get("health", auth=("ann", "a pass")).status_code == 200
        for path in ("config", f"{GRADIO}/info", f"{GRADIO}/queue/data?session_hash=a"):
            assert client.get(path).status_code == 401
        assert client.post(f"{GRADIO}/call/v2/answer", json=pair).status_code == 401
        assert "copying_t5" not in client.get("").text
        assert client.post("login", data={"username": "ann", "password": "x"}).status_code == 400
        right = {"username": "ann", "password": "a pass"}
        assert client.post("login", data=right).json() == {"success": True}
        assert "copying_t5" in client.get("").text
        assert "event_id" in client.post(f"{GRADIO}/call/v2/answer", json=pair).json()
        named = {"host": "example.com"}  # a proxy may hand its own name on
        assert client.get("health", auth=("ann", "a pass"), headers=named).status_code == 200
