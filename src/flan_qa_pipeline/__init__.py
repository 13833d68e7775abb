"""Fine-tune FLAN-T5 with LoRA on a 4-bit base for SQuAD v2 question answering."""

__version__ = "0.1.0"
