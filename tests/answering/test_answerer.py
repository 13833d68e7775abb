"""The Python API: typed answers of an adapter on a tiny model, as evaluation gives them."""

import ast
import math
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from datasets import Dataset, DatasetDict

from flan_qa_pipeline import Answer, QuestionAnswerer
from flan_qa_pipeline.answering import answerer as answerer_module
from flan_qa_pipeline.answering.answerer import find_answer
from flan_qa_pipeline.config.parameters import GenerationParameters
from flan_qa_pipeline.data.fingerprints import fingerprint_rows
from flan_qa_pipeline.datasets.adapter import AdapterDataset
from flan_qa_pipeline.errors import InputError
from flan_qa_pipeline.models.adapter import WEIGHTS, Adapter, save_adapter
from flan_qa_pipeline.models.loading import load_base_model
from flan_qa_pipeline.pipelines.data_engineering.nodes import tokenize_questions
from flan_qa_pipeline.pipelines.reporting.nodes import load_finetuned_model, predict


@pytest.fixture(scope="module")
def answers(answerer, pairs):
    return answerer.answer(pairs)


@pytest.fixture(scope="module")
def evaluated(pairs, copying_base, parameters):
    """Answer the pairs through the nodes of data_engineering and reporting."""
    rows = [
        {"id": f"q{i}", "context": context, "question": question, "answers": {"text": []}}
        for i, (context, question) in enumerate(pairs)
    ]
    rows = [row | {"answers": {"text": [], "answer_start": []}} for row in rows]
    splits = {
        name: Dataset.from_list([row | {"id": name + row["id"]} for row in some])
        for name, some in (("validation", rows), ("calibration", rows[:1]))
    }

    data = parameters.data

    def evaluate(model, prompt):
        questions = DatasetDict(splits)
        windows = tokenize_questions(questions, copying_base, prompt, parameters.tokenization, data)
        assert len(windows["validation"]) > len(pairs)
        return predict(model, questions, windows, copying_base, prompt, parameters.generation)[0]

    return evaluate


@pytest.mark.parametrize("base", [False, True], ids=["adapter", "base"])
def test_answers_are_those_of_the_evaluation(
    answerer, adapter, pairs, copying_base, evaluated, base
):
    prompt = answerer.prompt
    trained_on = Dataset.from_list([{"id": "q"}])
    fingerprints = {"questions": {"train": fingerprint_rows(trained_on)}}
    saved = replace(adapter, training={"run": {"fingerprints": fingerprints}})
    model = (
        load_base_model(copying_base)
        if base
        else load_finetuned_model(copying_base, prompt, saved, DatasetDict(train=trained_on))
    )
    expected = evaluated(model, prompt)
    answers = answerer.answer(pairs, base=base)
    assert [answer.text for answer in answers] == expected["prediction_text"].tolist()
    odds = [math.log(p / (1 - p)) for p in (answer.no_answer_probability for answer in answers)]
    assert odds == pytest.approx(expected["no_answer_score"].tolist(), abs=1e-3)
    for answer, score in zip(answers, expected["score"], strict=True):
        wanted = answer.no_answer_probability if answer.abstained else math.exp(score)
        assert answer.score == pytest.approx(wanted, rel=1e-3)


def test_adapter_and_base_differ_and_switching_leaves_no_trace(answerer, answers, pairs):
    base = answerer.answer(pairs, base=True)
    assert [answer.text for answer in base] != [answer.text for answer in answers]
    assert answerer.answer(pairs) == answers


def test_answers_have_their_place_in_the_context(answers, pairs):
    given = [answer for answer in answers if not answer.abstained]
    assert len({answer.text for answer in given}) > 3
    starts = [answer.start for answer in given if answer.start is not None]
    assert max(starts) > 600, starts
    for answer, (context, _) in zip(answers, pairs, strict=True):
        assert 0 <= answer.score <= 1
        assert (answer.start is None) == (answer.end is None)
        if answer.start is not None:
            found = context[answer.start : answer.end]
            assert found.split() == answer.text.split()


def test_an_abstention_is_typed_as_one(answers):
    abstained = [answer for answer in answers if answer.abstained]
    assert abstained
    for answer in abstained:
        p = answer.no_answer_probability
        assert answer == Answer("", p, True, p, None, None)


@pytest.mark.parametrize("threshold", [0.0, 1.0])
def test_a_threshold_decides_instead_of_the_greedy_output(
    adapter, answerer, answers, pairs, threshold
):
    strict = QuestionAnswerer(adapter, no_answer_threshold=threshold, compute_dtype="float32")
    decided = strict.answer(pairs)
    assert all(answer.abstained == (threshold == 0) for answer in decided)
    assert all(bool(answer.text) == (threshold == 1) for answer in decided)
    for ours, greedy in zip(decided, answers, strict=True):
        assert ours.no_answer_probability == greedy.no_answer_probability
        if threshold == 1 and not greedy.abstained:
            assert ours == greedy
    assert strict.answer(pairs[:2], base=True) == answerer.answer(pairs[:2], base=True)


def test_order_and_batches_do_not_matter(adapter, answers, pairs):
    small = GenerationParameters(**adapter.provenance["generation"] | {"batch_tokens": 100})
    answerer = QuestionAnswerer(adapter, generation=small, compute_dtype="float32")
    backward = answerer.answer(pairs[::-1])[::-1]
    assert [answer.text for answer in backward] == [answer.text for answer in answers]
    assert [answer.start for answer in backward] == [answer.start for answer in answers]
    assert answerer.answer([]) == []


def test_threads_may_share_one_answerer(answerer, answers, pairs):
    base = answerer.answer(pairs[:3], base=True)
    with ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(answerer.answer, pairs[:3], base=i % 2 == 1) for i in range(6)]
    texts = [[answer.text for answer in job.result()] for job in jobs]
    expected = [[answer.text for answer in some[:3]] for some in (answers, base)] * 3
    assert texts == expected


@pytest.mark.parametrize(
    ("context", "question", "complaint"),
    [
        ("", "Who?", "The context is empty"),
        ("Ada.", " \n", "The question is empty"),
        (None, "Who?", "The context is missing"),
        ("Ada.", float("nan"), "The question is missing"),
        (
            "Ada.",
            "Who was it? " * 90,
            "The question takes .* of 256 tokens .* shorten the question",
        ),
    ],
)
def test_a_pair_that_cannot_be_answered_is_named(answerer, pairs, context, question, complaint):
    assert answerer.problem(*pairs[0]) is None
    with pytest.raises(InputError, match=f"Pair 1 of 2: {complaint}"):
        answerer.answer([pairs[0], (context, question)])


@pytest.mark.parametrize("text", ["\u200b", "\ufeff \u2060", "\u3164"])
def test_what_cannot_be_seen_is_no_context_and_no_question(answerer, text):
    assert answerer.problem(text, "Who was it?") == "The context is empty; give it as text."
    assert answerer.problem("Ada.", text) == "The question is empty; give it as text."


def test_saved_adapter_is_loaded_from_its_folder(adapter, answers, pairs, tmp_path):
    AdapterDataset(filepath=str(tmp_path / "adapter")).save(adapter)
    answerer = QuestionAnswerer.from_folder(tmp_path / "adapter", compute_dtype="float32")
    assert answerer.answer(pairs) == answers


def test_what_is_no_adapter_is_refused(tmp_path, adapter):
    with pytest.raises(InputError, match=f"{tmp_path} holds no adapter"):
        QuestionAnswerer.from_folder(tmp_path)
    AdapterDataset(filepath=str(tmp_path / "cut")).save(adapter)
    weights = tmp_path / "cut" / WEIGHTS
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(InputError, match=f"{weights} is not as it was saved; restore"):
        QuestionAnswerer.from_folder(tmp_path / "cut")
    with pytest.raises(InputError, match="is not in a Kedro project"):
        QuestionAnswerer.from_project(tmp_path)
    saved_by_another = {"model": adapter.provenance["model"], "prompt": {"template": "{question}"}}
    save_adapter(
        Adapter(adapter.config, adapter.state_dict, adapter.tokenizer, saved_by_another, {}),
        tmp_path / "old",
    )
    with pytest.raises(InputError, match="Another version .* saved the adapter.*train again"):
        QuestionAnswerer.from_folder(tmp_path / "old")
    with pytest.raises(InputError, match="nowhere"):
        QuestionAnswerer(adapter, base_model="/nowhere/t5")


@pytest.mark.parametrize(
    ("answer", "context", "window", "expected"),
    [
        ("5", "In 1953, 5 men", (0, 14), "5"),
        ("53", "In 1953, all", (0, 12), "53"),
        ("the club", "The club, the club", (0, 18), "the club"),
        ("THE CLUB", "for The Club", (0, 12), "The Club"),
        ("a b", "x a\n b y", (0, 8), "a\n b"),
        ("C++ (1985)", "In C++ (1985).", (0, 14), "C++ (1985)"),
        ("東京", "彼は東京に住む", (0, 7), "東京"),
        ("Ada", "Ada and Ada", (4, 11), "Ada"),
        ("Ada", "Ada and Bea", (4, 11), None),
        ("Rome", "Paris", (0, 5), None),
    ],
)
def test_find_answer(answer, context, window, expected):
    span = find_answer(answer, context, window)
    assert (span and context[span[0] : span[1]]) == expected
    assert span is None or window[0] <= span[0] < span[1] <= window[1]


def test_the_answerer_imports_kedro_only_to_read_a_project():
    """import-linter lets this module import Kedro, and sees to what it imports itself."""
    module = ast.parse(Path(answerer_module.__file__).read_text(encoding="utf-8"))
    imported = [part.module for part in module.body if isinstance(part, ast.ImportFrom)]
    assert imported and not [name for name in imported if name.startswith("kedro")]


def test_importing_the_api_prints_nothing():
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-c", "from flan_qa_pipeline import QuestionAnswerer"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert (done.stdout, done.stderr) == ("", "")


def test_no_library_gets_code_of_the_hub_through_the_package_kernels(tmp_path):
    """On a CPU with AVX512_BF16, bitsandbytes calls `get_kernel` when it is imported."""
    (tmp_path / "kernels.py").write_text("def get_kernel(*_, **__): raise SystemExit('ran')")
    code = (
        "import importlib.util, flan_qa_pipeline, bitsandbytes, transformers.utils as utils; "
        "assert importlib.util.find_spec('kernels') is None; "
        "assert not utils.is_kernels_available()"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)  # noqa: S603


def test_importing_the_package_imports_no_model_library():
    code = (
        "import sys, flan_qa_pipeline; assert 'torch' not in sys.modules; "
        "assert set(flan_qa_pipeline.__all__) == {'Answer', 'QuestionAnswerer'}"
    )
    subprocess.run([sys.executable, "-c", code], check=True)  # noqa: S603
    import flan_qa_pipeline

    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        flan_qa_pipeline.nothing  # noqa: B018
