"""Span corruption on arrays of token ids.

Raffel et al. 2020, "Exploring the Limits of Transfer Learning with a Unified Text-to-Text
Transformer", arXiv:1910.10683, section 3.1.4.
"""

from collections.abc import Sequence

import numpy as np

Ids = list[int]
Pair = tuple[Ids, Ids]


def corrupt_spans(
    ids: np.ndarray,
    sentinels: Sequence[int],
    rng: np.random.Generator,
    *,
    noise_density: float,
    mean_span_length: float,
) -> Pair:
    """Replace random spans by sentinels.

    Args:
        ids: Token ids of a text, at least two.
        sentinels: Ids of `<extra_id_0>`, `<extra_id_1>`, …
        rng: Source of randomness.
        noise_density: Share of the tokens that the spans take.
        mean_span_length: Average length of a span in tokens.

    Returns:
        Input and target, both without `</s>`. The target lists each sentinel and then the tokens
        that it replaces.
    """
    n_noise = min(max(round(len(ids) * noise_density), 1), len(ids) - 1)
    n_spans = min(max(round(n_noise / mean_span_length), 1), len(ids) - n_noise, len(sentinels))
    kept = _random_segments(len(ids) - n_noise, n_spans, rng)
    noise = _random_segments(n_noise, n_spans, rng)
    source: Ids = []
    target: Ids = []
    position = 0
    tokens = ids.tolist()
    for sentinel, keep, drop in zip(sentinels, kept, noise, strict=False):
        source += [*tokens[position : position + keep], sentinel]
        target += [sentinel, *tokens[position + keep : position + keep + drop]]
        position += keep + drop
    return source, target


def _random_segments(total: int, parts: int, rng: np.random.Generator) -> list[int]:
    parts = min(parts, total)
    cuts = np.sort(rng.choice(total - 1, parts - 1, replace=False)) + 1
    segments: list[int] = np.diff(cuts, prepend=0, append=total).tolist()
    return segments


def uncorrupted_length(source: int, *, noise_density: float, mean_span_length: float) -> int:
    """Return how many tokens of text give an input of about `source` tokens with its `</s>`."""
    kept = 1 - noise_density + noise_density / mean_span_length
    return int((source - 2) / kept)
