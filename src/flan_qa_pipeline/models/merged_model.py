"""A model into whose weights an adapter was merged: save it, load it."""

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from flan_qa_pipeline.files import CARD, add_saved, refuse_pickles, require_undamaged
from flan_qa_pipeline.models.loading import load_transformers_t5, read_tokenizer


@dataclass(frozen=True)
class MergedModel:
    """A model without an adapter, its tokenizer, and its model card in Markdown."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    card: str


def save_merged(merged: MergedModel, folder: Path) -> None:
    """Save a model as transformers does, with its card and digests of all files.

    Raises:
        InputError: the folder holds files that this function did not write.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as aside:
        merged.model.save_pretrained(aside)
        merged.tokenizer.save_pretrained(aside)
        Path(aside, CARD).write_text(merged.card, encoding="utf-8")
        add_saved(Path(aside), folder)


def load_merged(folder: Path) -> MergedModel:
    """Load a model that `save_merged` saved.

    Raises:
        InputError: a file is a pickle, is missing, or changed since it was saved.
    """
    refuse_pickles(folder)
    require_undamaged(folder)
    card = folder / CARD
    return MergedModel(
        load_transformers_t5(folder),
        read_tokenizer(folder),
        card.read_text(encoding="utf-8") if card.exists() else "",
    )
