"""What a run takes from the Hugging Face hub, and whether it can be had, before the run begins."""

from collections.abc import Iterable
from pathlib import Path

from httpx import HTTPError
from huggingface_hub import HfApi, HfFileSystem, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

from flan_qa_pipeline.config.parameters import ModelParameters
from flan_qa_pipeline.errors import InputError

PROTOCOL = "hf://"
_FAILURES = (HTTPError, HfHubHTTPError, OfflineModeIsEnabled, OSError)


def require_reachable(model: ModelParameters | None = None, files: Iterable[str] = ()) -> None:
    """Check that a base model and `hf://` files can be read, without reading them.

    A model may be a folder, in the local cache, or on the hub.

    Raises:
        InputError: names all that cannot be reached and the two ways on; or a model that is
            neither a folder nor a pinned hub id, or has no safetensors.
    """
    failures: dict[str, str] = {}
    if model is not None and not _is_folder(model) and not _is_cached(model):
        try:
            held = HfApi().list_repo_files(model.name, revision=model.revision)
        except _FAILURES as error:
            failures[f"{model.name} at {model.revision}"] = _first_line(error)
        else:
            if not any(name.endswith(".safetensors") for name in held):
                raise InputError(
                    f"model.revision: {model.name} has no safetensors at {model.revision}, and no "
                    "other weights are loaded; pin a revision that has them."
                )
    for file in files:
        if file.startswith(PROTOCOL):
            try:
                HfFileSystem().info(file)
            except _FAILURES as error:
                failures[file] = _first_line(error)
    if failures:
        raise InputError(
            f"Not to be had from the Hugging Face hub: {', '.join(failures)} "
            f"({'; '.join(dict.fromkeys(failures.values()))}); name a local snapshot with "
            "--params=model.name=/path/to/snapshot,data.train_file=/path/to/train.parquet,"
            "data.validation_file=/path/to/validation.parquet, or run the embedded default, which "
            "needs no network: kedro run."
        )


def _is_folder(model: ModelParameters) -> bool:
    folder = Path(model.name)
    if folder.is_dir():
        if (folder / "config.json").is_file():
            return True
        raise InputError(
            f"model.name: the folder {folder.absolute()} holds no config.json; give the folder "
            "that a model and its tokenizer were saved in."
        )
    if model.name.count("/") > 1 or folder.is_absolute():
        raise InputError(
            f"model.name: there is no folder {folder.absolute()}; give the folder of a saved model "
            "or a hub id such as google/flan-t5-base (the starter model is made by "
            "`kedro run --pipelines=starter`)."
        )
    if model.revision is None:
        raise InputError(
            f"model.revision pins no commit or tag of {model.name}; give one with "
            "--params=model.revision=… or add it to model.revision in a parameters file."
        )
    return False


def _is_cached(model: ModelParameters) -> bool:
    config, weights, index = (
        isinstance(try_to_load_from_cache(model.name, name, revision=model.revision), str)
        for name in ("config.json", "model.safetensors", "model.safetensors.index.json")
    )
    return config and (weights or index)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".:")
