"""A Kedro dataset that keeps a LoRA adapter in a folder that peft reads."""

from pathlib import Path, PurePosixPath
from typing import Any

from kedro.io.core import AbstractVersionedDataset, Version

from flan_qa_pipeline.errors import InputError
from flan_qa_pipeline.files import CARD, DIGESTS, is_as_saved, remove_at_once, saved_digests
from flan_qa_pipeline.models.adapter import WEIGHTS, Adapter, load_adapter, save_adapter
from flan_qa_pipeline.reporting.model_card import adapter_card


class AdapterDataset(AbstractVersionedDataset[Adapter, Adapter]):
    """Saves a LoRA adapter, its tokenizer and a model card in peft's layout (see `save_adapter`).

    `PeftModel.from_pretrained` reads the folder. Without versions, saving replaces the adapter in
    the folder and refuses to touch a folder that holds other files or an edited card.

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
        if folder.exists():
            own = {*saved_digests(folder), DIGESTS}
            if not is_as_saved(folder, CARD):
                own.discard(CARD)
            for path in sorted(folder.iterdir()):
                if path.name not in own:
                    raise InputError(
                        f"{path} was not saved with an adapter and is not removed; move it away, "
                        "or name another folder in the catalog."
                    )
            remove_at_once(folder, own)
        save_adapter(data, folder, adapter_card(data))

    def _exists(self) -> bool:
        return (Path(self._get_load_path()) / WEIGHTS).is_file()

    def _describe(self) -> dict[str, Any]:
        return {"filepath": str(self._filepath), "version": self._version}
