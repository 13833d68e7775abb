"""A pretrained model in NF4, as bitsandbytes serializes it.

Dettmers et al. 2023, "QLoRA", arXiv:2305.14314 (NF4, double quantization).
"""

from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from transformers import BitsAndBytesConfig, T5ForConditionalGeneration


def pack_nf4(model: T5ForConditionalGeneration) -> T5ForConditionalGeneration:
    """Quantize a model's linear layers to NF4, as plain `from_pretrained` reads them.

    transformers keeps T5's `wo` out of quantization when it loads a model. A packed `wo` could not
    be read by it, so `wo`, embeddings and norms stay in bfloat16. The head is packed.

    Args:
        model: In any dtype, on any device.

    Returns:
        The packed model on the CPU.
    """
    quantization = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
        llm_int8_skip_modules=[],
    )
    with TemporaryDirectory() as folder:
        model.save_pretrained(Path(folder))
        return T5ForConditionalGeneration.from_pretrained(
            folder,
            dtype=torch.bfloat16,
            quantization_config=quantization,
            device_map={"": "cpu"},
            local_files_only=True,
            use_safetensors=True,
        )
