"""4-bit linear layers: which layers are packed, how a checkpoint stores them, how to unpack them.

The parameters `load_in_4bit`, `quant_type`, `double_quant` and `skip_modules` say which linear
layers of the base bitsandbytes packs. T5's feed-forward `wo` is one of them, unless `skip_modules`
names it: `allow_every_layer` lifts the ban that transformers puts on it. A base may also be stored
in 4 bits already, as `save_pretrained` of a 4-bit model writes it; then the parameters must
describe what the files hold (`require_stored_as`). Such a base loads as plain transformers'
`AutoModelForSeq2SeqLM`, too, if `wo` is not packed there.

Source: Dettmers et al. 2023, "QLoRA", arXiv:2305.14314 (NF4, double quantization).
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from bitsandbytes.functional import QuantState, dequantize_4bit
from bitsandbytes.nn import Linear4bit, Params4bit
from safetensors import SafetensorError, safe_open
from torch.nn import Linear, Parameter
from transformers import BitsAndBytesConfig, PreTrainedModel, T5Config
from transformers.quantizers.quantizers_utils import should_convert_module

from flan_qa_pipeline.config.parameters import ModelParameters
from flan_qa_pipeline.errors import InputError, in_one_line
from flan_qa_pipeline.models.device import MIB, free_memory
from flan_qa_pipeline.models.exchange import gather_json

logger = logging.getLogger(__name__)

DEQUANTIZED_SHARE = 1 / 8  # of the free memory, at most, for weights that leave 4 bits
STATE = ".weight.quant_state.bitsandbytes__"  # bitsandbytes' key for the state of a packed weight
STORAGE_DTYPES = {
    "U8": torch.uint8,
    "I8": torch.int8,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
}


@dataclass(frozen=True)
class PackedLayer:
    """How a checkpoint stores one 4-bit layer.

    Attributes:
        quant_type: nf4 or fp4.
        double_quant: whether the scales of its blocks are quantized, too.
        storage: safetensors' name of the dtype that holds the packed bytes, such as U8.
    """

    quant_type: str
    double_quant: bool
    storage: str


@contextmanager
def readable_weights(path: Path) -> Iterator[None]:
    """Turn errors of the block that reads a safetensors file into a sentence.

    Raises:
        InputError: names the file and the remedy.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise InputError(
            f"model.name: {path} cannot be read ({in_one_line(error)}); restore the base, or give "
            "another."
        ) from error


def packed_layers(folder: Path) -> dict[str, PackedLayer]:
    """Read which layers a folder's safetensors files store in 4 bits, without reading weights.

    Returns:
        Module names, such as `lm_head`, mapped to their storage; empty for a base that is not
        stored in 4 bits.

    Raises:
        InputError: a file cannot be read.
    """
    types: dict[str, str] = {}
    nested: set[str] = set()
    storage: dict[str, str] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with readable_weights(path), safe_open(path, framework="pt") as weights:
            for key in weights.keys():  # noqa: SIM118, it is no dictionary
                layer, found, quant_type = key.rpartition(STATE)
                if found:
                    types[layer] = quant_type
                elif key.endswith(".weight.nested_absmax"):
                    nested.add(key.removesuffix(".weight.nested_absmax"))
                elif key.endswith(".weight"):
                    dtype = weights.get_slice(key).get_dtype()
                    storage[key.removesuffix(".weight")] = dtype
    return {
        layer: PackedLayer(quant_type, layer in nested, storage.get(layer, "nothing"))
        for layer, quant_type in types.items()
    }


def require_stored_as(
    model: ModelParameters, config: T5Config, layers: dict[str, PackedLayer], linear: list[str]
) -> None:
    """Check that the parameters describe the 4-bit layers that a base is stored with.

    Args:
        config: the configuration that lies beside the weights.
        layers: what `packed_layers` found there.
        linear: the names of all linear layers of the architecture.

    Raises:
        InputError: a parameter contradicts the files, or config.json does.
    """
    stored: dict[str, Any] = getattr(config, "quantization_config", None) or {}
    if bool(stored) is not bool(layers) or stored.get("load_in_4bit", False) is not bool(layers):
        method = f"the quantization {stored.get('quant_method')}" if stored else "no quantization"
        raise InputError(
            f"model.name: config.json of {model.name} names {method}"
            + (", and its weights are packed in 4 bits" if layers else "")
            + "; give a base in bfloat16 or float32, or one that bitsandbytes has packed in 4 bits."
        )
    if not layers:
        return
    if not model.load_in_4bit:
        raise InputError(
            f"model.load_in_4bit is false, but {model.name} is stored in 4 bits; set it to true, "
            "and model.dequantize to true to compute with unpacked weights."
        )
    for name, layer in sorted(layers.items()):
        for parameter in ("quant_type", "double_quant"):
            given, held = getattr(model, parameter), getattr(layer, parameter)
            if given != held:
                raise InputError(
                    f"model.{parameter} is {_as_yaml(given)}, but {model.name} stores {name} with "
                    f"{_as_yaml(held)}; set it to {_as_yaml(held)}."
                )
        if layer.storage not in STORAGE_DTYPES or layer.storage != layers[min(layers)].storage:
            raise InputError(
                f"model.name: {name} of {model.name} is stored in 4 bits under {layer.storage}; "
                "give a base whose packed layers are all stored under uint8 or one floating dtype."
            )
    chosen = {name for name in linear if should_convert_module(name, model.skip_modules)}
    if chosen != layers.keys():
        kept = sorted({name.rpartition(".")[2] for name in linear if name not in layers})
        raise InputError(
            f"model.skip_modules is [{', '.join(model.skip_modules)}], but {model.name} stores "
            f"{min(chosen ^ layers.keys())} {'in' if chosen < layers.keys() else 'out of'} 4 bits; "
            f"set it to [{', '.join(kept)}]."
        )


def _as_yaml(value: str | bool) -> str:
    return str(value).lower() if isinstance(value, bool) else value


def quantization_config(
    model: ModelParameters, dtype: torch.dtype, layers: dict[str, PackedLayer]
) -> BitsAndBytesConfig:
    """Describe to transformers how the base is to be packed, or how it is stored.

    bitsandbytes stores packed bytes under the compute dtype, so code that checks `weight.dtype`
    does not mistake packed weights for integers, and FSDP can shard them. Stored layers keep the
    dtype of the file until `adopt` runs: transformers would convert the bytes as numbers.

    Args:
        dtype: the compute dtype.
        layers: what `packed_layers` found in the base's folder.
    """
    held = STORAGE_DTYPES[layers[min(layers)].storage] if layers else dtype
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=model.quant_type,
        bnb_4bit_use_double_quant=model.double_quant,
        bnb_4bit_compute_dtype=dtype,
        bnb_4bit_quant_storage=held,
        llm_int8_skip_modules=model.skip_modules,
    )


def adopt(base: PreTrainedModel, dtype: torch.dtype) -> None:
    """Make the packed layers of a stored base what quantizing at load makes.

    Their bytes are stored under the compute dtype, and unpack to it, not to the dtype that the
    base was quantized in.

    Raises:
        InputError: a layer has an odd number of bytes for the dtype.
    """
    for name, layer in base.named_modules():
        if not isinstance(layer, Linear4bit):
            continue
        weight, state = layer.weight, layer.weight.quant_state
        state.dtype = dtype
        if weight.dtype == dtype:
            continue
        if weight.nbytes % dtype.itemsize:
            raise InputError(
                f"model.name: {name} of {base.name_or_path} has {weight.nbytes} bytes in 4 bits, "
                f"which {dtype} does not divide; name it in model.skip_modules of the base as it "
                "is stored, or compute in another dtype."
            )
        layer.weight = Params4bit(
            weight.data.flatten().view(torch.uint8).view(dtype)[:, None],
            requires_grad=False,
            quant_state=state,
            blocksize=state.blocksize,
            compress_statistics=state.nested,
            quant_type=state.quant_type,
            quant_storage=dtype,
            bnb_quantized=True,
            module=layer,
        )


def forbid_repacking(base: PreTrainedModel) -> None:
    """Keep bitsandbytes from repacking weights for AVX512_BF16 at the first inference.

    No gradient passes through repacked weights.
    """
    for module in base.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False


def shape_of(weight: torch.Tensor) -> tuple[int, ...]:
    """The shape of a weight, unpacked if it is packed.

    A packed weight whose bytes or scales do not suffice for its shape has none: unpacking would
    read beyond them.
    """
    state: QuantState | None = getattr(weight, "quant_state", None)
    if state is None:
        return tuple(weight.shape)
    blocks = -(-state.shape.numel() // state.blocksize)
    whole = 2 * weight.nbytes >= state.shape.numel() and len(state.absmax) == blocks
    whole = whole and len(state.code) == 16
    if state.nested:
        scales = -(-blocks // state.state2.blocksize)
        whole = whole and len(state.state2.absmax) == scales and len(state.state2.code) == 256
    return tuple(state.shape) if whole else ()


def dequantize(base: PreTrainedModel) -> PreTrainedModel:
    """Replace 4-bit layers with the linear layers that they compute with, in the compute dtype.

    bitsandbytes dequantizes a layer's weights at every use, forward and backward; afterwards it
    does so never again. (transformers' `base.dequantize` does the same, with a warning.)
    """
    if not getattr(base, "is_quantized", False):
        return base
    for name, packed in list(base.named_modules()):
        if isinstance(packed, Linear4bit):
            with torch.device("meta"):
                layer = Linear(packed.in_features, packed.out_features, bias=False)
            weight = dequantize_4bit(packed.weight.data, packed.weight.quant_state)
            layer.weight = Parameter(weight.to(base.dtype), requires_grad=False)
            base.set_submodule(name, layer)
    base.hf_quantizer.remove_quantization_config(base)
    return base


def fits_dequantized(base: PreTrainedModel) -> bool:
    """Whether unpacked layers take at most `DEQUANTIZED_SHARE` of every process's free memory.

    All processes must call this. Logs what it finds.
    """
    packed = [part for part in base.modules() if isinstance(part, Linear4bit)]
    if not packed:
        return False
    size = sum(part.in_features * part.out_features for part in packed) * base.dtype.itemsize
    free = free_memory(base.device)
    fits = all(gather_json(size <= DEQUANTIZED_SHARE * free))
    logger.info(
        "model.dequantize auto: 4-bit layers %s (%d MiB in %s, %d MiB free).",
        "are dequantized once" if fits else "stay packed",
        size / MIB,
        str(base.dtype).removeprefix("torch."),
        free / MIB,
    )
    return fits
