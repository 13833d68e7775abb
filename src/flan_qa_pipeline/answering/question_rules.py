"""What a request may ask: strict texts, limited lengths, and one sentence for each fault."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from flan_qa_pipeline.answering.answerer import QuestionAnswerer
from flan_qa_pipeline.config.parameters import ServingParameters


class Pair(BaseModel):
    """A question about a context; nothing else than text is turned into text."""

    model_config = ConfigDict(strict=True, extra="forbid")

    context: str = Field(
        description="The text to read.",
        examples=["The Rhine rises in the Swiss Alps and the Elbe in Bohemia."],
    )
    question: str = Field(
        description="A question about the context.",
        examples=["Where does the Rhine rise?"],
    )


@dataclass(frozen=True)
class QuestionRules:
    """The limits of `serving` and what the model can read."""

    answerer: QuestionAnswerer
    serving: ServingParameters

    def faults(self, pair: Pair) -> dict[str, str]:
        """Return a sentence for each field that cannot be answered."""
        limits = {
            "context": self.serving.max_context_characters,
            "question": self.serving.max_question_characters,
        }
        faults = {
            name: f"The {name} has {len(text):,} characters; shorten it to {limits[name]:,}."
            for name, text in (("context", pair.context), ("question", pair.question))
            if len(text) > limits[name]
        }
        if not faults and (problem := self.answerer.problem(pair.context, pair.question)):
            of_context = self.answerer.problem(pair.context, "?") == problem
            faults["context" if of_context else "question"] = problem
        return faults


def fault_of_field(error: Mapping[str, Any], field: str) -> str:
    """Say in a sentence what pydantic found wrong with a field.

    Args:
        error: one of a pydantic error's `errors()`.
        field: the field's name.
    """
    value, kind = error.get("input"), error["type"]
    if kind == "missing" and field not in Pair.model_fields:
        return f"The {field} is missing."
    if kind == "missing" or (kind == "string_type" and value is None):
        return f"The {field} is missing; give it as text."
    if kind == "string_type":
        return f"The {field} is of type {type(value).__name__}; give it as text."
    if kind == "string_unicode":
        return f"The {field} holds half a surrogate pair; remove it."
    if kind == "extra_forbidden":
        return f"The field {field} is unknown; leave it out."
    return f"The {field} cannot be read: {error['msg']}."
