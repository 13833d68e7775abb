"""A Kedro dataset that keeps a model or a tokenizer as transformers does."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import transformers
from kedro.io.core import AbstractDataset

from flan_qa_pipeline.datasets.local_path import local_path
from flan_qa_pipeline.files import add_saved, refuse_pickles, require_undamaged


class PretrainedDataset(AbstractDataset[Any, Any]):
    """Saves a model or tokenizer by `save_pretrained`, loads it by a transformers auto class.

    The folder holds weights as safetensors and a digest of every file, which `load` compares. A
    model and its tokenizer may share a folder.

    Example:
    ```yaml
    pretrained_base:
      type: flan_qa_pipeline.datasets.pretrained.PretrainedDataset
      filepath: data/06_models/pretrained_base
      auto_class: AutoModelForSeq2SeqLM
    ```
    """

    def __init__(
        self,
        *,
        filepath: str,
        auto_class: Literal["AutoModelForSeq2SeqLM", "AutoTokenizer"],
        metadata: dict[str, Any] | None = None,
    ):
        self._filepath = local_path(filepath)
        self._auto_class = auto_class
        self.metadata = metadata

    def load(self) -> Any:
        folder = Path(self._filepath)
        refuse_pickles(folder)
        require_undamaged(folder)
        auto_class = getattr(transformers, self._auto_class)
        return auto_class.from_pretrained(
            str(self._filepath), local_files_only=True, trust_remote_code=False
        )

    def save(self, data: Any) -> None:
        folder = Path(self._filepath)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as aside:
            data.save_pretrained(aside)
            add_saved(Path(aside), folder)

    def _exists(self) -> bool:
        marker = "config.json" if "Model" in self._auto_class else "tokenizer_config.json"
        return Path(self._filepath, marker).is_file()

    def _describe(self) -> dict[str, Any]:
        return {"filepath": str(self._filepath), "auto_class": self._auto_class}
