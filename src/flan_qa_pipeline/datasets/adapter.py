"""A Kedro dataset that keeps a LoRA adapter in a folder that peft reads."""

from pathlib import Path

from flan_qa_pipeline.datasets.model_folder import ModelFolderDataset
from flan_qa_pipeline.errors import InputError
from flan_qa_pipeline.files import CARD, DIGESTS, is_as_saved, remove_at_once, saved_digests
from flan_qa_pipeline.models.adapter import WEIGHTS, Adapter, load_adapter, save_adapter
from flan_qa_pipeline.reporting.model_card import adapter_card


class AdapterDataset(ModelFolderDataset[Adapter]):
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

    MARKER = WEIGHTS

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
