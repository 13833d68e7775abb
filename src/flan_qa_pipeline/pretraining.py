"""What makes the starter base model: its tokenizer and its pretraining examples.

Span corruption: Raffel et al. 2020, "Exploring the Limits of Transfer Learning with a Unified
Text-to-Text Transformer", arXiv:1910.10683, section 3.1.4.
"""

import io
import random
import re
import string
from collections.abc import Sequence
from typing import Any

import torch
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer
from torch import nn
from transformers import T5ForConditionalGeneration, T5Tokenizer
from transformers.models.t5.modeling_t5 import T5Attention, T5DenseGatedActDense

SENTINELS = 100
LETTERS = sorted(set(string.printable) - set(string.whitespace))


def train_unigram_tokenizer(texts: Sequence[str], vocab_size: int) -> T5Tokenizer:
    """Train a SentencePiece unigram vocabulary in T5's layout.

    Ids 0, 1, 2 are `<pad>`, `</s>`, `<unk>`; the last 100 are `<extra_id_99>` … `<extra_id_0>`.
    Every printable ASCII character has a piece. No piece mixes letters or digits with
    punctuation or holds more than two digits, so that an answer always ends where a piece ends.

    SentencePiece takes as candidates only what occurs in two different words, which a word that
    never stands before punctuation does not: so every word is also given with a comma.
    """
    words = sorted({word for text in texts for word in re.findall(r"\w+", text)})
    size = vocab_size - SENTINELS
    model = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter([*texts, *(f"{word}," for word in words)]),
        model_writer=model,
        model_type="unigram",
        vocab_size=2 * size,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        character_coverage=1.0,
        required_chars="".join(LETTERS),
        normalization_rule_name="identity",
        max_sentence_length=1 << 20,
        hard_vocab_limit=False,
        num_threads=1,
        minloglevel=2,
    )
    processor = SentencePieceProcessor(model_proto=model.getvalue())
    pieces = [(processor.id_to_piece(i), processor.get_score(i)) for i in range(len(processor))]
    specials, pieces = pieces[:3], pieces[3:]
    characters = [piece for piece in pieces if len(piece[0]) == 1]
    longer = [piece for piece in pieces if len(piece[0]) > 1 and _is_clean(piece[0])]
    longer.sort(key=lambda piece: -piece[1])
    kept = [*specials, *characters, *longer[: size - len(specials) - len(characters)]]
    sentinels = [(f"<extra_id_{i}>", 0.0) for i in reversed(range(SENTINELS))]
    return T5Tokenizer(vocab=kept + sentinels, extra_ids=SENTINELS)


def _is_clean(piece: str) -> bool:
    text = piece.removeprefix("▁")
    return text.isalpha() or (text.isdigit() and len(text) <= 2)


def corrupt_spans(
    ids: Sequence[int],
    sentinel_ids: Sequence[int],
    rng: random.Random,
    *,
    noise_density: float,
    mean_span_length: float,
) -> tuple[list[int], list[int]]:
    """Replace random spans of `ids` by sentinels; return (input, target), both without `</s>`.

    About `noise_density` of the tokens are removed, in spans of `mean_span_length` tokens on
    average; the target lists each sentinel followed by the tokens it stands for.
    """
    n_noise = min(max(round(len(ids) * noise_density), 1), len(ids) - 1)
    n_spans = min(max(round(n_noise / mean_span_length), 1), len(ids) - n_noise)
    kept = _random_segments(len(ids) - n_noise, n_spans, rng)
    noise = _random_segments(n_noise, n_spans, rng)
    source: list[int] = []
    target: list[int] = []
    position = 0
    for sentinel, keep, drop in zip(sentinel_ids, kept, noise, strict=False):
        source += [*ids[position : position + keep], sentinel]
        target += [sentinel, *ids[position + keep : position + keep + drop]]
        position += keep + drop
    return source, target


def _random_segments(total: int, parts: int, rng: random.Random) -> list[int]:
    cuts = [0, *sorted(rng.sample(range(1, total), parts - 1)), total]
    return [end - start for start, end in zip(cuts, cuts[1:], strict=False)]


def scaled_parameter_groups(model: torch.nn.Module, learning_rate: float) -> list[dict[str, Any]]:
    """Group parameters by size; each learns at `learning_rate` times its root mean square.

    T5's weights differ in scale by two orders of magnitude (its attention has no 1/sqrt(d)), so
    one absolute rate is too high for some and too low for others. Adafactor scales by the
    current root mean square (Shazeer, Stern 2018, arXiv:1804.04235, section 8), this by the
    initial one.
    """
    groups: dict[float, list[torch.nn.Parameter]] = {}
    for parameter in model.parameters():
        size = parameter.detach().square().mean().sqrt().item()
        groups.setdefault(float(f"{size:.1g}"), []).append(parameter)
    return [
        {"params": parameters, "lr": learning_rate * max(size, 1e-3)}
        for size, parameters in groups.items()
    ]


def initialize_reader(model: T5ForConditionalGeneration) -> None:
    """Start attention and head where reading begins: equal tokens attend, attention copies.

    Query and key projections start equal, value and output projections start as each other's
    transpose, the head starts as the embedding, and the relative position bias gives some
    encoder heads the neighbouring tokens (after Trockman, Kolter 2023, "Mimetic Initialization
    of Self-Attention Layers", arXiv:2305.09828). From T5's own initialization a model of this
    size does not learn to copy within a million examples.
    """
    d_model = model.config.d_model
    with torch.no_grad():
        model.lm_head.weight.copy_(model.shared.weight * 2 * d_model**-0.5)
        for name, module in model.named_modules():
            if isinstance(module, T5Attention):
                gain = 1.5 if "EncDec" in name else (-1.0 if module.is_decoder else 1.2)
                match = nn.init.orthogonal_(torch.empty(d_model, d_model)) * 0.35
                copy = nn.init.orthogonal_(torch.empty(d_model, d_model)) * abs(gain) ** 0.5
                module.q.weight.copy_(match)
                module.k.weight.copy_(match)
                module.v.weight.copy_(copy)
                module.o.weight.copy_(copy.T if gain > 0 else -copy.T)
                if module.has_relative_attention_bias:
                    _favour_neighbours(module)
            elif isinstance(module, T5DenseGatedActDense):
                module.wo.weight.mul_(0.5)


def _favour_neighbours(attention: T5Attention) -> None:
    bias = attention.relative_attention_bias.weight.zero_()
    if attention.is_decoder:
        bias[0, :3] = 3.0
        return
    after = attention.relative_attention_num_buckets // 2
    bias[1, 0] = bias[2, 1] = bias[after + 1, 2] = 4.0
    bias[:8, 3] = bias[after : after + 8, 3] = 2.0


LOOKUP_SHAPES = (
    ("The {relation} of {name} is {value}.", "What is the {relation} of {name}?"),
    ("{name} has {value} as its {relation}.", "What does {name} have as its {relation}?"),
    ("{name} {relation} {value}.", "What {relation} {name}?"),
    ("In {name} the {relation} was {value}.", "Which {relation} was in {name}?"),
)


def lookup_example(
    pieces: Sequence[str], rng: random.Random, *, names: int, relations: int, max_pieces: int
) -> tuple[str, str, str]:
    """Make a (context, question, answer) of random words: "The RELATION of NAME is VALUE. …".

    The context states every relation for every name. Words are put together from up to
    `max_pieces` pieces of the vocabulary, so that the model meets every piece as something to
    match and to copy.
    """
    starts = [piece for piece in pieces if piece.startswith("▁")]

    def word(length: int) -> str:
        tokens = [rng.choice(starts), *rng.choices(pieces, k=length - 1)]
        return "".join(tokens).replace("▁", " ").strip()

    subjects = [word(rng.randint(1, max_pieces)) for _ in range(names)]
    facts = [
        {"relation": relation, "name": name, "value": word(rng.randint(1, max_pieces))}
        for relation in [word(1) for _ in range(relations)]
        for name in subjects
    ]
    rng.shuffle(facts)
    statement, question = rng.choice(LOOKUP_SHAPES)
    asked = rng.choice(facts)
    context = " ".join(statement.format(**fact) for fact in facts)
    return context, question.format(**asked), asked["value"]


def crop_context(context: str, answer: str, sentences: int) -> str:
    """Keep at most `sentences` neighbouring sentences, the one with the answer last of them."""
    parts = context.split(". ")
    last = next(i for i, part in enumerate(parts) if answer in part)
    kept = ". ".join(parts[max(0, last + 1 - sentences) : last + 1])
    return kept if kept.endswith(".") else f"{kept}."
