"""A stand-in for the Hugging Face hub on this machine, to which the real client talks.

It serves repositories at commits as the hub does: information, listing, files with ETag and Range.
Files kept in Git LFS are redirected to a second host. It takes uploads: a repository is made,
weights go to the second host, a commit adds and removes files. Rules make it fail as hubs and
networks do.
"""

import base64
import gzip
import hashlib
import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
import yaml
from huggingface_hub import constants
from huggingface_hub.utils import close_session

IN_LFS = (".safetensors", ".bin", ".h5", ".msgpack", ".parquet", ".model")
KINDS = {"models": "", "datasets": "datasets/"}
BASE, COMMIT = "google/flan-t5-base", "7bcac572ce56db69c1ea7c8af255c5d7c9672fc2"
SQUAD, SQUAD_COMMIT = "rajpurkar/squad_v2", "3ffb306f725f7d2ce8394bc1873b24868140c412"
ROWS_FILE = "squad_v2/train-00000-of-00001.parquet"
ROWS = bytes(range(256)) * 200
OWNER = "ada"  # of every token
LOGIN_PAGE = b"<!DOCTYPE html><html><title>Sign in to the company network</title></html>"


@dataclass
class Repository:
    """A repository: the files of each commit, and the commit of each branch and tag."""

    commits: dict[str, dict[str, bytes]]
    branches: dict[str, str]
    gated: bool = False
    private: bool = False
    xet: str | None = None  # the address of a Xet store
    size: int | None = None  # of each file in Git LFS, as the listing gives it

    def resolve(self, revision: str) -> str | None:
        commit = self.branches.get(revision, revision)
        return commit if commit in self.commits else None

    def entry(self, commit: str, path: str) -> dict:
        content = self.commits[commit][path]
        size = self.size if self.size and path.endswith(IN_LFS) else len(content)
        blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()  # noqa: S324
        entry = {"type": "file", "path": path, "size": size, "oid": blob}
        if path.endswith(IN_LFS):
            sha = hashlib.sha256(content).hexdigest()
            entry["lfs"] = {"oid": sha, "size": size, "pointerSize": 134}
            if self.xet:
                entry["xetHash"] = sha
        return entry

    def etag(self, commit: str, path: str) -> str:
        entry = self.entry(commit, path)
        return entry["lfs"]["oid"] if "lfs" in entry else entry["oid"]


@dataclass
class Fault:
    """What happens to requests whose "METHOD path" matches a pattern, `times` times.

    `kind`: a status; `silence`: no answer; `cut`: half of the answer; `wrong bytes`; `page`: HTML,
    as of a proxy; `refuse`: the connection is closed at once.
    """

    pattern: str
    kind: int | str
    times: int = 10**6
    headers: dict[str, str] = field(default_factory=dict)


class Hub:
    """Repositories by their names, the faults to come, and what was asked for and sent so far."""

    def __init__(self):
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.faults: list[Fault] = []
        self.requests: list[str] = []
        self.sent: dict[str, int] = {}
        self.tokens: dict[str, str] = {}
        self.objects: dict[str, bytes] = {}  # uploaded to Git LFS
        self.messages: list[str] = []  # of the commits
        self.closing = threading.Event()
        self.connections: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._servers = [self._serve("127.0.0.1"), self._serve("localhost")]
        self.url, self.other_host = (
            f"http://{name}:{server.server_port}"
            for name, server in zip(("127.0.0.1", "localhost"), self._servers, strict=True)
        )

    def _serve(self, host: str) -> ThreadingHTTPServer:
        server = ThreadingHTTPServer((host, 0), type("Handler", (_Handler,), {"hub": self}))
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}).start()
        return server

    def stop(self) -> None:
        self.closing.set()
        for server in self._servers:
            server.shutdown()
            server.server_close()
        for connection in list(self.connections):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self._servers = []

    def add(self, name: str, files: dict[str, bytes], commit: str, kind="models", **options):
        """Add a repository with one commit, at which are its branch main and its tag v1."""
        repository = Repository({commit: files}, {"main": commit, "v1": commit}, **options)
        self.repositories[kind, name] = repository
        return repository

    def fail(self, pattern: str, kind: int | str, times: int = 10**6, **headers: str) -> None:
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        self.faults.append(Fault(pattern, kind, times, headers))

    def fault(self, request: str) -> Fault | None:
        with self._lock:
            for fault in self.faults:
                if fault.times and re.search(fault.pattern, request):
                    fault.times -= 1
                    return fault
        return None

    def note(self, request: str, token: str) -> None:
        with self._lock:
            self.requests.append(request)
            self.tokens[request] = token

    def count(self, path: str, size: int) -> None:
        with self._lock:
            self.sent[path] = self.sent.get(path, 0) + size


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def setup(self) -> None:
        super().setup()
        self.hub.connections.add(self.connection)

    def finish(self) -> None:
        self.hub.connections.discard(self.connection)
        super().finish()

    def log_message(self, *args) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def do_POST(self) -> None:
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.answer()

    do_PUT = do_POST

    def answer(self) -> None:
        request = f"{self.command} {unquote(self.path)}"
        self.hub.note(request, self.headers.get("Authorization", ""))
        fault = self.hub.fault(request)
        if fault is None:
            self.route()
        elif isinstance(fault.kind, int):
            self.reply(fault.kind, b"{}", **fault.headers)
        elif fault.kind == "silence":
            self.hub.closing.wait()
            self.close_connection = True
        elif fault.kind == "refuse":
            self.close_connection = True
        elif fault.kind == "page":
            self.reply(200, LOGIN_PAGE, Content_Type="text/html")
        else:
            self.route(fault.kind)

    def route(self, fault: str | None = None) -> None:
        url = urlsplit(self.path)
        path = unquote(url.path)
        if self.command in ("POST", "PUT"):
            self.take(path)
        elif blob := re.fullmatch(r"/blobs/(\w+)/([^/]+/[^/]+)/([^/]+)/(.+)", path):
            kind, name, commit, file = blob.groups()
            repository = self.hub.repositories[kind, name]
            content = repository.commits[commit][file]
            self.file(file, content, repository.etag(commit, file), fault)
        elif call := re.fullmatch(
            r"/api/(models|datasets)/([^/]+/[^/]+)(?:/(revision|tree|xet-read-token)/(.+))?", path
        ):
            kind, name, what, revision = call.groups()
            repository = self.permitted(kind, name, what not in (None, "revision"))
            if repository and what == "tree" and revision.startswith("main/"):  # no folder is there
                self.reply(404, b"{}", X_Error_Code="EntryNotFound")
            elif repository and (commit := self.commit_of(repository, revision or "main")):
                blobs = "blobs" in parse_qs(url.query)
                self.api(repository, name, what, commit, blobs=blobs)
        elif file := re.fullmatch(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            prefix, name, revision, filename = file.groups()
            self.resolve("datasets" if prefix else "models", name, revision, filename, fault)
        else:
            self.reply(404, b"{}")

    def take(self, path: str) -> None:
        """Answer the requests of an upload."""
        if oid := re.fullmatch(r"/lfs/(\w+)", path):
            whole = hashlib.sha256(self.body).hexdigest() == oid[1]
            self.hub.objects |= {oid[1]: self.body} if whole else {}
            self.reply(200 if whole else 400, b"{}")
        elif "authorization" not in self.headers:
            self.reply(401, b"{}")
        elif path == "/api/repos/create":
            self.create(json.loads(self.body))
        elif path == "/api/validate-yaml":
            problems = problems_of_card(json.loads(self.body)["content"])
            self.reply(400 if problems else 200, json.dumps({"errors": problems}).encode())
        elif re.fullmatch(r"/[^/]+/[^/]+\.git/info/lfs/objects/batch", path):
            objects = [
                entry
                | {"actions": {"upload": {"href": f"{self.hub.other_host}/lfs/{entry['oid']}"}}}
                for entry in json.loads(self.body)["objects"]
            ]
            self.reply(200, json.dumps({"objects": objects}).encode())
        elif call := re.fullmatch(r"/api/models/([^/]+/[^/]+)/(preupload|commit)/main", path):
            repository = self.permitted("models", call[1], for_files=True)
            if repository and call[2] == "commit":
                self.commit(call[1], repository)
            elif repository:
                modes = [
                    {
                        "path": file["path"],
                        "uploadMode": "lfs" if file["path"].endswith(IN_LFS) else "regular",
                        "shouldIgnore": False,
                    }
                    for file in json.loads(self.body)["files"]
                ]
                self.reply(200, json.dumps({"files": modes}).encode())
        else:
            self.reply(404, b"{}")

    def create(self, wanted: dict) -> None:
        name = f"{wanted['organization'] or OWNER}/{wanted['name']}"
        known = ("models", name) in self.hub.repositories
        if not known:
            private = wanted.get("visibility") == "private"
            self.hub.add(name, {".gitattributes": b"* text"}, "0" * 40, private=private)
        url = json.dumps({"url": f"{self.hub.url}/{name}"}).encode()
        self.reply(409 if known else 200, url)

    def commit(self, name: str, repository: Repository) -> None:
        files = dict(repository.commits[repository.branches["main"]])
        for line in self.body.splitlines():
            key, value = (json.loads(line)[part] for part in ("key", "value"))
            if key == "header":
                self.hub.messages.append(value["summary"])
            elif key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                files[value["path"]] = self.hub.objects[value["oid"]]
            else:
                del files[value["path"]]
        commit = hashlib.sha1(self.body).hexdigest()  # noqa: S324
        repository.commits[commit] = files
        repository.branches["main"] = commit
        url = f"{self.hub.url}/{name}/commit/{commit}"
        self.reply(200, json.dumps({"commitUrl": url, "commitOid": commit}).encode())

    def permitted(self, kind: str, name: str, for_files: bool) -> Repository | None:
        repository = self.hub.repositories.get((kind, name))
        logged_in = "authorization" in self.headers
        if repository is None or (repository.private and not logged_in):
            self.reply(404 if logged_in else 401, b"{}", X_Error_Code="RepoNotFound")
            return None
        if repository.gated and for_files and not logged_in:
            self.reply(401, b"{}", X_Error_Code="GatedRepo")
            return None
        return repository

    def commit_of(self, repository: Repository, revision: str) -> str | None:
        commit = repository.resolve(revision)
        if commit is None:
            self.reply(404, b"{}", X_Error_Code="RevisionNotFound")
        return commit

    def api(
        self, repository: Repository, name: str, what: str | None, commit: str, *, blobs: bool
    ) -> None:
        files = repository.commits[commit]
        entries = [repository.entry(commit, path) for path in sorted(files)]
        if what == "tree":
            folders = {p.rpartition("/")[0] for p in files} - {""}
            tree = [{"type": "directory", "path": f, "oid": "0" * 40, "size": 0} for f in folders]
            self.reply(200, json.dumps(tree + entries).encode())
        elif what == "xet-read-token":
            self.reply(
                200,
                b"{}",
                X_Xet_Cas_Url=repository.xet,
                X_Xet_Access_Token="token",  # noqa: S106
                X_Xet_Token_Expiration=str(int(time.time()) + 3600),
            )
        else:
            siblings = [{"rfilename": entry["path"]} for entry in entries]
            if blobs:
                for sibling, entry in zip(siblings, entries, strict=True):
                    sibling |= {"size": entry["size"], "blobId": entry["oid"]}
                    if "lfs" in entry:
                        lfs = entry["lfs"]
                        sibling["lfs"] = {"sha256": lfs["oid"]} | lfs
            info = {"_id": commit[:24], "id": name, "sha": commit, "siblings": siblings}
            info |= {"private": repository.private, "gated": "auto" if repository.gated else False}
            self.reply(200, json.dumps(info | {"tags": [], "downloads": 1, "likes": 1}).encode())

    def resolve(self, kind: str, name: str, revision: str, file: str, fault: str | None) -> None:
        repository = self.permitted(kind, name, for_files=True)
        commit = repository and self.commit_of(repository, revision)
        if not commit:
            return
        if file not in repository.commits[commit]:
            self.reply(404, b"", X_Error_Code="EntryNotFound", X_Repo_Commit=commit)
            return
        content, etag = repository.commits[commit][file], repository.etag(commit, file)
        if not file.endswith(IN_LFS):
            self.file(file, content, etag, fault, X_Repo_Commit=commit)
            return
        token = f"{self.hub.url}/api/{kind}/{name}/xet-read-token/{commit}"
        xet = {"X_Xet_Hash": etag, "X_Xet_Refresh_Route": token} if repository.xet else {}
        self.reply(
            302,
            b"",
            X_Repo_Commit=commit,
            X_Linked_ETag=f'"{etag}"',
            X_Linked_Size=str(repository.entry(commit, file)["size"]),
            Location=f"{self.hub.other_host}/blobs/{kind}/{name}/{commit}/{file}",
            **xet,
        )

    def file(self, name: str, content: bytes, etag: str, fault: str | None, **headers) -> None:
        if fault == "wrong bytes":
            content = content[:-64] + bytes(64 - i for i in range(64))
        status, total = 200, len(content)
        if part := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            start, end = int(part[1]), int(part[2] or total - 1)
            content = content[start : end + 1]
            status, headers["Content_Range"] = 206, f"bytes {start}-{end}/{total}"
        elif name.endswith(".json") and "gzip" in self.headers.get("Accept-Encoding", ""):
            content, headers["Content_Encoding"] = gzip.compress(content), "gzip"
        if self.command == "GET":
            self.hub.count(name, len(content))
        self.reply(status, content, cut=fault == "cut", ETag=f'"{etag}"', **headers)

    def reply(self, status: int, content: bytes, *, cut: bool = False, **headers: str) -> None:
        self.send_response(status)
        for header, value in headers.items():
            self.send_header(header.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[: len(content) // 2] if cut else content)
        if cut:
            self.close_connection = True


def problems_of_card(card: str) -> list[dict[str, str]]:
    """Check a model card's metadata as the hub does: bases and data sets are ids of the hub."""
    data = yaml.safe_load(card.split("---")[1])
    ids = [*data.get("datasets", []), *([data["base_model"]] if "base_model" in data else [])]
    wrong = [value for value in ids if not re.fullmatch(r"[\w.-]+/[\w.-]+", value)]
    return [{"message": f"{value} is not valid"} for value in wrong]


def read_repository(folder: Path) -> dict[str, bytes]:
    """Read the files of a folder by their paths in it."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@contextmanager
def running_hub(patch: pytest.MonkeyPatch, cache: Path) -> Iterator[Hub]:
    """Run a hub to which the client turns, here and in processes started from here."""
    hub = Hub()
    for name in ("HF_HUB_OFFLINE", "HF_TOKEN", "HTTP_PROXY", "http_proxy"):
        patch.delenv(name, raising=False)
    close_session()
    patch.setenv("HF_ENDPOINT", hub.url)
    patch.setenv("HF_HOME", str(cache))
    patch.setattr(constants, "ENDPOINT", hub.url)
    template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    patch.setattr(constants, "HF_HUB_CACHE", str(cache / "hub"))
    patch.setattr(constants, "HF_TOKEN_PATH", str(cache / "token"))
    patch.setattr(constants, "HF_HUB_OFFLINE", False)
    try:
        yield hub
    finally:
        hub.stop()
        close_session()
