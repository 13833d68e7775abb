"""A Kedro dataset of a SQuAD file that is read as it is used."""

import io
from functools import partial
from pathlib import PurePosixPath
from typing import Any, NoReturn

import fsspec
from kedro.io import AbstractDataset
from kedro.io.core import get_filepath_str, get_protocol_and_path

from flan_qa_pipeline.data.squad_files import SquadJSON, SquadParquet
from flan_qa_pipeline.errors import InputError


class SquadFileDataset(AbstractDataset[NoReturn, SquadJSON | SquadParquet]):
    """A SQuAD 2.0 file that is read as it is used, from any filesystem that fsspec knows.

    Parquet by its ending, `.parquet`, else JSON (UTF-8).

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
        self._protocol, path = get_protocol_and_path(filepath)
        self._fs = fsspec.filesystem(self._protocol, **credentials or {})
        self._filepath = PurePosixPath(path)
        self.metadata = metadata

    def load(self) -> SquadJSON | SquadParquet:
        path = get_filepath_str(self._filepath, self._protocol)
        if self._filepath.suffix == ".parquet":
            return SquadParquet(path, self._fs)
        return SquadJSON(path, partial(self._open, path))

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
        return self._fs.exists(get_filepath_str(self._filepath, self._protocol))

    def _describe(self) -> dict[str, Any]:
        return {"filepath": self._filepath, "protocol": self._protocol}
