"""The files of one saved version that `kedro push` uploads."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kedro.io.core import Version

from flan_qa_pipeline.datasets.reading import load, newest_evaluation
from flan_qa_pipeline.errors import InputError
from flan_qa_pipeline.files import CARD, DIGESTS, refuse_pickles, require_undamaged, saved_digests
from flan_qa_pipeline.models.adapter import Adapter
from flan_qa_pipeline.reporting.model_card import adapter_card, adapter_version, completed
from flan_qa_pipeline.runtime.kedro_private import load_path, place_of

DATASETS = {"adapter": "adapter", "merged": "merged_model"}
MADE_BY = {"adapter": "kedro run", "merged": "kedro run --pipelines=merge"}


@dataclass(frozen=True)
class Shared:
    """A saved version.

    Attributes:
        version: its time stamp.
        folder: its folder.
        card: its model card.
        evaluation: the newest evaluation of its adapter; empty if none is saved.
    """

    version: str
    folder: Path
    card: str
    evaluation: dict[str, Any]

    def files(self, repo_id: str | None = None) -> dict[str, Path | bytes]:
        """Map the names of the files to their paths, or to the content of the completed card.

        Args:
            repo_id: the repository that the card names to load from.

        Raises:
            InputError: the card's metadata cannot be read.
        """
        card = completed(self.card, self.evaluation, repo_id)
        names = sorted({*saved_digests(self.folder), DIGESTS} - {CARD})
        return {CARD: card.encode(), **{name: self.folder / name for name in names}}


def find_shared(catalog: Any, what: str, version: str | None) -> Shared:
    """Find a saved version and check its files.

    Args:
        catalog: the project's catalog.
        what: a key of `DATASETS`.
        version: the time stamp; None: the latest.

    Raises:
        InputError: there is no such version, or its files are not those that were saved.
    """
    name = DATASETS[what]
    dataset = catalog.get(name, version=Version(version, None) if version else None)
    if not dataset.exists():
        saved = ", ".join(sorted(dataset.list_versions(full_path=False)))
        raise InputError(
            f"{what}: there is no {version or 'version'} in {place_of(dataset)}; make one with "
            f"`{MADE_BY[what]}` or name one of: {saved or 'none yet'}."
        )
    folder = Path(str(load_path(dataset)))
    refuse_pickles(folder)
    if not require_undamaged(folder):
        raise InputError(
            f"{folder} holds no {DIGESTS}: an earlier version of this project saved it; make "
            f"another with `{MADE_BY[what]}`."
        )
    if (folder / CARD).is_file():
        card = (folder / CARD).read_text(encoding="utf-8")
    else:
        adapter: Adapter = load(dataset)
        card = adapter_card(adapter)
    evaluation = newest_evaluation(catalog, adapter_version(card))
    return Shared(dataset.resolve_load_version() or "", folder, card, evaluation)
