"""Memory that a base's weights take in each format, calculated from its shapes."""

from collections.abc import Sequence

from torch.nn import Linear
from transformers import PreTrainedModel
from transformers.quantizers.quantizers_utils import should_convert_module

from flan_qa_pipeline.config.parameters import Format

SKIPPED_BY_LIBRARIES = ("lm_head", "wo")


def nf4_bytes(count: int, *, double_quant: bool = True) -> int:
    """Size of so many weights in NF4 (arXiv:2305.14314).

    Half a byte each, four bytes for every block of 64 or, with double quantization, one and four
    for every 256 of these.
    """
    blocks = -(-count // 64)
    return -(-count // 2) + (blocks + 4 * -(-blocks // 256) if double_quant else 4 * blocks)


def base_weights(
    base: PreTrainedModel, skip_modules: Sequence[str], *, double_quant: bool = True
) -> dict[str, dict[Format, int]]:
    """Bytes that a base takes in each format, loaded and in training, calculated from its shapes.

    transformers leaves the head and T5's feed-forward `wo` out of 4 bits, and peft's
    `prepare_model_for_kbit_training` makes all that is left float32; here all linear layers but
    `skip_modules` are in 4 bits and the rest is bfloat16. The libraries' is with double
    quantization, the one here if `double_quant`. LoRA matrices are not counted.
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
