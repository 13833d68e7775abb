"""Fine-tune FLAN-T5 with LoRA on a 4-bit base for SQuAD v2 question answering."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flan_qa_pipeline.answering.answerer import Answer, QuestionAnswerer

__version__ = "0.1.0"
__all__ = ["Answer", "QuestionAnswerer"]


def __getattr__(name: str) -> Any:
    """Import the public API when it is first used: it needs torch and transformers."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from flan_qa_pipeline.answering import answerer as answering

    return getattr(answering, name)
