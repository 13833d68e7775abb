"""A Kedro dataset that keeps a merged model in a folder that transformers reads."""

from pathlib import Path

from kedro.io.core import VersionNotFoundError

from flan_qa_pipeline.datasets.model_folder import ModelFolderDataset
from flan_qa_pipeline.errors import InputError
from flan_qa_pipeline.hub import CONFIG
from flan_qa_pipeline.models.merged_model import MergedModel, load_merged, save_merged


class MergedModelDataset(ModelFolderDataset[MergedModel]):
    """Saves a merged model, its tokenizer and its model card as transformers does.

    Example:
    ```yaml
    merged_model:
      type: flan_qa_pipeline.datasets.merged_model.MergedModelDataset
      filepath: data/06_models/merged
      versioned: true
    ```
    """

    MARKER = CONFIG

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
