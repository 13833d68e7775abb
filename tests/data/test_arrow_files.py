"""Datasets in temporary Arrow files."""

import tempfile

import pytest
from datasets import DatasetInfo, Features, Value

from flan_qa_pipeline.data.arrow_files import in_batches, on_disk
from flan_qa_pipeline.errors import InputError

FEATURES = Features({"text": Value("string"), "n": Value("int32")})
INFO = DatasetInfo(description="numbers", features=FEATURES)


def test_records_on_disk_leave_no_file_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    records = [{"text": "x" * (2**24 if n == 3 else 5), "n": n} for n in range(2500)]
    dataset = on_disk(in_batches(records, FEATURES), INFO)
    assert list(tmp_path.iterdir()) == []
    assert list(dataset) == records
    assert dataset.info.description == "numbers"
    assert dataset.data.column("n").num_chunks == 4
    assert len(on_disk(in_batches([], FEATURES), INFO)) == 0


def test_a_full_disk_for_temporary_files_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pyarrow.OSFile", full)
    with pytest.raises(InputError, match=f"{tmp_path} has no room left .* TMPDIR"):
        on_disk(in_batches([], FEATURES), INFO)
