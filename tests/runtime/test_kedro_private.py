"""The contract with Kedro's private parts: a failure names what a new Kedro changed."""

from pathlib import Path, PurePosixPath

import pytest
from kedro.framework.cli.project import run
from kedro.io import DataCatalog, MemoryDataset
from kedro.io.core import AbstractDataset, AbstractVersionedDataset, Version
from kedro_datasets.huggingface import ArrowDataset
from kedro_datasets.partitions import PartitionedDataset
from kedro_datasets.text import TextDataset

from flan_qa_pipeline.runtime import kedro_private
from flan_qa_pipeline.runtime.hooks.logs import ABOUT_FAILURES


def changed(what: str) -> str:
    return f"Kedro changed {what}, which runtime/kedro_private.py relies on; adapt it there."


@pytest.fixture
def text(tmp_path):
    return TextDataset(filepath=str(tmp_path / "a.txt"), version=Version("one", "two"))


@pytest.mark.parametrize("name", ["_get_load_path", "_get_save_path"])
def test_versioned_datasets_know_their_paths(name):
    assert callable(getattr(AbstractVersionedDataset, name, None)), changed(
        f"AbstractVersionedDataset.{name}"
    )


@pytest.mark.parametrize("attribute", ["_filepath", "_version", "_protocol"])
def test_datasets_have_the_attributes(text, attribute):
    assert hasattr(text, attribute), changed(f"the attribute {attribute} of datasets")


def test_a_folder_of_files_keeps_its_place_under_another_name(tmp_path):
    files = PartitionedDataset(path=str(tmp_path), dataset="text.TextDataset")
    assert getattr(files, "_path", None), changed("the attribute _path of PartitionedDataset")
    assert kedro_private.place_of(files) == PurePosixPath(tmp_path)


def test_a_dataset_can_be_copied_to_another_place(text):
    assert callable(getattr(AbstractDataset, "_copy", None)), changed("AbstractDataset._copy")
    copied = text._copy(_filepath=PurePosixPath("b.txt"), _version=None)
    assert (copied._filepath, copied._version) == (PurePosixPath("b.txt"), None), changed("_copy")
    assert text._version == Version("one", "two")


def test_a_catalog_keeps_its_datasets_in_one_mapping(text):
    catalog = DataCatalog({"text": text})
    assert getattr(catalog, "_datasets", {}).get("text") is text, changed("DataCatalog._datasets")


def test_places_and_versions_are_those_of_the_dataset(text, tmp_path):
    assert kedro_private.place_of(text) == PurePosixPath(tmp_path / "a.txt")
    assert kedro_private.load_path(text) == PurePosixPath(tmp_path / "a.txt/one/a.txt")
    assert kedro_private.save_path(text) == PurePosixPath(tmp_path / "a.txt/two/a.txt")
    assert kedro_private.pinned_version(text) == "one"
    assert kedro_private.save_version(text) == "two"
    assert kedro_private.is_versioned(text) and kedro_private.is_local(text)
    kedro_private.pin(text, "three", "four")
    assert kedro_private.load_path(text) == PurePosixPath(tmp_path / "a.txt/three/a.txt")
    assert kedro_private.save_version(text) == "four"


def test_a_dataset_without_versions_or_place(tmp_path):
    rows = ArrowDataset(path=str(tmp_path / "rows"))
    assert not kedro_private.is_versioned(rows)
    assert kedro_private.load_path(rows) == PurePosixPath(tmp_path / "rows")
    assert kedro_private.place_of(MemoryDataset()) is None
    assert kedro_private.place_of(None) is None
    assert not kedro_private.is_local(TextDataset(filepath="memory://a.txt"))


def test_a_catalog_saves_elsewhere_inside_the_block_alone(text, tmp_path):
    catalog = DataCatalog({"text": text})
    with kedro_private.saved_in(catalog, "text", Path(tmp_path, "aside")):
        catalog.save("text", "hello")
    assert (tmp_path / "aside/a.txt").read_text() == "hello"
    assert catalog["text"] is text


def test_the_options_of_kedro_run_that_other_commands_share():
    options = {option.name: option for option in run.params}
    for name in ("params", "load_versions", "env"):
        assert name in options, f"kedro run lost --{name}; adapt cli.py."
    for name in ("params", "load_versions"):
        assert callable(options[name].callback), f"--{name} of kedro run is read elsewhere now"


def test_kedro_logs_failures_under_the_names_that_are_held_back():
    from kedro.pipeline import node
    from kedro.runner import SequentialRunner

    for owner in (node(len, "a", "b"), SequentialRunner()):
        name = owner._logger.name
        assert name.startswith(ABOUT_FAILURES), f"Kedro logs failures as {name}; adapt hooks/logs."
