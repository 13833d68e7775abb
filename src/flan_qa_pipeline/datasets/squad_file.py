"""A Kedro dataset that reads training questions as a node uses them."""

from typing import Any

from flan_qa_pipeline.data.row_files import RowFiles
from flan_qa_pipeline.datasets.row_files import RowFilesDataset


class SquadFileDataset(RowFilesDataset[RowFiles]):
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
        super().__init__(RowFiles(filepath, split, credentials), metadata)

    def load(self) -> RowFiles:
        return self.fetched()
