"""Folders that appear whole or not at all, and a check that a folder holds no pickles."""

import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from errno import EEXIST, ENOTEMPTY
from pathlib import Path
from uuid import uuid4

from flan_qa_pipeline.errors import InputError

# .model: a SentencePiece tokenizer (protobuf); .jinja: a chat template; .md: a model card
UNPICKLED = {".safetensors", ".json", ".txt", ".model", ".jinja", ".md"}


@contextmanager
def written_aside(folder: Path, beside: Path | None = None) -> Iterator[Path]:
    """Give an empty hidden folder that is renamed to `folder` once the block has ended well.

    It lies beside `beside` (default: beside `folder`), on the same disk. After an error it is
    removed; a killed process leaves it behind, where nothing looks for it.

    Raises:
        FileExistsError: `folder` has come to exist meanwhile and is not empty.
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
    """Remove these files from a folder so that it is never seen with some of them.

    The folder goes, too, unless it holds anything else: then that stays where it is.
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


def refuse_pickles(folder: Path) -> None:
    """Refuse a folder of weights with any file that is not safetensors, JSON or plain text.

    Raises:
        InputError: names the first such file; reading a pickle would run the code in it.
    """
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.suffix not in UNPICKLED:
            raise InputError(
                f"{path} is neither safetensors nor JSON nor text, so it is not read: a pickle "
                "runs code. Remove it, or save the weights again as safetensors."
            )
