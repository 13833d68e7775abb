"""A Kedro dataset of a SQuAD file that is read as it is used."""

import io
from functools import partial
from pathlib import PurePosixPath
from typing import Any, NoReturn

from kedro.io import AbstractDataset

from flan_qa_pipeline.data.filesystems import filesystem_of
from flan_qa_pipeline.data.squad_files import SquadJSON, SquadParquet
from flan_qa_pipeline.errors import InputError
from flan_qa_pipeline.hub import PROTOCOL, DataFiles, fetch


class SquadFileDataset(AbstractDataset[NoReturn, SquadJSON | SquadParquet]):
    """A SQuAD 2.0 file that is read as it is used, from any filesystem that fsspec knows.

    Parquet by its ending, `.parquet`, else JSON (UTF-8). A file on the Hugging Face hub (`hf://`)
    is fetched into the hub's cache.

    Example:
    ```yaml
    raw_train:
      type: flan_qa_pipeline.datasets.squad_file.SquadFileDataset
      filepath: data/01_raw/starter_train.json
    ```
    """

    def __init__(
        self,
        *,
        filepath: str,
        credentials: dict[str, Any] | None = None,
        metadata: dict[str, Any] | None = None,
    ):
        self._url = filepath
        self._fs, self._path = filesystem_of(filepath, **credentials or {})
        self._filepath = PurePosixPath(self._path)
        self.metadata = metadata

    def read_from(self, path: str) -> None:
        """Read a local copy of the file from now on."""
        self._url = path
        self._fs, self._path = filesystem_of(path)

    def load(self) -> SquadJSON | SquadParquet:
        self._fetch()
        if self._filepath.suffix == ".parquet":
            return SquadParquet(self._path, self._fs)
        return SquadJSON(self._path, partial(self._open, self._path))

    def _fetch(self) -> None:
        if self._url.startswith(PROTOCOL):
            [fetched] = fetch(DataFiles.of(self._url))
            self.read_from(str(fetched.path))

    def _open(self, path: str) -> io.TextIOWrapper:
        try:
            return io.TextIOWrapper(self._fs.open(path, "rb"), encoding="utf-8-sig")
        except OSError as error:
            raise InputError(
                f"{path} cannot be read: {error.strerror or error}; name a SQuAD 2.0 file in JSON, "
                "or a file or folder of Parquet whose name ends in .parquet."
            ) from error

    def save(self, data: NoReturn) -> None:
        raise NotImplementedError("A file of training questions is only read.")

    def _exists(self) -> bool:
        self._fetch()
        return self._fs.exists(self._path)

    def _describe(self) -> dict[str, Any]:
        return {"filepath": self._url}
