"""Replaced-token detection: a generator fills tokens of an input, and the encoder finds them.

Clark et al. 2020, "ELECTRA: Pre-training Text Encoders as Discriminators Rather Than Generators",
arXiv:2003.10555.
"""

import math
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy
from transformers import T5Config, T5EncoderModel

from flan_qa_pipeline.config.parameters import ReplacedTokensParameters
from flan_qa_pipeline.pretraining.batches import END, NO_TARGET
from flan_qa_pipeline.pretraining.random_t5 import silence_projections


class ReplacedTokens(nn.Module):
    """The generator, a small encoder that fills masked tokens, and the detector of its samples.

    Args:
        config: The base model's configuration.
        parameters: The share of tokens to fill and the generator's size.
        sentinels: Ids of `<extra_id_0>`, …, which are never filled; the last one is the mask.
    """

    def __init__(
        self, config: T5Config, parameters: ReplacedTokensParameters, sentinels: Sequence[int]
    ) -> None:
        super().__init__()
        width = parameters.d_model
        self.generator = T5EncoderModel(
            T5Config(
                vocab_size=config.vocab_size,
                d_model=width,
                d_kv=config.d_kv,
                d_ff=2 * width,
                num_layers=parameters.num_layers,
                num_heads=max(1, width // config.d_kv),
                feed_forward_proj="gated-gelu",
                dropout_rate=0.0,
            )
        )
        silence_projections(self.generator)
        self.generator_head = nn.Linear(width, config.vocab_size)
        nn.init.zeros_(self.generator_head.weight)
        self.detector = nn.Sequential(
            nn.Linear(config.d_model, config.d_model), nn.GELU(), nn.Linear(config.d_model, 1)
        )
        self._share = parameters.share
        self._first, self._last, self._mask = min(sentinels), max(sentinels), sentinels[-1]

    def fill(
        self, input_ids: torch.Tensor, mask: torch.Tensor, noise: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Replace a share of the plain tokens of every row by samples of the generator.

        Args:
            input_ids: Shape (rows, length).
            mask: 1 at tokens, 0 at padding, of the same shape.
            noise: Uniform numbers of the same shape; the tokens at the largest are replaced.

        Returns:
            The filled inputs, without a gradient, and the generator's mean cross-entropy at the
            tokens that it filled. A sample may be the token that it replaces.
        """
        places, chosen = self._choose(input_ids, noise)
        gold = input_ids.gather(1, places)
        masked = input_ids.scatter(1, places, gold.masked_fill(chosen, self._mask))
        states = self.generator(input_ids=masked, attention_mask=mask).last_hidden_state
        width = states.shape[-1]
        at_places = states.gather(1, places[..., None].expand(-1, -1, width))
        logits = self.generator_head(at_places).float()
        targets = gold.masked_fill(~chosen, NO_TARGET)
        loss = cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=NO_TARGET)
        with torch.no_grad():
            waiting = torch.empty_like(logits).exponential_()
            samples = (logits.softmax(-1) / waiting).argmax(-1)
            filled = input_ids.scatter(1, places, torch.where(chosen, samples, gold))
        return filled, loss

    def _choose(
        self, input_ids: torch.Tensor, noise: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Choose the plain tokens with the largest noise.

        Returns:
            Their places, and which of these rows of places count.
        """
        sentinel = (input_ids >= self._first) & (input_ids <= self._last)
        plain = (input_ids > END) & ~sentinel
        most = max(1, math.ceil(self._share * input_ids.shape[1]))
        drawn, places = noise.masked_fill(~plain, -1.0).topk(most, dim=1)
        wanted = (self._share * plain.sum(1, keepdim=True)).round().clamp(min=1)
        order = torch.arange(most, device=input_ids.device)
        return places, (order < wanted) & (drawn >= 0)

    def detect(
        self, states: torch.Tensor, replaced: torch.Tensor, mask: torch.Tensor
    ) -> torch.Tensor:
        """Return the mean binary cross-entropy of the detector over all tokens.

        Args:
            states: The encoder's states of the filled inputs, shape (rows, length, d_model).
            replaced: Where a filled input differs from the one before, shape (rows, length).
            mask: 1 at tokens, 0 at padding, of the same shape.
        """
        scores = self.detector(states).squeeze(-1).float()
        losses = binary_cross_entropy_with_logits(scores, replaced.float(), reduction="none")
        return (losses * mask).sum() / mask.sum()
