"""What the Kedro datasets of adapters and of merged models share."""

from pathlib import Path
from typing import Any, ClassVar, TypeVar

from kedro.io.core import AbstractVersionedDataset, Version

from flan_qa_pipeline.datasets.local_path import local_path

Model = TypeVar("Model")


class ModelFolderDataset(AbstractVersionedDataset[Model, Model]):
    """A folder of a model's files, with or without versions."""

    MARKER: ClassVar[str]  # the name of a file that every saved folder holds

    def __init__(
        self,
        *,
        filepath: str,
        version: Version | None = None,
        metadata: dict[str, Any] | None = None,
    ):
        self.metadata = metadata
        super().__init__(
            filepath=local_path(filepath),
            version=version,
            exists_function=lambda path: Path(path).exists(),
        )

    def _exists(self) -> bool:
        return (Path(self._get_load_path()) / self.MARKER).is_file()

    def _describe(self) -> dict[str, Any]:
        return {"filepath": str(self._filepath), "version": self._version}
