"""A Kedro dataset of a model or tokenizer with `save_pretrained`."""

from pathlib import Path, PurePosixPath
from typing import Any, Literal

import transformers
from kedro.io.core import AbstractDataset

from flan_qa_pipeline.files import refuse_pickles


class PretrainedDataset(AbstractDataset[Any, Any]):
    """Anything with `save_pretrained`, in a folder, loaded by a transformers auto class.

    Weights are safetensors. A model and its tokenizer may share a folder.

    Example:
    ```yaml
    starter_model:
      type: flan_qa_pipeline.datasets.pretrained.PretrainedDataset
      filepath: data/06_models/starter_t5
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
        self._filepath = PurePosixPath(filepath)
        self._auto_class = auto_class
        self.metadata = metadata

    def load(self) -> Any:
        refuse_pickles(Path(self._filepath))
        auto_class = getattr(transformers, self._auto_class)
        return auto_class.from_pretrained(
            str(self._filepath), local_files_only=True, trust_remote_code=False
        )

    def save(self, data: Any) -> None:
        data.save_pretrained(str(self._filepath))

    def _exists(self) -> bool:
        marker = "config.json" if "Model" in self._auto_class else "tokenizer_config.json"
        return Path(self._filepath, marker).is_file()

    def _describe(self) -> dict[str, Any]:
        return {"filepath": str(self._filepath), "auto_class": self._auto_class}
