"""Reading SQuAD 2.0: the official schema, squad_v2-shaped datasets, and every way to be wrong."""

import copy
import json

import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from flan_qa_pipeline.data.squad import (
    CHECKED_QUESTION_FEATURES,
    check,
    flatten,
    split_titles,
)
from flan_qa_pipeline.data.texts import has_text, normalized
from flan_qa_pipeline.errors import InputError
from flan_qa_pipeline.pipelines.data_engineering.nodes import flatten_questions

CONTEXT = "Ada wrote notes in 1843. Ada lived in London."
RAW = {
    "version": "v2.0",
    "data": [
        {
            "title": "Ada",
            "paragraphs": [
                {
                    "context": CONTEXT,
                    "qas": [
                        {
                            "id": "q1",
                            "question": "When?",
                            "is_impossible": False,
                            "answers": [
                                {"text": "1843", "answer_start": 19},
                                {"text": "in 1843", "answer_start": 16},
                            ],
                        },
                        {
                            "id": "q2",
                            "question": "Who was her dentist?",
                            "is_impossible": True,
                            "answers": [],
                            "plausible_answers": [{"text": "Ada", "answer_start": 0}],
                        },
                    ],
                }
            ],
        }
    ],
}
FIRST = ("data", 0, "paragraphs", 0, "qas", 0)
SECOND = ("data", 0, "paragraphs", 0, "qas", 1)
PARAGRAPH = FIRST[:4]


GONE = object()


def changed(*changes):
    """Copy RAW with (path, key, value) set, or without the key where the value is GONE."""
    raw = copy.deepcopy(RAW)
    for path, key, value in changes:
        place = raw
        for part in path:
            place = place[part]
        if value is GONE:
            del place[key]
        else:
            place[key] = value
    return raw


def answer(text, start):
    return [{"text": text, "answer_start": start}]


def test_flatten_gives_one_flat_record_per_question():
    first, second = flatten(RAW, "a.json")
    assert first == {
        "id": "q1",
        "title": "Ada",
        "context": CONTEXT,
        "question": "When?",
        "answers": {"text": ["1843", "in 1843"], "answer_start": [19, 16]},
        "is_impossible": False,
    }
    assert second["is_impossible"] is True
    assert second["answers"] == {"text": [], "answer_start": []}


def test_json_and_squad_v2_shaped_dataset_give_the_same_questions():
    from_json = flatten_questions(RAW, "a.json", "error")[0]
    rows = from_json.remove_columns("is_impossible")
    assert from_json.features == CHECKED_QUESTION_FEATURES
    assert list(flatten_questions(rows, "squad_v2", "error")[0]) == list(from_json)


@pytest.mark.parametrize(
    ("raw", "place", "reason"),
    [
        (changed((FIRST, "question", 5)), "data.0.paragraphs.0.qas.0.question", "valid string"),
        (changed((FIRST, "id", 5)), "data.0.paragraphs.0.qas.0.id", "valid string"),
        (
            changed((SECOND, "is_impossible", "no")),
            "data.0.paragraphs.0.qas.1.is_impossible",
            "valid boolean",
        ),
        (
            changed((FIRST, "answers", answer("1843", "19"))),
            "data.0.paragraphs.0.qas.0.answers.0.answer_start",
            "valid integer",
        ),
        (changed((FIRST, "answers", GONE)), "data.0.paragraphs.0.qas.0.answers", "required"),
        (changed((PARAGRAPH, "context", GONE)), "data.0.paragraphs.0.context", "required"),
        (changed((PARAGRAPH[:2], "title", GONE)), "data.0.title", "required"),
        (changed(((), "data", {"title": "x"})), "data", "valid list"),
        ({"articles": []}, "data", "required"),
        ([RAW], "the top level", "dictionary"),
    ],
)
def test_input_outside_the_schema_is_named(raw, place, reason):
    with pytest.raises(InputError) as error:
        flatten_questions(raw, "folder/a.json", "error")[0]
    message = str(error.value)
    assert message.startswith("folder/a.json is not SQuAD 2.0 JSON: ")
    assert f" at {place};" in message
    assert reason in message
    assert "the schema is data[].paragraphs[].qas[]" in message
    assert ("data.on_invalid=skip" in message) == place.startswith("data.0.")


def test_number_of_further_bad_places_is_told():
    raw = changed((FIRST, "id", 5), (SECOND, "id", 6))
    with pytest.raises(InputError, match=r"qas\.0\.id \(and at 1 more places\);"):
        list(flatten(raw, "a.json"))


@pytest.mark.parametrize(
    ("raw", "record", "problem", "remedy"),
    [
        (
            changed((FIRST, "answers", answer("1843", 18))),
            "q1",
            "answer_start 18 points at ' 184', not at the answer '1843'",
            "correct the offset",
        ),
        (changed((FIRST, "answers", answer("1843", -1))), "q1", "answer_start -1", "correct"),
        (
            changed((FIRST, "answers", answer("Lond", -7))),
            "q1",
            "answer_start -7 points at ''",
            "correct the offset",
        ),
        (changed((FIRST, "answers", answer("1843", 900))), "q1", "answer_start 900", "correct"),
        (changed((FIRST, "answers", answer(" ", 3))), "q1", "an answer is empty", "remove it"),
        (changed((PARAGRAPH, "context", "")), "q1", "context is empty", "restore its text"),
        (changed((PARAGRAPH, "context", " \n\t")), "q1", "context is empty", "restore its text"),
        (changed((SECOND, "question", "  ")), "q2", "question is empty", "restore its text"),
        (changed((SECOND, "id", "q1")), "q1", "more than once", "a unique id"),
        (
            changed((SECOND, "answers", answer("Ada", 0))),
            "q2",
            "marked is_impossible but has answers",
            "clear one of the two",
        ),
        (changed((FIRST, "answers", [])), "q1", "has no answers", "add one or mark it"),
        (changed((SECOND, "is_impossible", GONE)), "q2", "has no answers", "mark it is_impossible"),
    ],
)
def test_bad_record_is_named_with_file_and_remedy(raw, record, problem, remedy):
    with pytest.raises(InputError) as error:
        flatten_questions(raw, "folder/a.json", "error")[0]
    message = str(error.value)
    assert message.startswith(f"folder/a.json: question '{record}': ")
    assert problem in message
    assert remedy in message
    assert message.endswith("; --params=data.on_invalid=skip leaves invalid records out.")


@pytest.mark.parametrize("raw", [{"data": []}, {"data": [{"title": "x", "paragraphs": []}]}])
def test_file_without_questions_is_refused(raw):
    with pytest.raises(InputError, match="a.json holds no questions; give a file with"):
        flatten_questions(raw, "a.json", "error")[0]


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"context": None}, "row 1: Input should be a valid string at context"),
        ({"answers": {"start": ["x"]}}, "row 1: Field required at answers.text"),
        ({"title": 3}, "row 1: Input should be a valid string at title"),
    ],
)
def test_dataset_of_another_shape_is_refused(change, place):
    good = next(flatten(RAW, "a.json"))
    with pytest.raises(InputError) as error:
        flatten_questions(Dataset.from_list([good | change]), "the hub", "error")[0]
    assert place in str(error.value)
    assert str(error.value).startswith("the hub is not shaped like squad_v2: ")
    assert "the columns are id, title, context" in str(error.value)
    assert "data.on_invalid=skip" in str(error.value)


def test_dataset_without_a_column_is_refused():
    rows = flatten_questions(RAW, "a.json", "error")[0].remove_columns("answers")
    with pytest.raises(InputError, match="the hub has no column answers, only id, title, context"):
        flatten_questions(rows, "the hub", "error")[0]


def test_dataset_with_uneven_answer_lists_is_refused():
    record = next(flatten(RAW, "a.json")) | {"answers": {"text": ["1843"], "answer_start": []}}
    with pytest.raises(InputError, match="'q1': it has 1 answer texts but 0 answer_starts; give"):
        flatten_questions(Dataset.from_list([record]), "the hub", "error")[0]


words = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)


@st.composite
def valid_records(draw):
    parts = draw(st.lists(words, min_size=1, max_size=6))
    context = " ".join(parts) + "."
    spans = draw(
        st.lists(
            st.tuples(st.integers(0, len(context) - 1), st.integers(1, 20)).filter(
                lambda span: has_text(context[span[0] : sum(span)])
            ),
            max_size=3,
        )
    )
    return {
        "id": draw(st.uuids()).hex,
        "title": "x",
        "context": context,
        "question": "Which?",
        "answers": {
            "text": [context[start : start + length] for start, length in spans],
            "answer_start": [start for start, _ in spans],
        },
        "is_impossible": not spans,
    }


@settings(max_examples=100)
@given(record=valid_records())
def test_offsets_cut_from_the_context_always_pass(record):
    list(check([record], "generated"))


@settings(max_examples=100)
@given(record=valid_records(), shift=st.integers(-30, 30))
def test_offset_passes_only_where_the_text_stands(record, shift):
    texts, starts = record["answers"]["text"], record["answers"]["answer_start"]
    if not starts:
        return
    starts[0] += shift
    stands = starts[0] >= 0 and record["context"].startswith(texts[0], starts[0])
    if stands:
        list(check([record], "generated"))
    else:
        with pytest.raises(InputError, match="answer_start"):
            list(check([record], "generated"))


@given(text=st.text(st.characters(codec="ascii")))
def test_ascii_is_normalized_as_other_text(text):
    assert normalized(text) == normalized(text + "\u200b")  # a zero-width space


@settings(max_examples=100)
@given(
    titles=st.lists(st.text(max_size=3), min_size=1, max_size=40),
    fraction=st.floats(0, 1, exclude_max=True),
    seed=st.integers(0, 99),
)
def test_split_titles_picks_the_fraction_whatever_the_order(titles, fraction, seed):
    picked = split_titles(titles, fraction, seed)
    count = len(set(titles))
    assert picked <= set(titles)
    assert len(picked) == (max(1, round(count * fraction)) if fraction else 0)
    assert picked == split_titles(reversed(titles), fraction, seed)


@pytest.mark.parametrize(
    ("name", "questions", "unanswerable", "articles"),
    [("train.json", 4376, 2302, 15), ("validation.json", 3751, 1750, 10)],
)
def test_real_squad_v2(squad_v2_dir, name, questions, unanswerable, articles):
    raw = json.loads((squad_v2_dir / name).read_text(encoding="utf-8"))
    flat = flatten_questions(raw, name, "error")[0]
    assert len(flat) == questions
    assert sum(flat["is_impossible"]) == unanswerable
    assert len(set(flat["title"])) == articles
