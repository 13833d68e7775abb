"""Queries that wait together are answered together."""

import threading
from concurrent.futures import CancelledError

import pytest

from flan_qa_pipeline.answering.batches import Batches, Query, answer_queries


class Model:
    """Answers a query with its question, one batch at a time, when it is let."""

    def __init__(self):
        self.sizes, self.begun, self.may_end = [], threading.Event(), threading.Event()

    def __call__(self, queries):
        self.sizes.append(len(queries))
        self.begun.set()
        self.may_end.wait()
        if any(query.question == "fail" for query in queries):
            raise RuntimeError("no memory")
        return [query.question for query in queries]


@pytest.fixture
def model():
    return Model()


@pytest.fixture
def batches(model):
    batches = Batches(model, size=5)
    yield batches
    model.may_end.set()
    batches.close()


def test_what_waits_is_answered_in_one_batch_and_an_error_reaches_all_of_it(model, batches):
    (alone,) = batches.submit([Query("a", "b")])
    model.begun.wait()
    together = [batches.submit([Query("", str(i))])[0] for i in range(4)]
    together += batches.submit([Query("", "fail"), Query("", "next")])
    assert batches.waiting == 6
    model.may_end.set()
    assert alone.result() == "b"
    for future in together[:5]:
        with pytest.raises(RuntimeError, match="no memory"):
            future.result()
    assert together[5].result() == "next"
    assert model.sizes == [1, 5, 1]


def test_a_query_that_nobody_waits_for_is_left_out(model, batches):
    batches.submit([Query("a", "b")])
    model.begun.wait()
    left, kept = batches.submit([Query("", "left"), Query("", "kept")])
    assert left.cancel()
    model.may_end.set()
    assert kept.result() == "kept"
    assert model.sizes == [1, 1]


def test_closing_cancels_what_waits(model, batches):
    (running,) = batches.submit([Query("a", "b")])
    model.begun.wait()
    (waiting,) = batches.submit([Query("", "late")])
    threading.Timer(0.05, model.may_end.set).start()
    batches.close()
    assert running.result() == "b"
    with pytest.raises(CancelledError):
        waiting.result()


def test_each_model_answers_its_queries_and_the_order_stays():
    class Answerer:
        def answer(self, pairs, *, base):
            return [f"{'base' if base else 'fine-tuned'}: {question}" for _, question in pairs]

    queries = [Query("", "1"), Query("", "2", base=True), Query("", "3"), Query("", "4", base=True)]
    answers = ["fine-tuned: 1", "base: 2", "fine-tuned: 3", "base: 4"]
    assert answer_queries(Answerer(), queries) == answers
