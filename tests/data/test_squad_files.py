"""SQuAD files read as they are used: the same as json.load reads, at any size of the pieces."""

import io
import json
import tracemalloc

import fsspec
import pandas as pd
import pyarrow as pa
import pytest
from datasets import DatasetDict
from hypothesis import example, given, settings
from hypothesis import strategies as st

from flan_qa_pipeline.data import json_stream
from flan_qa_pipeline.data.json_stream import read_items
from flan_qa_pipeline.data.squad import flatten
from flan_qa_pipeline.datasets.squad_file import SquadFileDataset
from flan_qa_pipeline.errors import InputError
from flan_qa_pipeline.pipelines.data_engineering.nodes import (
    apply_unanswerable_policy,
    flatten_questions,
    split_by_article,
    tokenize_questions,
)

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["data", "a"]) | st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=10,
)
documents = st.builds(
    json.dumps, json_values, ensure_ascii=st.booleans(), indent=st.sampled_from([None, 1])
)


def read(text, size):
    """All items and the rest, with the items in their place, as json.loads gives them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_stream, "CHUNK", size)
        items = read_items(io.StringIO(text), "data")
        found = []
        while True:
            try:
                found.append(next(items))
            except StopIteration as end:
                whole = end.value
                break
    if isinstance(whole, dict) and isinstance(whole.get("data"), list):
        whole["data"] = found
    return whole


@settings(max_examples=300)
@given(text=documents, size=st.integers(1, 40))
@example(text='{"data": [1234567, "\\ud83d\\ude00", "\\ud83d", -1.5e+10, {}], "b": [12]}', size=1)
@example(text=' { "data" : [ ] } ', size=3)
@example(text="1234567", size=2)
def test_pieces_are_read_as_json_reads_the_whole(text, size):
    assert ascii(read(text, size)) == ascii(json.loads(text))


@settings(max_examples=300)
@given(text=documents, cut=st.integers(0, 60), put=st.text("{}[],:\"\\ 1eu'", max_size=3))
def test_what_json_refuses_is_refused(text, cut, put):
    broken = text[:cut] + put + text[cut + 1 :]
    try:
        expected = json.loads(broken)
    except json.JSONDecodeError:
        with pytest.raises(ValueError, match=r"at line \d+ \(character \d+\)"):
            read(broken, 7)
    else:
        try:
            assert ascii(read(broken, 7)) == ascii(expected)
        except ValueError as error:
            assert "occurs twice" in str(error)


def test_the_place_of_an_error_is_told():
    text = '{"data": [\n' + '{"title": "x"},\n' * 500 + "oops]}"
    with pytest.raises(ValueError, match=rf"line 502 \(character {text.index('oops')}\)"):
        read(text, 100)


@pytest.fixture
def rows(corpus):
    return pd.DataFrame(flatten(corpus, "corpus")).drop(columns="is_impossible")


def test_json_parquet_and_a_folder_of_parquet_give_the_same_questions(corpus, rows, tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(corpus), encoding="utf-8-sig")
    rows.to_parquet(tmp_path / "b.parquet")
    folder = tmp_path / "c.parquet"
    folder.mkdir()
    for i in range(3):
        rows[i * 100 : (i + 1) * 100 if i < 2 else None].to_parquet(folder / f"part-{i}.parquet")
    (folder / "_SUCCESS").touch()
    read = [
        flatten_questions(SquadFileDataset(filepath=str(path)).load(), "x", "error")[0]
        for path in sorted(tmp_path.iterdir())
    ]
    expected = list(flatten_questions(corpus, "x", "error")[0])
    assert [list(questions) for questions in read] == [expected] * 3


def test_a_broken_parquet_file_is_named(rows, tmp_path):
    folder = tmp_path / "c.parquet"
    folder.mkdir()
    rows.to_parquet(folder / "0.parquet")
    (folder / "1.parquet").write_bytes((folder / "0.parquet").read_bytes()[:-5])
    raw = SquadFileDataset(filepath=str(folder)).load()
    with pytest.raises(InputError, match=r"c.parquet/1.parquet cannot be read: .*; repair it"):
        flatten_questions(raw, "x", "error")


def test_a_file_may_lie_on_another_filesystem(corpus):
    dataset = SquadFileDataset(filepath="memory:///squad/a.json")
    assert not dataset.exists()
    with fsspec.open("memory:///squad/a.json", "w") as file:
        json.dump(corpus, file)
    assert dataset.exists()
    assert len(flatten_questions(dataset.load(), "x", "error")[0]) > 100


def test_memory_grows_by_a_fraction_of_the_text(tmp_path, parameters):
    data = parameters.data
    context = "Town number {} has {} wells. " * 12

    def read(name, n):
        path = tmp_path / f"{n}_{name}.json"
        articles = [
            {
                "title": f"{name} {i}",
                "paragraphs": [
                    {
                        "context": context.format(*[name, i] * 12),
                        "qas": [
                            {
                                "id": f"{name} {i} {j}",
                                "question": f"How many wells has it in year {j}?",
                                "answers": [],
                                "is_impossible": True,
                            }
                            for j in range(5)
                        ],
                    }
                ],
            }
            for i in range(n // 5)
        ]
        path.write_text(json.dumps({"data": articles}), encoding="utf-8")
        return SquadFileDataset(filepath=str(path)).load()

    def peak(n):
        files = read("train", n), read("validation", n // 10)
        tracemalloc.start()
        arrow = pa.total_allocated_bytes()
        try:
            train, validation = (flatten_questions(raw, "x", "error")[0] for raw in files)
            splits = split_by_article(train, validation, data)
            splits = apply_unanswerable_policy(splits, data)
            windows = tokenize_questions(
                splits, parameters.model, parameters.prompt, parameters.tokenization, data
            )
            assert isinstance(windows, DatasetDict)
            assert len(windows["train"]) > 0.9 * n
            return tracemalloc.get_traced_memory()[1] + pa.total_allocated_bytes() - arrow
        finally:
            tracemalloc.stop()

    peak(500)
    assert peak(8000) - peak(2000) < 400 * 6000


def test_a_folder_without_files_of_questions_is_told(tmp_path):
    told = f"{tmp_path} holds no file of questions; it may end in .csv, .json, .jsonl, .parquet"
    with pytest.raises(InputError, match=told):
        flatten_questions(SquadFileDataset(filepath=str(tmp_path)).load(), "x", "error")
