"""Arrow files in place of memory: used again when whole, never when damaged, and not too many."""

import os
import shutil
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from datasets import Features, Value

from flan_qa_pipeline.data.arrow_files import on_disk, reused_splits
from flan_qa_pipeline.errors import InputError

FEATURES = Features({"text": Value("string"), "n": Value("int32")})


def batches(first):
    for start in range(first, first + 3000, 1000):
        numbers = list(range(start, start + 1000))
        yield {"text": [f"text {n}" for n in numbers], "n": numbers}


def unasked():
    raise AssertionError("it is made again")
    yield


@pytest.fixture
def keep(tmp_path):
    def reuse(key, *, again=False, keep=3, first=0):
        splits = {"train": unasked() if again else batches(first), "dev": batches(first + 5)}
        return reused_splits(
            splits, FEATURES, key=key, folder=tmp_path / "kept", keep=keep, name="Numbers"
        )

    return reuse


def kept(tmp_path):
    return {path.name for path in (tmp_path / "kept").iterdir()}


def test_a_result_is_used_again_and_told(keep, tmp_path, caplog):
    caplog.set_level("INFO")
    first = keep("a")
    assert first["train"]["n"][:] == list(range(3000))
    assert "Numbers" not in caplog.text
    again = keep("a", again=True)
    assert list(again) == ["train", "dev"]
    assert list(again["dev"]) == list(first["dev"])
    assert f"Numbers: of the same input as before, those in {tmp_path / 'kept/a'}" in caplog.text
    assert keep("b", first=7)["train"][0] == {"text": "text 7", "n": 7}
    assert kept(tmp_path) == {"a", "b"}


def cut_behind_a_batch(path):
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) * 2 // 3 // 8 * 8])


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["train.arrow", "checksums.json"])
@pytest.mark.parametrize(
    "damage",
    [
        cut_behind_a_batch,
        flip_a_bit,
        os.remove,
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"{}"),
    ],
    ids=["cut", "bit", "removed", "empty", "other"],
)
def test_a_damaged_result_is_made_again(keep, tmp_path, caplog, name, damage):
    expected = list(keep("a")["train"])
    damage(tmp_path / "kept/a" / name)
    assert list(keep("a")["train"]) == expected
    assert f"Numbers in {tmp_path / 'kept/a'} are damaged and are made again." in caplog.text
    assert list(keep("a", again=True)["train"]) == expected


def test_a_result_that_another_run_removed_meanwhile_is_not_called_damaged(
    keep, tmp_path, caplog, monkeypatch
):
    expected = list(keep("a")["train"])

    def removed_meanwhile(folder):
        monkeypatch.undo()
        shutil.rmtree(folder)
        return {}

    monkeypatch.setattr("flan_qa_pipeline.data.arrow_files._checksums", removed_meanwhile)
    assert list(keep("a")["train"]) == expected
    assert not caplog.text
    assert list(keep("a", again=True)["train"]) == expected


def test_the_results_last_used_stay(keep, tmp_path):
    for age, key in enumerate("abc"):
        keep(key)
        os.utime(tmp_path / "kept" / key, (age, age))
    keep("a", again=True)
    keep("d")
    assert kept(tmp_path) == {"a", "c", "d"}
    last = keep("e", keep=0)
    assert kept(tmp_path) == set()
    assert len(last["train"]) == 3000


def test_what_a_killed_run_left_is_removed_when_it_is_old(keep, tmp_path):
    for name, age in ((".a.old", 100_000), (".a.new", 10)):
        (tmp_path / "kept" / name).mkdir(parents=True)
        (tmp_path / "kept" / name / "train.arrow").touch()
        os.utime(tmp_path / "kept" / name, (time.time() - age,) * 2)
    keep("a")
    assert kept(tmp_path) == {"a", ".a.new"}


def test_an_error_in_the_middle_keeps_nothing(tmp_path):
    def failing():
        yield from batches(0)
        raise InputError("Question 'q' is too long.")

    with pytest.raises(InputError, match="'q' is too long"):
        reused_splits(
            {"train": failing()}, FEATURES, key="a", folder=tmp_path / "kept", keep=3, name="N"
        )
    assert kept(tmp_path) == set()


def test_many_at_once_each_get_their_own(keep, tmp_path):
    def ask(i):
        return i % 4, list(keep(f"key {i % 4}", keep=i % 3, first=i % 4)["train"]["n"])

    with ThreadPoolExecutor(8) as threads:
        for first, numbers in threads.map(ask, range(48)):
            assert numbers == list(range(first, first + 3000))
    assert not [name for name in kept(tmp_path) if name.startswith(".")]


def test_a_folder_that_cannot_be_written_is_told(keep, tmp_path):
    (tmp_path / "kept").write_text("a file")
    with pytest.raises(InputError, match=r"Numbers cannot be kept in .*kept: .*data\.cache_dir"):
        keep("a")


def test_records_on_disk_leave_no_file_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    records = [{"text": "x" * (2**24 if n == 3 else 5), "n": n} for n in range(2500)]
    dataset = on_disk(iter(records), FEATURES)
    assert list(tmp_path.iterdir()) == []
    assert list(dataset) == records
    assert dataset.data.column("n").num_chunks == 4
    assert len(on_disk(iter([]), FEATURES)) == 0


def test_a_full_disk_for_temporary_files_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pyarrow.OSFile", full)
    with pytest.raises(InputError, match=f"{tmp_path} has no room left .* TMPDIR"):
        on_disk(iter([]), FEATURES)
