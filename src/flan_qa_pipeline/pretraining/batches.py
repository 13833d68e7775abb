"""Batches of pretraining, drawn from encoded text and questions when they are needed."""

import random
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from flan_qa_pipeline.config.parameters import (
    MixtureParameters,
    PretrainBatchesParameters,
    ShapeParameters,
)
from flan_qa_pipeline.errors import InputError
from flan_qa_pipeline.pretraining.altered_questions import Question
from flan_qa_pipeline.pretraining.encoding import EncodedQuestions, EncodedText
from flan_qa_pipeline.pretraining.reading_tasks import Reading, ReadingTasks
from flan_qa_pipeline.pretraining.span_corruption import (
    Pair,
    corrupt_spans,
    uncorrupted_length,
)

Batch = dict[str, torch.Tensor]

LONG_SHARE = 0.2
TRIES = 200  # for each row
READING = ("cloze", "answerable", "unanswerable", "asking", "generated", "extra")
LONGEST_PASSAGE = 400
END = 1
NO_TARGET = -100


class BatchSource:
    """Draws the batch of any step; a step's batch has one kind and shape in all processes.

    `seed`, `rank` and the step decide a batch, so that a resumed training goes on with the batches
    that it would have had.

    Args:
        text: Unlabelled text.
        questions: Annotated, generated and further questions.
        tasks: Makes pairs of them.
        batches: Shapes of the three kinds of batches, and how spans are corrupted.
        mixture: Shares of the kinds of batches and rows.
        sentinels: Ids of `<extra_id_0>`, …
        seed: Seed of all processes.
        rank: Number of this process.

    Raises:
        InputError: The mixture asks for questions that there are none of, or the text is too short
            for a batch.
    """

    def __init__(
        self,
        text: EncodedText,
        questions: EncodedQuestions,
        tasks: ReadingTasks,
        batches: PretrainBatchesParameters,
        mixture: MixtureParameters,
        *,
        sentinels: list[int],
        seed: int,
        rank: int,
    ) -> None:
        self._text, self._questions, self._tasks = text, questions, tasks
        self._batches, self._mixture = batches, mixture
        self._sentinels, self._seed, self._rank = sentinels, seed, rank
        self._among = {
            "answerable": questions.answerable,
            "asking": questions.answerable,
            "unanswerable": questions.unanswerable
            + (questions.extra_unanswerable if mixture.extra else []),
            "generated": questions.generated,
            "extra": questions.extra,
        }
        for task, among in self._among.items():
            if getattr(mixture, task) and not among:
                raise InputError(
                    f"pretrain: a stage's mixture.{task} is {getattr(mixture, task)}, but there is "
                    "no such question; set it to 0, or give more questions."
                )
        self._denoised = uncorrupted_length(
            batches.denoising.source,
            noise_density=batches.noise_density,
            mean_span_length=batches.mean_span_length,
        )
        if len(text.ids) <= self._denoised:
            raise InputError(
                f"pretrain.text_folder holds {len(text.ids)} tokens of text, fewer than one row of "
                f"a batch ({self._denoised}); give more text."
            )

    def kind(self, step: int) -> str:
        """Name the kind of a step's batch, the same in all processes."""
        draw = random.Random(self._seed * 1_000_003 + step).random()  # noqa: S311
        denoising = self._mixture.denoising
        if draw < denoising:
            return "denoising"
        return "long" if (draw - denoising) / (1 - denoising) < LONG_SHARE else "short"

    def batch(self, step: int) -> Batch:
        """Draw the batch of a step.

        Returns:
            `input_ids` and `attention_mask` of shape (rows, source), `labels` of shape (rows,
            target), and `places` of shape (rows, 2): the answer's first and last position in the
            input. -100 stands where there is no target and where no place is known.

        Raises:
            InputError: Text and questions give too few pairs that fit.
        """
        kind = self.kind(step)
        rng = np.random.default_rng((self._seed, self._rank, step))
        shape: ShapeParameters = getattr(self._batches, kind)
        plain = random.Random(int(rng.integers(2**62)))  # noqa: S311
        longer_than = self._batches.short.source if kind == "long" else 0
        pairs: list[Pair | Reading] = []
        for _ in range(TRIES * shape.rows + 1):
            if len(pairs) == shape.rows:
                return pad(pairs, shape)
            pair = self._denoising(rng) if kind == "denoising" else self._read(plain, longer_than)
            if pair is not None and len(pair[0]) < shape.source:
                pairs.append(pair)
        raise InputError(
            f"pretrain.batches.{kind}: text and questions gave {len(pairs)} of {shape.rows} rows "
            f"of at most {shape.source} tokens; change its lengths, or give longer texts."
        )

    def _denoising(self, rng: np.random.Generator) -> Pair:
        start = int(rng.integers(len(self._text.ids) - self._denoised))
        return corrupt_spans(
            self._text.ids[start : start + self._denoised].astype(np.int64),
            self._sentinels,
            rng,
            noise_density=self._batches.noise_density,
            mean_span_length=self._batches.mean_span_length,
        )

    def _read(self, rng: random.Random, longer_than: int) -> Pair | Reading | None:
        mixture = self._mixture
        (task,) = rng.choices(READING, [getattr(mixture, task) for task in READING])
        if task == "cloze":
            return self._tasks.cloze(draw_passage(self._text, rng, longer_than), rng)
        question = rng.choice(self._among[task])
        context = self._questions.contexts[question.context]
        if longer_than and len(context) < longer_than - 30:
            return None
        if task == "asking":
            return self._tasks.asked(question, context, rng)
        return self._tasks.annotated(
            question,
            context,
            self._other_paragraphs(question),
            rng,
            edited=mixture.edited,
            substitutes=self._questions.answers,
            substituted=mixture.substituted,
        )

    def _other_paragraphs(self, question: Question) -> list[np.ndarray]:
        start, end = self._questions.articles[question.context]
        numbers = (number for number in range(start, end) if number != question.context)
        return [self._questions.contexts[number] for number in numbers]


def draw_passage(text: EncodedText, rng: random.Random, longer_than: int = 0) -> np.ndarray:
    """Join paragraphs of an article from a random one on, up to a random length.

    Args:
        text: Unlabelled text.
        rng: Source of randomness.
        longer_than: Tokens that the passage should have where the article has them.
    """
    return text.join(draw_paragraphs(text, rng, longer_than), LONGEST_PASSAGE)


def draw_paragraphs(text: EncodedText, rng: random.Random, longer_than: int = 0) -> range:
    """Choose the paragraphs of `draw_passage`, by their numbers."""
    wanted = rng.randint(max(100, longer_than), max(250, longer_than + 100))
    start = rng.randrange(len(text.ids))
    paragraph = int(np.searchsorted(text.paragraphs, start, side="right")) - 1
    last = text.article(paragraph).stop
    begin = int(text.paragraphs[paragraph])
    end = paragraph + 1
    while end < last and text.paragraphs[end] - begin < wanted:
        end += 1
    return range(paragraph, end)


class Batches(torch.utils.data.IterableDataset[Batch]):
    """The batches of consecutive steps; workers of a DataLoader take turns.

    Args:
        source: Draws them.
        first: First step.
        until: Step after the last.
    """

    def __init__(self, source: BatchSource, first: int, until: int) -> None:
        self._source, self._first, self._until = source, first, until

    def __iter__(self) -> Iterator[Batch]:
        worker = torch.utils.data.get_worker_info()
        number, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        for step in range(self._first + number, self._until, workers):
            yield self._source.batch(step)


def pad(pairs: Sequence[Pair | Reading], shape: ShapeParameters) -> Batch:
    """Close pairs with `</s>` and pad them to a shape; longer targets are cut."""
    source = np.zeros((shape.rows, shape.source), dtype=np.int64)
    mask = np.zeros_like(source)
    labels = np.full((shape.rows, shape.target), NO_TARGET, dtype=np.int64)
    places = np.full((shape.rows, 2), NO_TARGET, dtype=np.int64)
    for row, pair in enumerate(pairs):
        ids, target = pair[:2]
        source[row, : len(ids) + 1] = [*ids, END]
        mask[row, : len(ids) + 1] = 1
        closed = [*target, END][: shape.target]
        labels[row, : len(closed)] = closed
        if isinstance(pair, Reading) and pair.place:
            places[row] = pair.place[0], pair.place[1] - 1
    arrays = {"input_ids": source, "attention_mask": mask, "labels": labels, "places": places}
    return {name: torch.from_numpy(array) for name, array in arrays.items()}
