"""The adapter that answers: the promoted version, unless another is named or none is saved."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kedro.io import AbstractDataset
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from flan_qa_pipeline.config.parameters import ModelParameters
from flan_qa_pipeline.datasets.local_path import local_path
from flan_qa_pipeline.datasets.reading import (
    EVALUATIONS,
    load,
    load_version,
    newest_evaluation,
)
from flan_qa_pipeline.errors import InputError, in_one_line
from flan_qa_pipeline.evaluation.adapter_scores import describe_adapter
from flan_qa_pipeline.files import replace_text
from flan_qa_pipeline.models.adapter import Adapter, require_trained_on
from flan_qa_pipeline.reporting.model_card import overall_f1

ADAPTER = "adapter"
PROMOTED = "promoted_adapter"
SHIPPED = "starter_adapter"
SHIPPED_CARD = "starter_adapter_card"
AS_SHIPPED = "shipped"  # names the adapter that ships with the base, where a version may stand
REMEDY = "promote a saved version with `kedro promote <version>`"


class Promotion(BaseModel):
    """The content of the file: the promoted version, or `AS_SHIPPED`."""

    model_config = ConfigDict(extra="forbid")

    version: str = Field(pattern=r"^[\w.:-]+$")


class PromotionDataset(AbstractDataset[str, str]):
    """Keeps the promoted version of another dataset in a JSON file, which is replaced at once.

    Example:
    ```yaml
    promoted_adapter:
      type: flan_qa_pipeline.datasets.promotion.PromotionDataset
      filepath: data/06_models/promoted_adapter.json
    ```
    """

    def __init__(self, *, filepath: str, metadata: dict[str, Any] | None = None):
        self._filepath = local_path(filepath)
        self.metadata = metadata

    def load(self) -> str:
        try:
            return Promotion.model_validate_json(Path(self._filepath).read_bytes()).version
        except (OSError, ValidationError) as error:
            raise InputError(
                f"{self._filepath} cannot be read: {in_one_line(error)}; {REMEDY}."
            ) from error

    def save(self, data: str) -> None:
        text = json.dumps(Promotion(version=data).model_dump(), indent=2)
        replace_text(Path(self._filepath), f"{text}\n")

    def _exists(self) -> bool:
        return Path(self._filepath).is_file()

    def _describe(self) -> dict[str, Any]:
        return {"filepath": str(self._filepath)}


@dataclass(frozen=True)
class AnsweringAdapter:
    """An adapter and where it comes from.

    Attributes:
        adapter: the adapter.
        version: its version; of the adapter that ships, the one that it was trained under.
        origin: one line that names version, base and F1, and says why this version answers.
    """

    adapter: Adapter
    version: str
    origin: str


def promoted_version(catalog: Any) -> str | None:
    """Return the promoted version of the adapter, `AS_SHIPPED`, or None if none is promoted.

    Raises:
        InputError: the file is damaged.
    """
    if not _holds(catalog, PROMOTED):
        return None
    version: str = load(catalog[PROMOTED])
    return version


def load_promoted(catalog: Any, version: str) -> Adapter:
    """Load the promoted version of the adapter.

    Raises:
        InputError: it is not there any more, or damaged; names the remedy.
    """
    try:
        adapter: Adapter = load_version(catalog, ADAPTER, version)
    except InputError as error:
        raise InputError(f"{error} Version {version} is the promoted one; {REMEDY}.") from error
    return adapter


def answers_as_shipped(catalog: Any) -> bool:
    """Return whether the adapter that ships answers: it is promoted, or none is saved here."""
    if not ships(catalog):
        return False
    replaced = catalog[ADAPTER] is catalog[SHIPPED]
    promoted = promoted_version(catalog)
    return replaced or promoted == AS_SHIPPED or not (promoted or catalog[ADAPTER].exists())


def ships(catalog: Any) -> bool:
    """Return whether an adapter ships with the base."""
    return _holds(catalog, SHIPPED)


def _holds(catalog: Any, name: str) -> bool:
    return name in catalog and catalog.exists(name)


def load_shipped(catalog: Any, model: ModelParameters | None) -> Adapter:
    """Load the adapter that ships with the base.

    Args:
        catalog: the project's catalog.
        model: the base to use it on; None: the one that it records.

    Raises:
        InputError: there is none, it is damaged, or it was trained on another base than `model`.
    """
    if not ships(catalog):
        raise InputError(f"No adapter ships with this project ({SHIPPED}); {REMEDY}.")
    adapter: Adapter = load(catalog[SHIPPED])
    if model is not None:
        require_trained_on(adapter, model)
    return adapter


def _f1_in_card(catalog: Any) -> tuple[float, str] | None:
    if not _holds(catalog, SHIPPED_CARD):
        return None
    return overall_f1(load(catalog[SHIPPED_CARD]))


def load_answering_adapter(
    catalog: Any,
    version: str | None = None,
    why: str = "named",
    model: ModelParameters | None = None,
) -> AnsweringAdapter:
    """Load a version of the adapter: the promoted one, or the latest if none is promoted.

    If none is saved, the adapter that ships with the base answers.

    Args:
        catalog: the project's catalog.
        version: the version to load, or `AS_SHIPPED`; None: the promoted or the latest one.
        why: why `version` answers, for the line.
        model: the base on which the adapter that ships may answer; None: the one that it records.

    Raises:
        InputError: there is no such version, it is damaged, or the adapter that ships was trained
            on another base than `model`.
    """
    in_card = None
    promoted = promoted_version(catalog) if version is None else None
    wanted = version or promoted
    if wanted == AS_SHIPPED or (wanted is None and answers_as_shipped(catalog)):
        adapter = load_shipped(catalog, model)
        why = f"ships with the base; {'promoted' if wanted else 'none was trained here'}"
        version = str(adapter.training.get("run", {}).get("run_id", "without a version"))
        in_card = _f1_in_card(catalog)
    elif version is not None:
        adapter = load_version(catalog, ADAPTER, version)
    elif promoted is not None:
        adapter, version, why = load_promoted(catalog, promoted), promoted, "promoted"
    else:
        adapter, why = load_version(catalog, ADAPTER, None), "the latest; none is promoted"
        version = catalog[ADAPTER].resolve_load_version() or "without versions"
    evaluation = newest_evaluation(catalog, version) if EVALUATIONS in catalog else {}
    origin = describe_adapter(
        version, why, adapter.provenance, adapter.training, evaluation, in_card
    )
    return AnsweringAdapter(adapter, version, origin)
