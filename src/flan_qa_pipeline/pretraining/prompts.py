"""Prompts of pretraining, cut into token ids around their slots."""

from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from flan_qa_pipeline.pretraining.span_corruption import Ids


def encode(tokenizer: PreTrainedTokenizerBase, text: str) -> Ids:
    """Return the token ids of a text, without `</s>`."""
    ids: Ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


@dataclass(frozen=True)
class Prompt:
    """A template in token ids.

    Attributes:
        parts: Token ids, and the names of slots between them, in the order of the text.
        abstention: Token ids of the answer to an unanswerable question.
    """

    parts: tuple[Ids | str, ...]
    abstention: Ids

    @classmethod
    def of(
        cls, tokenizer: PreTrainedTokenizerBase, template: str, abstention: str = ""
    ) -> "Prompt":
        """Cut a template such as `Passage: {context} Query: {question}`."""
        parts: list[Ids | str] = []
        rest = template
        while rest:
            text, brace, rest = rest.partition("{")
            if text.strip():
                parts.append(encode(tokenizer, text.strip()))
            if brace:
                slot, _, rest = rest.partition("}")
                parts.append(slot)
        return cls(tuple(parts), encode(tokenizer, abstention))

    def fill(self, **slots: Ids) -> Ids:
        """Put token ids into the slots."""
        filled: Ids = []
        for part in self.parts:
            filled += slots[part] if isinstance(part, str) else part
        return filled

    def place(self, slot: str, **slots: Ids) -> int:
        """Return where a slot's first token stands in the filled prompt."""
        before = self.parts[: self.parts.index(slot)]
        return sum(len(slots[part] if isinstance(part, str) else part) for part in before)

    @property
    def length(self) -> int:
        """Number of tokens outside the slots."""
        return sum(len(part) for part in self.parts if not isinstance(part, str))
