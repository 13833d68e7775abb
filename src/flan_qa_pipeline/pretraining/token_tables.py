"""Words, sentences, names and numbers in token ids, found by tables indexed by token id."""

from collections.abc import Sequence

import numpy as np
from transformers import PreTrainedTokenizerBase

STOP_WORDS = frozenset(
    "a an the of in on at to for from by with and or but as is are was were be been being it its "
    "he she they his her their this that these those who which what when where how why not no "
    "has have had do does did will would can could may might must than then also such into about "
    "over after before during between through under more most some any all each other one".split()
)
SENTENCE_MARKS = frozenset(".?!")
OPENING = frozenset("\"'([“‘")

Span = tuple[int, int]


class TokenTables:
    """Finds words, sentences, names and numbers in token ids, without decoding them.

    Args:
        tokenizer: A SentencePiece tokenizer. "▁" begins each of its pieces that begins a word.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        pieces = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
        bare = [piece.removeprefix("▁") for piece in pieces]
        self.starts_word = np.array([piece.startswith("▁") for piece in pieces])
        self.upper = np.array([b[:1].isupper() for b in bare])
        self.bare = np.array([b == "" for b in bare])
        self.digit = np.array([b[:1].isdigit() for b in bare])
        # "▁" alone begins a word whose first character is a separate piece
        self.alphanumeric = np.array([b[:1].isalnum() or b == "" for b in bare])
        self.ends_sentence = np.array([b[-1:] in SENTENCE_MARKS for b in bare])
        self.opens = np.array([b[:1] in OPENING and b != "" for b in bare])
        self.stop_word = np.array([b.lower() in STOP_WORDS for b in bare]) & self.starts_word

    def sentences(self, ids: np.ndarray) -> list[Span]:
        """Split a text after each mark that a capital, digit or quote follows.

        Returns:
            The [start, end) of every sentence.
        """
        marks = np.flatnonzero(self.ends_sentence[ids[:-1]])
        following = ids[marks + 1]
        spelled = ids[np.minimum(marks + 1 + self.bare[following], len(ids) - 1)]
        begins = self.starts_word[following] & (
            self.upper[spelled] | self.digit[spelled] | ~self.alphanumeric[spelled]
        )
        cuts = [0, *(marks[begins] + 1).tolist(), len(ids)]
        return list(zip(cuts, cuts[1:], strict=False))

    def words(self, ids: np.ndarray) -> list[Span]:
        """Return the [start, end) of every word, with the punctuation after it."""
        cuts = np.flatnonzero(self.starts_word[ids]).tolist()
        if not cuts or cuts[0]:
            cuts.insert(0, 0)
        return list(zip(cuts, [*cuts[1:], len(ids)], strict=True))

    def trim(self, ids: np.ndarray, span: Span) -> Span:
        """Drop punctuation from both ends of a span."""
        start, end = span
        while start < end and not self.alphanumeric[ids[start]]:
            start += 1
        while start < end and not self.alphanumeric[ids[end - 1]]:
            end -= 1
        return start, end

    def begins_number(self, ids: np.ndarray, span: Span) -> bool:
        """Whether the first character of a span is a digit."""
        return self._begins(self.digit, ids, span)

    def begins_capital(self, ids: np.ndarray, span: Span) -> bool:
        """Whether a span begins a word with a capital."""
        start, end = span
        return start < end and bool(
            self.starts_word[ids[start]] and self._begins(self.upper, ids, span)
        )

    def _begins(self, table: np.ndarray, ids: np.ndarray, span: Span) -> bool:
        start, end = span
        if start < end and self.bare[ids[start]]:
            start += 1
        return start < end and bool(table[ids[start]])

    def entities(self, ids: np.ndarray, sentences: Sequence[Span], longest: int = 5) -> list[Span]:
        """Return names (runs of capitalized words) and numbers, trimmed, in the order of the text.

        One capitalized word alone at the start of a sentence does not count as a name.

        Args:
            ids: Token ids of the text.
            sentences: The spans that `sentences` found in it.
            longest: Names of more words are left out.
        """
        firsts = {start for start, _ in sentences}
        found: list[Span] = []
        run: list[Span] = []

        def close() -> None:
            if run and len(run) <= longest and not (len(run) == 1 and run[0][0] in firsts):
                span = self.trim(ids, (run[0][0], run[-1][1]))
                if span[0] < span[1]:
                    found.append(span)
            run.clear()

        for word in self.words(ids):
            first = ids[word[0]]
            trimmed = self.trim(ids, word)
            if self.begins_capital(ids, word) and not self.stop_word[first]:
                run.append(word)
                if trimmed[1] < word[1]:  # a comma or a point ends the name
                    close()
                continue
            close()
            if self.begins_number(ids, trimmed):
                found.append(trimmed)
        close()
        return found
