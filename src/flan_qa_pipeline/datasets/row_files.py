"""What the Kedro datasets of training questions and of new questions share."""

from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any, NoReturn, TypeVar

from kedro.io import AbstractDataset

from flan_qa_pipeline.data.filesystems import filesystem_of
from flan_qa_pipeline.data.row_files import RowFiles
from flan_qa_pipeline.hub import PROTOCOL, DataFiles, fetch

Loaded = TypeVar("Loaded")


class RowFilesDataset(AbstractDataset[NoReturn, Loaded]):
    """Files of rows at any place that `RowFiles` finds; nothing is saved there.

    Files on the Hugging Face hub (`hf://`) are fetched into the hub's cache. A subclass says in
    `load` how a node reads `fetched()`.
    """

    def __init__(self, files: RowFiles, metadata: dict[str, Any] | None) -> None:
        self.files = files
        _, path = filesystem_of(files.url, **files.credentials or {})
        self._filepath = PurePosixPath(path)
        self.metadata = metadata

    def read_from(self, path: str) -> None:
        """Read a local copy of the files from now on."""
        self.files = replace(self.files, url=path, credentials=None)

    def require_readable(self) -> None:
        """Check the files without reading their rows.

        Raises:
            InputError: there are no such files, or of no kind that can be read.
        """
        self.files.find()

    def fetched(self) -> RowFiles:
        """Return the files on this machine or another filesystem; fetch those on the hub."""
        if self.files.url.startswith(PROTOCOL):
            [found] = fetch(DataFiles.of(self.files.url))
            self.read_from(str(found.path))
        return self.files

    def save(self, data: NoReturn) -> None:
        raise NotImplementedError("A file of questions is only read.")

    def _exists(self) -> bool:
        return self.fetched().exist()

    def _describe(self) -> dict[str, Any]:
        return {"filepath": self.files.url, "split": self.files.split}
