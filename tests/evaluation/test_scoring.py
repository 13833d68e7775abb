"""SQuAD 2.0 scoring: the functions, the `evaluate` module, and the official script's own numbers.

The module runs in a process of its own, since `evaluate` reads its cache folders and its offline
switches once, on import.
"""

import json
import os
import re
import string
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flan_qa_pipeline.evaluation import scoring

REPOSITORY = Path(__file__).resolve().parents[2]
MODULE_FOLDER = REPOSITORY / "src/flan_qa_pipeline/evaluation/squad_v2_scores"
SQUAD_V2_DIR = Path(os.environ.get("SQUAD_V2_DIR", REPOSITORY.parent / "shared/squad_v2"))

needs_squad_v2 = pytest.mark.skipif(
    not SQUAD_V2_DIR.is_dir(),
    reason=f"SQuAD 2.0 is not at {SQUAD_V2_DIR}; set SQUAD_V2_DIR to the folder that holds it",
)
moderate = settings(max_examples=150)


def read_json(name):
    return json.loads((SQUAD_V2_DIR / name).read_text(encoding="utf-8"))


def squad_questions():
    articles = read_json("validation.json")["data"]
    return [qa for article in articles for p in article["paragraphs"] for qa in p["qas"]]


def official_scores(predictions, references):
    """The official script's algorithm, stated a second time without the code under test."""

    def tokens(text):
        kept = "".join(char for char in text.lower() if char not in string.punctuation)
        return re.sub(r"\b(a|an|the)\b", " ", kept).split()

    def f1(gold, predicted):
        if not gold or not predicted:
            return int(gold == predicted)
        left, shared = list(gold), 0
        for token in predicted:
            if token in left:
                left.remove(token)
                shared += 1
        if shared == 0:
            return 0
        precision, recall = 1.0 * shared / len(predicted), 1.0 * shared / len(gold)
        return (2 * precision * recall) / (precision + recall)

    def percent(values):
        plain_sum = 0.0
        for value in values:
            plain_sum += value
        return 100.0 * plain_sum / len(values)

    exact_by_id, f1_by_id = {}, {}
    for key, answers in references.items():
        golds = [tokens(answer) for answer in answers if tokens(answer)] or [[]]
        predicted = tokens(predictions[key])
        exact_by_id[key] = max(int(gold == predicted) for gold in golds)
        f1_by_id[key] = max(f1(gold, predicted) for gold in golds)
    subsets = {
        "": list(references),
        "HasAns_": [key for key in references if references[key]],
        "NoAns_": [key for key in references if not references[key]],
    }
    scores = {}
    for prefix, keys in subsets.items():
        if keys:
            scores[f"{prefix}exact"] = percent([exact_by_id[key] for key in keys])
            scores[f"{prefix}f1"] = percent([f1_by_id[key] for key in keys])
            scores[f"{prefix}total"] = len(keys)
    return scores


# Functions


@pytest.mark.parametrize(
    ("text", "normalized"),
    [
        ("The  Amazon, a river!", "amazon river"),
        ("an\tanthem\nthe", "anthem"),
        ("U.S.A.", "usa"),
        ("a-the", "athe"),
        ("snake_case", "snakecase"),
        ("the a an", ""),
        ("?!...", ""),
        ("", ""),
        ("\u201cAmazon\u201d \u2014 river\u2026", "\u201camazon\u201d \u2014 river\u2026"),
        ("the\u00a0Amazon\u00a0river", "amazon river"),
        ("the\u200bAmazon", "\u200bamazon"),
        ("\u202b\u05e9\u05dc\u05d5\u05dd\u202c", "\u202b\u05e9\u05dc\u05d5\u05dd\u202c"),
        ("a\u00e9ro l'an", "a\u00e9ro lan"),
        ("\u201cthe\u201d", "\u201c \u201d"),
        ("a\u0301 x", "\u0301 x"),
        ("\uff0c x", "\uff0c x"),
    ],
)
def test_normalize_answer(text, normalized):
    assert scoring.normalize_answer(text) == normalized


@pytest.mark.parametrize(
    ("prediction_text", "answer", "exact", "f1"),
    [
        ("The Denver Broncos", "denver broncos", 1, 1.0),
        ("Denver Broncos team", "Denver Broncos", 0, 0.8),
        ("x x y", "x y y", 0, 2 / 3),
        ("y x", "x y", 0, 1.0),
        ("cat", "dog", 0, 0.0),
        ("", "", 1, 1.0),
        ("the", "...", 1, 1.0),
        ("", "cat", 0, 0.0),
        ("cat", "", 0, 0.0),
        ("\u201ccat\u201d", "cat", 0, 0.0),
        ("caf\u00e9", "cafe\u0301", 0, 0.0),
    ],
)
def test_exact_match_and_token_f1(prediction_text, answer, exact, f1):
    assert scoring.exact_match(prediction_text, answer) == exact
    assert scoring.token_f1(prediction_text, answer) == pytest.approx(f1, rel=1e-15)


@pytest.mark.parametrize(
    ("prediction_text", "answers", "expected"),
    [
        ("", [], (1, 1.0)),
        ("cat", [], (0, 0.0)),
        ("cat", ["dog", "cat", "cat"], (1, 1.0)),
        ("", ["the", "?"], (1, 1.0)),
        ("the", ["the", "cat"], (0, 0.0)),
        ("a", [], (1, 1.0)),
        ("\u200b", [], (0, 0.0)),
        ("\u00a0", [], (1, 1.0)),
    ],
)
def test_score_question(prediction_text, answers, expected):
    assert scoring.score_question(prediction_text, answers) == expected


def test_each_score_takes_its_own_best_answer():
    exact, f1 = scoring.score_question("red cat", ["cat", "red cat sat"])
    assert (exact, f1) == (0, scoring.token_f1("red cat", "red cat sat"))


def test_has_ans_goes_by_the_data_set_and_not_by_the_normalized_answers():
    scores = scoring.score_predictions({"q": "", "r": "cat"}, {"q": ["the"], "r": []})
    assert scores == {
        "exact": 50.0,
        "f1": 50.0,
        "total": 2,
        "HasAns_exact": 100.0,
        "HasAns_f1": 100.0,
        "HasAns_total": 1,
        "NoAns_exact": 0.0,
        "NoAns_f1": 0.0,
        "NoAns_total": 1,
    }


@pytest.mark.parametrize(("answers", "absent"), [(["cat"], "NoAns_"), ([], "HasAns_")])
def test_keys_of_an_empty_subset_are_left_out(answers, absent):
    scores = scoring.score_predictions({"q": "cat"}, {"q": answers})
    assert len(scores) == 6
    assert not any(key.startswith(absent) for key in scores)


def test_per_question_scores_follow_the_references():
    scores = scoring.per_question_scores({"r": "", "q": "cat"}, {"q": ["cat sat"], "r": []})
    assert list(scores.items()) == [("q", (0, pytest.approx(2 / 3))), ("r", (1, 1.0))]


# Errors


def numbered(count):
    return {f"q{number}": "" for number in range(count)}


@pytest.mark.parametrize(
    ("predictions", "references", "message"),
    [
        (
            {},
            {"q": ["cat"]},
            "1 of 1 reference questions have no prediction (ids 'q'); "
            "predict each of them, with the empty string to abstain.",
        ),
        (
            {"q0": ""},
            dict.fromkeys(numbered(9), []),
            "8 of 9 reference questions have no prediction "
            "(ids 'q1', 'q2', 'q3', 'q4', 'q5', ...); "
            "predict each of them, with the empty string to abstain.",
        ),
        (
            numbered(3),
            {"q0": []},
            "2 of 3 predictions are for ids that are not among the references "
            "(ids 'q1', 'q2'); leave them out or add their reference questions.",
        ),
        ({}, {}, "There are no reference questions to score; give at least one."),
        ({"q": ""}, {}, "There are no reference questions to score; give at least one."),
    ],
)
def test_ids_that_differ_are_a_value_error(predictions, references, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        scoring.score_predictions(predictions, references)


@pytest.mark.parametrize("prediction_text", [None, 3, 0.5, b"cat", ["cat"]])
def test_a_prediction_that_is_no_string_is_a_type_error(prediction_text):
    with pytest.raises(TypeError, match="The prediction for question 'r' is of type"):
        scoring.score_predictions({"q": "", "r": prediction_text}, {"q": [], "r": []})


@pytest.mark.parametrize("answers", ["cat", None, ("cat",), ["cat", None], [1]])
def test_answers_that_are_no_list_of_strings_are_a_type_error(answers):
    with pytest.raises(TypeError, match="The answers to question 'r' are not a list of str"):
        scoring.score_predictions({"q": "", "r": ""}, {"q": [], "r": answers})


def test_an_id_that_comes_twice_is_a_value_error():
    assert scoring.unique_by_id([("q", 1), ("r", 2)], "predictions") == {"q": 1, "r": 2}
    with pytest.raises(
        ValueError,
        match=r"^2 question ids come more than once among the predictions \(ids 'q', 'r'\); keep",
    ):
        scoring.unique_by_id([("q", 1), ("r", 2), ("s", 3), ("r", 2), ("q", 1)], "predictions")


def test_no_scores_to_aggregate_is_a_value_error():
    with pytest.raises(ValueError, match="no question scores to average; give at least one"):
        scoring.aggregate_scores([])


# Properties

TOKENS = ["a", "The", "an", "cat", "CAT", "cat's", "sat", "...", "-", "\u00a0", "\u200b", "\u201d"]
joined = st.builds(
    str.join, st.sampled_from(["", " "]), st.lists(st.sampled_from(TOKENS), max_size=5)
)
texts = joined | st.text(max_size=12)
answer_lists = st.lists(texts, max_size=4)
question_sets = st.dictionaries(
    st.text(min_size=1, max_size=4), st.tuples(texts, answer_lists), min_size=1, max_size=8
)


def split_questions(questions):
    predictions = {key: prediction_text for key, (prediction_text, _) in questions.items()}
    return predictions, {key: answers for key, (_, answers) in questions.items()}


@moderate
@given(question_sets)
def test_scores_equal_the_restated_official_ones(questions):
    predictions, references = split_questions(questions)
    scores = scoring.score_predictions(predictions, references)
    assert scores == official_scores(predictions, references)


@moderate
@given(question_sets)
def test_scores_are_bounded_and_exact_is_at_most_f1(questions):
    predictions, references = split_questions(questions)
    for exact, f1 in scoring.per_question_scores(predictions, references).values():
        assert exact in (0, 1)
        assert exact <= f1 <= 1
    scores = scoring.score_predictions(predictions, references)
    for prefix in {key.removesuffix("total") for key in scores if key.endswith("total")}:
        assert 0 <= scores[f"{prefix}exact"] <= scores[f"{prefix}f1"] <= 100
    subset_totals = [scores.get(f"{subset}_total", 0) for subset in ("HasAns", "NoAns")]
    assert sum(subset_totals) == scores["total"] == len(questions)


@moderate
@given(question_sets, st.randoms(use_true_random=False))
def test_the_order_of_questions_does_not_matter(questions, random):
    predictions, references = split_questions(questions)
    shuffled = list(questions.items())
    random.shuffle(shuffled)
    other_predictions, other_references = split_questions(dict(shuffled))
    scores = scoring.score_predictions(predictions, references)
    assert scoring.score_predictions(other_predictions, references) == scores
    assert scoring.score_predictions(other_predictions, other_references) == pytest.approx(
        scores, rel=1e-12
    )


@moderate
@given(texts, answer_lists, st.randoms(use_true_random=False))
def test_order_and_repetition_of_answers_do_not_matter(prediction_text, answers, random):
    shuffled = answers + answers[:2]
    random.shuffle(shuffled)
    assert scoring.score_question(prediction_text, shuffled) == scoring.score_question(
        prediction_text, answers
    )


@moderate
@given(answer_lists)
def test_each_gold_answer_scores_one(answers):
    for gold in scoring.gold_answers(answers):
        assert scoring.score_question(gold, answers) == (1, 1.0)


# The `evaluate` module

COMPUTE_WITHOUT_NETWORK = """
import json, socket, sys, warnings

attempts = []

def refuse(*args, **kwargs):
    attempts.append(repr(args[1:]))
    raise OSError("no network in this test")

socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = refuse

import evaluate

def compute(predictions, references):
    try:
        return metric.compute(predictions=predictions, references=references)
    except (TypeError, ValueError) as error:
        return f"{type(error).__name__}: {error}"

with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    metric = evaluate.load(sys.argv[1])
    outcomes = {name: compute(*rows) for name, rows in json.load(sys.stdin).items()}
messages = [str(warning.message) for warning in caught]
json.dump({"outcomes": outcomes, "attempts": attempts, "warnings": messages}, sys.stdout)
"""


def compute_without_network(hf_home, cases, offline):
    """What the module answers to each case, in a process without network and with empty caches."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    paths = os.pathsep.join([str(REPOSITORY / "src"), *filter(None, sys.path)])
    environment |= {"HF_HOME": str(hf_home), "PYTHONPATH": paths}
    if offline:
        environment |= {"HF_HUB_OFFLINE": "1", "HF_EVALUATE_OFFLINE": "1"}
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-c", COMPUTE_WITHOUT_NETWORK, str(MODULE_FOLDER)],
        input=json.dumps(cases),
        cwd=hf_home,
        env=environment,
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    report = json.loads(done.stdout)
    assert report["attempts"] == []
    assert report["warnings"] == []
    return report["outcomes"]


def prediction(question_id, prediction_text):
    return {"id": question_id, "prediction_text": prediction_text}


def reference(question_id, *answers):
    columns = {"text": list(answers), "answer_start": [0] * len(answers)}
    return {"id": question_id, "answers": columns}


def official_reference(question_id, *answers):
    rows = [{"text": answer, "answer_start": 0} for answer in answers]
    return {"id": question_id, "answers": rows}


TWO_PREDICTIONS = [prediction("q", "The cat"), prediction("r", "")]
TWO_REFERENCES = [reference("r"), reference("q", "cat sat", "dog")]
TWO_SCORES = scoring.score_predictions({"q": "The cat", "r": ""}, {"r": [], "q": ["cat sat"]})
ONE = [reference("q", "cat")]
CASES = {
    "columns": (TWO_PREDICTIONS, TWO_REFERENCES),
    "official json": (
        TWO_PREDICTIONS,
        [official_reference("r"), official_reference("q", "cat sat", "dog")],
    ),
    "further fields": (
        [row | {"no_answer_probability": 0.5} for row in TWO_PREDICTIONS],
        [row | {"title": "Cats", "context": "A cat sat."} for row in TWO_REFERENCES],
    ),
    "hostile text": ([prediction("q", "\u202b\u200b\u00a0\0")], [reference("q", "\u200b\0")]),
    "nothing": ([], []),
    "other id": ([prediction("s", "cat")], ONE),
    "repeated prediction": ([prediction("q", "cat")] * 2, TWO_REFERENCES),
    "repeated reference": (TWO_PREDICTIONS, ONE * 2),
    "fewer predictions": (TWO_PREDICTIONS[:1], TWO_REFERENCES),
    "number as text": ([prediction("r", ""), prediction("q", 3)], TWO_REFERENCES),
    "string for answers": (
        [prediction("q", "cat")],
        [{"id": "q", "answers": {"text": "cat", "answer_start": [0]}}],
    ),
    "no answers": ([prediction("q", "cat")], [{"id": "q", "answers": None}]),
    "no prediction text": ([{"id": "q"}], ONE),
    "columns after errors": (TWO_PREDICTIONS, TWO_REFERENCES),
}
SCORED = ["columns", "official json", "further fields", "columns after errors"]
ERRORS = {
    "nothing": "ValueError: There are no reference questions to score",
    "other id": "ValueError: 1 of 1 reference questions have no prediction (ids 'q')",
    "repeated prediction": "ValueError: 1 question ids come more than once among the predictions",
    "repeated reference": "ValueError: 1 question ids come more than once among the references",
    "fewer predictions": "ValueError: Mismatch in the number of predictions (1) and references (2)",
    "number as text": "TypeError: The prediction for question 'q' is of type int, not str",
    "string for answers": "TypeError: The answers to question 'q' are not a list of str",
    "no answers": "ValueError: None lacks text and answer_start",
    "no prediction text": "ValueError: {'id': 'q'} lacks prediction_text",
}


@pytest.fixture(scope="module")
def module_outcomes(tmp_path_factory):
    return compute_without_network(tmp_path_factory.mktemp("hf_home"), CASES, offline=True)


@pytest.mark.parametrize("case", SCORED)
def test_module_scores_like_score_predictions(module_outcomes, case):
    assert module_outcomes[case] == TWO_SCORES


def test_module_keeps_hostile_text_as_it_is(module_outcomes):
    expected = scoring.score_predictions({"q": "\u202b\u200b\u00a0\0"}, {"q": ["\u200b\0"]})
    assert module_outcomes["hostile text"] == expected


@pytest.mark.parametrize("case", ERRORS)
def test_module_errors(module_outcomes, case):
    assert module_outcomes[case].startswith(ERRORS[case])


# The official script's own numbers


@needs_squad_v2
def test_score_predictions_gives_the_official_scores():
    references = {qa["id"]: [a["text"] for a in qa["answers"]] for qa in squad_questions()}
    scores = scoring.score_predictions(read_json("bert_predictions_validation.json"), references)
    assert scores == read_json("bert_official_scores_validation.json")


@needs_squad_v2
def test_module_gives_the_official_scores_without_offline_switches(tmp_path):
    predictions = read_json("bert_predictions_validation.json")
    rows = [prediction(key, text) for key, text in predictions.items()]
    outcomes = compute_without_network(tmp_path, {"bert": (rows, squad_questions())}, offline=False)
    assert outcomes["bert"] == read_json("bert_official_scores_validation.json")
