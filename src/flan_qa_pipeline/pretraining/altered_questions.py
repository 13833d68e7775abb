"""Annotated questions altered so that only a reader of the context gets them right.

Edits that make a question unanswerable: Rajpurkar, Jia, Liang 2018, "Know What You Don't Know",
arXiv:1806.03822, table 1.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerBase

from flan_qa_pipeline.pretraining.prompts import encode
from flan_qa_pipeline.pretraining.span_corruption import Ids
from flan_qa_pipeline.pretraining.token_tables import Span, TokenTables

OPPOSITES = (
    ("first", "last"), ("largest", "smallest"), ("most", "least"), ("more", "less"),
    ("before", "after"), ("north", "south"), ("east", "west"), ("northern", "southern"),
    ("eastern", "western"), ("highest", "lowest"), ("oldest", "newest"), ("early", "late"),
    ("earlier", "later"), ("new", "old"), ("high", "low"), ("large", "small"), ("long", "short"),
    ("male", "female"), ("men", "women"), ("increase", "decrease"), ("increased", "decreased"),
    ("began", "ended"), ("begin", "end"), ("start", "end"), ("win", "lose"), ("won", "lost"),
    ("allowed", "forbidden"), ("best", "worst"), ("major", "minor"), ("maximum", "minimum"),
    ("positive", "negative"), ("public", "private"), ("inside", "outside"), ("above", "below"),
    ("left", "right"), ("same", "different"), ("always", "never"), ("many", "few"),
    ("can", "cannot"), ("winter", "summer"), ("support", "oppose"), ("upper", "lower"),
    ("born", "killed"), ("bought", "sold"), ("enemy", "ally"), ("former", "current"),
)  # fmt: skip
OPPOSITE_SHARE, NAME_SHARE, PARAGRAPH_SHARE = 0.25, 0.35, 0.2  # the rest lose a sentence


@dataclass(frozen=True)
class Question:
    """An annotated question in token ids.

    Attributes:
        context: Number of its paragraph.
        ids: Token ids of the question.
        answer: Token ids of the answer, none if the question is unanswerable.
        span: Where the answer stands in the context.
    """

    context: int
    ids: np.ndarray
    answer: Ids
    span: Span | None


class ImpossibleQuestions:
    """Takes the answer away from answerable questions.

    Args:
        tokenizer: The base model's tokenizer.
        tables: Its tables.
        kind: Names the kind of words in a span of token ids.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        tables: TokenTables,
        kind: Callable[[np.ndarray, Span], str],
    ) -> None:
        self._tables, self._kind = tables, kind
        self.opposites: dict[int, Ids] = {}
        for one, other in OPPOSITES:
            for word, opposite in ((one, other), (other, one)):
                ids = encode(tokenizer, word)
                if len(ids) == 1:
                    self.opposites.setdefault(ids[0], encode(tokenizer, opposite))

    def make(
        self,
        question: Question,
        context: np.ndarray,
        others: Sequence[np.ndarray],
        rng: random.Random,
    ) -> tuple[Ids, np.ndarray] | None:
        """Return an unanswerable question and its context.

        The question gets an opposite word or another name or number of the context, or the
        context loses the answer's sentence or gives way to another paragraph of the article.

        Args:
            question: An answerable question.
            context: Token ids of its paragraph.
            others: The other paragraphs of its article.
            rng: Source of randomness.

        Returns:
            Token ids of question and context, or None where no edit fits.
        """
        draw = rng.random()
        ids = question.ids.tolist()
        if draw < OPPOSITE_SHARE and (edited := self._with_opposite(ids, rng)):
            return edited, context
        if draw < OPPOSITE_SHARE + NAME_SHARE and (
            edited := self._with_other_name(question, context, rng)
        ):
            return edited, context
        if draw < OPPOSITE_SHARE + NAME_SHARE + PARAGRAPH_SHARE and others:
            other = others[rng.randrange(len(others))]
            return None if contains(other, question.answer) else (ids, other)
        return self._without_sentence(question, context)

    def _with_opposite(self, ids: Ids, rng: random.Random) -> Ids | None:
        places = [place for place, token in enumerate(ids) if token in self.opposites]
        if not places:
            return None
        place = rng.choice(places)
        return [*ids[:place], *self.opposites[ids[place]], *ids[place + 1 :]]

    def _with_other_name(
        self, question: Question, context: np.ndarray, rng: random.Random
    ) -> Ids | None:
        ids = question.ids.tolist()
        entities = self._tables.entities
        mine = [span for span in entities(question.ids, [(0, len(ids))]) if span[0] > 0]
        spans = entities(context, self._tables.sentences(context))
        if not mine or not spans:
            return None
        start, end = rng.choice(mine)
        kind, old = self._kind(question.ids, (start, end)), ids[start:end]
        same = [context[a:b].tolist() for a, b in spans if self._kind(context, (a, b)) == kind]
        new = [
            name
            for name in same
            if name not in (old, question.answer) and not contains(question.ids, name)
        ]
        return [*ids[:start], *rng.choice(new), *ids[end:]] if new else None

    def _without_sentence(
        self, question: Question, context: np.ndarray
    ) -> tuple[Ids, np.ndarray] | None:
        if question.span is None:
            raise ValueError("the question is unanswerable already")
        start, end = question.span
        kept = [context[a:b] for a, b in self._tables.sentences(context) if b <= start or a >= end]
        if len(kept) < 2:
            return None
        rest = np.concatenate(kept)
        return None if contains(rest, question.answer) else (question.ids.tolist(), rest)


def substitute_answer(
    context: np.ndarray, span: Span, answer: Ids, other: Ids
) -> tuple[np.ndarray, Span, Ids]:
    """Replace every mention of the answer by other words.

    Nothing changes where the tokens of the span differ from those of the answer.

    Returns:
        Token ids of the context, the new answer's span in it, the new answer.
    """
    length = len(answer)
    if context[span[0] : span[1]].tolist() != answer or not other:
        return context, span, answer
    written: Ids = []
    tokens = context.tolist()
    position, place = 0, span
    while position < len(tokens):
        if tokens[position : position + length] == answer:
            if position == span[0]:
                place = (len(written), len(written) + len(other))
            written += other
            position += length
        else:
            written.append(tokens[position])
            position += 1
    if tuple(written[place[0] : place[1]]) != tuple(other):  # an overlapping mention came first
        return context, span, answer
    return np.array(written), place, other


def contains(ids: np.ndarray, part: Sequence[int]) -> bool:
    """Whether token ids hold a part in a row."""
    length = len(part)
    if not length or len(ids) < length:
        return False
    places = np.flatnonzero(ids[: len(ids) - length + 1] == part[0])
    return any(ids[place : place + length].tolist() == list(part) for place in places)
