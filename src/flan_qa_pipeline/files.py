"""Folders that appear whole or not at all, and checks of folders before they are read."""

import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from errno import EEXIST, ENOTEMPTY
from pathlib import Path
from uuid import uuid4

from flan_qa_pipeline.errors import InputError

# .model: a SentencePiece tokenizer (protobuf); .jinja: a chat template; .md: a model card
UNPICKLED = {".safetensors", ".json", ".txt", ".model", ".jinja", ".md"}

DIGESTS = "digests.json"
CARD = "README.md"
WEIGHTS = ".safetensors"


@contextmanager
def written_aside(folder: Path, beside: Path | None = None) -> Iterator[Path]:
    """Yield an empty hidden folder, and rename it to `folder` if the block ends without an error.

    An error removes the hidden folder. A killed process leaves it behind, where nothing reads it.

    Args:
        folder: the folder that appears.
        beside: a path on the same disk, next to which the hidden folder is made; None: `folder`.

    Raises:
        FileExistsError: another process has made `folder` in the meantime and filled it.
    """
    beside = beside or folder
    aside = beside.with_name(f".{beside.name}.{uuid4().hex}")
    try:
        aside.mkdir(parents=True)
        yield aside
        folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            aside.rename(folder)
        except OSError as error:
            if error.errno in (EEXIST, ENOTEMPTY):
                raise FileExistsError(f"{folder} exists already") from error
            raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def remove_at_once(folder: Path, names: Iterable[str]) -> None:
    """Remove files from a folder so that no reader ever sees it with some of them.

    The folder disappears too, unless it holds other files, which stay where they are.
    """
    with suppress(FileNotFoundError):
        aside = folder.rename(folder.with_name(f".{folder.name}.{uuid4().hex}"))
        for name in names:
            with suppress(OSError):
                (aside / name).unlink()
        try:
            aside.rmdir()
        except OSError:
            aside.rename(folder)


def replace_text(path: Path, text: str) -> None:
    """Write a text file; a reader finds the text that was there before or the new one, whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{uuid4().hex}")
    try:
        aside.write_text(text, encoding="utf-8")
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def refuse_pickles(folder: Path) -> None:
    """Refuse a folder of weights with any file that is not safetensors, JSON or plain text.

    Hidden files may stay: the hub adds `.gitattributes` and `.cache`, and no library reads them.

    Raises:
        InputError: names the first such file. Reading a pickle would run the code in it.
    """
    for path in sorted(folder.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if path.is_file() and not hidden and path.suffix not in UNPICKLED:
            raise InputError(
                f"{path} is neither safetensors nor JSON nor text, so it is not read: a pickle "
                "runs code. Remove it, or save the weights again as safetensors."
            )


def save_digests(folder: Path, names: Iterable[str]) -> None:
    """Write the SHA-256 digests of a folder's files into the folder."""
    digests = {name: _digest(folder / name) for name in sorted(names)}
    (folder / DIGESTS).write_text(json.dumps(digests, indent=2), encoding="utf-8")


def add_saved(new: Path, folder: Path) -> None:
    """Move the files of one folder into another, replacing those that an earlier call moved there.

    The other folder keeps the digests of all files that this function has moved into it.

    Args:
        new: the folder to empty.
        folder: the folder to fill; made if it does not exist.

    Raises:
        InputError: the call would overwrite a file that this function did not put there, or a model
            card that somebody edited.
    """
    digests, names = saved_digests(folder), [path.name for path in new.iterdir()]
    for name in names:
        own = name in digests and (name != CARD or is_as_saved(folder, CARD))
        if not own and (folder / name).exists():
            raise InputError(
                f"{folder / name} was not saved by this project and is not overwritten; move it "
                "away, or name another folder in the catalog."
            )
    if any(name.endswith(WEIGHTS) for name in names):
        for name in digests.keys() - set(names):
            if WEIGHTS in name:  # an earlier model had more or fewer shards
                (folder / name).unlink(missing_ok=True)
                del digests[name]
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (new / name).rename(folder / name)
    save_digests(folder, digests.keys() | set(names))


def saved_digests(folder: Path) -> dict[str, str]:
    """Map the files that were saved in a folder to their digests; {} if it has no digests.

    Raises:
        InputError: the file of digests is damaged.
    """
    from pydantic import TypeAdapter, ValidationError

    path = folder / DIGESTS
    if not path.exists():
        return {}
    try:
        return TypeAdapter(dict[str, str]).validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise InputError(f"{path} is damaged; restore the folder, or save it again.") from error


def weight_digests(folder: Path) -> dict[str, str]:
    """Map the files of weights that were saved in a folder to their digests.

    Raises:
        InputError: the file of digests is damaged.
    """
    digests = saved_digests(folder)
    return {name: digest for name, digest in digests.items() if name.endswith(WEIGHTS)}


def is_as_saved(folder: Path, name: str) -> bool:
    """Return whether a folder holds a file with the digest that was saved."""
    path = folder / name
    return path.is_file() and saved_digests(folder).get(name) == _digest(path)


def require_undamaged(folder: Path) -> bool:
    """Compare all saved files of a folder with their digests, except the model card.

    The card is a text for people, who may edit it.

    Returns:
        Whether the folder has digests.

    Raises:
        InputError: names the first file that is missing or differs from what was saved.
    """
    digests = saved_digests(folder)
    for name, digest in digests.items():
        if name == CARD:
            continue
        path = folder / name
        problem = "is not as it was saved"
        try:
            if _digest(path) == digest:
                continue
        except OSError as error:
            problem = f"cannot be read: {error.strerror}"
        raise InputError(f"{path} {problem}; restore the folder, or save it again.")
    return bool(digests)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
