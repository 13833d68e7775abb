"""Every failure of hub, network and files that docs/hub.md lists, with the message given there."""

import json
import re
import resource
import socket
from contextlib import contextmanager

import pandas as pd
import pytest
from conftest import REPOSITORY
from hub_server import BASE, COMMIT, SQUAD, SQUAD_COMMIT, read_repository
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from transformers import ByT5Tokenizer

from flan_qa_pipeline.data.squad import flatten
from flan_qa_pipeline.datasets.squad_file import SquadFileDataset
from flan_qa_pipeline.errors import InputError
from flan_qa_pipeline.hub import DataFiles, fetch
from flan_qa_pipeline.models.loading import check_base, load_base_model
from flan_qa_pipeline.pipelines.data_engineering.nodes import flatten_questions

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 990345061\n"
PARQUET = f"hf://datasets/{SQUAD}@{SQUAD_COMMIT}/squad_v2/train-00000-of-00001.parquet"


class Case:
    """What a case needs: a hub, a folder of a saved model, parameters that name either."""

    def __init__(self, hub, patch, folder, on_hub):
        self.hub, self.patch, self.folder, self.on_hub = hub, patch, folder, on_hub

    def fetch(self, **changes):
        check_base(self.on_hub.model_copy(update=changes))

    def load(self):
        check_base(self.on_hub.model_copy(update={"name": str(self.folder), "revision": None}))

    def config(self, **changes):
        path = self.folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    def read(self, url):
        return flatten_questions(SquadFileDataset(filepath=str(url)).load(), str(url), "error")

    def repository(self, kind="models", name=BASE):
        return self.hub.repositories[kind, name]


@pytest.fixture
def case(hub, monkeypatch, tmp_path, tiny_base, model_parameters):
    folder = tmp_path / "saved"
    folder.mkdir()
    for name, content in read_repository(tiny_base).items():
        (folder / name).write_bytes(content)
    on_hub = model_parameters.model_copy(update={"name": BASE, "revision": COMMIT})
    return Case(hub, monkeypatch, folder, on_hub)


CASES = {}


def case_of(name):
    return lambda function: CASES.setdefault(name, function)


@case_of("nobody listens")
def _(case):
    case.hub.stop()
    case.fetch()


@case_of("the hub accepts and stays silent")
def _(case):
    for name in ("HF_HUB_ETAG_TIMEOUT", "HF_HUB_DOWNLOAD_TIMEOUT"):
        case.patch.setattr(constants, name, 0.2)
    case.hub.fail("revision", "silence")
    case.fetch()


@case_of("`HF_HUB_OFFLINE=1`, nothing cached")
def _(case):
    case.patch.setattr(constants, "HF_HUB_OFFLINE", True)
    case.fetch()


@case_of("no such repository, or a private one (401)")
def _(case):
    case.fetch(name="google/flan-t5-bas")


@case_of("no such revision (404)")
def _(case):
    case.fetch(revision="c" * 40)


@case_of("a gated model, not logged in")
def _(case):
    case.repository().gated = True
    case.fetch()


@case_of("a gated data set, not logged in")
def _(case):
    case.repository("datasets", SQUAD).gated = True
    fetch(DataFiles.of(PARQUET))


@case_of("access refused (403)")
def _(case):
    case.hub.fail("revision", 403)
    case.fetch()


@case_of("rate limit (429), after 4 tries")
def _(case):
    case.hub.fail("revision", 429)
    case.fetch()


@case_of("hub out of order (500), after 4 tries")
def _(case):
    case.hub.fail("revision", 500)
    case.fetch()


@case_of("second host out of order (503), after 4 tries")
def _(case):
    case.hub.fail("/blobs/", 503)
    case.fetch()


@case_of("a proxy answers with its own page")
def _(case):
    case.hub.fail("", "page")
    case.fetch()


@case_of("a proxy's page instead of a file")
def _(case):
    case.hub.fail("HEAD", "page")
    case.fetch()


@case_of("the connection is lost again and again")
def _(case):
    case.hub.fail("/blobs/", "cut")
    case.fetch()


@case_of("other bytes than the hub has")
def _(case):
    case.hub.fail("/blobs/", "wrong bytes")
    case.fetch()


@case_of("the Xet store is blocked")
def _(case):
    case.patch.setattr(constants, "HF_HUB_DISABLE_XET", False)
    for limit in ("CONNECT_TIMEOUT", "READ_TIMEOUT", "RETRY_BASE_DELAY"):
        case.patch.setenv(f"HF_XET_CLIENT_{limit}", "100ms")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        case.repository().xet = f"http://127.0.0.1:{silent.getsockname()[1]}"
        case.fetch()


@case_of("too little room on the disk")
def _(case):
    case.repository().size = 10**18
    case.fetch()


@contextmanager
def small_files():
    """Let no file grow beyond 100 kB, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@case_of("the disk fills up during the download")
def _(case):
    with small_files():
        case.fetch()


@case_of("no safetensors at the revision")
def _(case):
    del case.repository().commits[COMMIT]["model.safetensors"]
    case.fetch()


@case_of("no tokenizer in the repository")
def _(case):
    del case.repository().commits[COMMIT]["tokenizer.json"]
    case.fetch()


@case_of("a hub id that cannot be one")
def _(case):
    case.fetch(name="google/flan t5")


@case_of("a hub id without a revision")
def _(case):
    case.fetch(revision=None)


@case_of("no such file in the data set")
def _(case):
    fetch(DataFiles.of(PARQUET.replace("train", "test")))


@case_of("a malformed `hf://` URL")
def _(case):
    fetch(DataFiles.of("hf://squad_v2"))


@case_of("an `hf://` URL of a model")
def _(case):
    fetch(DataFiles.of(f"hf://{BASE}/config.json"))


@case_of("no package for an object store")
def _(case):
    case.read("s3://bucket/train.json")


@case_of("an unknown kind of URL")
def _(case):
    case.read("ftpx://host/train.json")


@case_of("the connection to another host is lost while questions are read")
def _(case, corpus):
    rows = parquet(case, corpus, bytes).read_bytes()
    case.repository("datasets", SQUAD).commits[SQUAD_COMMIT]["rows.parquet"] = rows
    case.hub.fail("GET /blobs", "cut")
    case.read(f"{case.hub.url}/datasets/{SQUAD}/resolve/main/rows.parquet")


def parquet(case, corpus, change):
    path = case.folder / "rows.parquet"
    rows = pd.DataFrame(flatten(corpus, "corpus")).drop(columns="is_impossible")
    rows.to_parquet(path)
    content = bytearray(path.read_bytes())
    path.write_bytes(change(content))
    return path


@case_of("corrupt Parquet pages")
def _(case, corpus):
    case.read(parquet(case, corpus, lambda content: content[:200] + bytes(400) + content[600:]))


@case_of("a truncated Parquet file")
def _(case, corpus):
    case.read(parquet(case, corpus, lambda content: content[:-5]))


@case_of("a Git LFS pointer instead of a Parquet file")
def _(case, corpus):
    case.read(parquet(case, corpus, lambda content: POINTER))


@case_of("a Git LFS pointer instead of weights")
def _(case):
    (case.folder / "model.safetensors").write_bytes(POINTER)
    case.load()


@case_of("truncated weights in a folder")
def _(case):
    path = case.folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    case.load()


@case_of("truncated weights in the cache")
def _(case):
    case.fetch()
    [path] = (case.folder.parent / "cache").rglob("snapshots/*/model.safetensors")
    path.resolve().write_bytes(path.read_bytes()[:-100])
    case.fetch()


@case_of("an index of weights without one of its shards")
def _(case):
    (case.folder / "model.safetensors").rename(case.folder / "model-00001-of-00002.safetensors")
    names = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    index = {"weight_map": dict(enumerate(names))}
    (case.folder / "model.safetensors.index.json").write_text(json.dumps(index))
    case.load()


@case_of("weights without a head")
def _(case):
    path = case.folder / "model.safetensors"
    weights = load_file(path)
    del weights["lm_head.weight"]
    save_file(weights, path, metadata={"format": "pt"})
    load_base_model(case.on_hub.model_copy(update={"name": str(case.folder)}))


@case_of("a page instead of config.json")
def _(case):
    (case.folder / "config.json").write_text("<!DOCTYPE html><html></html>")
    case.load()


@case_of("a folder without a tokenizer")
def _(case):
    (case.folder / "tokenizer.json").unlink()
    case.load()


@case_of("a tokenizer of more tokens than embeddings")
def _(case):
    case.config(vocab_size=100)
    case.load()


@case_of("ByT5")
def _(case):
    for path in case.folder.glob("tokenizer*"):
        path.unlink()
    ByT5Tokenizer().save_pretrained(case.folder)
    case.load()


@case_of("an unknown model_type")
def _(case):
    case.config(model_type="t6")
    case.load()


@case_of("a model that brings its own code")
def _(case):
    (case.folder / "evil.py").write_text("raise SystemExit('executed')")
    case.config(model_type="t6", auto_map={"AutoConfig": "evil.Config"})
    case.load()


@case_of("T5 1.0")
def _(case):
    case.config(scale_decoder_outputs=True, feed_forward_proj="relu", tie_word_embeddings=True)
    case.load()


for kind in ("mt5", "umt5", "longt5", "t5gemma", "bart"):

    @case_of(kind)
    def _(case, kind=kind):
        case.config(model_type=kind)
        case.load()


def documented():
    """The rows of the table in docs/hub.md: what happens, and the message."""
    text = (REPOSITORY / "docs/hub.md").read_text(encoding="utf-8")
    section = text.partition("## What goes wrong\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (.+?) \| (.+) \|$", section, re.M)
    return dict(row for row in rows if row[0] != "what happens")


def test_the_documentation_lists_these_cases():
    assert list(documented()) == list(CASES)


@pytest.mark.parametrize("name", CASES)
def test_each_failure_gives_its_message(name, case, request):
    function = CASES[name]
    needs_corpus = function.__code__.co_varnames[:2][1:] == ("corpus",)
    with pytest.raises(InputError) as error:
        function(case, request.getfixturevalue("corpus")) if needs_corpus else function(case)
    message = str(error.value)
    assert "\n" not in message
    assert "equest id" not in message.lower()
    expected = documented()[name]
    assert re.fullmatch(".*".join(map(re.escape, expected.split("…"))), message), message
