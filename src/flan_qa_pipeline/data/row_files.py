"""Find and open files of questions of any supported kind, wherever fsspec reaches.

A place is a file, a folder of files, a glob, or a folder that `datasets` saved.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import fsspec
from datasets.data_files import FILES_TO_IGNORE, SPLIT_KEYWORDS
from fsspec.utils import infer_compression

from flan_qa_pipeline.data.filesystems import filesystem_of
from flan_qa_pipeline.data.readers import (
    READERS,
    Columns,
    Row,
    SourceFile,
    SquadJSON,
    has_rows,
    readable,
    saved_rows,
)
from flan_qa_pipeline.errors import InputError

SPLITS = {
    str(split): re.compile(rf"(?<![a-z])({'|'.join(words)})(?![a-z])", re.IGNORECASE)
    for split, words in SPLIT_KEYWORDS.items()
}
SAVED, SAVED_SPLITS = "state.json", "dataset_dict.json"  # files that save_to_disk writes
KINDS_READ = (
    f"it may end in {', '.join(READERS)} (all but Parquet also in .gz, .bz2, .xz or .zip), be a "
    "folder or glob of such files, or a folder that save_to_disk made. Two lines of a .jsonl file "
    "of training questions:\n"
    '{"context": "Ada lived in London.", "question": "Where was it?", "answers": ["London"]}\n'
    '{"context": "Ada lived in London.", "question": "When was it?", "answers": []}'
)


@dataclass(frozen=True)
class RowFiles:
    """The files at a place, or those of one split if their names distinguish splits.

    Attributes:
        url: a path, glob or URL of any filesystem that fsspec knows.
        split: train, validation or test.
        credentials: options of the filesystem.
    """

    url: str
    split: str | None = None
    credentials: Mapping[str, Any] | None = None

    def exist(self) -> bool:
        filesystem, path = filesystem_of(self.url, **self.credentials or {})
        return bool(filesystem.glob(path))

    def find(self) -> list[SourceFile]:
        """Find the files, all of one kind, in the order of their names.

        Raises:
            InputError: there is no file, or the files are not one split of one kind.
        """
        filesystem, path = filesystem_of(self.url, **self.credentials or {})
        with readable(self.url):
            found = [path]
            if "*" in path:
                found = sorted(name for name in filesystem.glob(path) if not filesystem.isdir(name))
            elif filesystem.isdir(path):
                if saved := _saved_folder(filesystem, path, self.url, self.split):
                    return [SourceFile(saved, filesystem)]
                found = sorted(_files_below(filesystem, path, self.url, self.split))
            if not found:
                raise InputError(f"{self.url} holds no file of questions; {KINDS_READ}")
            for name in found:
                _require_file(filesystem, name)
        kinds = set()
        for name in found:
            kind = kind_of(name)
            if kind is None:
                raise InputError(f"{name} is not a file of questions by its name; {KINDS_READ}")
            kinds.add(kind)
        if len(kinds) > 1:
            raise InputError(
                f"{self.url} holds several kinds of files ({', '.join(sorted(kinds))}); name "
                f"the files of one kind by a glob such as {self.url.rstrip('/')}/*{min(kinds)}."
            )
        return [SourceFile(name, filesystem) for name in found]

    def parts(self, columns: Columns) -> Iterator[SquadJSON | Iterator[Row]]:
        """Yield each file in turn: its rows, or the file if it has the official SQuAD schema.

        Raises:
            InputError: as for `find`; or a file cannot be read, which may show with a later row.
        """
        for file in self.find():
            kind = kind_of(file.path)
            if kind is None:
                yield saved_rows(file, columns)
            elif kind == ".json" and not has_rows(file):
                yield SquadJSON(file.path, file.filesystem)
            else:
                yield READERS[kind](file, columns)


def files_in(url: str, credentials: Mapping[str, Any] | None = None) -> dict[str, RowFiles]:
    """Map the names of all files of questions below a folder to these files, one by one.

    The files may be of several kinds. Hidden files, and files of kinds that hold no questions, do
    not count.

    Args:
        url: the folder, on any filesystem that fsspec knows.
        credentials: options of the filesystem.

    Raises:
        InputError: there is no such file.
    """
    filesystem, folder = filesystem_of(url, **credentials or {})
    with readable(url):
        found = _questions_below(filesystem, folder)
    if not found:
        raise InputError(f"{url} holds no file of questions; name a folder with such files.")
    return {
        str(found[name]): RowFiles(
            filesystem.unstrip_protocol(str(name)) if "://" in url else str(name),
            credentials=credentials,
        )
        for name in sorted(found)
    }


def kind_of(path: str) -> str | None:
    """Get the ending that selects the reader, ignoring a compression; None if there is no reader.

    >>> kind_of("a/Train.JSON.gz"), kind_of("a/train.xlsx")
    ('.json', None)
    """
    name = PurePosixPath(path)
    compressed = infer_compression(path)
    kind = (name.with_suffix("") if compressed else name).suffix.lower()
    return kind if kind in READERS and not (compressed and kind == ".parquet") else None


def _require_file(filesystem: fsspec.AbstractFileSystem, path: str) -> None:
    try:
        kind = filesystem.info(path)["type"]
    except OSError:
        raise InputError(f"There is no {path}; name a file, a folder or a glob.") from None
    if kind == "other":
        raise InputError(
            f"{path} is neither a file nor a folder but a pipe or a device, which cannot be read "
            "twice; save what it gives to a file and name that."
        )


def _saved_folder(
    filesystem: fsspec.AbstractFileSystem, path: str, url: str, split: str | None
) -> str | None:
    """Find the folder of a saved dataset in a path; None if `save_to_disk` did not make it."""
    if filesystem.exists(f"{path}/{SAVED}"):
        return path
    if not filesystem.exists(f"{path}/{SAVED_SPLITS}"):
        return None
    with readable(f"{path}/{SAVED_SPLITS}"), filesystem.open(f"{path}/{SAVED_SPLITS}") as file:
        splits = dict(json.load(file)).get("splits") or ["train"]
    if split not in splits and len(splits) > 1:
        raise _several_splits(url, splits, f"{url.rstrip('/')}/{splits[0]}")
    return f"{path}/{split if split in splits else splits[0]}"


def _several_splits(url: str, splits: Iterable[str], example: str) -> InputError:
    return InputError(
        f"{url} holds the splits {', '.join(splits)}; name one of them, such as {example}."
    )


def _questions_below(
    filesystem: fsspec.AbstractFileSystem, path: str
) -> dict[PurePosixPath, PurePosixPath]:
    """Map the files in a folder that may hold questions to their places in it."""
    below = {
        PurePosixPath(name): PurePosixPath(name).relative_to(path)
        for name in filesystem.find(path)
        if kind_of(name) and PurePosixPath(name).name not in FILES_TO_IGNORE
    }
    return {
        name: inside
        for name, inside in below.items()
        if not any(part[0] in "._" for part in inside.parts)
    }


def _files_below(
    filesystem: fsspec.AbstractFileSystem, path: str, url: str, split: str | None
) -> list[str]:
    """List the files of one split in a folder, or in its only subfolder with such files."""
    below = _questions_below(filesystem, path)
    files = list(below)
    in_splits = {
        split: of_split
        for split, words in SPLITS.items()
        if (of_split := [name for name in files if words.search(name.name)])
    }
    if len(in_splits) > 1:
        if split not in in_splits:
            example = f"{in_splits[next(iter(in_splits))][0].parent}/{next(iter(in_splits))}*"
            raise _several_splits(url, in_splits, example)
        files = in_splits[split]
    folders = sorted({str(below[name].parent) for name in files})
    if len(folders) > 1:
        raise InputError(
            f"{url} holds files of questions in several folders ({', '.join(folders[:5])}); name "
            f"one, such as {url.rstrip('/')}/{folders[-1]}."
        )
    return [str(name) for name in files]
