"""The memory of a base model's weights in each format, calculated from their shapes."""

from collections.abc import Sequence

from torch.nn import Linear
from transformers import PreTrainedModel
from transformers.quantizers.quantizers_utils import should_convert_module

from flan_qa_pipeline.config.parameters import Format

SKIPPED_BY_LIBRARIES = ("lm_head", "wo")


def nf4_bytes(count: int, *, double_quant: bool = True) -> int:
    """Return the bytes of `count` weights in NF4 (Dettmers et al. 2023, arXiv:2305.14314).

    A weight takes half a byte. Each block of 64 weights adds a scale of four bytes. With double
    quantization, the scale takes one byte, and every 256 scales share four more.
    """
    blocks = -(-count // 64)
    return -(-count // 2) + (blocks + 4 * -(-blocks // 256) if double_quant else 4 * blocks)


def base_weights(
    base: PreTrainedModel, skip_modules: Sequence[str], *, double_quant: bool = True
) -> dict[str, dict[Format, int]]:
    """Calculate the bytes of a base's weights in each format, without LoRA matrices.

    The libraries quantize twice and keep the head and T5's feed-forward `wo` out of 4 bits
    (transformers); in training, whatever is not in 4 bits becomes float32 (peft's
    `prepare_model_for_kbit_training`). This project quantizes all linear layers but
    `skip_modules` and keeps the rest in bfloat16.

    Args:
        base: the model; packed weights count by their unpacked shapes.
        skip_modules: linear layers that this project does not quantize.
        double_quant: whether this project quantizes twice.

    Returns:
        Bytes by format, as "loaded" and "in training".
    """
    linear = {
        name: part.in_features * part.out_features
        for name, part in base.named_modules()
        if isinstance(part, Linear) and ".lora_" not in name
    }
    rest: int = sum(
        parameter.numel()
        for name, parameter in base.named_parameters()
        if ".lora_" not in name and name.removesuffix(".weight") not in linear
    )

    def quantized(skipped: Sequence[str], width: int, double_quant: bool = True) -> int:
        return width * rest + sum(
            nf4_bytes(count, double_quant=double_quant)
            if should_convert_module(name.removesuffix(".base_layer"), skipped)
            else width * count
            for name, count in linear.items()
        )

    loaded: dict[Format, int] = {
        "float32": 4 * (sum(linear.values()) + rest),
        "bfloat16": 2 * (sum(linear.values()) + rest),
        "NF4 by the libraries": quantized(SKIPPED_BY_LIBRARIES, 2),
        "NF4 here": quantized(skip_modules, 2, double_quant),
    }
    prepared: dict[Format, int] = {"NF4 by the libraries": quantized(SKIPPED_BY_LIBRARIES, 4)}
    return {"loaded": loaded, "in training": loaded | prepared}
