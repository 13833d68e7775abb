"""T5 v1.1 and FLAN-T5 that train in little memory, with every linear layer open to 4 bits.

Architecture: Shazeer 2020, "GLU Variants Improve Transformer", arXiv:2002.05202 (gated gelu);
Raffel et al. 2020, "Exploring the Limits of Transfer Learning with a Unified Text-to-Text
Transformer", arXiv:1910.10683. Weights, names and results are those of transformers' T5.
"""

from collections.abc import Mapping
from copy import deepcopy
from functools import wraps
from types import MappingProxyType
from typing import Any

import torch
from torch.nn import Module
from torch.nn.functional import cross_entropy, dropout, rms_norm, softmax
from torch.utils.checkpoint import checkpoint
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    T5Config,
    T5ForConditionalGeneration,
)
from transformers.masking_utils import eager_mask
from transformers.modeling_outputs import Seq2SeqLMOutput
from transformers.models.t5.modeling_t5 import (
    T5Attention,
    T5DenseGatedActDense,
    T5LayerNorm,
)

from flan_qa_pipeline.models.subclasses import become
from flan_qa_pipeline.models.transformers_private import (
    allow_every_layer,
    attention_of,
    set_attention,
)

LOSS_CHUNK = 256
GELU = "gelu_pytorch_tanh"  # transformers' name of the gelu that tanh approximates


def additive(mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Turn a mask into a bias of attention scores.

    Args:
        mask: true where a query may attend, of any shape.
        dtype: of the scores.

    Returns:
        0 where the mask is true, the dtype's lowest number elsewhere, in the mask's shape.
    """
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(~mask, torch.finfo(dtype).min)


class SharedMaskAttention(T5Attention):
    """Adds the mask to the position bias in a stack's first layer; the others share the sum.

    transformers adds them in every layer, and autograd keeps each sum of shape (batch, heads,
    length, length). With `keeps_all`, `lean_attention` keeps the attention weights, too.

    In a stack's own attention, `triton_attention` adds the mask itself.
    """

    keeps_all = False

    def compute_bias(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Compute the position bias (1, heads, queries, keys) in the layout of the scores.

        transformers leaves the heads innermost in memory. That is slow to add to the scores and
        keeps scaled_dot_product_attention off the GPU kernels that store no scores.
        """
        return super().compute_bias(*args, **kwargs).contiguous()

    def forward(
        self,
        hidden_states: torch.Tensor,
        mask: torch.Tensor | None = None,
        key_value_states: torch.Tensor | None = None,
        position_bias: torch.Tensor | None = None,
        past_key_values: Any = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        adds_mask_itself = key_value_states is None and attention_of(self.config) == TRITON
        if mask is not None and (adds_mask_itself or position_bias is None):
            mask = additive(mask, hidden_states.dtype) if mask.dtype == torch.bool else mask
        if adds_mask_itself:
            return super().forward(
                hidden_states, mask, None, position_bias, past_key_values, **kwargs
            )
        if position_bias is None and mask is not None:
            position_bias = mask
            if self.has_relative_attention_bias:
                cached = past_key_values is not None
                seen = past_key_values.get_seq_length(self.layer_idx) if cached else 0
                position_bias = position_bias + self.compute_bias(
                    hidden_states.shape[1], mask.shape[-1], hidden_states.device, seen
                )
        return super().forward(
            hidden_states, None, key_value_states, position_bias, past_key_values, **kwargs
        )


def _weigh(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    bias: torch.Tensor,
    p: float = 0.0,
) -> torch.Tensor:
    """Attend from queries (batch, heads, n, d_kv); T5 does not scale its scores."""
    weights = softmax((query @ key.transpose(2, 3)).add_(bias), dim=-1)
    return dropout(weights, p) @ value


def lean_attention(
    module: SharedMaskAttention,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: None,
    *,
    position_bias: torch.Tensor,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Compute T5's attention in fewer passes over the scores than transformers.

    The backward pass computes the scores again unless the module `keeps_all`. The position bias
    holds the mask.

    Args:
        module: the attention layer.
        query: (batch, heads, n, d_kv); `key` and `value` (batch, heads, m, d_kv).
        key: see `query`.
        value: see `query`.
        attention_mask: always None.
        position_bias: broadcast to (batch, heads, n, m).
        dropout: share of the attention weights to drop.

    Returns:
        States (batch, n, heads, d_kv), and None for the attention weights.
    """
    if module.keeps_all or not torch.is_grad_enabled():
        states = _weigh(query, key, value, position_bias, dropout)
    else:
        given = (query, key, value, position_bias, dropout)
        states = checkpoint(_weigh, *given, use_reentrant=False)
    return states.transpose(1, 2), None


def triton_attention(
    module: SharedMaskAttention,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    position_bias: torch.Tensor,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Compute T5's attention by Triton's kernels, which never store the scores.

    Args:
        module: the attention layer.
        query: (batch, heads, n, d_kv); `key` and `value` (batch, heads, m, d_kv).
        key: see `query`.
        value: see `query`.
        attention_mask: added to the scores, (batch or 1, 1, n or 1, m); None for no mask.
        position_bias: added likewise; broadcast to (batch, heads, n, m).
        dropout: share of the attention weights to drop.

    Returns:
        States (batch, n, heads, d_kv), and None for the attention weights.

    Raises:
        ValueError: The position bias is trained, to which the kernels give no gradient.
    """
    from flan_qa_pipeline.models.triton_attention import attend  # on GPUs alone

    if position_bias.grad_fn is not None:
        raise ValueError(
            "Triton's attention gives the position bias no gradient; freeze "
            "relative_attention_bias, or load the model with sdpa or eager."
        )
    states = attend(query, key, value, position_bias, attention_mask, dropout)
    return states.transpose(1, 2), None


# The names of these attentions in transformers
LEAN, TRITON = "lean", "triton"
for _name, _attention in ((LEAN, lean_attention), (TRITON, triton_attention)):
    AttentionInterface.register(_name, _attention)
    AttentionMaskInterface.register(_name, eager_mask)


class RecomputedFeedForward(T5DenseGatedActDense):
    """Keeps the gate's two inputs and its product for the backward pass, and recomputes the rest.

    With `keeps_all` it keeps the rest, too, and recomputes nothing.

    Activations keep their dtype. transformers casts them to the dtype of `wo.weight`, which may be
    uint8 once bitsandbytes has packed it.
    """

    keeps_all = False

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        gate, linear = self.wi_0(hidden_states), self.wi_1(hidden_states)
        if self.keeps_all or not torch.is_grad_enabled():
            return self.wo(self._gated(gate, linear))
        return self.wo(checkpoint(self._gated, gate, linear, use_reentrant=False))

    def _gated(self, gate: torch.Tensor, linear: torch.Tensor) -> torch.Tensor:
        return self.dropout(self.act(gate) * linear)


class TritonFeedForward(T5DenseGatedActDense):
    """Computes the gated gelu and its dropout in one Triton kernel, and the gradients in another.

    It keeps the gate's two inputs and its product for the backward pass.
    """

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        from flan_qa_pipeline.models.triton_gate import gated_gelu  # on GPUs alone

        gate, linear = self.wi_0(hidden_states), self.wi_1(hidden_states)
        return self.wo(gated_gelu(gate, linear, self.dropout.p if self.training else 0.0))


class FusedLayerNorm(T5LayerNorm):
    """Root mean square norm by torch's kernel, which computes in float32.

    Autocast is off inside: it would keep a float32 copy of the input for the backward pass.
    """

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        with torch.autocast(hidden_states.device.type, enabled=False):
            return rms_norm(
                hidden_states, self.weight.shape, self.weight, self.variance_epsilon
            ).to(hidden_states.dtype)


LEAN_LAYERS: dict[type[Module], type[Module]] = {
    T5Attention: SharedMaskAttention,
    T5DenseGatedActDense: RecomputedFeedForward,
    T5LayerNorm: FusedLayerNorm,
}
TRITON_LAYERS: dict[type[Module], type[Module]] = {T5DenseGatedActDense: TritonFeedForward}


class UntiedT5(T5ForConditionalGeneration):
    """T5 v1.1 or FLAN-T5 with its untied head.

    transformers ties the language-model head of every T5 to the embeddings; the head of T5 v1.1 is
    untied.
    """

    _tied_weights_keys = {
        "encoder.embed_tokens.weight": "shared.weight",
        "decoder.embed_tokens.weight": "shared.weight",
    }


class QuantizableT5(UntiedT5):
    """An untied T5 with every linear layer open to quantization.

    `allow_every_layer` says why transformers would not quantize `wo`.

    Eager attention is `lean_attention`, which returns no attention weights. With Triton's
    attention, the gated gelu runs in Triton's kernels, too.

    With `labels` the output holds the loss alone. The model computes float32 logits of `LOSS_CHUNK`
    target tokens at a time, and again in the backward pass, so it never keeps them all.
    """

    keeps_activations = False
    quantized_from_dtype: str | None = None
    """The dtype, such as bfloat16, of weights that were quantized at load; None if none were."""
    weight_digests: Mapping[str, str] = MappingProxyType({})
    """The digests that the base's folder holds of its files of weights, by name."""

    def __init__(self, config: T5Config):
        config = deepcopy(config)
        if config.dense_act_fn == "gelu_new":
            config.dense_act_fn = GELU  # the same function, one kernel
        if attention_of(config) == "eager":
            set_attention(config, LEAN)
        super().__init__(config)
        allow_every_layer(self)
        fuses_gate = attention_of(config) == TRITON and config.dense_act_fn == GELU
        become(self, LEAN_LAYERS | (TRITON_LAYERS if fuses_gate else {}))

    def keep_activations(self) -> None:
        """Train in less time and more memory: recompute nothing but the logits."""
        self.keeps_activations = True
        for module in self.modules():
            if isinstance(module, SharedMaskAttention | RecomputedFeedForward):
                module.keeps_all = True

    @wraps(T5ForConditionalGeneration.forward)
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        decoder_input_ids: torch.Tensor | None = None,
        *,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        **kwargs: Any,
    ) -> Seq2SeqLMOutput:
        """Compute the loss of `labels`, or logits without them.

        Args:
            input_ids: (batch, source length); or `inputs_embeds` (batch, source length, d_model).
            attention_mask: 1 for tokens and 0 for padding (batch, source length).
            decoder_input_ids: (batch, target length); by default the labels, shifted right.
            inputs_embeds: see `input_ids`.
            labels: (batch, target length), -100 where there is none.
            num_items_in_batch: target tokens in all batches whose gradients are accumulated. The
                loss is the sum over target tokens divided by it; by default, the mean.
            **kwargs: passed on to transformers without labels.

        Raises:
            TypeError: labels come with an option of logits, or there is no input.
        """
        if labels is None:
            return super().forward(
                input_ids,
                attention_mask,
                decoder_input_ids,
                inputs_embeds=inputs_embeds,
                **kwargs,
            )
        asked = {name for name, value in kwargs.items() if value is not None and value is not False}
        if unused := asked - {"use_cache", "return_dict"}:
            raise TypeError(
                f"With labels there is nothing but the loss, computed without {sorted(unused)}; "
                "leave them out, or the labels."
            )
        if decoder_input_ids is None:
            start = labels.new_full((len(labels), 1), self.config.decoder_start_token_id)
            said = labels.masked_fill(labels == -100, self.config.pad_token_id)
            decoder_input_ids = torch.cat([start, said[:, :-1]], dim=1)
        if attention_mask is None:
            given = inputs_embeds if input_ids is None else input_ids
            if given is None:
                raise TypeError("The model reads input_ids or inputs_embeds; give one of them.")
            attention_mask = given.new_ones(given.shape[:2])
        states = self._states(input_ids, inputs_embeds, attention_mask, decoder_input_ids)
        total = sum(
            checkpoint(self._summed_loss, *chunk, use_reentrant=False, preserve_rng_state=False)
            for chunk in zip(
                states.flatten(0, 1).split(LOSS_CHUNK),
                labels.flatten().split(LOSS_CHUNK),
                strict=True,
            )
        )
        count = labels.ne(-100).sum() if num_items_in_batch is None else num_items_in_batch
        return Seq2SeqLMOutput(loss=total / count)

    def _states(
        self,
        input_ids: torch.Tensor | None,
        inputs_embeds: torch.Tensor | None,
        attention_mask: torch.Tensor,
        decoder_input_ids: torch.Tensor,
    ) -> torch.Tensor:
        """Compute the decoder's last states (batch, target length, d_model)."""
        readable = additive(attention_mask[:, None, None].bool(), self.dtype)
        length = decoder_input_ids.shape[1]
        past = readable.new_ones((1, 1, length, length), dtype=torch.bool).tril()
        encoded = self.encoder(
            input_ids=input_ids, attention_mask=readable, inputs_embeds=inputs_embeds
        ).last_hidden_state
        return self.decoder(
            input_ids=decoder_input_ids,
            attention_mask=additive(past, self.dtype),
            encoder_hidden_states=encoded,
            encoder_attention_mask=readable,
            use_cache=False,
        ).last_hidden_state

    def _summed_loss(self, states: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return cross_entropy(self.lm_head(states).float(), targets, reduction="sum")
