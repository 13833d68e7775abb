"""Fine-tune FLAN-T5 with LoRA on a 4-bit base for SQuAD v2 question answering."""

import logging
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flan_qa_pipeline.answering.answerer import Answer, QuestionAnswerer

__version__ = "0.1.0"
__all__ = ["Answer", "QuestionAnswerer"]

# peft imports bitsandbytes, wherever it is first imported. On a CPU with AVX512_BF16, bitsandbytes
# would then download a kernel from the hub and run it if it found the package `kernels`, which from
# here on nothing can import. It warns that it found none.
sys.modules.setdefault("kernels", None)  # type: ignore[arg-type]
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)


def __getattr__(name: str) -> Any:
    """Import the public API when it is first used: it needs torch and transformers."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from flan_qa_pipeline.answering import answerer as answering

    return getattr(answering, name)
