"""Files of questions of every kind, to train on and to answer, and what fails in one sentence."""

import bz2
import gzip
import json
import lzma
import os
import zipfile

import fsspec
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict

from flan_qa_pipeline.config.parameters import TrainingColumns
from flan_qa_pipeline.data.question_files import QuestionFile
from flan_qa_pipeline.data.row_files import RowFiles
from flan_qa_pipeline.errors import InputError
from flan_qa_pipeline.pipelines.data_engineering.nodes import flatten_questions

CONTEXT = 'Ada, "the Countess"; lived in London.\tIn London she\nwrote — naïvely.'
ROWS = [
    {"id": "a", "title": "Ada", "context": CONTEXT, "question": "Where?", "answers": "London"},
    {"id": "b", "title": "Ada", "context": CONTEXT, "question": "Who; when?", "answers": ""},
    {"id": "c", "title": "Bea", "context": "Bea is 7.", "question": "How old?", "answers": "7"},
]
EXPECTED = [
    ("a", "Ada", {"text": ["London"], "answer_start": [CONTEXT.index("London")]}, False),
    ("b", "Ada", {"text": [], "answer_start": []}, True),
    ("c", "Bea", {"text": ["7"], "answer_start": [7]}, False),
]


def write(path, rows):
    """Write rows in the kind of file that the path's first ending says, compressed by the last."""
    frame = pd.DataFrame(rows)
    kind, *compression = path.suffixes[-2:] if len(path.suffixes) > 1 else path.suffixes
    if kind == ".parquet":
        frame.to_parquet(path)
        return path
    text = {
        ".csv": lambda: frame.to_csv(index=False),
        ".tsv": lambda: frame.to_csv(index=False, sep="\t"),
        ".json": lambda: json.dumps(rows),
        ".jsonl": lambda: "\n".join(map(json.dumps, rows)),
    }[kind]()
    if compression == [".zip"]:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(path.stem, text)
    else:
        opened = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open, "": open}
        with opened[(compression or [""])[0]](path, "wt", encoding="utf-8", newline="") as file:
            file.write(text)
    return path


def train(place, on_invalid="error", split=None, **columns):
    files = RowFiles(str(place), split)
    return flatten_questions(files, str(place), on_invalid, TrainingColumns(**columns))


def flat(questions):
    columns = ("id", "title", "answers", "is_impossible")
    return [tuple(row[column] for column in columns) for row in questions]


def asked(place, **columns):
    return pd.concat(QuestionFile(place, columns).chunks(2))[["id", "context", "question"]]


KINDS = [".csv", ".tsv", ".json", ".jsonl", ".parquet", ".csv.gz", ".json.gz", ".jsonl.xz",
         ".json.bz2", ".tsv.zip", ".CSV"]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_training_takes_what_inference_takes(tmp_path, kind):
    path = write(tmp_path / f"rows{kind.lower()}", ROWS)
    path = path.rename(tmp_path / f"own.v1{kind}")
    assert flat(train(path)[0]) == EXPECTED
    questions = asked(path)
    assert questions["id"].tolist() == ["a", "b", "c"]
    assert questions["context"].tolist() == [row["context"] for row in ROWS]
    assert questions["question"].tolist() == [row["question"] for row in ROWS]


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_the_delimiter_is_detected(tmp_path, delimiter, suffix):
    path = tmp_path / f"q{suffix}"
    frame = pd.DataFrame(ROWS).rename(columns={"context": " Context", "question": "QUESTION"})
    path.write_text(frame.to_csv(index=False, sep=delimiter), encoding="utf-8-sig")
    assert flat(train(path)[0]) == EXPECTED
    assert asked(path)["context"].tolist() == [row["context"] for row in ROWS]


@pytest.mark.parametrize("kind", [".csv", ".json", ".parquet"])
def test_columns_are_mapped_by_parameters(tmp_path, kind):
    names = {"context": "passage, whole", "question": "Query", "answers": "gold", "id": "key"}
    rows = pd.DataFrame(ROWS).rename(columns=names).assign(question="another").to_dict("records")
    path = write(tmp_path / f"q{kind}", rows)
    columns = names | {"question": "query"}
    assert flat(train(path, **columns)[0]) == EXPECTED
    del columns["answers"]
    assert asked(path, **columns)["question"].tolist() == [row["question"] for row in ROWS]


def test_a_column_that_is_not_there_or_could_be_two_is_named(tmp_path):
    path = write(tmp_path / "q.csv", [{"Context": "x", "CONTEXT": "y", "question": "z", "a": ""}])
    told = f"{path} has the columns 'Context' and 'CONTEXT'; .* data.columns.context=…"
    with pytest.raises(InputError, match=told):
        train(path, answers="a")
    told = f"{path} has no column answers, only .*--params=data.columns.answers=…"
    with pytest.raises(InputError, match=told):
        train(path, context="CONTEXT")
    assert asked(path, context="CONTEXT")["context"].tolist() == ["y"]
    with pytest.raises(InputError, match="has no column key, .*inference.columns.id=…"):
        asked(path, context="Context", id="key")


SHAPES = [
    ("London", [19]),
    (["London"], [19]),
    (["London", "lived in London"], [19, 10]),
    ({"text": ["London"], "answer_start": [19]}, [19]),
    ({"text": ["London"], "answer_start": [41]}, [41]),
    ({"text": ["London", "Ada"], "answer_start": [41, None]}, [41, 0]),
    ({"text": "London", "answer_start": 41}, [41]),
    ({"text": ["London"]}, [19]),
    ([{"text": "London", "answer_start": 41}], [41]),
    ([{"text": "London"}], [19]),
    ([], []),
    (None, []),
    ("", []),
]
TWICE = "Ada Byron lived in London; much later in London"


@pytest.mark.parametrize(("answers", "starts"), SHAPES)
@pytest.mark.parametrize("kind", [".jsonl", ".csv"])
def test_answers_have_many_shapes(tmp_path, answers, starts, kind):
    if kind == ".csv" and not isinstance(answers, str | None):
        answers = json.dumps(answers)
    row = {"context": TWICE, "question": "Where?", "answers": answers}
    [question] = train(write(tmp_path / f"q{kind}", [row]))[0]
    assert question["answers"]["answer_start"] == starts
    assert question["is_impossible"] == (not starts)
    for text, start in zip(*question["answers"].values(), strict=True):
        assert TWICE.startswith(text, start)


@pytest.mark.parametrize("start", [41, "41", [41], "[41]"])
def test_the_place_of_an_answer_may_be_a_column(tmp_path, start):
    row = {"context": TWICE, "question": "Where?", "answers": "London", "answer_start": start}
    [question] = train(write(tmp_path / "q.jsonl", [row]))[0]
    assert question["answers"] == {"text": ["London"], "answer_start": [41]}


def test_an_answer_that_looks_like_json_is_a_text(tmp_path):
    rows = [
        {"context": f"It is {text} here.", "question": "What?", "answers": text}
        for text in ("[1]", "{x}", "1843", "[citation needed]", '{"a": 1}', "null")
    ]
    questions, _ = train(write(tmp_path / "q.csv", rows))
    assert [row["answers"]["text"] for row in questions] == [[row["answers"]] for row in rows]


def test_an_answer_without_a_place_is_told_and_one_not_in_the_context_is_rejected(tmp_path, caplog):
    caplog.set_level("INFO")
    rows = [*ROWS, ROWS[0] | {"id": "d", "answers": "Paris"}]
    path = write(tmp_path / "q.jsonl", rows)
    told = f"{path}: question 'd': the answer 'Paris' does not stand in the context; give"
    with pytest.raises(InputError, match=told):
        train(path)
    questions, rejected = train(path, "skip")
    assert f"{path}: 2 answers without answer_start are placed where they first" in caplog.text
    assert questions["id"][:] == ["a", "b", "c"]
    assert rejected[["source", "id"]].to_numpy().tolist() == [[str(path), "d"]]


def test_rows_without_ids_and_titles_are_told_apart(tmp_path, caplog):
    rows = [{key: row[key] for key in ("context", "question", "answers")} for row in ROWS]
    first, again, other = (
        train(write(tmp_path / name, rows if name != "c.csv" else rows[1:]))[0]
        for name in ("a.csv", "a.csv", "c.csv")
    )
    assert len(set(first["id"])) == 3
    assert first["title"][0] == first["title"][1] != first["title"][2]
    assert list(first) == list(again)
    assert not set(first["id"]) & set(other["id"])
    assert [id_.rpartition(" ")[0] for id_ in first["id"]] == ["row 1", "row 2", "row 3"]


def test_an_id_may_be_a_number_and_is_impossible_may_be_given(tmp_path):
    rows = [row | {"id": i, "is_impossible": not row["answers"]} for i, row in enumerate(ROWS)]
    for kind in (".csv", ".jsonl", ".parquet"):
        questions, _ = train(write(tmp_path / f"q{kind}", rows))
        assert questions["id"][:] == ["0", "1", "2"]
        assert questions["is_impossible"][:] == [False, True, False]
    rows[0]["is_impossible"] = True
    with pytest.raises(InputError, match="'0': it is marked is_impossible but has answers"):
        train(write(tmp_path / "q.csv", rows))


def saved(path, splits):
    whole = DatasetDict({name: Dataset.from_list(rows) for name, rows in splits.items()})
    (whole if len(splits) > 1 else next(iter(whole.values()))).save_to_disk(path)
    return path


def test_a_folder_that_save_to_disk_made_is_read(tmp_path):
    rows = [row | {"answers": {"text": [row["answers"]]}} for row in ROWS if row["answers"]]
    one = saved(tmp_path / "one", {"train": rows})
    both = saved(tmp_path / "both", {"train": rows, "validation": rows[:1]})
    expected = [EXPECTED[0], EXPECTED[2]]
    assert flat(train(one)[0]) == flat(train(both, split="train")[0]) == expected
    assert flat(train(both, split="validation")[0]) == expected[:1]
    assert flat(train(both / "train")[0]) == expected
    assert asked(one)["id"].tolist() == ["a", "c"]
    with pytest.raises(InputError, match=f"holds the splits train, validation; .*{both}/train"):
        len(QuestionFile(both))


def test_a_damaged_folder_of_save_to_disk_is_named(tmp_path):
    place = saved(tmp_path / "one", {"train": [ROWS[0]]})
    [arrow] = place.glob("*.arrow")
    arrow.write_bytes(arrow.read_bytes()[:150])
    with pytest.raises(InputError, match=f"{place} cannot be read: "):
        train(place)
    (place / "state.json").write_text("{}")
    with pytest.raises(InputError, match=f"{place} cannot be read: its state.json or"):
        train(place)


def test_folders_globs_and_splits(tmp_path):
    parts = {"train-00000": ROWS[:2], "train-00001": ROWS[2:], "validation-00000": ROWS[1:2]}
    folder = tmp_path / "hub"
    (folder / "data").mkdir(parents=True)
    for name, rows in parts.items():
        write(folder / f"data/{name}-of-00002.parquet", rows)
    (folder / "README.md").write_text("---\n")
    (folder / "dataset_infos.json").write_text("{}")
    (folder / "data/_SUCCESS").touch()
    (folder / "data/.hidden.parquet").write_text("no")
    for place in (folder, folder / "data", f"{folder}/"):
        assert flat(train(place, split="train")[0]) == EXPECTED
        assert flat(train(place, split="validation")[0]) == EXPECTED[1:2]
    assert flat(train(folder / "data/train-*.parquet")[0]) == EXPECTED
    assert asked(folder / "data/train*")["id"].tolist() == ["a", "b", "c"]
    told = f"{folder} holds the splits train, validation; name one of them, such as .*/data/train"
    with pytest.raises(InputError, match=told):
        train(folder)
    (folder / "other").mkdir()
    write(folder / "other/train.parquet", ROWS)
    told = f"in several folders .data, other.; name one, such as {folder}/other"
    with pytest.raises(InputError, match=told):
        train(folder, split="train")


def test_a_message_names_the_part(tmp_path):
    write(tmp_path / "1.jsonl", ROWS)
    write(tmp_path / "2.jsonl", [ROWS[0] | {"id": "z", "context": None}])
    with pytest.raises(InputError, match=rf"{tmp_path} \(2.jsonl\) is not .*: line 1: .* context"):
        train(tmp_path)
    write(tmp_path / "3.csv", ROWS)
    with pytest.raises(InputError, match="several kinds of files .*csv, .jsonl.; .*/\\*.csv"):
        train(tmp_path)


def test_squad_in_either_version_compressed_and_in_parts(tmp_path):
    def file(name, *answers):
        qas = [{"id": name, "question": "Where?", "answers": list(answers)}]
        article = {"title": name, "paragraphs": [{"context": CONTEXT, "qas": qas}]}
        text = json.dumps({"version": "1.1", "data": [article]})
        (tmp_path / f"{name}.json.gz").write_bytes(gzip.compress(text.encode()))

    file("a", {"text": "London", "answer_start": CONTEXT.rindex("London")})
    file("b", {"text": "London"})
    questions, _ = train(tmp_path)
    assert [row["answers"]["answer_start"] for row in questions] == [
        [CONTEXT.rindex("London")],
        [CONTEXT.index("London")],
    ]
    assert asked(tmp_path)["id"].tolist() == ["a", "b"]
    assert train(tmp_path / "*.gz")[0]["id"][:] == ["a", "b"]


def test_questions_may_lie_on_another_filesystem():
    with fsspec.open("memory://own/q.csv.gz", "wt", compression="gzip") as file:
        file.write(pd.DataFrame(ROWS).to_csv(index=False))
    assert flat(train("memory://own/q.csv.gz")[0]) == EXPECTED
    assert asked("memory://own/*.gz")["id"].tolist() == ["a", "b", "c"]
    with pytest.raises(InputError, match="^nope://x.csv: .*nope; correct the URL"):
        train("nope://x.csv")


@pytest.mark.parametrize("name", ["q.xlsx", "q.txt", "q", "q.parquet.gz", "q.pkl", "q.gz"])
def test_a_kind_that_is_not_read_gets_those_that_are_with_an_example(tmp_path, name):
    path = tmp_path / name
    path.write_text("x")
    for read in (train, lambda place: len(QuestionFile(place))):
        with pytest.raises(InputError) as error:
            read(path)
        message, *example = str(error.value).splitlines()
        assert message.startswith(f"{path} is not a file of questions by its name; it may end in")
        for kind in (".csv", ".tsv", ".json", ".jsonl", ".parquet", ".gz", "save_to_disk"):
            assert kind in message
        assert len(example) == 2
    path = tmp_path / "example.jsonl"
    path.write_text("\n".join(example))
    assert train(path)[0]["is_impossible"][:] == [False, True]


@pytest.mark.parametrize("read", [train, lambda place: len(QuestionFile(place))])
@pytest.mark.parametrize("place", ["pipe.csv", "link.json", "folder", "*.parquet", "/dev/null"])
def test_a_pipe_or_device_is_refused_at_once(tmp_path, monkeypatch, read, place):
    os.mkfifo(tmp_path / "pipe.csv")
    (tmp_path / "link.json").symlink_to("pipe.csv")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "folder/1.jsonl")
    os.mkfifo(tmp_path / "x.parquet")
    with pytest.raises(InputError, match="neither a file nor a folder but a pipe or a device"):
        read(tmp_path / place)


@pytest.mark.parametrize("kind", [".csv", ".jsonl", ".json", ".csv.gz"])
@pytest.mark.parametrize("before", [10, 70_000, 3_000_000])
def test_the_place_of_a_bad_byte_is_counted_within_the_file(tmp_path, kind, before):
    lines = {
        ".csv": "context,question,answers\n" + f"{'é' * 20},q?,\n" * (before // 48),
        ".json": "[" + f'{{"context": "{"é" * 20}", "question": "q?", "answers": ""}},\n' * 2000,
        ".jsonl": f'{{"context": "{"é" * 20}", "question": "q?", "answers": ""}}\n' * 2000,
    }[kind.removesuffix(".gz")]
    content = lines.encode() + b"Ad\xe9"
    path = tmp_path / f"q{kind}"
    path.write_bytes(gzip.compress(content) if kind.endswith(".gz") else content)
    at, line = len(content) - 1, content.count(b"\n") + 1
    told = (
        rf"{path} cannot be read: byte 0xe9 at byte {at} \(line {line}\) is not UTF-8; save it as"
    )
    for read in (train, lambda place: len(QuestionFile(place))):
        with pytest.raises(InputError, match=told):
            read(path)


TABLE = pd.DataFrame(ROWS).to_csv(index=False)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (TABLE.encode("utf-16"), "is not UTF-8 but UTF-16; save it as UTF-8"),
        (TABLE.encode("utf-16-be"), "cannot be read"),
        (gzip.compress(TABLE.encode()), "is not UTF-8 but gzip; let its name end in .gz"),
        (
            TABLE.encode("cp1252"),
            r"byte 0x97 at byte \d+ \(line 3\) is not UTF-8; save it as",
        ),
    ],
    ids=["utf-16", "utf-16 without mark", "gzip", "windows"],
)
def test_another_encoding_is_named_with_the_remedy(tmp_path, content, told):
    path = tmp_path / "q.csv"
    path.write_bytes(content)
    for read in (train, lambda place: len(QuestionFile(place))):
        with pytest.raises(InputError, match=told):
            read(path)


@pytest.mark.parametrize("name", ["q.csv.gz", "q.json.xz", "q.jsonl.bz2", "q.csv.zip"])
def test_a_cut_or_false_compressed_file_is_named(tmp_path, name):
    path = write(tmp_path / name, ROWS * 50)
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], b"not compressed", b""):
        path.write_bytes(content)
        with pytest.raises(InputError, match=f"{path} (cannot be read|holds no)"):
            train(path)


def corrupt(path, at):
    content = bytearray(path.read_bytes())
    for i in range(40):
        content[at(len(content)) + i] ^= 0x5A
    path.write_bytes(content)


@pytest.mark.parametrize(
    "read", [train, lambda place: len(QuestionFile(place))], ids=["training", "inference"]
)
@pytest.mark.parametrize(
    "at",
    [lambda size: 60, lambda size: size - 400, lambda size: size - 48],
    ids=["page", "column index", "footer"],
)
def test_parquet_with_a_corrupt_page_or_footer_is_named(tmp_path, read, at):
    path = write(tmp_path / "q.parquet", ROWS * 200)
    pq.write_table(pq.read_table(path), path, write_page_checksum=True)
    corrupt(path, at)
    with pytest.raises(InputError, match=f"{path} cannot be read: .*; repair it"):
        read(path)


@pytest.mark.parametrize(
    "kind", [pa.timestamp("ms"), pa.timestamp("us"), pa.date64(), pa.time64("us")], ids=str
)
def test_times_out_of_range_are_named_with_their_column(tmp_path, kind):
    values = pa.array(np.array([2**61] * 3)).view(kind)
    path = tmp_path / "q.parquet"
    table = pa.Table.from_pylist(ROWS).drop_columns("id").append_column("id", values)
    pq.write_table(table, path)
    for read in (train, lambda place: len(QuestionFile(place))):
        with pytest.raises(InputError, match=f"{path} cannot be read: column id: "):
            read(path)
    path = tmp_path / "unread.parquet"
    pq.write_table(table.rename_columns(["title", "context", "question", "answers", "when"]), path)
    assert len(train(path)[0]) == 3


INVISIBLE = ["\u200b\u200d\ufeff", "\u3164", " \u2060\t", "\u0301", "\u2800"]


@pytest.mark.parametrize("text", INVISIBLE)
@pytest.mark.parametrize("field", ["context", "question", "answers"])
def test_what_cannot_be_seen_is_empty(tmp_path, field, text):
    row = ROWS[0] | {"context": CONTEXT + text, field: text}
    with pytest.raises(InputError, match="'a': .* empty"):
        train(write(tmp_path / "q.jsonl", [row]))


@pytest.mark.parametrize(
    ("field", "text", "told"),
    [
        ("id", "a\0b", "its id holds a NUL character; remove it"),
        ("title", "\0", "its title holds a NUL character"),
        ("id", "x" * 10**6, "its id has 1,000,000 characters; shorten it to 1,000 at most"),
        ("title", "x" * 10**6, "its title has 1,000,000 characters"),
    ],
)
def test_ids_and_titles_are_short_and_whole(tmp_path, field, text, told):
    path = write(tmp_path / "q.jsonl", [ROWS[0] | {field: text}, ROWS[2]])
    questions, rejected = train(path, "skip")
    assert questions["id"][:] == ["c"]
    assert rejected["problem"][0].startswith(told)
    with pytest.raises(InputError) as error:
        train(path)
    assert told in str(error.value)
    assert len(str(error.value)) < 500
