"""Arrow files in place of memory: those of one run, and results that later runs use again.

`datasets` maps such files into memory as they are read. Its own cache does not notice that a file
is damaged, and a dataset that was saved and loaded writes its cache beside the saved version.
"""

import hashlib
import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from errno import ENOSPC
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import Dataset, DatasetDict, Features

from flan_qa_pipeline.errors import InputError
from flan_qa_pipeline.files import remove_at_once, written_aside

logger = logging.getLogger(__name__)

ROWS, CHARACTERS = 1000, 2**24  # of a batch that is written at a time
CHECKSUMS = "checksums.json"
STALE = 24 * 60 * 60  # seconds after which what a killed run left half-written is removed


def on_disk(records: Iterable[Mapping[str, Any]], features: Features) -> Dataset:
    """Write records to a temporary file as they come; return them as a dataset that reads it.

    The file lies where Python's temporary files do (`TMPDIR`) and is freed with the dataset.

    Raises:
        InputError: there is no room for the file.
    """
    with tempfile.NamedTemporaryFile(suffix=".arrow") as file:
        try:
            write_arrow(Path(file.name), _batches(records, list(features)), features)
        except OSError as error:
            if error.errno != ENOSPC:
                raise
            raise InputError(
                f"{tempfile.gettempdir()} has no room left for a temporary copy of the questions; "
                "free space, or set TMPDIR to a larger folder."
            ) from error
        return Dataset.from_file(file.name)


def write_arrow(path: Path, batches: Iterable[Mapping[str, list[Any]]], features: Features) -> None:
    """Write batches of columns to a file that `Dataset.from_file` reads, one at a time."""
    schema = features.arrow_schema
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        for batch in batches:
            writer.write_batch(pa.RecordBatch.from_pydict(batch, schema))


def _batches(
    records: Iterable[Mapping[str, Any]], columns: list[str]
) -> Iterator[dict[str, list[Any]]]:
    batch, characters = [], 0
    for record in records:
        batch.append(record)
        characters += sum(len(value) for value in record.values() if isinstance(value, str))
        if len(batch) == ROWS or characters >= CHARACTERS:
            yield {column: [record[column] for record in batch] for column in columns}
            batch, characters = [], 0
    yield {column: [record[column] for record in batch] for column in columns}


def reused_splits(
    splits: Mapping[str, Iterable[Mapping[str, list[Any]]]],
    features: Features,
    *,
    key: str,
    folder: Path,
    keep: int,
    name: str,
) -> DatasetDict:
    """Give the splits that an earlier run kept under the same key, or write and keep those given.

    A result appears whole or not at all, and is used only if its checksums are right.

    Args:
        splits: batches of each split's columns; not asked for if there is a result.
        features: the columns.
        key: a digest of all that the batches depend on.
        folder: where results are kept, each in a folder of its key.
        keep: how many results stay, those last used.
        name: what the result is called in the log.

    Raises:
        InputError: the folder cannot be written.
    """
    place = folder / key
    kept = _kept(place, splits, name)
    try:
        if kept is None:
            with suppress(FileExistsError), written_aside(place) as aside:
                for split, batches in splits.items():
                    write_arrow(aside / f"{split}.arrow", batches, features)
                checksums = json.dumps(_checksums(aside))
                (aside / CHECKSUMS).write_text(checksums, encoding="utf-8")
                kept = _open(aside, splits)
        else:
            logger.info("%s: of the same input as before, those in %s are used.", name, place)
        with suppress(FileNotFoundError):
            os.utime(place)
        _discard(folder, keep)
    except OSError as error:
        raise InputError(
            f"{name} cannot be kept in {folder}: {error}; free space, or name another folder in "
            "data.cache_dir."
        ) from error
    return kept


def _kept(place: Path, splits: Iterable[str], name: str) -> DatasetDict | None:
    """Open a kept result if it is there and whole."""
    with suppress(OSError, ValueError, pa.ArrowException):
        wanted = json.loads((place / CHECKSUMS).read_text(encoding="utf-8"))
        if wanted == _checksums(place):
            return _open(place, splits)
    if place.exists():
        logger.warning("%s in %s are damaged and are made again.", name, place)
        remove_at_once(place)
    return None


def _open(place: Path, splits: Iterable[str]) -> DatasetDict:
    return DatasetDict({name: Dataset.from_file(str(place / f"{name}.arrow")) for name in splits})


def _checksums(folder: Path) -> dict[str, str]:
    checksums = {}
    for path in sorted(folder.glob("*.arrow")):
        with path.open("rb") as file:
            checksums[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return checksums


def _discard(folder: Path, keep: int) -> None:
    """Remove all results but those last used, and what killed runs left long ago."""
    used = {}
    for place in folder.iterdir():
        with suppress(FileNotFoundError):  # another run removes it, too
            used[place] = place.stat().st_mtime
    results = [place for place in used if not place.name.startswith(".")]
    for place in sorted(results, key=used.__getitem__, reverse=True)[keep:]:
        remove_at_once(place)
    for place in used.keys() - set(results):
        if used[place] < time.time() - STALE:
            shutil.rmtree(place, ignore_errors=True)
