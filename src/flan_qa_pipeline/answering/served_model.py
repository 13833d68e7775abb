"""Which base, corpus and adapter answer, as the page and the API name them."""

from dataclasses import dataclass
from typing import Self

from flan_qa_pipeline.evaluation.subject import EMBEDDED_CORPUS, base_name, trained_on
from flan_qa_pipeline.models.adapter import Adapter


@dataclass(frozen=True)
class ServedModel:
    """The base model and the adapter that answer.

    Attributes:
        base: the base model's name.
        adapter: the adapter's version; None if its training did not record one.
        corpus: the corpus that the adapter learned from; None if its training did not record one.
    """

    base: str
    adapter: str | None
    corpus: str | None

    @classmethod
    def of(cls, adapter: Adapter) -> Self:
        """Read what the adapter records of its training."""
        run = adapter.training.get("run", {})
        return cls(
            base=base_name(adapter.provenance["model"]["name"]),
            adapter=run.get("run_id"),
            corpus=trained_on(run),
        )

    @property
    def learned_from_embedded_corpus(self) -> bool:
        """Whether the adapter learned from the starter corpus alone, which is small."""
        return self.corpus == EMBEDDED_CORPUS
