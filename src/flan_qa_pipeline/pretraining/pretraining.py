"""What makes the starter base model: its tokenizer, its initialization, its reading examples.

Span corruption: Raffel et al. 2020, "Exploring the Limits of Transfer Learning with a Unified
Text-to-Text Transformer", arXiv:1910.10683, section 3.1.4.
"""

import json
import random
import re
import string
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import Unigram
from tokenizers.pre_tokenizers import Metaspace
from tokenizers.trainers import UnigramTrainer
from torch import nn
from transformers import T5Config, T5ForConditionalGeneration, T5Tokenizer
from transformers.models.t5.modeling_t5 import T5Attention

from flan_qa_pipeline.config.parameters import LookupParameters, PretrainingParameters

SENTINELS = 100
MATCH_SCALE = 0.35
SPECIALS = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
MAX_WEIGHT = 300
COMMON = 4
SLOTS = ("{context}", "{question}")
SLOT = re.compile(r" *(\{context\}|\{question\}) *")
LETTERS = sorted(set(string.printable) - set(string.whitespace))


def train_unigram_tokenizer(documents: Iterable[str], vocab_size: int) -> T5Tokenizer:
    """Train a unigram vocabulary (Kudo 2018, arXiv:1804.10959) in T5's layout.

    Ids 0, 1, 2 are `<pad>`, `</s>`, `<unk>`; the last 100 are `<extra_id_99>` … `<extra_id_0>`.
    Every printable ASCII character has a piece. No piece mixes letters or digits with
    punctuation or holds more than two digits, so that an answer always ends where a piece ends.

    A word weighs as many documents as it occurs in, `MAX_WEIGHT` at most: a name, which belongs
    to one document however often it is repeated there, is put together from pieces that it
    shares with other names. Only what occurs in two different words is a candidate, so the words
    of `COMMON` or more documents are also given with a comma.
    """
    weights = Counter(word for text in documents for word in set(re.findall(r"\w+", text)))
    words = [word for word, n in sorted(weights.items()) for _ in range(min(n, MAX_WEIGHT))]
    words += [f"{word}," for word, n in sorted(weights.items()) if n >= COMMON]
    unigram = Tokenizer(Unigram())
    unigram.pre_tokenizer = Metaspace()
    size = vocab_size - SENTINELS - len(SPECIALS)
    unigram.train_from_iterator(
        words,
        UnigramTrainer(vocab_size=2 * size, initial_alphabet=LETTERS, show_progress=False),
    )
    pieces = {piece: score for piece, score in json.loads(unigram.to_str())["model"]["vocab"]}
    lowest = min(pieces.values())
    characters = [(piece, pieces.get(piece, lowest)) for piece in ["▁", *LETTERS]]
    longer = [piece for piece in pieces.items() if len(piece[0]) > 1 and _is_clean(piece[0])]
    longer.sort(key=lambda piece: -piece[1])
    kept = [*SPECIALS, *characters, *longer[: size - len(characters)]]
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


def parameter_groups(
    model: T5ForConditionalGeneration, learning_rate: float, embedding_learning_rate: float
) -> list[dict[str, Any]]:
    """Split parameters: the layers' matrices, and embeddings, head, norms and position biases.

    The latter have entries of the order of one, ten times those of the matrices, and learn
    faster by as much as they are larger.
    """
    large = ("shared", "lm_head", "layer_norm", "relative_attention_bias")
    groups: dict[bool, list[torch.nn.Parameter]] = {True: [], False: []}
    for name, parameter in model.named_parameters():
        groups[any(part in name for part in large)].append(parameter)
    return [
        {"params": groups[False], "lr": learning_rate},
        {"params": groups[True], "lr": embedding_learning_rate},
    ]


def build_reader(tokenizer: T5Tokenizer, **architecture: int) -> T5ForConditionalGeneration:
    """Build a T5 v1.1 of the given T5Config fields, its random weights where reading begins."""
    model = T5ForConditionalGeneration(
        T5Config(
            **architecture,
            feed_forward_proj="gated-gelu",
            tie_word_embeddings=False,
            dropout_rate=0.0,
            decoder_start_token_id=tokenizer.pad_token_id,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )
    initialize_reader(model)
    return model


def initialize_reader(model: T5ForConditionalGeneration) -> None:
    """Start attention and head where reading begins: equal tokens attend, attention copies.

    Query and key projections start equal, value and output projections start as each other's
    transpose, the head starts as a copy of the embeddings, untied from them, and the relative
    position bias gives some encoder heads the neighbouring tokens (after Trockman, Kolter 2023,
    "Mimetic Initialization of Self-Attention Layers", arXiv:2305.09828). From T5's own
    initialization a model of this size is far slower to begin to copy.
    """
    d_model = model.config.d_model
    model.lm_head.weight = nn.Parameter(model.shared.weight.detach() * d_model**-0.5)
    model.all_tied_weights_keys.pop("lm_head.weight")
    model.config.tie_word_embeddings = False
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, T5Attention):
                match = nn.init.orthogonal_(torch.empty_like(module.q.weight)) * MATCH_SCALE
                copy = nn.init.orthogonal_(torch.empty_like(module.v.weight))
                module.q.weight.copy_(match)
                module.k.weight.copy_(match)
                module.v.weight.copy_(copy)
                module.o.weight.copy_(copy.T)
                if module.has_relative_attention_bias:
                    _favour_neighbours(module)


def _favour_neighbours(attention: T5Attention) -> None:
    bias = attention.relative_attention_bias.weight.zero_()
    if attention.is_decoder:
        bias[0, :3] = 3.0
        return
    after = attention.relative_attention_num_buckets // 2
    bias[1, 0] = bias[2, 1] = bias[after + 1, 2] = 4.0
    bias[:8, 3] = bias[after : after + 8, 3] = 2.0


LOOKUP_FRAMES = (
    ("The {relation} of {name} is {value} .", "What is the {relation} of {name} ?"),
    ("{name} has {value} as {relation} .", "What does {name} have as {relation} ?"),
)


def lookup_words(tokenizer: T5Tokenizer) -> dict[str, list[int]]:
    """Tokenize the words of `LOOKUP_FRAMES`; a mark is glued to the word before it."""
    words = {word for frames in LOOKUP_FRAMES for frame in frames for word in frame.split()}
    return {
        word: [tokenizer.convert_tokens_to_ids(word)]
        if word in ".?"
        else tokenizer(word, add_special_tokens=False)["input_ids"]
        for word in words
        if not word.startswith("{")
    }


def lookup_example(
    pieces: Sequence[int],
    words: Mapping[str, Sequence[int]],
    rng: random.Random,
    *,
    names: int,
    relations: int,
    max_pieces: int,
    max_name_pieces: int,
) -> tuple[list[int], list[int], list[int]]:
    """Make token ids of (context, question, answer): "The RELATION of NAME is VALUE. …".

    The context states every relation for every name, so that the answer takes matching both.
    Names and relations are up to `max_name_pieces` random pieces of the vocabulary, drawn from
    few so that they share some, and values up to `max_pieces` of them all: the model meets every
    piece as something to match and to copy.
    """
    few = rng.sample(pieces, names + relations + 2 * (max_name_pieces > 1))
    drawn: dict[tuple[int, ...], None] = {}
    while len(drawn) < names + relations:
        drawn[tuple(rng.choices(few, k=rng.randint(1, max_name_pieces)))] = None
    named = [list(name) for name in drawn]
    facts = [
        {
            "{name}": name,
            "{relation}": relation,
            "{value}": rng.choices(pieces, k=rng.randint(1, max_pieces)),
        }
        for name in named[:names]
        for relation in named[names:]
    ]
    rng.shuffle(facts)
    statement, question = rng.choice(LOOKUP_FRAMES)
    asked = rng.choice(facts)

    def fill(frame: str, fact: Mapping[str, list[int]]) -> list[int]:
        return [i for word in frame.split() for i in (fact.get(word) or words[word])]

    context = [i for fact in facts for i in fill(statement, fact)]
    return context, fill(question, asked), asked["{value}"]


class PieceRenamer:
    """Renames the pieces of an example at random, the same everywhere in it.

    Without it a model of this size learns which words can be answers, and then neither matches
    nor copies others. Renamed are the pieces of values and of names (capitalized words), and those
    that question and context share; not those of over a fifth of the `contexts`, which are
    grammar and digits. A piece that begins a word becomes one that begins a word.

    Args:
        tokenizer: the tokenizer whose pieces are renamed.
        contexts: token ids of a sample of contexts, in which pieces are counted.
    """

    COMMON_SHARE = 0.2

    def __init__(self, tokenizer: T5Tokenizer, contexts: Sequence[Sequence[int]]) -> None:
        vocabulary = sorted(tokenizer.get_vocab().items())
        words = [(piece, i) for piece, i in vocabulary if piece.removeprefix("▁").isalnum()]
        starts = [i for piece, i in words if piece.startswith("▁")]
        insides = [i for piece, i in words if not piece.startswith("▁")]
        self.candidates = [(ids, frozenset(ids)) for ids in (starts, insides)]
        self.word_starts = {i for piece, i in vocabulary if piece.startswith("▁")}
        self.capitals = {i for piece, i in words if piece.startswith("▁") and piece[1].isupper()}
        counts = Counter(i for ids in contexts for i in set(ids))
        self.common = {i for i, n in counts.items() if n > self.COMMON_SHARE * len(contexts)}

    def draw(
        self,
        context: Sequence[int],
        question: Sequence[int],
        values: Iterable[Sequence[int]],
        rng: random.Random,
    ) -> dict[int, int]:
        """Draw new names: a mapping of token ids, to be applied to prompt and answer."""
        renamed = set(context) & set(question)
        renamed.update(i for value in values for i in value)
        in_name = False
        for i in context:
            if i in self.word_starts:
                in_name = i in self.capitals
            if in_name:
                renamed.add(i)
        renamed -= self.common
        names: dict[int, int] = {}
        for candidates, among in self.candidates:
            old = sorted(renamed & among)
            names.update(zip(old, rng.sample(candidates, len(old)), strict=True))
        return names


def split_sentences(context: str) -> list[str]:
    """Split a generated context, in which a point and a space only stand between sentences."""
    *parts, last = context.split(". ")
    return [*(f"{part}." for part in parts), last]


def crop(n_sentences: int, hit: int, kept: int, rng: random.Random) -> slice:
    """Choose at most `kept` neighbouring sentences, among them sentence `hit`."""
    start = max(0, min(hit - rng.randrange(kept), n_sentences - kept))
    return slice(start, start + kept)


class ReadingExamples(torch.utils.data.Dataset[dict[str, list[int]]]):
    """The curriculum of the base model; an example is made when it is asked for.

    First come lookups from easy to hard, then questions on the corpus, with contexts of at most
    two sentences and then whole. A part of these has its words renamed, a part becomes span
    corruption. Each example has a separate seed, so that it is the same in any process.

    Args:
        corpus: rows of context, question and answer, which stands in the context.
        tokenizer: the base model's tokenizer.
        pretraining: sizes of the stages, prompts and shares.

    An item is a dict of `input_ids` and `labels`, lists of token ids that end with `</s>`. Those
    of a batch of `per_device_train_batch_size` belong to one stage and are of similar length.
    """

    COUNTED = 3_000
    CROPPED_SENTENCES = 2
    BATCHES_SORTED = 50

    def __init__(
        self, corpus: Dataset, tokenizer: T5Tokenizer, pretraining: PretrainingParameters
    ) -> None:
        self._pretraining = pretraining
        vocabulary = tokenizer.get_vocab().items()
        self._pieces = sorted(i for piece, i in vocabulary if piece.removeprefix("▁").isalnum())
        self._words = lookup_words(tokenizer)
        self._end = [tokenizer.eos_token_id]
        self._sentinels = tokenizer.convert_tokens_to_ids(
            [f"<extra_id_{i}>" for i in range(SENTINELS)]
        )

        def encode(texts: Iterable[str]) -> list[list[int]]:
            return tokenizer(list(texts), add_special_tokens=False)["input_ids"]

        self._prompts = [
            [
                part if part in SLOTS else encode([part])[0]
                for part in filter(None, SLOT.split(prompt))
            ]
            for prompt in pretraining.prompts
        ]
        contexts = {context: i for i, context in enumerate(corpus.unique("context"))}
        sentences = [split_sentences(context) for context in contexts]
        encoded = iter(encode(sentence for parts in sentences for sentence in parts))
        self._sentences = [[next(encoded) for _ in parts] for parts in sentences]
        self._values: list[list[list[int]]] = [[] for _ in contexts]
        self._rows: list[tuple[int, list[int], list[int], int]] = []
        for context, question, answer, text in zip(
            map(contexts.__getitem__, corpus["context"]),
            *(encode(corpus[column]) for column in ("question", "answer")),
            corpus["answer"],
            strict=True,
        ):
            hit = next(i for i, part in enumerate(sentences[context]) if text in part)
            self._values[context].append(answer)
            self._rows.append((context, question, answer, hit))
        self._renamer = PieceRenamer(
            tokenizer, [sum(parts, []) for parts in self._sentences[: self.COUNTED]]
        )
        self._order = self._line_up()

    def _line_up(self) -> np.ndarray:
        """Return the stage and the corpus row of every example, in batches of similar length."""
        pretraining = self._pretraining
        rng = random.Random(pretraining.seed)  # noqa: S311
        order: list[tuple[int, int]] = []
        for stage, lookups in enumerate(pretraining.lookups):
            order += [(stage, 0)] * lookups.examples
        context_lengths = [sum(map(len, parts)) for parts in self._sentences]
        size = pretraining.per_device_train_batch_size
        for examples in (pretraining.cropped_examples, pretraining.whole_examples):
            stage += 1
            rows = rng.choices(range(len(self._rows)), k=examples)
            for start in range(0, examples, self.BATCHES_SORTED * size):
                part = rows[start : start + self.BATCHES_SORTED * size]
                part.sort(key=lambda row: context_lengths[self._rows[row][0]])
                batches = [part[i : i + size] for i in range(0, len(part), size)]
                rng.shuffle(batches)
                order += [(stage, row) for batch in batches for row in batch]
        return np.array(order, dtype=np.int32)

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        pretraining = self._pretraining
        stage, row = self._order[index].tolist()
        rng = random.Random(f"{pretraining.seed} {index}")  # noqa: S311
        if stage < len(pretraining.lookups):
            source, target = self._look_up(pretraining.lookups[stage], rng)
        else:
            source, target = self._read(row, stage == len(pretraining.lookups), rng)
        return {"input_ids": source + self._end, "labels": target + self._end}

    def _look_up(self, stage: LookupParameters, rng: random.Random) -> tuple[list[int], list[int]]:
        context, question, answer = lookup_example(
            self._pieces, self._words, rng, **stage.model_dump(exclude={"examples"})
        )
        return (context + question if rng.random() < 0.5 else question + context), answer

    def _read(self, row: int, cropped: bool, rng: random.Random) -> tuple[list[int], list[int]]:
        pretraining = self._pretraining
        context_index, question, answer, hit = self._rows[row]
        sentences = self._sentences[context_index]
        if cropped:
            sentences = sentences[crop(len(sentences), hit, self.CROPPED_SENTENCES, rng)]
        context = [i for sentence in sentences for i in sentence]
        if rng.random() < pretraining.renamed_fraction:
            new = self._renamer.draw(context, question, self._values[context_index], rng)
            context, question, answer = (
                [new.get(i, i) for i in ids] for ids in (context, question, answer)
            )
        slots = {"{context}": context, "{question}": question}
        prompt = rng.choice(self._prompts)
        source = [i for part in prompt for i in (slots[part] if part in SLOTS else part)]
        if rng.random() < pretraining.span_corruption_fraction:
            return corrupt_spans(
                source,
                self._sentinels,
                rng,
                noise_density=pretraining.noise_density,
                mean_span_length=pretraining.mean_span_length,
            )
        return source, answer
