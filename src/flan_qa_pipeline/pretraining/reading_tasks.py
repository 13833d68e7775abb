"""Questions on texts as pairs of token ids: clozes of their own sentences, annotated questions.

Questions made from cloze statements: Lewis, Denoyer, Riedel 2019, "Unsupervised Question Answering
by Cloze Translation", arXiv:1906.04980. Recurring spans: Ram et al. 2021, "Few-Shot Question
Answering by Pretraining Span Selection", arXiv:2101.00438.
"""

import random
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from transformers import PreTrainedTokenizerBase

from flan_qa_pipeline.config.parameters import PretrainParameters, PretrainPromptParameters
from flan_qa_pipeline.pretraining.altered_questions import (
    ImpossibleQuestions,
    Question,
    contains,
    substitute_answer,
)
from flan_qa_pipeline.pretraining.prompts import Prompt, encode
from flan_qa_pipeline.pretraining.span_corruption import Ids, Pair
from flan_qa_pipeline.pretraining.token_tables import Span, TokenTables

QUESTION_WORDS = {
    "year": ("when", "in what year", "what year", "which year", "in which year"),
    "number": ("how many", "how much", "what number", "which number", "when"),
    "name": ("who", "what", "which", "where", "which person", "which place", "what name"),
    "other": ("what", "what", "which", "how", "what kind of"),
}
BLANK = "___"
PHRASE_WORDS = (1, 1, 2, 2, 3, 4, 6)
CLOZE_ROOM = 48  # tokens that a cloze question may take
LONGEST_ANSWER = 15
SENTENCE_TOKENS = (8, 80)
ENTITY_SHARE, REMOVED_SHARE, THINNED_SHARE, BLANK_SHARE, FRONTED_SHARE = 0.7, 0.4, 0.6, 0.2, 0.65
LEAST_CONTEXT = 32


class Reading(NamedTuple):
    """A question on a text.

    Attributes:
        source: Token ids of the input, without `</s>`.
        target: Token ids of the answer or the abstention, without `</s>`.
        place: The [start, end) of the answer in the input. It is `</s>` where the target is the
            abstention, and None where the place of the answer is not known.
    """

    source: Ids
    target: Ids
    place: Span | None


class ReadingTasks:
    """Makes inputs and targets of questions, and pairs that ask for a question.

    Args:
        tokenizer: The base model's tokenizer.
        prompts: Prompts that ask a question, and how each wants the model to abstain.
        asking_prompts: Templates that ask for a question to an answer.
        max_source: Longest input in tokens, `</s>` included.
        max_target: Longest target in tokens, `</s>` included.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        prompts: Sequence[PretrainPromptParameters],
        asking_prompts: Sequence[str],
        max_source: int,
        max_target: int,
    ) -> None:
        self.tables = TokenTables(tokenizer)
        self.max_source, self.max_target = max_source, max_target
        self._tokenizer = tokenizer
        self.prompts = [Prompt.of(tokenizer, p.template, p.abstention) for p in prompts]
        self.asking = [Prompt.of(tokenizer, template) for template in asking_prompts]
        self._impossible = ImpossibleQuestions(tokenizer, self.tables, self.kind)
        self._question_words = {
            kind: [encode(tokenizer, words) for words in choices]
            for kind, choices in QUESTION_WORDS.items()
        }
        self._blank = encode(tokenizer, BLANK)
        self.question_mark: int = tokenizer.convert_tokens_to_ids("?")

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, pretrain: PretrainParameters) -> "ReadingTasks":
        """Make those with the parameters' prompts that fit the batches of long inputs."""
        longest = pretrain.batches.long
        return cls(
            tokenizer, pretrain.prompts, pretrain.asking_prompts, longest.source, longest.target
        )

    def kind(self, ids: np.ndarray, span: Span) -> str:
        """Name the kind of words in a span: year, number, name or other."""
        if self.tables.begins_number(ids, span):
            return "year" if self._is_year(ids, span) else "number"
        return "name" if self.tables.begins_capital(ids, span) else "other"

    def _is_year(self, ids: np.ndarray, span: Span) -> bool:
        text = "".join(self._tokenizer.convert_ids_to_tokens(ids[span[0] : span[1]].tolist()))
        bare = text.removeprefix("▁")
        return len(bare) == 4 and bare.isdigit() and bare[0] in "12"

    def phrase(self, text: np.ndarray, rng: random.Random, entity_share: float) -> Span | None:
        """Choose words of a text to ask for: a name or number, or any phrase of a sentence.

        Args:
            text: Token ids.
            rng: Source of randomness.
            entity_share: How often a name or number is chosen.
        """
        sentences = self.tables.sentences(text)
        if rng.random() < entity_share:
            found = self.tables.entities(text, sentences)
            return rng.choice(found) if found else None
        return self._any_phrase(text, rng.choice(sentences), rng)

    def _any_phrase(self, ids: np.ndarray, sentence: Span, rng: random.Random) -> Span | None:
        words = self.tables.words(ids[sentence[0] : sentence[1]])
        length = rng.choice(PHRASE_WORDS)
        if len(words) <= length + 3:
            return None
        stop_word, ends_sentence = self.tables.stop_word, self.tables.ends_sentence
        for _ in range(4):
            first = rng.randrange(len(words) - length)
            start = sentence[0] + words[first][0]
            last, end = (sentence[0] + place for place in words[first + length - 1])
            if stop_word[ids[start]] or stop_word[ids[last]]:
                continue
            span = self.tables.trim(ids, (start, end))
            if span[0] == start < span[1] and not ends_sentence[ids[start : span[1]]].any():
                return span
        return None

    def cloze(self, text: np.ndarray, rng: random.Random) -> Reading | None:
        """Ask for words of one sentence of a text, in the words around them.

        In some examples the text lacks the sentence. The answer is then another mention of the
        words or, where there is none, the abstention.

        Args:
            text: Token ids.
            rng: Source of randomness.

        Returns:
            None where the text offers nothing to ask for.
        """
        prompt = rng.choice(self.prompts)
        text = text[: self.max_source - prompt.length - CLOZE_ROOM]
        sentences = self.tables.sentences(text)
        if len(sentences) < 2:
            return None
        sentence = rng.choice(sentences)
        shortest, longest = SENTENCE_TOKENS
        if not shortest <= sentence[1] - sentence[0] <= longest:
            return None
        span = self._phrase_of(text, sentences, sentence, rng)
        if span is None or not 0 < span[1] - span[0] <= min(self.max_target - 2, LONGEST_ANSWER):
            return None
        answer = text[span[0] : span[1]].tolist()
        question = self._cloze_question(text, sentence, span, rng)
        if rng.random() >= REMOVED_SHARE:
            return _fill(prompt, text, question, answer, span)
        context = np.concatenate([text[: sentence[0]], text[sentence[1] :]])
        if contains(context, answer):
            return _fill(prompt, context, question, answer, None)
        return None if rng.random() < 0.5 else _fill(prompt, context, question, [], None)

    def _phrase_of(
        self, text: np.ndarray, sentences: Sequence[Span], sentence: Span, rng: random.Random
    ) -> Span | None:
        if rng.random() >= ENTITY_SHARE:
            return self._any_phrase(text, sentence, rng)
        inside = [
            span
            for span in self.tables.entities(text, sentences)
            if sentence[0] <= span[0] and span[1] <= sentence[1]
        ]
        return rng.choice(inside) if inside else None

    def _cloze_question(
        self, text: np.ndarray, sentence: Span, span: Span, rng: random.Random
    ) -> Ids:
        reach = rng.randint(6, 24)
        left = text[max(sentence[0], span[0] - reach) : span[0]].tolist()
        right = text[span[1] : min(sentence[1], span[1] + reach)].tolist()
        while right and not self.tables.alphanumeric[right[-1]]:
            right.pop()
        while left and not self.tables.starts_word[left[0]]:
            left.pop(0)
        if rng.random() < THINNED_SHARE:
            left, right = (
                [i for i in part if rng.random() > (0.3 if self.tables.stop_word[i] else 0.08)]
                for part in (left, right)
            )
        if rng.random() < BLANK_SHARE:
            return [*left, *self._blank, *right]
        words = rng.choice(self._question_words[self.kind(text, span)])
        if rng.random() < FRONTED_SHARE:
            parts = [left, right] if rng.random() < 0.5 else [right, left]
            return [*words, *parts[0], *parts[1], self.question_mark]
        return [*left, *words, *right, self.question_mark]

    def crop(self, context: np.ndarray, span: Span | None, room: int, rng: random.Random) -> Span:
        """Choose neighbouring sentences of at most `room` tokens, with those of `span`."""
        if len(context) <= room:
            return 0, len(context)
        sentences = self.tables.sentences(context)
        must = [
            number
            for number, (start, end) in enumerate(sentences)
            if span is not None and start < span[1] and end > span[0]
        ] or [rng.randrange(len(sentences))]
        first, last = must[0], must[-1]
        while True:
            wider = [
                (a, b)
                for a, b in ((first - 1, last), (first, last + 1))
                if a >= 0 and b < len(sentences) and sentences[b][1] - sentences[a][0] <= room
            ]
            if not wider:
                return sentences[first][0], min(sentences[last][1], sentences[first][0] + room)
            first, last = rng.choice(wider)

    def annotated(
        self,
        question: Question,
        context: np.ndarray,
        others: Sequence[np.ndarray],
        rng: random.Random,
        *,
        edited: float,
        substitutes: Mapping[str, Sequence[Ids]],
        substituted: float,
    ) -> Reading | None:
        """Ask an annotated question; some answerable ones are altered first.

        Args:
            question: The question.
            context: Token ids of its paragraph.
            others: The other paragraphs of its article.
            rng: Source of randomness.
            edited: Share of the answerable questions that become unanswerable.
            substitutes: Answers of all questions by kind.
            substituted: Share of the other answerable questions whose answer gives way to one of
                the same kind. A model that learned answers by heart is wrong on these.

        Returns:
            None where it would be too long or no edit fits.
        """
        prompt = rng.choice(self.prompts)
        ids, answer, span = question.ids.tolist(), question.answer, question.span
        if span is not None and rng.random() < edited:
            made = self._impossible.make(question, context, others, rng)
            if made is None:
                return None
            (ids, context), answer, span = made, [], None
        elif span is not None and rng.random() < substituted:
            choices = substitutes.get(self.kind(context, span))
            if choices:
                other = rng.choice(choices)
                context, span, answer = substitute_answer(context, span, answer, other)
        target = answer or prompt.abstention
        room = self.max_source - prompt.length - len(ids) - 1
        if len(target) >= self.max_target or room < LEAST_CONTEXT:
            return None
        start, end = self.crop(context, span, room, rng)
        if span is not None and not (start <= span[0] and span[1] <= end):
            return None
        place = (span[0] - start, span[1] - start) if span is not None else None
        return _fill(prompt, context[start:end], ids, answer, place)

    def asked(self, question: Question, context: np.ndarray, rng: random.Random) -> Pair | None:
        """Ask for the question from its answer."""
        prompt = rng.choice(self.asking)
        room = self.max_source - prompt.length - len(question.answer) - 1
        too_long = len(question.ids) >= self.max_target or room < LEAST_CONTEXT
        if question.span is None or too_long:
            return None
        start, end = self.crop(context, question.span, room, rng)
        filled = prompt.fill(context=context[start:end].tolist(), answer=question.answer)
        return filled, question.ids.tolist()


def _fill(
    prompt: Prompt, context: np.ndarray, question: Ids, answer: Ids, span: Span | None
) -> Reading:
    """Fill a prompt; without an answer the target is the abstention.

    Args:
        prompt: The prompt.
        context: Token ids.
        question: Token ids.
        answer: Token ids, none for an abstention.
        span: The answer's place in the context, None where it is not known.
    """
    slots = {"context": context.tolist(), "question": question}
    source = prompt.fill(**slots)
    if not answer:
        return Reading(source, prompt.abstention, (len(source), len(source) + 1))
    if span is None:
        return Reading(source, answer, None)
    start = prompt.place("context", **slots)
    return Reading(source, answer, (start + span[0], start + span[1]))
