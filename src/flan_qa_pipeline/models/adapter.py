"""A trained LoRA adapter: take it off a model, save it, check it, attach it to a base."""

import json
import logging
from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import (
    LoraConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from peft.utils import CONFIG_NAME
from pydantic import BaseModel, TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from flan_qa_pipeline.config.parameters import LoraParameters, ModelParameters, PromptParameters
from flan_qa_pipeline.errors import InputError, in_one_line
from flan_qa_pipeline.files import CARD, DIGESTS, refuse_pickles, require_undamaged, save_digests
from flan_qa_pipeline.models.fused_lora import fuse
from flan_qa_pipeline.models.loading import read_tokenizer, require_vocabulary
from flan_qa_pipeline.models.sharded_tensors import sharded_like, whole

logger = logging.getLogger(__name__)

WEIGHTS = "adapter_model.safetensors"
PROVENANCE = "provenance.json"
TRAINING = "training.json"


WEIGHT_DTYPES = {torch.float32, torch.float16, torch.bfloat16}
RESTORE = "restore the adapter's folder, load another version, or train again"
# keys of a saved configuration that are no parameter of LoRA, and the targets, checked apart
FREE = {
    "base_model_name_or_path",
    "inference_mode",
    "peft_version",
    "revision",
    "target_modules",
}


@dataclass(frozen=True)
class Adapter:
    """LoRA weights with everything needed to use them.

    Attributes:
        config: peft's configuration.
        state_dict: peft's parameter names mapped to tensors.
        tokenizer: the base's tokenizer.
        provenance: the parameters of the sections `model` and `prompt`, which the adapter depends
            on, and of `tokenization` and `generation`, which it was evaluated with.
        training: the record of the training: parameters, digests of the base's weights and the
            dtype that they were quantized from, samples, seconds, memory in bytes and the log of
            the steps.
    """

    config: LoraConfig
    state_dict: dict[str, torch.Tensor]
    tokenizer: PreTrainedTokenizerBase
    provenance: dict[str, Any]
    training: dict[str, Any]


def provenance_of(
    model: ModelParameters, prompt: PromptParameters, **evaluated_with: BaseModel
) -> dict[str, Any]:
    """List the parameters that an adapter depends on: its base and its prompt.

    Args:
        model: the base.
        prompt: the prompt of training.
        evaluated_with: further sections of the parameters to keep beside these.
    """
    return {
        "model": _base_record(model),
        "prompt": prompt.model_dump(),
        **{name: section.model_dump() for name, section in evaluated_with.items()},
    }


def _base_record(model: ModelParameters) -> dict[str, Any]:
    """List the parameters of a base; how it is computed (dtype, attention, unpacking) is none.

    The record of the training keeps the dtype that 4-bit weights were rounded from.
    """
    return model.model_dump(exclude={"dequantize", "compute_dtype", "attn_implementation"})


def lora_config(lora: LoraParameters) -> LoraConfig:
    """Make the only peft configuration that this project trains with."""
    targets = lora.target_modules
    return LoraConfig(
        task_type="SEQ_2_SEQ_LM",
        target_modules=targets if isinstance(targets, str) else list(targets),
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        use_rslora=lora.use_rslora,
        use_dora=lora.use_dora,
    )


def save_adapter(adapter: Adapter, folder: Path, card: str | None = None) -> None:
    """Save an adapter into a new or empty folder, in peft's own layout, with digests of its files.

    Weights are safetensors, everything else is JSON.

    Args:
        adapter: the adapter.
        folder: the folder; made if it does not exist.
        card: the model card, in Markdown.
    """
    folder.mkdir(parents=True, exist_ok=True)
    save_file(adapter.state_dict, folder / WEIGHTS, metadata={"format": "pt"})
    adapter.config.save_pretrained(str(folder))
    adapter.tokenizer.save_pretrained(str(folder))
    for name, content in ((PROVENANCE, adapter.provenance), (TRAINING, adapter.training)):
        text = json.dumps(content, indent=2, ensure_ascii=False)
        (folder / name).write_text(text, encoding="utf-8")
    if card is not None:
        (folder / CARD).write_text(card, encoding="utf-8")
    save_digests(folder, (path.name for path in folder.iterdir()))


def load_adapter(folder: Path) -> Adapter:
    """Load and check an adapter that `save_adapter` saved.

    Raises:
        InputError: a file is missing, a pickle, changed since it was saved or unlike what training
            writes; or a tensor is not floating-point or not finite.
    """
    refuse_pickles(folder)
    if not require_undamaged(folder):
        logger.warning(
            "%s holds no %s: it was saved by an earlier version, and damage to its files may go "
            "unnoticed.",
            folder,
            DIGESTS,
        )
    provenance, training = (_read_json(folder / name) for name in (PROVENANCE, TRAINING))
    for section in ("model", "prompt"):
        if not isinstance(provenance.get(section), dict):
            raise InputError(f"{folder / PROVENANCE} has no section {section}; {RESTORE}.")
    return Adapter(
        config=_read_config(folder / CONFIG_NAME, training),
        state_dict=_read_weights(folder / WEIGHTS),
        tokenizer=read_tokenizer(folder),
        provenance=provenance,
        training=training,
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return TypeAdapter(dict[str, Any]).validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise InputError(f"{path} cannot be read: {in_one_line(error)}; {RESTORE}.") from error


def _read_config(path: Path, training: dict[str, Any]) -> LoraConfig:
    """Read a configuration; check that this training could have written it."""
    raw = _read_json(path)
    try:
        lora = LoraParameters(
            target_modules=TypeAdapter(list[str]).validate_python(raw.get("target_modules")),
            r=raw.get("r"),
            alpha=raw.get("lora_alpha"),
            dropout=raw.get("lora_dropout"),
            use_rslora=raw.get("use_rslora"),
            use_dora=raw.get("use_dora"),
        )
    except ValidationError as error:
        raise InputError(
            f"{path} is no LoRA configuration of this project: {in_one_line(error)}; {RESTORE}."
        ) from error
    config = lora_config(lora)
    known = config.to_dict() | {"peft_type": config.peft_type.value}
    foreign = [
        key
        for key in raw.keys() - FREE
        if raw[key] != known.get(key) and (raw[key] or known.get(key))
    ]
    written = _lora_of(training)
    chosen = lora.model_dump(exclude={"target_modules"})
    foreign += [key for key, value in chosen.items() if written.get(key, value) != value]
    if foreign:
        raise InputError(f"{path}: its {min(foreign)} is not what the training wrote; {RESTORE}.")
    config.base_model_name_or_path = raw.get("base_model_name_or_path")
    config.revision = raw.get("revision")
    return config


def _lora_of(training: dict[str, Any]) -> dict[str, Any]:
    """Get the parameters of LoRA from a record of training; empty if it has none."""
    found: Any = training
    for key in ("run", "parameters", "lora"):
        found = found.get(key) if isinstance(found, dict) else None
    return found if isinstance(found, dict) else {}


def _read_weights(path: Path) -> dict[str, torch.Tensor]:
    try:
        weights = load_file(path)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path} cannot be read: {in_one_line(error)}; {RESTORE}.") from error
    if not weights:
        raise InputError(f"{path} holds no weights; {RESTORE}.")
    for name, weight in weights.items():
        if weight.dtype not in WEIGHT_DTYPES:
            raise InputError(f"{path}: {name} is of type {weight.dtype}; {RESTORE}.")
    if broken := not_finite(weights):
        raise InputError(f"{path}: {broken} holds NaN or infinity; {RESTORE}.")
    return weights


def not_finite(weights: dict[str, torch.Tensor]) -> str | None:
    """Name the first tensor that holds NaN or infinity; None if all are finite."""
    return next((name for name, weight in weights.items() if not weight.isfinite().all()), None)


def extract_adapter(
    model: PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    provenance: dict[str, Any],
    training: dict[str, Any],
) -> Adapter:
    """Copy the adapter off a trained model.

    The field `revision` of peft's configuration becomes the commit of a base on the hub; peft's
    automatic classes load that commit.

    Args:
        model: the trained model.
        tokenizer: the base's tokenizer.
        provenance: see `provenance_of`.
        training: the record of the training.

    Raises:
        InputError: the adapter's weights are not finite.
    """
    config, weights = copy(model.peft_config["default"]), adapter_weights(model)
    base = provenance["model"]
    config.revision = None if Path(base["name"]).is_dir() else base.get("revision")
    if name := not_finite(weights):
        raise InputError(
            f"The training diverged in its last step: {name} holds NaN or infinity; lower "
            "training.learning_rate and train again."
        )
    return Adapter(config, weights, tokenizer, provenance, training)


def require_trained_with(adapter: Adapter, provenance: dict[str, Any]) -> None:
    """Check that a run uses an adapter with the base and prompt that it was trained with.

    Raises:
        InputError: the run's `provenance` differs from the adapter's; names each difference.
    """
    differences = [
        f"{section}.{key} is {value!r}, trained with {adapter.provenance[section].get(key)!r}"
        for section, values in provenance.items()
        for key, value in values.items()
        if adapter.provenance[section].get(key) != value
    ]
    if differences:
        raise InputError(
            f"The adapter does not fit this run: {'; '.join(differences)}. Restore these "
            "parameters, pin another version with --load-versions=adapter:…, or train again."
        )


def require_same_weights(adapter: Adapter, base: str, digests: Mapping[str, str]) -> None:
    """Check that a base's folder still holds the weights that an adapter was trained on.

    A folder without digests, or an adapter that was trained on such a folder, is not checked. A
    base on the hub has a commit instead.

    Args:
        base: the base's name.
        digests: what `weight_digests` finds in its folder.

    Raises:
        InputError: the folder holds other weights.
    """
    trained = adapter.training.get("base_digests")
    if trained and digests and trained != digests:
        raise InputError(
            f"{base} holds other weights than those that the adapter was trained on; restore them, "
            "pin another version with --load-versions=adapter:…, or train again."
        )


def require_trained_on(adapter: Adapter, model: ModelParameters) -> None:
    """Check that an adapter was trained on this base.

    Raises:
        InputError: it was trained on another one; names each difference.
    """
    require_trained_with(adapter, {"model": _base_record(model)})


def attach_adapter(
    base: PreTrainedModel, adapter: Adapter, provenance: dict[str, Any]
) -> PeftModel:
    """Attach a saved adapter to a freshly loaded base model, ready to generate.

    Args:
        base: the base model; the adapter's layers replace some of its layers.
        adapter: the adapter.
        provenance: the parameters of this run (see `provenance_of`).

    Raises:
        InputError: `provenance` differs from the adapter's, the base has other weights or too few
            embeddings, or the adapter's tensors do not fit the base; names the first.
    """
    require_trained_with(adapter, provenance)
    require_same_weights(adapter, base.name_or_path, base.weight_digests)
    require_vocabulary(adapter.tokenizer, base.config.vocab_size, base.name_or_path)
    config = copy(adapter.config)
    config.base_model_name_or_path = base.name_or_path
    model = get_peft_model(base, config)
    needed = _shapes(get_peft_model_state_dict(model, save_embedding_layers=False))
    held = _shapes(adapter.state_dict)
    for name in sorted(needed.keys() | held.keys()):
        if needed.get(name) != held.get(name):
            raise InputError(
                f"The adapter does not fit the base {base.name_or_path}: {name} is "
                f"{held.get(name, 'missing')} in the adapter and {needed.get(name, 'missing')} on "
                "the base; load it on the base it was trained on, or train again."
            )
    set_peft_model_state_dict(model, adapter.state_dict)
    fuse(model)
    _warn_of_other_rounding(adapter, base)
    return model.eval()


def _warn_of_other_rounding(adapter: Adapter, base: PreTrainedModel) -> None:
    """Warn if the base's 4-bit weights were rounded from another dtype than in training."""
    trained, here = adapter.training.get("quantized_from_dtype"), base.quantized_from_dtype
    if trained and here and trained != here:
        logger.warning(
            "The adapter was trained on a base that was quantized from %s; this base was quantized "
            "from %s, so some of its 4-bit weights differ. Give model.compute_dtype=%s for the "
            "weights of the training.",
            trained,
            here,
            trained,
        )


def base_of(model: PreTrainedModel | PeftModel) -> PreTrainedModel:
    """Get the model under an adapter, or the model itself if it has none."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def adapter_weights(model: PeftModel) -> dict[str, torch.Tensor]:
    """Copy the adapter's weights off a model to the CPU, whole, under peft's names.

    All processes must call this for a sharded model.
    """
    return {
        name: whole(tensor.detach()).to("cpu", copy=True).contiguous()
        for name, tensor in get_peft_model_state_dict(model, save_embedding_layers=False).items()
    }


def set_adapter_weights(model: PeftModel, weights: dict[str, torch.Tensor]) -> None:
    """Copy whole weights, under peft's names, into a model's adapter."""
    held = get_peft_model_state_dict(model, save_embedding_layers=False)
    set_peft_model_state_dict(
        model, {name: sharded_like(weight, held[name]) for name, weight in weights.items()}
    )


def _shapes(state_dict: dict[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in state_dict.items()}
