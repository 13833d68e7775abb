"""A pretrained model in NF4 and float8, in a file that plain transformers reads.

Dettmers et al. 2023, "QLoRA", arXiv:2305.14314 (NF4, double quantization). Micikevicius et al.
2022, "FP8 Formats for Deep Learning", arXiv:2209.05433 (e4m3).
"""

from collections.abc import Collection
from copy import deepcopy
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import BitsAndBytesConfig, T5ForConditionalGeneration

from flan_qa_pipeline.models.loading import as_transformers_t5, load_transformers_t5
from flan_qa_pipeline.models.quantization import dequantize

FLOAT8 = torch.float8_e4m3fn
EMBEDDINGS, EMBEDDED = "shared", "embed_tokens"
INTO_STREAM = (".o.weight", ".wo.weight")


def pack(
    model: T5ForConditionalGeneration, float8: Collection[str] = ()
) -> T5ForConditionalGeneration:
    """Quantize a model's linear layers to NF4, and round the weights that stay out to float8.

    transformers keeps T5's `wo` out of quantization when it loads a model. A packed `wo` could not
    be read by it, so `wo`, embeddings and norms stay out. The head is packed. transformers casts
    what a file holds in float8 to the model's dtype.

    Args:
        model: In any dtype, on any device.
        float8: Modules, `wo` or `shared`, whose weights are rounded; the others are in bfloat16.

    Returns:
        The packed model on the CPU. It computes in bfloat16, in which a file's float8 is read;
        its `state_dict`, and so `save_pretrained`, gives the float8 itself.
    """
    packed = pack_nf4(shrink_stream(model) if float8 else model)
    for name, parameter in packed.named_parameters():
        if _module(name) in float8:
            parameter.data = parameter.data.to(FLOAT8).to(parameter.dtype)

    def narrow(module: torch.nn.Module, state: dict[str, Any], *args: Any) -> None:
        narrowed: dict[int, torch.Tensor] = {}  # tied weights stay one tensor
        for name, tensor in state.items():
            if _module(name) in float8 or (_module(name) == EMBEDDED and EMBEDDINGS in float8):
                state[name] = narrowed.setdefault(tensor.data_ptr(), tensor.to(FLOAT8))

    packed.register_state_dict_post_hook(narrow)
    return packed


def _module(name: str) -> str:
    return name.removesuffix(".weight").rpartition(".")[2]


@torch.no_grad()
def shrink_stream(model: T5ForConditionalGeneration) -> T5ForConditionalGeneration:
    """Copy a model with its residual stream scaled so that float8 holds all that is added to it.

    Every reader of the stream divides by its root mean square first, so the model's function stays
    the same: the factor is a power of two, which changes no digit of a weight.
    """
    added = [
        p
        for n, p in model.named_parameters()
        if _module(n) == EMBEDDINGS or n.endswith(INTO_STREAM)
    ]
    largest = max(parameter.abs().max().item() for parameter in added)
    scaled = deepcopy(model)
    factor = 1.0
    while largest * factor > torch.finfo(FLOAT8).max:
        factor /= 2
    for name, parameter in scaled.named_parameters():
        if _module(name) == EMBEDDINGS or name.endswith(INTO_STREAM):
            parameter.mul_(factor)
    return scaled


def pack_nf4(model: T5ForConditionalGeneration) -> T5ForConditionalGeneration:
    """Quantize a model's linear layers but `wo` to NF4, as `from_pretrained` does.

    Args:
        model: In any dtype, on any device.

    Returns:
        The packed model on the CPU; what is not packed is in bfloat16.
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
        return load_transformers_t5(
            Path(folder),
            dtype=torch.bfloat16,
            quantization_config=quantization,
            device_map={"": "cpu"},
        )


def unpack(model: T5ForConditionalGeneration, dropout: float) -> T5ForConditionalGeneration:
    """Turn a packed model into one that can be trained on.

    Args:
        model: A packed model, which loses its packed layers.
        dropout: The share to drop in training; the shipped configuration turns dropout off.

    Returns:
        The model under transformers' own class, in the dtype that the packed one computes in.
    """
    model.config.dropout_rate = dropout
    return as_transformers_t5(dequantize(model))
