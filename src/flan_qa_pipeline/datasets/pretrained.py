"""A Kedro dataset that keeps a T5 or a tokenizer as transformers does."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from kedro.io.core import AbstractDataset

from flan_qa_pipeline.datasets.local_path import local_path
from flan_qa_pipeline.files import add_saved, refuse_pickles, require_undamaged
from flan_qa_pipeline.models.loading import load_transformers_t5, read_tokenizer


class PretrainedDataset(AbstractDataset[Any, Any]):
    """Saves a T5 v1.1 or a tokenizer by `save_pretrained`, and loads it.

    The folder holds weights as safetensors and a digest of every file, which `load` compares. A
    model and its tokenizer may share a folder.

    Example:
    ```yaml
    pretrained_base:
      type: flan_qa_pipeline.datasets.pretrained.PretrainedDataset
      filepath: data/06_models/pretrained_base
      kind: model
    ```
    """

    def __init__(
        self,
        *,
        filepath: str,
        kind: Literal["model", "tokenizer"],
        metadata: dict[str, Any] | None = None,
    ):
        self._filepath = local_path(filepath)
        self._kind = kind
        self.metadata = metadata

    def load(self) -> Any:
        folder = Path(self._filepath)
        refuse_pickles(folder)
        require_undamaged(folder)
        if self._kind == "model":
            return load_transformers_t5(folder)
        return read_tokenizer(folder)

    def save(self, data: Any) -> None:
        folder = Path(self._filepath)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as aside:
            data.save_pretrained(aside)
            add_saved(Path(aside), folder)

    def _exists(self) -> bool:
        marker = "config.json" if self._kind == "model" else "tokenizer_config.json"
        return Path(self._filepath, marker).is_file()

    def _describe(self) -> dict[str, Any]:
        return {"filepath": str(self._filepath), "kind": self._kind}
