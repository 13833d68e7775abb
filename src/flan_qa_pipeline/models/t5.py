"""T5 v1.1 and FLAN-T5 whose every linear layer may be quantized and that trains in little memory.

Architecture: Shazeer 2020, "GLU Variants Improve Transformer", arXiv:2002.05202 (gated gelu);
Raffel et al. 2020, "Exploring the Limits of Transfer Learning with a Unified Text-to-Text
Transformer", arXiv:1910.10683. Weights, names and results are those of transformers' T5.
"""

from copy import deepcopy
from functools import wraps
from typing import Any

import torch
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
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.t5.modeling_t5 import (
    T5Attention,
    T5DenseGatedActDense,
    T5LayerNorm,
    eager_attention_forward,
)

from flan_qa_pipeline.models.batching import round_up

LOSS_CHUNK = 256


def _additive(mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Turn a mask, true where attention may go, into what is added to the scores."""
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(~mask, torch.finfo(dtype).min)


class SharedMaskAttention(T5Attention):
    """Adds the mask to the position bias in a stack's first layer; the others share the sum.

    transformers adds them in every layer, and each sum of shape (batch, heads, length, length) is
    kept for the gradient. With `keeps_all` what `lean_attention` makes of the scores is kept, too.
    """

    keeps_all = False

    def compute_bias(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """The position bias in the layout of the scores.

        transformers leaves the heads innermost: slow to add to the scores, and what keeps
        scaled_dot_product_attention off the GPU's kernels that hold no scores.
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
        if position_bias is None and mask is not None:
            position_bias = (
                _additive(mask, hidden_states.dtype) if mask.dtype == torch.bool else mask
            )
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
    """Attend from queries (batch, heads, n, d_kv); T5 does not scale the scores."""
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
    """T5's attention in fewer passes over the scores (transformers multiplies them by 1).

    The scores are computed again for the gradient unless the module `keeps_all`. The mask is in the
    position bias; weights are not given back.
    """
    if module.keeps_all or not torch.is_grad_enabled():
        states = _weigh(query, key, value, position_bias, dropout)
    else:
        given = (query, key, value, position_bias, dropout)
        states = checkpoint(_weigh, *given, use_reentrant=False)
    return states.transpose(1, 2), None


LEAN = "lean"  # how transformers knows this attention
AttentionInterface.register(LEAN, lean_attention)
AttentionMaskInterface.register(LEAN, eager_mask)


class RecomputedFeedForward(T5DenseGatedActDense):
    """Keeps the two inputs of the gate and its product for the gradient, nothing between them.

    With `keeps_all`, what lies between is kept, too, and not computed again.

    Activations stay in their dtype: transformers casts them to that of `wo.weight`, which is uint8
    when bitsandbytes has packed it.
    """

    keeps_all = False

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        gate, linear = self.wi_0(hidden_states), self.wi_1(hidden_states)
        if self.keeps_all or not torch.is_grad_enabled():
            return self.wo(self._gated(gate, linear))
        return self.wo(checkpoint(self._gated, gate, linear, use_reentrant=False))

    def _gated(self, gate: torch.Tensor, linear: torch.Tensor) -> torch.Tensor:
        return self.dropout(self.act(gate) * linear)


class FusedLayerNorm(T5LayerNorm):
    """Root mean square norm by torch's kernel, in float32 inside.

    Autocast would hand it a float32 copy of its input, to be kept for the gradient.
    """

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        with torch.autocast(hidden_states.device.type, enabled=False):
            return rms_norm(
                hidden_states, self.weight.shape, self.weight, self.variance_epsilon
            ).to(hidden_states.dtype)


_LEAN = {
    T5Attention: SharedMaskAttention,
    T5DenseGatedActDense: RecomputedFeedForward,
    T5LayerNorm: FusedLayerNorm,
}


class QuantizableT5(T5ForConditionalGeneration):
    """T5 v1.1 or FLAN-T5 as it was trained, with every linear layer open to quantization.

    transformers ties the language-model head to the embeddings of every T5, but these have a head
    of their own. It also keeps T5's feed-forward `wo` out of quantization, because float16
    overflows there; in bfloat16 and float32, the dtypes used here, it does not.

    Eager attention is `lean_attention`, which gives no attention weights.

    With `labels` the output holds the loss alone. Logits are made `LOSS_CHUNK` target tokens at a
    time, in float32, and made again for the gradient, so that neither they nor a float32 copy of
    them is kept.
    """

    _tied_weights_keys = {
        "encoder.embed_tokens.weight": "shared.weight",
        "decoder.embed_tokens.weight": "shared.weight",
    }
    keeps_activations = False

    def __init__(self, config: T5Config):
        config = deepcopy(config)
        if config.dense_act_fn == "gelu_new":
            config.dense_act_fn = "gelu_pytorch_tanh"  # the same function, one kernel
        if config._attn_implementation == "eager":
            config._attn_implementation = LEAN
        super().__init__(config)
        self._keep_in_fp32_modules = set()
        for module in self.modules():
            module.__class__ = _LEAN.get(type(module), type(module))

    def keep_activations(self) -> None:
        """Take more memory in training, and less time: compute nothing twice but the logits."""
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
        """Logits, or the loss of `labels` (batch, length), -100 where there is none.

        The loss is the mean over target tokens or, with `num_items_in_batch`, their sum divided by
        this number: of the tokens in all batches whose gradients are accumulated.

        Raises:
            TypeError: labels come with what only logits can be asked for with.
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
            attention_mask = given.new_ones(given.shape[:2])
        readable = _additive(attention_mask[:, None, None].bool(), self.dtype)
        length = decoder_input_ids.shape[1]
        past = torch.ones((1, 1, length, length), dtype=torch.bool, device=labels.device).tril()
        encoded = self.encoder(
            input_ids=input_ids, attention_mask=readable, inputs_embeds=inputs_embeds
        ).last_hidden_state
        decoded = self.decoder(
            input_ids=decoder_input_ids,
            attention_mask=_additive(past, self.dtype),
            encoder_hidden_states=encoded,
            encoder_attention_mask=readable,
            use_cache=False,
        ).last_hidden_state
        states, targets = (
            decoded.flatten(0, 1).split(LOSS_CHUNK),
            labels.flatten().split(LOSS_CHUNK),
        )
        total = sum(
            checkpoint(self._summed_loss, *chunk, use_reentrant=False, preserve_rng_state=False)
            for chunk in zip(states, targets, strict=True)
        )
        count = labels.ne(-100).sum() if num_items_in_batch is None else num_items_in_batch
        return Seq2SeqLMOutput(loss=total / count)

    def _summed_loss(self, states: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return cross_entropy(self.lm_head(states).float(), targets, reduction="sum")


class Decoder:
    """A T5's decoder that writes to a batch of encoded inputs, token by token.

    Keys and values of the encoder's states are made once, and laid out as products read them;
    those of tokens go into room for `max_tokens`, of which all is attended to at every step, since
    a CPU keeps a kernel for each shape of a product. The room is rounded up to what the kernels of
    scaled_dot_product_attention read at a time. Results are those of the model itself.
    """

    def __init__(
        self,
        model: T5ForConditionalGeneration,
        states: torch.Tensor,
        attention_mask: torch.Tensor,
        max_tokens: int,
    ):
        """Attend to the encoder's states (batch, length, d_model); mask (batch, length), 0 or 1."""
        self._stack, self._head = model.decoder, model.lm_head
        self.length, room = 0, round_up(max_tokens)
        self._mask = _additive(attention_mask[:, None, None].bool(), states.dtype)
        self._read: list[list[torch.Tensor]] = []
        self._written: list[list[torch.Tensor]] = []
        for block in self._stack.block:
            attention = block.layer[1].EncDecAttention
            self._read.append([_heads(attention, part(states)) for part in _key_value(attention)])
            own = (len(states), attention.n_heads, room, attention.key_value_proj_dim)
            self._written.append([states.new_zeros(own) for _ in range(2)])
        first = self._stack.block[0].layer[0].SelfAttention
        bias = first.compute_bias(room, room, states.device)
        past = torch.ones_like(bias[0, 0], dtype=torch.bool).tril()
        self._bias = bias + _additive(past, states.dtype)

    def __call__(self, tokens: torch.Tensor) -> torch.Tensor:
        """Append tokens (batch, n); return logits (batch, n, vocabulary)."""
        start, self.length = self.length, self.length + tokens.shape[1]
        bias = self._bias[:, :, start : self.length]
        hidden = self._stack.embed_tokens(tokens)
        for block, read, written in zip(self._stack.block, self._read, self._written, strict=True):
            own, other, feed_forward = block.layer
            normed = own.layer_norm(hidden)
            attention = own.SelfAttention
            for kept, part in zip(written, _key_value(attention), strict=True):
                kept[:, :, start : self.length] = _heads(attention, part(normed))
            hidden = hidden + _attend(attention, normed, *written, bias)
            normed = other.layer_norm(hidden)
            hidden = hidden + _attend(other.EncDecAttention, normed, *read, self._mask)
            hidden = feed_forward(hidden)
        return self._head(self._stack.final_layer_norm(hidden))

    def rewind(self, length: int) -> None:
        """Forget all tokens but the first `length`."""
        self.length = length

    def keep(self, rows: torch.Tensor) -> None:
        """Go on with these rows of the batch alone."""
        self._mask = self._mask[rows]
        for kept in (self._read, self._written):
            kept[:] = [[part[rows] for part in parts] for parts in kept]


def _key_value(attention: T5Attention) -> tuple[torch.nn.Module, torch.nn.Module]:
    return attention.k, attention.v


def _heads(attention: T5Attention, projected: torch.Tensor) -> torch.Tensor:
    """Turn (batch, length, heads x d_kv) into (batch, heads, length, d_kv), contiguous."""
    split = projected.unflatten(2, (attention.n_heads, attention.key_value_proj_dim))
    return split.transpose(1, 2).contiguous()


def _attend(
    attention: T5Attention,
    normed: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    bias: torch.Tensor,
) -> torch.Tensor:
    query = _heads(attention, attention.q(normed))
    attend = ALL_ATTENTION_FUNCTIONS.get_interface(
        attention.config._attn_implementation, eager_attention_forward
    )
    states, _ = attend(
        attention, query, key, value, None, position_bias=bias, scaling=1.0, is_causal=False
    )
    return attention.o(states.flatten(2))
