"""The 4-bit base model and its tokenizer.

Quantization: Dettmers et al. 2023, "QLoRA", arXiv:2305.14314 (NF4, double quantization).
"""

import logging
from copy import deepcopy
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit
from torch.nn import Linear, Parameter
from transformers import (
    AutoConfig,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    T5ForConditionalGeneration,
)
from transformers.quantizers.quantizers_utils import should_convert_module

from flan_qa_pipeline.config.parameters import ModelParameters
from flan_qa_pipeline.errors import InputError
from flan_qa_pipeline.hub import require_reachable
from flan_qa_pipeline.models.device import (
    MIB,
    free_memory,
    resolve_attention,
    resolve_compute_dtype,
)
from flan_qa_pipeline.models.t5 import QuantizableT5

logger = logging.getLogger(__name__)

DEQUANTIZED_SHARE = 1 / 8  # of the free memory, at most, that weights out of 4 bits may take


def load_tokenizer(model: ModelParameters) -> PreTrainedTokenizerBase:
    """Load the base model's tokenizer."""
    require_reachable(model)
    return _from_hub_or_folder(AutoTokenizer, model)


def load_base_model(model: ModelParameters, *, to_shard: bool = False) -> PreTrainedModel:
    """Load the base model, its linear layers quantized to 4 bits, all weights frozen.

    Embeddings, norms and `skip_modules` stay in the compute dtype. The packed weights are
    stored under it too (`bnb_4bit_quant_storage`), so that nobody who asks for their dtype takes
    them for integers, as the activation cast of transformers' T5 does. bitsandbytes may not repack
    them for AVX512_BF16 at the first inference: no gradient passes repacked ones. For sdpa, cuDNN's
    kernel is switched off in the process: it is compiled for every shape. A model
    `to_shard` (see `sharding`) is loaded to the machine's memory, where it stays packed.

    Raises:
        InputError: the name is neither a folder nor a hub id, the model is not a T5 v1.1, its
            weights are incomplete, or `skip_modules` names what is no linear layer.
    """
    require_reachable(model)
    config = _from_hub_or_folder(AutoConfig, model)
    if config.model_type != "t5" or config.scale_decoder_outputs:
        kind = "T5 1.0" if config.model_type == "t5" else config.model_type
        raise InputError(
            f"model.name: {model.name} is a {kind} model; choose a T5 v1.1 or FLAN-T5 model."
        )
    dtype = resolve_compute_dtype(model.compute_dtype)
    quantization = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=model.quant_type,
        bnb_4bit_use_double_quant=model.double_quant,
        bnb_4bit_compute_dtype=dtype,
        bnb_4bit_quant_storage=dtype,
        llm_int8_skip_modules=model.skip_modules,
    )
    attention = resolve_attention(model.attn_implementation)
    if attention == "sdpa":
        torch.backends.cuda.enable_cudnn_sdp(False)
    on_gpu = torch.cuda.is_available() and not to_shard
    base, loading = _from_hub_or_folder(
        QuantizableT5,
        model,
        config=config,
        dtype=dtype,
        quantization_config=quantization if model.load_in_4bit else None,
        device_map={"": PartialState().local_process_index if on_gpu else "cpu"},
        attn_implementation=attention,
        use_safetensors=True,
        output_loading_info=True,
    )
    if loading["missing_keys"]:
        raise InputError(
            f"model.name: the weights of {model.name} lack {sorted(loading['missing_keys'])[0]}; "
            "give a complete T5 v1.1 or FLAN-T5 model, which has a language-model head of its own."
        )
    linear = [name for name, module in base.named_modules() if isinstance(module, Linear)]
    for skipped in model.skip_modules:
        if all(should_convert_module(name, [skipped]) for name in linear):
            raise InputError(
                f"model.skip_modules: {skipped} matches no linear module of {model.name}; T5's are "
                "lm_head, q, k, v, o, wi_0, wi_1 and wo."
            )
    for module in base.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False
    automatic = model.dequantize == "auto" and not to_shard
    if model.dequantize is True or (automatic and _fits_dequantized(base)):
        base = dequantize(base)
        base.keep_activations()
    return base.requires_grad_(False).eval()


def dequantize(base: PreTrainedModel) -> PreTrainedModel:
    """Turn 4-bit layers into the linear layers that they compute with, in the compute dtype.

    bitsandbytes dequantizes a layer's weights at every use, forward and backward. (transformers'
    `base.dequantize` does the same as this, with a warning.)
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


def _fits_dequantized(base: PreTrainedModel) -> bool:
    """Whether the linear layers out of 4 bits take a small share of every process's free memory."""
    packed = [part for part in base.modules() if isinstance(part, Linear4bit)]
    if not packed:
        return False
    size = sum(part.in_features * part.out_features for part in packed) * base.dtype.itemsize
    free = free_memory(base.device)
    fits = all(gather_object([size <= DEQUANTIZED_SHARE * free]))
    logger.info(
        "model.dequantize auto: 4-bit layers %s (%d MiB in %s, %d MiB free).",
        "are dequantized once" if fits else "stay packed",
        size / MIB,
        str(base.dtype).removeprefix("torch."),
        free / MIB,
    )
    return fits


def as_transformers_t5(model: PreTrainedModel) -> T5ForConditionalGeneration:
    """The same weights under transformers' own class, whose saved folder any program reads."""
    config = deepcopy(model.config)
    config.tie_word_embeddings = True  # embeddings of encoder and decoder; the head is not
    config._attn_implementation = "eager"
    with torch.device("meta"):
        plain = T5ForConditionalGeneration(config)
    plain.config.tie_word_embeddings = False  # transformers 4 would tie the head, too
    plain.all_tied_weights_keys.pop("lm_head.weight")
    plain.load_state_dict(model.state_dict(), assign=True)
    return plain.eval()


def _from_hub_or_folder(auto_class: Any, model: ModelParameters, **kwargs: Any) -> Any:
    try:
        return auto_class.from_pretrained(model.name, revision=model.revision, **kwargs)
    except OSError as error:
        raise InputError(
            f"model.name: {model.name} could not be read "
            f"({' '.join(str(error).split()).rstrip('.')}); give the folder of a complete "
            "snapshot, or data/06_models/starter_t5, which needs no network."
        ) from error
