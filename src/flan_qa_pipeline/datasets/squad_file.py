"""A Kedro dataset of training questions that are read as they are used."""

from pathlib import PurePosixPath
from typing import Any, NoReturn

from kedro.io import AbstractDataset

from flan_qa_pipeline.data.row_files import RowFiles, locate


class SquadFileDataset(AbstractDataset[NoReturn, RowFiles]):
    """Training questions that are read as they are used, from any place that `RowFiles` finds.

    Of a place with files of several splits, `split` is read.

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
        self._fs, path = locate(filepath, credentials)
        self._filepath = PurePosixPath(path)
        self.metadata = metadata

    def load(self) -> RowFiles:
        return self.files

    def save(self, data: NoReturn) -> None:
        raise NotImplementedError("A file of training questions is only read.")

    def _exists(self) -> bool:
        return bool(self._fs.glob(str(self._filepath)))

    def _describe(self) -> dict[str, Any]:
        return {"filepath": self.files.url, "split": self.files.split}
