"""A trained LoRA adapter: what is saved, how it is saved, how it is attached again."""

from copy import copy
from dataclasses import dataclass
from typing import Any

import torch
from peft import (
    LoraConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from pydantic import BaseModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from flan_qa_pipeline.config.parameters import ModelParameters, PromptParameters
from flan_qa_pipeline.errors import InputError
from flan_qa_pipeline.models.fused_lora import fuse
from flan_qa_pipeline.models.sharding import adapter_weights

WEIGHTS = "adapter_model.safetensors"
PROVENANCE = "provenance.json"
TRAINING = "training.json"


@dataclass(frozen=True)
class Adapter:
    """LoRA weights with everything needed to use them.

    `state_dict` maps peft's parameter names to tensors; `provenance` says what the adapter was
    trained on: the `model` (base, revision, quantization) and `prompt` parameters, on which it
    depends, and those of `tokenization` and `generation`, with which it was evaluated. `training`
    is the record of the training: parameters, samples, seconds, memory and the log of its steps.
    """

    config: LoraConfig
    state_dict: dict[str, torch.Tensor]
    tokenizer: PreTrainedTokenizerBase
    provenance: dict[str, Any]
    training: dict[str, Any]


def provenance_of(
    model: ModelParameters, prompt: PromptParameters, **evaluated_with: BaseModel
) -> dict[str, Any]:
    """What an adapter depends on: it means something only on this base and with this prompt.

    Args:
        evaluated_with: further sections of the parameters, to be kept beside it.
    """
    return {
        "model": model.model_dump(exclude={"dequantize", "compute_dtype", "attn_implementation"}),
        "prompt": prompt.model_dump(),
        **{name: section.model_dump() for name, section in evaluated_with.items()},
    }


def extract_adapter(
    model: PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    provenance: dict[str, Any],
    training: dict[str, Any],
) -> Adapter:
    """Take the adapter off a trained model, with what is to be kept beside it."""
    config = model.peft_config["default"]
    return Adapter(config, adapter_weights(model), tokenizer, provenance, training)


def require_trained_with(adapter: Adapter, provenance: dict[str, Any]) -> None:
    """Check that a run uses an adapter with what the adapter depends on.

    Raises:
        InputError: `provenance` differs from the adapter's own (names each difference).
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


def attach_adapter(
    base: PreTrainedModel, adapter: Adapter, provenance: dict[str, Any]
) -> PeftModel:
    """Put a saved adapter on a freshly loaded base model, ready to generate.

    Raises:
        InputError: `provenance` differs from the adapter's own, or the weights are not those that
            the base takes (names the first).
    """
    require_trained_with(adapter, provenance)
    config = copy(adapter.config)
    config.base_model_name_or_path = base.name_or_path
    model = get_peft_model(base, config)
    needed, held = _shapes(get_peft_model_state_dict(model)), _shapes(adapter.state_dict)
    for name in sorted(needed.keys() | held.keys()):
        if needed.get(name) != held.get(name):
            raise InputError(
                f"The adapter does not fit the base {base.name_or_path}: {name} is "
                f"{held.get(name, 'missing')} in the adapter and {needed.get(name, 'missing')} on "
                "the base; load it on the base it was trained on, or train again."
            )
    set_peft_model_state_dict(model, adapter.state_dict)
    fuse(model)
    return model.eval()


def _shapes(state_dict: dict[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in state_dict.items()}
