"""A T5 v1.1 with random weights that Muon and AdamW can train (see `optimizers`)."""

import torch
from torch import nn
from transformers import T5Config, T5ForConditionalGeneration

from flan_qa_pipeline.config.parameters import ArchitectureParameters


def build_random_t5(
    architecture: ArchitectureParameters, *, dropout: float
) -> T5ForConditionalGeneration:
    """Build the model in float32.

    Projections back into the residual stream and the head start at zero. Each block begins as the
    identity, and the loss begins at that of a uniform guess.

    Args:
        architecture: Sizes.
        dropout: Share of activations that training drops.
    """
    model = build_t5(dropout=dropout, **architecture.model_dump())
    nn.init.zeros_(model.lm_head.weight)
    silence_projections(model)
    return model


def build_t5(*, dropout: float, **sizes: int) -> T5ForConditionalGeneration:
    """Build a T5 v1.1 with transformers' own random weights, in float32.

    Args:
        dropout: Share of activations that training drops.
        sizes: Fields of `T5Config`, as `ArchitectureParameters` names them.
    """
    config = T5Config(
        **sizes,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
        dropout_rate=dropout,
        decoder_start_token_id=0,
        pad_token_id=0,
        eos_token_id=1,
    )
    model = T5ForConditionalGeneration(config)
    untie_head(model)
    return model


@torch.no_grad()
def silence_projections(model: nn.Module) -> None:
    """Set the projections of T5's blocks back into the residual stream to zero."""
    for name, parameter in model.named_parameters():
        if name.endswith((".o.weight", ".wo.weight")):
            parameter.zero_()


def untie_head(model: T5ForConditionalGeneration) -> None:
    """Untie the head from the embeddings, as in T5 v1.1; transformers ties them."""
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
    model.all_tied_weights_keys.pop("lm_head.weight", None)
    model.config.tie_word_embeddings = False
