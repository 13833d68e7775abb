"""A Kedro dataset of a LoRA adapter, in a folder that peft reads."""

from pathlib import Path, PurePosixPath
from typing import Any

from kedro.io.core import AbstractVersionedDataset, Version

from flan_qa_pipeline.files import remove_at_once
from flan_qa_pipeline.models.adapter import WEIGHTS, Adapter, load_adapter, save_adapter


class AdapterDataset(AbstractVersionedDataset[Adapter, Adapter]):
    """A folder in peft's own layout (`PeftModel.from_pretrained` reads it), plus tokenizer.

    Weights are safetensors, everything else is JSON.

    Example:
    ```yaml
    adapter:
      type: flan_qa_pipeline.datasets.adapter.AdapterDataset
      filepath: data/06_models/adapter
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

    def load(self) -> Adapter:
        return load_adapter(Path(self._get_load_path()))

    def save(self, data: Adapter) -> None:
        folder = Path(self._get_save_path())
        remove_at_once(folder)
        folder.mkdir(parents=True)
        save_adapter(data, folder)

    def _exists(self) -> bool:
        return (Path(self._get_load_path()) / WEIGHTS).is_file()

    def _describe(self) -> dict[str, Any]:
        return {"filepath": str(self._filepath), "version": self._version}
