"""The base model and its tokenizer: find their files, check them, load them.

`quantization` says which layers are packed in 4 bits.
"""

from collections.abc import Callable, Collection, Container
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils.memory import should_reduce_batch_size
from safetensors import SafetensorError, safe_open
from torch.nn import Linear
from transformers import (
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    T5Config,
    T5ForConditionalGeneration,
)
from transformers.quantizers.quantizers_utils import should_convert_module

from flan_qa_pipeline.config.parameters import LoraParameters, ModelParameters
from flan_qa_pipeline.errors import InputError, in_one_line
from flan_qa_pipeline.files import require_undamaged, weight_digests
from flan_qa_pipeline.hub import CONFIG, ModelFiles, fetch, missing_model_file
from flan_qa_pipeline.models.device import resolve_attention, resolve_compute_dtype
from flan_qa_pipeline.models.quantization import (
    PackedLayer,
    adopt,
    dequantize,
    fits_dequantized,
    forbid_repacking,
    packed_layers,
    quantization_config,
    readable_weights,
    require_stored_as,
    shape_of,
)
from flan_qa_pipeline.models.t5 import QuantizableT5, UntiedT5
from flan_qa_pipeline.models.transformers_private import set_attention

LFS_POINTER = b"version https://git-lfs.github.com/spec/"


def base_folder(model: ModelParameters) -> Path:
    """Find the folder of a base model: the named one, or its snapshot in the hub's cache.

    Fetches the files that the cache lacks.

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
    """Describe the files of a base model on the hub.

    Raises:
        InputError: the name is the path of a missing folder, or has no revision.
    """
    folder = Path(model.name)
    if model.name.count("/") > 1 or folder.is_absolute():
        raise InputError(
            f"model.name: there is no folder {folder.absolute()}; give the folder of a saved "
            "model, such as data/06_models/starter_t5, or a hub id, such as google/flan-t5-base."
        )
    if model.revision is None:
        raise InputError(
            f"model.name: there is no folder {model.name}, and a hub id needs a commit or tag; "
            "give the folder of a saved model, or the commit with --params=model.revision=…."
        )
    return ModelFiles(model.name, model.revision)


def check_base(model: ModelParameters, lora: LoraParameters | None = None) -> None:
    """Check a base model, and LoRA's targets in it, without reading its weights.

    Raises:
        InputError: its architecture, tokenizer or a file of weights is not usable; a parameter
            contradicts the 4 bits that it is stored in; or `lora.target_modules` names a layer that
            it lacks.
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
    linear = _linear_layers(config)
    _stored_layers(model, folder, config, linear)
    if lora is not None:
        _require_targets(lora, linear, model.name)


def load_tokenizer(model: ModelParameters) -> PreTrainedTokenizerBase:
    """Load the base model's tokenizer.

    Raises:
        InputError: it is missing or cannot be read.
    """
    folder = base_folder(model)
    _require_whole(folder)
    tokenizer = _read(model, folder, AutoTokenizer.from_pretrained)
    return _checked(tokenizer, model.name)


def read_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Load a tokenizer from the folder it was saved in.

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
    return _checked(tokenizer, str(folder))


def _checked(tokenizer: PreTrainedTokenizerBase, place: str) -> PreTrainedTokenizerBase:
    """Refuse the tokenizer that transformers makes without files: special tokens and the space.

    Returns:
        The tokenizer, without the option of its loading that `save_pretrained` would write.
    """
    if len(tokenizer) <= len(tokenizer.all_special_tokens) + 1:
        raise InputError(
            f"{place} holds no vocabulary (tokenizer.json or spiece.model); restore the "
            "tokenizer's files."
        )
    tokenizer.init_kwargs.pop("local_files_only", None)
    return tokenizer


def require_vocabulary(tokenizer: PreTrainedTokenizerBase, size: int, base: str) -> None:
    """Check that a base model has an embedding for every token.

    Raises:
        InputError: it has fewer than the tokenizer has tokens.
    """
    if len(tokenizer) > size:
        raise InputError(
            f"model.name: {base} has {size} embeddings, but the tokenizer has {len(tokenizer)} "
            "tokens; give a model with the tokenizer it was saved with."
        )


def load_base_model(model: ModelParameters, *, to_shard: bool = False) -> PreTrainedModel:
    """Load the base model with its linear layers in 4 bits and all weights frozen.

    Embeddings, norms and `skip_modules` are in the compute dtype. A base that is stored in 4 bits
    gives what its unpacked weights give when they are quantized at load. For sdpa the process turns
    cuDNN's kernel off, which cuDNN would compile for every shape.

    Args:
        to_shard: load to the machine's memory, where the layers stay packed (see `sharding`).

    Raises:
        InputError: the name is neither a folder nor a hub id; the model is not a T5 v1.1; its files
            are damaged, its weights incomplete or not finite; `skip_modules` names no linear layer;
            or a parameter contradicts the 4 bits that the base is stored in. `check_base` and
            `attach_adapter` check the tokenizer.
    """
    folder = base_folder(model)
    config = _load_config(model, folder)
    _require_whole(folder)
    require_undamaged(folder)
    digests = weight_digests(folder)
    layers = _stored_layers(model, folder, config, _linear_layers(config))
    _require_finite(folder, layers)
    dtype = resolve_compute_dtype(model.compute_dtype)
    quantization = quantization_config(model, dtype, layers) if model.load_in_4bit else None
    if layers and quantization:
        config.quantization_config, quantization = quantization.to_dict(), None
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
        quantization_config=quantization,
        device_map={"": PartialState().local_process_index if on_gpu else "cpu"},
        attn_implementation=attention,
        use_safetensors=True,
        output_loading_info=True,
    )
    base.name_or_path = model.name
    base.quantized_from_dtype = str(dtype).removeprefix("torch.") if quantization else None
    base.weight_digests = digests
    _require_complete(base, loading["missing_keys"])
    adopt(base, dtype)
    forbid_repacking(base)
    automatic = model.dequantize == "auto" and not to_shard
    if model.dequantize is True or (automatic and fits_dequantized(base)):
        base = dequantize(base)
        base.keep_activations()
    return base.requires_grad_(False).eval()


def is_stored_in_4_bits(model: ModelParameters) -> bool:
    """Whether the files of a base hold packed weights.

    Raises:
        InputError: the base is missing, or a file of weights cannot be read.
    """
    return bool(packed_layers(base_folder(model)))


def _stored_layers(
    model: ModelParameters, folder: Path, config: T5Config, linear: list[str]
) -> dict[str, PackedLayer]:
    """Read which layers a base stores in 4 bits, and check skip_modules and them."""
    layers = packed_layers(folder)
    for skipped in model.skip_modules:
        if all(should_convert_module(name, [skipped]) for name in linear):
            raise InputError(
                f"model.skip_modules: {skipped} matches no linear module of {model.name}; T5's are "
                "lm_head, q, k, v, o, wi_0, wi_1 and wo."
            )
    require_stored_as(model, config, layers, linear)
    return layers


def _linear_layers(config: T5Config) -> list[str]:
    """Name the linear layers of an architecture, without weights."""
    with torch.device("meta"):
        modules = QuantizableT5(config).named_modules()
    return [name for name, module in modules if isinstance(module, Linear)]


def _require_targets(lora: LoraParameters, linear: list[str], base: str) -> None:
    """Check that every name in `lora.target_modules` matches a linear layer.

    peft ignores a name that matches none, where another one does.

    Raises:
        InputError: names the targets that match none.
    """
    if lora.target_modules == "all-linear":
        return
    missing = [
        target
        for target in lora.target_modules
        if not any(f".{name}".endswith(f".{target}") for name in linear)
    ]
    if missing:
        raise InputError(
            f"lora.target_modules: {missing} match no linear module of {base}; T5's linear layers "
            "are q, k, v, o, wi_0, wi_1 and wo (or use all-linear)."
        )


def _require_finite(folder: Path, layers: Container[str]) -> None:
    """Check the weights in a folder, one at a time: in 4 bits NaN becomes a number.

    Args:
        layers: those that are packed; their bytes may look like any number, their scales not.
    """
    for path in sorted(folder.glob("*.safetensors")):
        with readable_weights(path), safe_open(path, framework="pt") as weights:
            for name in weights.keys():  # noqa: SIM118, it is no dictionary
                if name.removesuffix(".weight") in layers:
                    continue
                weight = weights.get_tensor(name)
                if weight.is_floating_point() and not _in_computable_dtype(weight).isfinite().all():
                    raise InputError(
                        f"model.name: {name} in {path} holds NaN or infinity; give a base whose "
                        "weights are finite."
                    )


def _in_computable_dtype(weight: torch.Tensor) -> torch.Tensor:
    """Cast float8, in which torch computes nothing, to bfloat16, which holds all of its values."""
    return weight.bfloat16() if weight.dtype.itemsize == 1 else weight


def _require_complete(base: PreTrainedModel, missing: Collection[str]) -> None:
    """Check that a loaded base has every weight, in the shape that its configuration gives.

    transformers does not check the shapes in a model that it quantizes.
    """
    name = base.name_or_path
    if missing:
        raise InputError(
            f"model.name: the weights of {name} lack {min(missing)}; give a complete T5 v1.1 or "
            "FLAN-T5 model, which has a language-model head apart from its embeddings."
        )
    with torch.device("meta"):
        expected = dict(type(base)(base.config).named_parameters())
    for key, weight in base.named_parameters():
        held, right = shape_of(weight), tuple(expected[key].shape)
        if held != right:
            raise InputError(
                f"model.name: {name} could not be read: the shape of {key} is {held}, but {right} "
                "by its config.json; give a complete snapshot."
            )


def as_transformers_t5(model: PreTrainedModel) -> T5ForConditionalGeneration:
    """Put the weights under transformers' own class, whose saved folder any program reads.

    The result shares the model's tensors; 4-bit layers must be dequantized before.
    """
    config = deepcopy(model.config)
    config.tie_word_embeddings = True  # embeddings of encoder and decoder; the head is not
    set_attention(config, "eager")
    with torch.device("meta"):
        plain = T5ForConditionalGeneration(config)
    plain.config.tie_word_embeddings = False  # transformers 4 would tie the head, too
    plain.all_tied_weights_keys.pop("lm_head.weight")
    plain.load_state_dict(model.state_dict(), assign=True)
    for stack in (plain.encoder, plain.decoder):
        stack.set_input_embeddings(plain.shared)  # one parameter, however it is cast or trained
    return plain.eval()


def load_transformers_t5(folder: Path, **options: Any) -> T5ForConditionalGeneration:
    """Load a T5 v1.1 under transformers' own class, with the head that its folder holds.

    That class would warn that the head is not tied, although the head of T5 v1.1 never is.

    Args:
        folder: what `save_pretrained` wrote.
        **options: of `from_pretrained`.
    """
    model = UntiedT5.from_pretrained(folder, local_files_only=True, use_safetensors=True, **options)
    model.__class__ = T5ForConditionalGeneration
    model.config.tie_word_embeddings = False  # transformers 4 would tie the head, too
    return model


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
    """Read from the folder only, and run no code that lies there."""
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
