"""What is taken from the hub: by the real client, from a stand-in for the hub that also fails."""

import json
import logging
import re
import resource
import socket
import time
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import pytest
from hub_server import BASE, COMMIT, ROWS, ROWS_FILE, SQUAD, SQUAD_COMMIT, read_repository
from huggingface_hub import constants, hf_hub_download

from flan_qa_pipeline.datasets.question_file import QuestionFileDataset
from flan_qa_pipeline.datasets.squad_file import SquadFileDataset
from flan_qa_pipeline.errors import InputError
from flan_qa_pipeline.hub import DataFiles, ModelFiles, fetch, missing_model_file

FILE = f"hf://datasets/{SQUAD}@{SQUAD_COMMIT}/{ROWS_FILE}"
MODEL = ModelFiles(BASE, COMMIT)


def asked(hub):
    """The requests so far, but for that of the client's own list of programs that call it."""
    return [request for request in hub.requests if "/api/agent-harnesses" not in request]


def message(*wanted):
    with pytest.raises(InputError) as error:
        fetch(*wanted or [MODEL])
    return str(error.value)


def test_what_is_needed_is_fetched_with_a_bar_and_only_once(hub, capsys, tiny_base, caplog):
    with caplog.at_level(logging.INFO, logger="flan_qa_pipeline"):
        [fetched] = fetch(MODEL)
    names = {path.name for path in fetched.folder.iterdir()}
    assert names == {path.name for path in tiny_base.iterdir()}
    assert fetched.files == MODEL
    weights = "model.safetensors"
    assert (fetched.folder / weights).read_bytes() == (tiny_base / weights).read_bytes()
    bar = capsys.readouterr().err
    size = sum(path.stat().st_size for path in tiny_base.iterdir())
    assert re.search(rf"Reconstruction complete.* {size / 1e6:.2f}MB", bar)
    assert f"Fetch {BASE} at {COMMIT}: {len(names)} files, {size / 1e6:.1f} MB" in caplog.text
    assert set(hub.sent) == names
    before = asked(hub)
    assert fetch(MODEL) == [fetched]
    assert asked(hub) == before
    assert not capsys.readouterr().err
    hub.stop()
    assert fetch(MODEL) == [fetched]


def test_weights_come_from_the_second_host_without_the_token(hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    fetch(MODEL)
    authorized = {path for path, token in hub.tokens.items() if token == "Bearer hf_secret"}  # noqa: S105
    assert any("/resolve/" in path for path in authorized)
    assert not any("/blobs/" in path for path in authorized)


def test_a_file_of_a_dataset_is_fetched_once(hub):
    [fetched] = fetch(DataFiles.of(FILE))
    assert fetched.path.read_bytes() == ROWS
    assert fetched.files.pinned == FILE
    assert hub.sent == {ROWS_FILE: len(ROWS)}
    before = asked(hub)
    assert fetch(DataFiles.of(FILE)) == [fetched]
    assert asked(hub) == before


def test_a_folder_of_parquet_files_is_fetched_whole(hub):
    parts = {f"rows.parquet/part-{i}.parquet": ROWS + bytes([i]) for i in range(3)}
    hub.add("some/rows", parts | {"rows.parquet/_SUCCESS": b""}, "a" * 40, kind="datasets")
    [fetched] = fetch(DataFiles.of("hf://datasets/some/rows@" + "a" * 40 + "/rows.parquet"))
    assert {path.name for path in fetched.path.iterdir()} == {f"part-{i}.parquet" for i in range(3)}


@pytest.mark.parametrize("path", ["", "/rows", "/rows/part-*.parquet"])
def test_a_part_that_another_program_cached_is_not_taken_for_the_whole(hub, path):
    parts = {f"rows/part-{i}.parquet": ROWS + bytes([i]) for i in range(3)}
    hub.add("some/rows", parts, "a" * 40, kind="datasets")
    hf_hub_download("some/rows", "rows/part-0.parquet", repo_type="dataset", revision="a" * 40)
    files = DataFiles.of("hf://datasets/some/rows@" + "a" * 40 + path)
    assert files.cached() is None
    [fetched] = fetch(files)
    assert {item.name for item in (fetched.folder / "rows").iterdir()} == {
        f"part-{i}.parquet" for i in range(3)
    }
    before = asked(hub)
    assert fetch(files) == [fetched]
    assert asked(hub) == before


def test_sharded_weights_are_fetched_and_an_index_alone_is_not_the_model(hub, tiny_base):
    files = read_repository(tiny_base)
    half = files.pop("model.safetensors")
    shards = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    index = {"weight_map": dict(zip(("a", "b"), shards, strict=True))}
    files["model.safetensors.index.json"] = json.dumps(index).encode()
    hub.add(BASE, files | dict.fromkeys(shards, half), COMMIT)
    [fetched] = fetch(MODEL)
    assert missing_model_file(fetched.folder) is None
    (fetched.folder / shards[1]).unlink()
    assert missing_model_file(fetched.folder) == shards[1]
    assert MODEL.cached() is None
    fetch(MODEL)
    assert (fetched.folder / shards[1]).is_file()


def test_what_other_programs_cached_needs_no_hub(hub, tiny_base, tmp_path):
    for path in tiny_base.iterdir():
        hf_hub_download(BASE, path.name, revision=COMMIT)
    hf_hub_download(SQUAD, ROWS_FILE, repo_type="dataset", revision=SQUAD_COMMIT)
    hub.stop()
    model, rows = fetch(MODEL, DataFiles.of(FILE))
    assert missing_model_file(model.folder) is None
    assert rows.path.read_bytes() == ROWS


def test_a_moving_revision_is_pinned_and_told(hub, caplog):
    model, rows = fetch(
        ModelFiles(BASE, "main"), DataFiles.of(FILE.replace(f"@{SQUAD_COMMIT}", ""))
    )
    assert model.files == MODEL
    assert rows.files.pinned == FILE
    warnings = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert f"to pin it: --params=model.revision={COMMIT}" in warnings[0]
    assert "a later run may read others" in warnings[0]
    assert f"to pin it: {FILE}" in warnings[1]
    caplog.clear()
    fetch(model.files, rows.files)
    assert not caplog.records
    hub.stop()
    assert fetch(ModelFiles(BASE, "main")) == [model]
    assert "this run takes the last known one" in caplog.text


def test_all_that_cannot_be_reached_is_one_error_with_two_ways_on(hub):
    hub.stop()
    text = message(MODEL, DataFiles.of(FILE))
    assert f"google/flan-t5-base at {COMMIT}, {FILE} ([Errno 111] Connection refused)" in text
    assert "--params=model.name=/path/to/snapshot,data.train_file=" in text
    assert "kedro run" in text


def test_a_server_error_is_tried_again(hub, caplog):
    hub.fail("revision", 429, times=1)
    hub.fail("/tree/", 500, times=1)
    hub.fail("HEAD .*config.json", 503, times=2)
    hub.fail("GET /blobs/", 503, times=2)
    hub.fail("GET /google/.*tokenizer.json", "cut", times=1)
    hub.fail("GET /blobs/", "cut", times=2)
    [fetched] = fetch(MODEL)
    assert missing_model_file(fetched.folder) is None
    assert "The hub answers 429; try again in 1 s." in caplog.text


@pytest.mark.parametrize("request_of", ["revision", "tree", "HEAD", "GET /blobs"])
def test_silence_ends(hub, monkeypatch, request_of):
    for name in ("HF_HUB_ETAG_TIMEOUT", "HF_HUB_DOWNLOAD_TIMEOUT"):
        monkeypatch.setattr(constants, name, 0.2)
    hub.fail(request_of, "silence")
    begun = time.monotonic()
    assert "no answer within 0.2 s: run again later" in message()
    assert time.monotonic() - begun < 10


def test_a_silent_xet_store_ends(hub, monkeypatch, tmp_path):
    """The limits are those of a user, in milliseconds; without any, hf_xet waits for minutes."""
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)
    for limit in ("CONNECT_TIMEOUT", "READ_TIMEOUT", "RETRY_BASE_DELAY"):
        monkeypatch.setenv(f"HF_XET_CLIENT_{limit}", "100ms")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        hub.repositories["models", BASE].xet = f"http://127.0.0.1:{silent.getsockname()[1]}"
        begun = time.monotonic()
        text = message()
    assert time.monotonic() - begun < 30
    assert "the Xet store of the hub cannot be read" in text
    assert "set HF_HUB_DISABLE_XET=1 to fetch without it" in text
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    fetch(MODEL)


@contextmanager
def small_files():
    """Let no file grow beyond 100 kB, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_disk_that_fills_up_is_told(hub):
    with small_files():
        text = message()
    assert f"{constants.HF_HUB_CACHE} cannot be written (File too large): make room there" in text
    [fetched] = fetch(MODEL)
    assert missing_model_file(fetched.folder) is None


def test_a_disk_without_room_is_told_before_the_download(hub):
    hub.repositories["models", BASE].size = 10**18
    text = message()
    assert f"needs 1000000000.00 GB in {constants.HF_HUB_CACHE}, where" in text
    assert "set HF_HOME" in text
    assert not hub.sent


def test_questions_and_folders_on_the_hub_are_read_from_the_cache(hub, tmp_path):
    rows = tmp_path / "rows.parquet"
    asked_about = {"context": ["Ada was born in London."], "question": ["Where was Ada born?"]}
    pd.DataFrame(asked_about | {"answers": [["London"]]}).to_parquet(rows)
    files = {f"plain/{split}-0.parquet": rows.read_bytes() for split in ("train", "validation")}
    hub.add("ada/questions", files, "c" * 40, kind="datasets")
    place = f"hf://datasets/ada/questions@{'c' * 40}"
    new = QuestionFileDataset(filepath=f"{place}/plain/train-0.parquet")
    training = [
        SquadFileDataset(filepath=url, split="validation") for url in (place, f"{place}/plain")
    ]
    for _ in ("with the hub", "without it"):
        assert new.exists()
        [chunk] = new.load().chunks(8)
        assert chunk["question"].tolist() == asked_about["question"]
        for dataset in training:
            assert [Path(file.path).name for file in dataset.load().find()] == [
                "validation-0.parquet"
            ]
        hub.stop()
