"""T5's decoder, token by token, with a cache of keys and values that is allocated once."""

import torch
from transformers import T5ForConditionalGeneration
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.t5.modeling_t5 import T5Attention, eager_attention_forward

from flan_qa_pipeline.models.batching import round_up
from flan_qa_pipeline.models.t5 import TRITON, additive
from flan_qa_pipeline.models.transformers_private import attention_of


class Decoder:
    """Decodes a batch of encoded inputs token by token, with the results of the model itself.

    The decoder projects the encoder's states to keys and values once. Triton's kernels read heads
    where the projections lie; for the other attentions they are copied to lie one after another.
    Keys and values of tokens go into a cache for `max_tokens`, rounded up to the multiple that the
    kernels of scaled_dot_product_attention read. Every step attends to the whole cache, masked,
    because a CPU keeps a kernel for each shape of a product.
    """

    def __init__(
        self,
        model: T5ForConditionalGeneration,
        states: torch.Tensor,
        attention_mask: torch.Tensor,
        max_tokens: int,
    ):
        """Project the encoder's states and allocate the cache.

        Args:
            model: the T5, with or without LoRA layers.
            states: the encoder's output (batch, length, d_model).
            attention_mask: 1 for tokens and 0 for padding (batch, length).
            max_tokens: the most tokens that will be decoded for an input.
        """
        self._stack, self._head = model.decoder, model.lm_head
        self._copies_heads = attention_of(self._stack.config) != TRITON
        self.length, room = 0, round_up(max_tokens)
        self._mask = additive(attention_mask[:, None, None].bool(), states.dtype)
        self._read: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._written: list[tuple[torch.Tensor, torch.Tensor]] = []
        for block in self._stack.block:
            attention = block.layer[1].EncDecAttention
            key, value = (_heads(attention, part(states)) for part in _key_value(attention))
            if self._copies_heads:
                key, value = key.contiguous(), value.contiguous()
            self._read.append((key, value))
            own = (len(states), attention.n_heads, room, attention.key_value_proj_dim)
            self._written.append((states.new_zeros(own), states.new_zeros(own)))
        first = self._stack.block[0].layer[0].SelfAttention
        bias = first.compute_bias(room, room, states.device)
        past = torch.ones_like(bias[0, 0], dtype=torch.bool).tril()
        self._bias = bias + additive(past, states.dtype)

    def __call__(self, tokens: torch.Tensor) -> torch.Tensor:
        """Append tokens (batch, n); return their logits (batch, n, vocabulary)."""
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
        """Keep only these rows of the batch."""
        self._mask = self._mask[rows]
        for kept in (self._read, self._written):
            for i, (key, value) in enumerate(kept):  # one layer at a time, for its memory
                kept[i] = key[rows], value[rows]


def _key_value(attention: T5Attention) -> tuple[torch.nn.Module, torch.nn.Module]:
    return attention.k, attention.v


def _heads(attention: T5Attention, projected: torch.Tensor) -> torch.Tensor:
    """View (batch, length, heads x d_kv) as (batch, heads, length, d_kv)."""
    split = projected.unflatten(2, (attention.n_heads, attention.key_value_proj_dim))
    return split.transpose(1, 2)


def _attend(
    attention: T5Attention,
    normed: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    bias: torch.Tensor,
) -> torch.Tensor:
    query = _heads(attention, attention.q(normed)).contiguous()
    attend = ALL_ATTENTION_FUNCTIONS.get_interface(
        attention_of(attention.config), eager_attention_forward
    )
    states, _ = attend(
        attention, query, key, value, None, position_bias=bias, scaling=1.0, is_causal=False
    )
    return attention.o(states.flatten(2))
