"""A Kedro dataset of a LoRA adapter, in a folder that peft reads."""

import json
from pathlib import Path, PurePosixPath
from typing import Any

from kedro.io.core import AbstractVersionedDataset, Version
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from flan_qa_pipeline.files import refuse_pickles, remove_at_once
from flan_qa_pipeline.models.adapter import PROVENANCE, TRAINING, WEIGHTS, Adapter


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
        folder = Path(self._get_load_path())
        refuse_pickles(folder)
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        return Adapter(
            config=LoraConfig.from_pretrained(str(folder)),
            state_dict=load_file(folder / WEIGHTS),
            tokenizer=tokenizer,
            provenance=json.loads((folder / PROVENANCE).read_text(encoding="utf-8")),
            training=json.loads((folder / TRAINING).read_text(encoding="utf-8")),
        )

    def save(self, data: Adapter) -> None:
        folder = Path(self._get_save_path())
        remove_at_once(folder)
        folder.mkdir(parents=True)
        save_file(data.state_dict, folder / WEIGHTS, metadata={"format": "pt"})
        data.config.save_pretrained(str(folder))
        data.tokenizer.save_pretrained(str(folder))
        for name, content in ((PROVENANCE, data.provenance), (TRAINING, data.training)):
            text = json.dumps(content, indent=2, ensure_ascii=False)
            (folder / name).write_text(text, encoding="utf-8")

    def _exists(self) -> bool:
        return (Path(self._get_load_path()) / WEIGHTS).is_file()

    def _describe(self) -> dict[str, Any]:
        return {"filepath": str(self._filepath), "version": self._version}
