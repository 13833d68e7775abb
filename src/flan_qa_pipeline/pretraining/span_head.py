"""A head on the encoder's states that finds where an answer begins and ends.

Devlin et al. 2019, "BERT: Pre-training of Deep Bidirectional Transformers for Language
Understanding", arXiv:1810.04805, sections 4.2 and 4.3.
"""

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from flan_qa_pipeline.pretraining.batches import NO_TARGET
from flan_qa_pipeline.pretraining.token_tables import Span

LONGEST_SPAN = 20
EXCLUDED = -1e4


class SpanHead(nn.Module):
    """Scores every token of an input as the first and the last of the answer.

    `</s>` as first and last token means that the model abstains.

    Args:
        width: The encoder's d_model.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, 2))

    def forward(self, states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Score states of shape (rows, length, d_model); return (rows, length, 2) in float32."""
        scores: torch.Tensor = self.layers(states).float()
        return scores.masked_fill((mask == 0)[..., None], EXCLUDED)

    def loss(self, states: torch.Tensor, mask: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        """Return the mean cross-entropy of both ends; 0 where no row has a known place.

        Args:
            states: The encoder's states, shape (rows, length, d_model).
            mask: 1 at tokens, 0 at padding, shape (rows, length).
            places: First and last position of the answer, shape (rows, 2); -100 where unknown.
        """
        scores = self(states, mask).transpose(1, 2).flatten(0, 1)
        total = cross_entropy(scores, places.flatten(), ignore_index=NO_TARGET, reduction="sum")
        return total / (places != NO_TARGET).sum().clamp(min=1)


def best_spans(scores: torch.Tensor, mask: torch.Tensor, *, forced: bool) -> list[Span | None]:
    """Find the best span of at most `LONGEST_SPAN` tokens in every row.

    Args:
        scores: What `SpanHead` returns.
        mask: 1 at tokens, 0 at padding, shape (rows, length).
        forced: Whether every row must have a span.

    Returns:
        The [start, end) of the spans; None where `</s>` scores higher.
    """
    length = scores.shape[1]
    pairs = scores[:, :, None, 0] + scores[:, None, :, 1]
    ordered = torch.ones(length, length, dtype=torch.bool, device=scores.device).triu()
    pairs = pairs.masked_fill(~(ordered & ~ordered.triu(LONGEST_SPAN)), -torch.inf)
    rows, ends = torch.arange(len(scores), device=scores.device), mask.sum(1) - 1
    abstention = pairs[rows, ends, ends].clone()
    pairs[rows, ends, :] = -torch.inf
    pairs[rows, :, ends] = -torch.inf
    best, place = pairs.flatten(1).max(1)
    found: list[Span | None] = []
    for position, abstains in zip(place.tolist(), (best < abstention).tolist(), strict=True):
        start, last = divmod(position, length)
        found.append(None if abstains and not forced else (start, last + 1))
    return found
