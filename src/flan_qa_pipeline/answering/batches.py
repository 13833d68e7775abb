"""Questions that arrive while a batch is being answered form the next batch."""

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from flan_qa_pipeline.answering.answerer import Answer, QuestionAnswerer


@dataclass(frozen=True)
class Query:
    """A question about a context, for the fine-tuned model or for the base."""

    context: str
    question: str
    base: bool = False


class Batches:
    """Answers queries in one thread, as many at a time as wait and fit into a batch."""

    def __init__(self, answer: Callable[[list[Query]], list[Answer]], size: int):
        """Start the thread.

        Args:
            answer: answers a batch, in order.
            size: the most queries in a batch.
        """
        self._answer, self._size = answer, size
        self._waiting: deque[tuple[Query, Future[Answer]]] = deque()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="answers")

    @property
    def waiting(self) -> int:
        """How many queries wait for a batch."""
        return len(self._waiting)

    def submit(self, queries: Sequence[Query]) -> list[Future[Answer]]:
        """Put queries into the next batches.

        A query whose future is cancelled before its batch starts is left out. Any error of a batch
        reaches all of its futures.
        """
        futures: list[Future[Answer]] = [Future() for _ in queries]
        self._waiting.extend(zip(queries, futures, strict=True))
        self._thread.submit(self._answer_waiting)
        return futures

    def close(self) -> None:
        """Cancel what waits, and end the thread after its batch."""
        while self._waiting:
            self._waiting.popleft()[1].cancel()
        self._thread.shutdown()

    def _answer_waiting(self) -> None:
        while batch := self._next_batch():
            try:
                answers = self._answer([query for query, _ in batch])
            except Exception as error:
                for _, future in batch:
                    future.set_exception(error)
            else:
                for (_, future), answer in zip(batch, answers, strict=True):
                    future.set_result(answer)

    def _next_batch(self) -> list[tuple[Query, Future[Answer]]]:
        batch: list[tuple[Query, Future[Answer]]] = []
        while self._waiting and len(batch) < self._size:
            query, future = self._waiting.popleft()
            if future.set_running_or_notify_cancel():
                batch.append((query, future))
        return batch


def answer_queries(answerer: QuestionAnswerer, queries: Sequence[Query]) -> list[Answer]:
    """Answer the base's queries together, and the fine-tuned model's; keep their order."""
    answers = {
        base: iter(
            answerer.answer(
                [(query.context, query.question) for query in queries if query.base is base],
                base=base,
            )
        )
        for base in (True, False)
    }
    return [next(answers[query.base]) for query in queries]
