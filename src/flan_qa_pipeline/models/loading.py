"""The 4-bit base model and its tokenizer.

Quantization: Dettmers et al. 2023, "QLoRA", arXiv:2305.14314 (NF4, double quantization).
"""

import logging
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils.memory import should_reduce_batch_size
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit
from safetensors import SafetensorError, safe_open
from torch.nn import Linear, Parameter
from transformers import (
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    T5Config,
    T5ForConditionalGeneration,
)
from transformers.quantizers.quantizers_utils import should_convert_module

from flan_qa_pipeline.config.parameters import ModelParameters
from flan_qa_pipeline.errors import InputError, in_one_line
from flan_qa_pipeline.files import require_undamaged
from flan_qa_pipeline.hub import CONFIG, ModelFiles, fetch, missing_model_file
from flan_qa_pipeline.models.device import (
    MIB,
    free_memory,
    resolve_attention,
    resolve_compute_dtype,
)
from flan_qa_pipeline.models.exchange import gather_json
from flan_qa_pipeline.models.t5 import QuantizableT5

logger = logging.getLogger(__name__)

LFS_POINTER = b"version https://git-lfs.github.com/spec/"
DEQUANTIZED_SHARE = 1 / 8  # of the free memory, at most, that weights out of 4 bits may take


def base_folder(model: ModelParameters) -> Path:
    """Find the folder of a base model: the one that is named, or its snapshot in the hub's cache.

    What the cache lacks is fetched.

    Raises:
        InputError: the name is neither a folder of a model nor a pinned hub id, or the hub does
            not give the model.
    """
    folder = Path(model.name)
    if folder.is_dir():
        if not (folder / CONFIG).is_file():
            raise _incomplete(folder, CONFIG)
        return folder
    [fetched] = fetch(hub_files(model))
    return fetched.folder


def hub_files(model: ModelParameters) -> ModelFiles:
    """The files of a base model that is no folder here.

    Raises:
        InputError: the name is that of a missing folder, or has no revision.
    """
    folder = Path(model.name)
    if model.name.count("/") > 1 or folder.is_absolute():
        raise InputError(
            f"model.name: there is no folder {folder.absolute()}; give the folder of a saved model "
            "or a hub id such as google/flan-t5-base (the starter model is made by "
            "`kedro run --pipelines=starter`)."
        )
    if model.revision is None:
        raise InputError(
            f"model.revision pins no commit or tag of {model.name}; give one with "
            "--params=model.revision=… or add it to model.revision in a parameters file."
        )
    return ModelFiles(model.name, model.revision)


def check_base(model: ModelParameters) -> None:
    """Check what can be checked of a base model without reading its weights.

    Raises:
        InputError: its architecture, its tokenizer or a file of weights cannot be used.
    """
    folder = base_folder(model)
    config = _load_config(model, folder)
    require_vocabulary(load_tokenizer(model), config.vocab_size, model.name)
    for weights in sorted(folder.glob("model*.safetensors")):
        try:
            with safe_open(weights, framework="pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise _unreadable(model, folder, weights, error) from error


def load_tokenizer(model: ModelParameters) -> PreTrainedTokenizerBase:
    """Load the base model's tokenizer.

    Raises:
        InputError: it is missing or cannot be read.
    """
    folder = base_folder(model)
    _require_whole(folder)
    tokenizer = _read(model, folder, AutoTokenizer.from_pretrained)
    _require_words(tokenizer, model.name)
    return tokenizer


def read_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Load a tokenizer from a folder that it was saved in.

    Raises:
        InputError: there is none, or its files are damaged.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # tokenizers raises nothing more special
        raise InputError(
            f"The tokenizer in {folder} cannot be read ({in_one_line(error)}); restore its files."
        ) from error
    _require_words(tokenizer, str(folder))
    return tokenizer


def _require_words(tokenizer: PreTrainedTokenizerBase, place: str) -> None:
    """Without its files transformers makes a T5 tokenizer of special tokens and the space."""
    if len(tokenizer) <= len(tokenizer.all_special_tokens) + 1:
        raise InputError(
            f"{place} holds no vocabulary (tokenizer.json or spiece.model); restore the "
            "tokenizer's files."
        )


def require_vocabulary(tokenizer: PreTrainedTokenizerBase, size: int, base: str) -> None:
    """Check that a base model has an embedding for every token.

    Raises:
        InputError: it has fewer than the tokenizer has tokens.
    """
    if len(tokenizer) > size:
        raise InputError(
            f"model.name: the tokenizer of {base} has {len(tokenizer)} tokens, but the model "
            f"has embeddings of {size}; give a model with the tokenizer it was saved with."
        )


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
            files are damaged, its weights incomplete or not finite, it has fewer embeddings than
            its tokenizer has tokens, or `skip_modules` names what is no linear layer.
    """
    folder = base_folder(model)
    config = _load_config(model, folder)
    _require_whole(folder)
    require_vocabulary(load_tokenizer(model), config.vocab_size, model.name)
    require_undamaged(folder)
    _require_finite(folder)
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
    base, loading = _read(
        model,
        folder,
        QuantizableT5.from_pretrained,
        config=config,
        dtype=dtype,
        quantization_config=quantization if model.load_in_4bit else None,
        device_map={"": PartialState().local_process_index if on_gpu else "cpu"},
        attn_implementation=attention,
        use_safetensors=True,
        output_loading_info=True,
    )
    base.name_or_path = model.name
    if loading["missing_keys"]:
        raise InputError(
            f"model.name: the weights of {model.name} lack {sorted(loading['missing_keys'])[0]}; "
            "give a complete T5 v1.1 or FLAN-T5 model, which has a language-model head of its own."
        )
    _require_shapes(base, model.name)
    _require_linear(base, model)
    for module in base.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False
    automatic = model.dequantize == "auto" and not to_shard
    if model.dequantize is True or (automatic and _fits_dequantized(base)):
        base = dequantize(base)
        base.keep_activations()
    return base.requires_grad_(False).eval()


def _require_finite(folder: Path) -> None:
    """Check the weights in a folder, one at a time: quantized to 4 bits NaN becomes a number."""
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt") as weights:
                for name in weights.keys():  # noqa: SIM118, it is no dictionary
                    weight = weights.get_tensor(name)
                    if weight.is_floating_point() and not weight.isfinite().all():
                        raise InputError(
                            f"model.name: {name} in {path} holds NaN or infinity; give a base "
                            "whose weights are finite."
                        )
        except (OSError, SafetensorError) as error:
            raise InputError(
                f"model.name: {path} cannot be read ({in_one_line(error)}); restore the base, or "
                "give another."
            ) from error


def _require_linear(base: PreTrainedModel, model: ModelParameters) -> None:
    """Check that `skip_modules` names nothing but linear layers."""
    linear = [name for name, module in base.named_modules() if isinstance(module, Linear)]
    for skipped in model.skip_modules:
        if all(should_convert_module(name, [skipped]) for name in linear):
            raise InputError(
                f"model.skip_modules: {skipped} matches no linear module of {model.name}; T5's are "
                "lm_head, q, k, v, o, wi_0, wi_1 and wo."
            )


def _require_shapes(base: PreTrainedModel, name: str) -> None:
    """Check the weights' shapes, which transformers leaves alone in a model that it quantizes."""
    with torch.device("meta"):
        expected = dict(type(base)(base.config).named_parameters())
    for key, weight in base.named_parameters():
        held = tuple((getattr(weight, "quant_state", None) or weight).shape)
        if held != tuple(expected[key].shape):
            raise InputError(
                f"model.name: {name} could not be read: {key} is of shape {held}, by its "
                f"config.json {tuple(expected[key].shape)}; give a complete snapshot."
            )


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
    fits = all(gather_json(size <= DEQUANTIZED_SHARE * free))
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


def _require_whole(folder: Path) -> None:
    if missing := missing_model_file(folder):
        raise _incomplete(folder, missing)


def _incomplete(folder: Path, missing: str) -> InputError:
    return InputError(
        f"model.name: the folder {folder.absolute()} holds no {missing}; give the folder that a "
        "model and its tokenizer were saved in, with all of its files."
    )


def _load_config(model: ModelParameters, folder: Path) -> T5Config:
    given = _read(model, folder, PreTrainedConfig.get_config_dict)[0]
    kind = given.get("model_type")
    if kind == "t5":
        config = _read(model, folder, T5Config.from_pretrained)
        if not config.scale_decoder_outputs:
            return config
        kind = "T5 1.0"
    raise InputError(
        f"model.name: {model.name} is a {kind} model; choose a T5 v1.1 or FLAN-T5 model."
    )


def _read(model: ModelParameters, folder: Path, read: Callable[..., Any], **options: Any) -> Any:
    """Read from the folder alone, without running code that lies there."""
    try:
        return read(folder, local_files_only=True, trust_remote_code=False, **options)
    except Exception as error:  # tokenizers raises nothing more special
        if isinstance(error, MemoryError) or should_reduce_batch_size(error):
            raise
        raise _unreadable(model, folder, folder, error) from error


def _is_lfs_pointer(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(LFS_POINTER)) == LFS_POINTER


def _unreadable(model: ModelParameters, folder: Path, path: Path, error: Exception) -> InputError:
    reason = in_one_line(error)
    if _is_lfs_pointer(path):
        reason = "it is a Git LFS pointer, not the file itself"
    if Path(model.name) == folder:
        remedy = f"save the model in {folder} again, or download it again with `hf download`"
    else:
        remedy = f"remove it with `hf cache rm model/{model.name}` and run again, which fetches it"
    what = model.name if path == folder else path
    return InputError(
        f"model.name: {what} could not be read ({reason}); {remedy}, or take "
        "data/06_models/starter_t5, which needs no network."
    )
