"""A Kedro dataset that keeps a merged model in a folder that transformers reads."""

from pathlib import Path, PurePosixPath
from typing import Any

from kedro.io.core import AbstractVersionedDataset, Version, VersionNotFoundError

from flan_qa_pipeline.errors import InputError
from flan_qa_pipeline.hub import CONFIG
from flan_qa_pipeline.models.merged_model import MergedModel, load_merged, save_merged


class MergedModelDataset(AbstractVersionedDataset[MergedModel, MergedModel]):
    """Saves a merged model, its tokenizer and its model card as transformers does.

    Example:
    ```yaml
    merged_model:
      type: flan_qa_pipeline.datasets.merged_model.MergedModelDataset
      filepath: data/06_models/merged
      versioned: true
    ```
    """

    def __init__(
        self,
        *,
        filepath: str,
        version: Version | None = None,
        metadata: dict[str, Any] | None = None,
    ):
        self.metadata = metadata
        super().__init__(
            filepath=PurePosixPath(filepath),
            version=version,
            exists_function=lambda path: Path(path).exists(),
        )

    def load(self) -> MergedModel:
        try:
            folder = Path(self._get_load_path())
        except VersionNotFoundError:
            if Path(self._filepath, CONFIG).is_file():
                raise InputError(
                    f"{self._filepath} holds a model that was saved without a version; "
                    "transformers reads it from there, and `kedro run --pipelines=merge` saves a "
                    "version."
                ) from None
            raise
        return load_merged(folder)

    def save(self, data: MergedModel) -> None:
        save_merged(data, Path(self._get_save_path()))

    def _exists(self) -> bool:
        return (Path(self._get_load_path()) / CONFIG).is_file()

    def _describe(self) -> dict[str, Any]:
        return {"filepath": str(self._filepath), "version": self._version}
