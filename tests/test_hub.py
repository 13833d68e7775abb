"""What is taken from the hub is checked first; local folders and the cache need no network."""

import shutil

import pytest
from httpx import ConnectError
from huggingface_hub import HfApi, HfFileSystem, constants

from flan_qa_pipeline.errors import InputError
from flan_qa_pipeline.hub import require_reachable

COMMIT = "7bcac572ce56db69c1ea7c8af255c5d7c9672fc2"
FILE = "hf://datasets/rajpurkar/squad_v2@main/squad_v2/train-00000-of-00001.parquet"


@pytest.fixture
def on_hub(model_parameters):
    return model_parameters.model_copy(
        update={"name": "google/flan-t5-base", "revision": COMMIT},
    )


@pytest.fixture
def unreachable(monkeypatch, tmp_path):
    """A hub out of reach and an empty cache; the calls that were tried."""
    calls = []

    def fail(self, path, **kwargs):
        calls.append(path)
        raise ConnectError("Name or service not known")

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(HfApi, "list_repo_files", fail)
    monkeypatch.setattr(HfFileSystem, "info", fail)
    return calls


def test_all_that_cannot_be_reached_is_one_error_with_two_ways_on(unreachable, on_hub):
    with pytest.raises(InputError) as error:
        require_reachable(on_hub, ["data/local.json", FILE])
    message = str(error.value)
    assert f"google/flan-t5-base at {COMMIT}, {FILE} (Name or service not known)" in message
    assert "--params=model.name=/path/to/snapshot,data.train_file=" in message
    assert "kedro run" in message
    assert unreachable == ["google/flan-t5-base", FILE]


def test_local_files_and_folders_need_no_hub(unreachable, model_parameters):
    require_reachable(model_parameters, ["data/train.json", "/data/train.parquet"])
    assert not unreachable


@pytest.mark.parametrize("weights", ["model.safetensors", "model.safetensors.index.json"])
def test_a_model_in_the_cache_needs_no_hub(unreachable, on_hub, tiny_base, tmp_path, weights):
    snapshot = tmp_path / "models--google--flan-t5-base/snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    shutil.copy(tiny_base / "config.json", snapshot)
    with pytest.raises(InputError, match="Not to be had"):
        require_reachable(on_hub)
    shutil.copy(tiny_base / "model.safetensors", snapshot / weights)
    unreachable.clear()
    require_reachable(on_hub)
    assert not unreachable


def test_a_revision_without_safetensors_is_refused(unreachable, monkeypatch, on_hub):
    held = ["config.json", "pytorch_model.bin"]
    monkeypatch.setattr(HfApi, "list_repo_files", lambda self, name, revision: held)
    with pytest.raises(InputError, match=f"has no safetensors at {COMMIT}.*pin a revision"):
        require_reachable(on_hub)
    held.append("model.safetensors")
    require_reachable(on_hub)


def test_a_hub_id_without_a_revision_is_refused(unreachable, on_hub):
    with pytest.raises(InputError, match="model.revision pins no commit or tag of google/flan"):
        require_reachable(on_hub.model_copy(update={"revision": None}))
    assert not unreachable
