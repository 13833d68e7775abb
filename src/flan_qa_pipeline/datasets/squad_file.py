"""A Kedro dataset that reads training questions as a node uses them."""

from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any, NoReturn

from kedro.io import AbstractDataset

from flan_qa_pipeline.data.filesystems import filesystem_of
from flan_qa_pipeline.data.row_files import RowFiles
from flan_qa_pipeline.hub import PROTOCOL, DataFiles, fetch


class SquadFileDataset(AbstractDataset[NoReturn, RowFiles]):
    """Reads training questions, as a node uses them, from any place that `RowFiles` finds.

    `split` chooses among files of several splits in one place. Files on the Hugging Face hub
    (`hf://`) are fetched into the hub's cache.

    Example:
    ```yaml
    raw_train:
      type: flan_qa_pipeline.datasets.squad_file.SquadFileDataset
      filepath: data/01_raw/starter_train.json
      split: train
    ```
    """

    def __init__(
        self,
        *,
        filepath: str,
        split: str | None = None,
        credentials: dict[str, Any] | None = None,
        metadata: dict[str, Any] | None = None,
    ):
        self.files = RowFiles(filepath, split, credentials)
        _, path = filesystem_of(filepath, **credentials or {})
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

    def load(self) -> RowFiles:
        self._fetch()
        return self.files

    def _fetch(self) -> None:
        if self.files.url.startswith(PROTOCOL):
            [fetched] = fetch(DataFiles.of(self.files.url))
            self.read_from(str(fetched.path))

    def save(self, data: NoReturn) -> None:
        raise NotImplementedError("A file of training questions is only read.")

    def _exists(self) -> bool:
        self._fetch()
        return self.files.exist()

    def _describe(self) -> dict[str, Any]:
        return {"filepath": self.files.url, "split": self.files.split}
