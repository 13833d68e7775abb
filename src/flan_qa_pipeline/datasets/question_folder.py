"""A Kedro dataset that reads a folder of files of questions, or none."""

from pathlib import PurePosixPath
from typing import Any, NoReturn

from kedro.io import AbstractDataset

from flan_qa_pipeline.data.filesystems import filesystem_of
from flan_qa_pipeline.data.row_files import RowFiles, files_in


class QuestionFolderDataset(AbstractDataset[NoReturn, dict[str, RowFiles]]):
    """Reads all files of questions in a folder by their names; without a folder there are none.

    `partitions.PartitionedDataset` needs a folder, and gives every file the same type.

    Example:
    ```yaml
    pretraining_question_sets:
      type: flan_qa_pipeline.datasets.question_folder.QuestionFolderDataset
      path: null
    ```
    """

    def __init__(
        self,
        *,
        path: str | None = None,
        credentials: dict[str, Any] | None = None,
        metadata: dict[str, Any] | None = None,
    ):
        self._url, self._credentials = path, credentials
        self._path = PurePosixPath(filesystem_of(path, **credentials or {})[1]) if path else None
        self.metadata = metadata

    def load(self) -> dict[str, RowFiles]:
        return self._find()

    def read_from(self, path: str) -> None:
        """Read a local copy of the folder from now on."""
        self._url, self._credentials = path, None

    def require_readable(self) -> None:
        """Check the files without reading their rows.

        Raises:
            InputError: the folder holds no file of questions.
        """
        self._find()

    def save(self, data: NoReturn) -> None:
        raise NotImplementedError("A folder of questions is only read.")

    def _find(self) -> dict[str, RowFiles]:
        return files_in(self._url, self._credentials) if self._url else {}

    def _exists(self) -> bool:
        if self._url is None:
            return True
        filesystem, path = filesystem_of(self._url, **self._credentials or {})
        return bool(filesystem.isdir(path))

    def _describe(self) -> dict[str, Any]:
        return {"path": self._url}
