"""Text and annotated questions in token ids, as Arrow tables and as arrays."""

import io
import random
import string
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import sentencepiece
from datasets import Dataset, DatasetDict, Features, List, Value
from transformers import PreTrainedTokenizerBase, T5Tokenizer

from flan_qa_pipeline.data.arrow_files import rows_on_disk
from flan_qa_pipeline.errors import InputError
from flan_qa_pipeline.pretraining.altered_questions import Question
from flan_qa_pipeline.pretraining.reading_tasks import LONGEST_ANSWER, ReadingTasks

SENTINELS = 100
LONGEST_LINE = 6000  # bytes, for the tokenizer's training
ENCODED_AT_ONCE = 4000
ASCII = "".join(sorted(set(string.printable) - set(string.whitespace)))
FIELDS = ("title", "text")

IDS = List(Value("int32"))
TEXT_FEATURES = Features({"article": Value("int32"), "ids": IDS})
SPAN_FEATURES = {"ids": IDS, "answer": IDS, "start": Value("int32"), "end": Value("int32")}
ENCODED_QUESTION_FEATURES = Features(
    {"paragraph": Value("int32"), **SPAN_FEATURES, "gold": List(Value("string"))}
)


def read_articles(partitions: Mapping[str, Any]) -> Iterator[tuple[str, list[str]]]:
    """Yield title and paragraphs of every article in JSON lines.

    Args:
        partitions: Functions that open a file as frames of rows, by the file's name.

    Raises:
        InputError: A file has no column `title` or `text`.
    """
    for name in sorted(partitions):
        with partitions[name]() as frames:
            for frame in frames:
                if missing := [field for field in FIELDS if field not in frame]:
                    raise InputError(
                        f"pretrain.text_folder: {name}.jsonl has no field {missing[0]!r}; every "
                        'line must be {"title": …, "id": …, "text": …}, with one paragraph of '
                        "the text a line."
                    )
                yield from _rows(frame)


def _rows(frame: pd.DataFrame) -> Iterator[tuple[str, list[str]]]:
    for title, text in zip(frame["title"].astype(str), frame["text"].astype(str), strict=True):
        paragraphs = [paragraph for paragraph in text.split("\n") if paragraph.strip()]
        if paragraphs:
            yield title, paragraphs


def train_sentencepiece(lines: Iterable[str], vocab_size: int) -> T5Tokenizer:
    """Train a unigram vocabulary in T5's layout.

    Ids 0, 1, 2 are `<pad>`, `</s>`, `<unk>`. The last 100 are `<extra_id_99>` … `<extra_id_0>`.
    Every printable ASCII character has a piece.
    (Kudo 2018, "Subword Regularization", arXiv:1804.10959.)

    Args:
        lines: Texts to train on.
        vocab_size: Number of ids, sentinels included.

    Raises:
        InputError: The texts are too few for so many pieces.
    """
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=model,
            vocab_size=vocab_size - SENTINELS,
            model_type="unigram",
            character_coverage=0.9998,
            required_chars=ASCII,
            pad_id=0,
            eos_id=1,
            unk_id=2,
            bos_id=-1,
            input_sentence_size=500_000,
            shuffle_input_sentence=True,
            max_sentence_length=LONGEST_LINE,
            normalization_rule_name="nmt_nfkc",
            split_digits=False,
            seed_sentencepiece_size=300_000,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise InputError(
            f"pretrain.architecture.vocab_size: no vocabulary of {vocab_size} can be trained on "
            f"this text ({' '.join(str(error).split())}); lower it, or give more text."
        ) from error
    trained = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    pieces = [(trained.id_to_piece(i), trained.get_score(i)) for i in range(len(trained))]
    sentinels = [(f"<extra_id_{i}>", 0.0) for i in reversed(range(SENTINELS))]
    return T5Tokenizer(vocab=pieces + sentinels, extra_ids=SENTINELS)


def sentinel_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the ids of `<extra_id_0>`, `<extra_id_1>`, …"""
    ids: list[int] = tokenizer.convert_tokens_to_ids([f"<extra_id_{i}>" for i in range(SENTINELS)])
    return ids


def sample_lines(
    articles: Iterable[tuple[str, list[str]]], share: float, seed: int
) -> Iterator[str]:
    """Yield the paragraphs of a random share of the articles."""
    rng = random.Random(seed)  # noqa: S311
    for _, paragraphs in articles:
        if rng.random() < share:
            yield from paragraphs


def encode_paragraphs(
    articles: Iterable[tuple[str, list[str]]], tokenizer: PreTrainedTokenizerBase
) -> Iterator[dict[str, Any]]:
    """Yield `article`, its number, and `ids`, the token ids, of every paragraph."""
    numbers: list[int] = []
    texts: list[str] = []
    for number, (_, paragraphs) in enumerate(articles):
        numbers += [number] * len(paragraphs)
        texts += paragraphs
        if len(texts) >= ENCODED_AT_ONCE:
            yield from _encoded(numbers, texts, tokenizer)
            numbers, texts = [], []
    if texts:
        yield from _encoded(numbers, texts, tokenizer)


def _encoded(
    numbers: list[int], texts: list[str], tokenizer: PreTrainedTokenizerBase
) -> Iterator[dict[str, Any]]:
    encoded = tokenizer(texts, add_special_tokens=False)["input_ids"]
    for number, ids in zip(numbers, encoded, strict=True):
        yield {"article": number, "ids": ids}


def encode_questions(
    questions: Dataset, tokenizer: PreTrainedTokenizerBase, paragraphs: dict[str, int]
) -> Iterator[dict[str, Any]]:
    """Yield the fields of `Question`, and all gold answers as text, of every question.

    Args:
        questions: Checked questions.
        tokenizer: The base model's tokenizer.
        paragraphs: Numbers of the contexts.
    """
    offsets: dict[str, np.ndarray] = {}
    for row in questions:
        context, texts = row["context"], row["answers"]["text"]
        if context not in offsets:
            encoded = tokenizer(context, add_special_tokens=False, return_offsets_mapping=True)
            offsets = {context: np.array(encoded["offset_mapping"])}
        answer: list[int] = []
        span = (-1, -1)
        if texts:
            start = row["answers"]["answer_start"][0]
            end = start + len(texts[0])
            place = offsets[context]
            covered = np.flatnonzero((place[:, 1] > start) & (place[:, 0] < end))
            if not len(covered):
                continue
            span = (int(covered[0]), int(covered[-1]) + 1)
            answer = tokenizer(texts[0], add_special_tokens=False)["input_ids"]
        yield {
            "paragraph": paragraphs[context],
            "ids": tokenizer(row["question"].strip(), add_special_tokens=False)["input_ids"],
            "answer": answer,
            "start": span[0],
            "end": span[1],
            "gold": texts,
        }


def encode_by_article(
    splits: Mapping[str, Dataset], tokenizer: PreTrainedTokenizerBase
) -> DatasetDict:
    """Encode distinct contexts, article by article, and the questions on them.

    Args:
        splits: Checked questions: `train`, `dev`, `calibration` and perhaps `extra`. An article of
            `extra` stays apart from one of the same title in another split.
        tokenizer: The base model's tokenizer.

    Returns:
        `paragraphs`, the contexts; the questions of `train`, of `held_out`, which joins `dev` and
        `calibration`, and of `extra`, where it is given.
    """
    articles = _contexts_by_article(splits)
    contexts = (context for _, paragraphs in articles for context in paragraphs)
    numbers = {context: number for number, context in enumerate(contexts)}

    def encoded(*names: str) -> Dataset:
        rows = (row for n in names for row in encode_questions(splits[n], tokenizer, numbers))
        return rows_on_disk(rows, ENCODED_QUESTION_FEATURES)

    extra = {"extra": encoded("extra")} if "extra" in splits else {}
    return DatasetDict(
        paragraphs=rows_on_disk(encode_paragraphs(articles, tokenizer), TEXT_FEATURES),
        train=encoded("train"),
        held_out=encoded("dev", "calibration"),
        **extra,
    )


def _contexts_by_article(splits: Mapping[str, Dataset]) -> list[tuple[str, list[str]]]:
    seen: set[str] = set()
    articles: dict[tuple[bool, str], list[str]] = {}
    for name, split in splits.items():
        for title, context in zip(split["title"], split["context"], strict=True):
            if context not in seen:
                seen.add(context)
                articles.setdefault((name == "extra", title), []).append(context)
    return [(title, contexts) for (_, title), contexts in articles.items()]


@dataclass(frozen=True)
class EncodedText:
    """Paragraphs in one array of token ids.

    Attributes:
        ids: Token ids of all paragraphs, uint16 or uint32, shape (tokens,).
        paragraphs: Where each paragraph starts, and the end of the last, shape (paragraphs + 1,).
        articles: First paragraph of each article, and the number of paragraphs.
    """

    ids: np.ndarray
    paragraphs: np.ndarray
    articles: np.ndarray

    @classmethod
    def of(cls, dataset: Dataset) -> "EncodedText":
        """Read the rows of `encode_paragraphs`."""
        table = dataset.with_format("arrow")[:]
        lists = table["ids"].combine_chunks()
        ids = lists.flatten().to_numpy()
        lengths = lists.value_lengths().to_numpy()
        numbers = table["article"].to_numpy()
        firsts = np.flatnonzero(np.diff(numbers, prepend=-1))
        return cls(
            ids=ids.astype(np.uint16 if ids.max(initial=0) < 2**16 else np.uint32),
            paragraphs=np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]),
            articles=np.append(firsts, len(numbers)),
        )

    def article(self, paragraph: int) -> range:
        """Return the numbers of all paragraphs of a paragraph's article."""
        number = int(np.searchsorted(self.articles, paragraph, side="right")) - 1
        return range(int(self.articles[number]), int(self.articles[number + 1]))

    def join(self, paragraphs: range, longest: int) -> np.ndarray:
        """Join the token ids of consecutive paragraphs, and cut them to a length."""
        begin, end = self.paragraphs[paragraphs.start], self.paragraphs[paragraphs.stop]
        return self.ids[begin : min(end, begin + longest)].astype(np.int64)


@dataclass(frozen=True)
class EncodedQuestions:
    """Annotated questions in token ids.

    Attributes:
        contexts: Token ids of every paragraph.
        articles: For every paragraph, the range of the paragraphs of its article.
        answerable: Questions with an answer.
        unanswerable: Questions without one.
        generated: Answerable questions that a model asked about unlabelled text.
        extra: Answerable questions of further files.
        extra_unanswerable: Unanswerable ones of these files.
        answers: Answers' token ids by the kind of their words, of the annotated questions.
    """

    contexts: list[np.ndarray]
    articles: list[tuple[int, int]]
    answerable: list[Question]
    unanswerable: list[Question]
    generated: list[Question]
    extra: list[Question]
    extra_unanswerable: list[Question]
    answers: dict[str, list[list[int]]]

    @classmethod
    def of(
        cls, encoded: DatasetDict, tasks: ReadingTasks, generated: Dataset | None = None
    ) -> "EncodedQuestions":
        """Read the splits `paragraphs`, `train` and, where there is one, `extra`.

        Args:
            encoded: The splits; the paragraphs of an article follow each other.
            tasks: Tells the kinds of answers apart.
            generated: Questions of `generate_questions`.
        """
        contexts = [np.array(ids, dtype=np.int64) for ids in encoded["paragraphs"]["ids"]]
        numbers = np.array(encoded["paragraphs"]["article"])
        articles = [
            (int(np.searchsorted(numbers, n)), int(np.searchsorted(numbers, n, "right")))
            for n in numbers
        ]
        questions = [read_question(row) for row in encoded["train"]]
        extra = [read_question(row) for row in encoded.get("extra", ())]
        made: list[Question] = []
        for row in generated or ():
            first = len(contexts)
            made.append(read_question(row | {"paragraph": first}))
            article = [ids for ids in (row["context"], row["other"]) if ids]
            contexts += [np.array(ids, dtype=np.int64) for ids in article]
            articles += [(first, len(contexts))] * len(article)
        answers: dict[str, list[list[int]]] = defaultdict(list)
        for question in questions:
            if question.span and len(question.answer) <= LONGEST_ANSWER:
                kind = tasks.kind(contexts[question.context], question.span)
                answers[kind].append(question.answer)
        return cls(
            contexts,
            articles,
            [question for question in questions if question.span],
            [question for question in questions if not question.span],
            made,
            [question for question in extra if question.span],
            [question for question in extra if not question.span],
            dict(answers),
        )


def read_question(row: Mapping[str, Any]) -> Question:
    """Read a row of `encode_questions`."""
    span = (row["start"], row["end"]) if row["start"] >= 0 else None
    return Question(
        row["paragraph"], np.array(row["ids"], dtype=np.int64), list(row["answer"]), span
    )
