"""Files of questions in, files of answers out, and `kedro ask`, in a copy of the project."""

import json
import logging
import os
import shutil
import socket
import tracemalloc

import click
import pandas as pd
import pytest
import rich
import torch
from click.testing import CliRunner
from conftest import REPOSITORY, copy_project
from kedro.framework.cli.cli import KedroCLI
from kedro.framework.session import KedroSession
from kedro.framework.startup import bootstrap_project
from kedro.io import DatasetError
from kedro.io.core import Version
from kedro.logging import RichHandler

import flan_qa_pipeline.cli
from flan_qa_pipeline import QuestionAnswerer
from flan_qa_pipeline.cli import ask, promote, serve
from flan_qa_pipeline.data.question_files import QuestionFile
from flan_qa_pipeline.datasets.adapter import AdapterDataset
from flan_qa_pipeline.datasets.question_file import GrowingCSVDataset, TextCSVDataset
from flan_qa_pipeline.errors import InputError
from flan_qa_pipeline.models.adapter import extract_adapter, provenance_of
from flan_qa_pipeline.models.loading import load_base_model
from flan_qa_pipeline.pipelines.inference.nodes import answer_questions
from flan_qa_pipeline.pipelines.modeling.nodes import attach_lora

FIRST, SECOND = "2026-01-01T00.00.00.000Z", "2026-01-02T00.00.00.000Z"
QUESTIONS = [
    {"id": "a", "context": "Ada was born in London.", "question": "Where was Ada born?"},
    {"id": "b", "context": "", "question": "Who was it?"},
    {"id": "c", "context": 'He said "NA",\nthen left.', "question": "Who left?"},
    {"id": "d", "context": "Ada was born in London.", "question": None},
    {"id": None, "context": "Bea is 7.", "question": "How old is Bea? " * 60},
    {"id": "f", "context": "Bea is 7 years old.", "question": "How old is Bea?"},
]
ERRORS = [None, "The context is empty", None, "The question is", "The question takes", None]


@pytest.fixture(scope="module")
def project(tmp_path_factory, parameters, lora, tokenizer):
    """A copy of the project with two versions of an adapter on the tiny base."""
    root = tmp_path_factory.mktemp("project")
    copy_project(root)
    tiny = parameters.model.model_copy(update={"compute_dtype": "float32", "load_in_4bit": False})
    provenance = provenance_of(
        tiny,
        parameters.prompt,
        tokenization=parameters.tokenization,
        generation=parameters.generation,
    )
    model = attach_lora(load_base_model(tiny), lora, parameters.training)
    for version in (FIRST, SECOND):
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if "lora_B" in name:  # a GPU draws other numbers
                    weight.copy_(torch.empty(weight.shape).normal_(std=0.1))
        AdapterDataset(
            filepath=str(root / "data/06_models/adapter"), version=Version(None, version)
        ).save(extract_adapter(model, tokenizer, provenance, {}))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        yield root


@pytest.fixture(scope="module")
def metadata(project):
    return bootstrap_project(project)


def write(path, rows):
    frame = pd.DataFrame(rows).dropna(axis="columns", how="all")
    if path.suffix == ".csv":
        frame.to_csv(path, index=False)
    elif path.suffix == ".parquet":
        frame.to_parquet(path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(f"{json.dumps(row)}\n\n" for row in rows), encoding="utf-8")
    else:
        path.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    return path


def infer(project, path, load_versions=None, **changes):
    """Run the pipeline as `kedro run` does; return the answers through the catalog."""
    own = {"inference": {"questions_file": str(path), "chunk_size": 4} | changes}
    own |= {"generation": {"max_new_tokens": 6}, "model": {"compute_dtype": "float32"}}
    with KedroSession.create(project, runtime_params=own) as session:
        session.run(pipeline_names=["inference"], load_versions=load_versions)
        return session.load_context().catalog.load("answers", version=session.session_id)


@pytest.fixture(scope="module")
def answers(project, metadata, tmp_path_factory):
    return infer(project, write(tmp_path_factory.mktemp("files") / "questions.csv", QUESTIONS))


def test_every_row_is_kept_in_order_and_a_bad_one_says_why(answers):
    assert answers["id"].tolist() == ["a", "b", "c", "d", "5", "f"]
    for error, expected in zip(answers["error"], ERRORS, strict=True):
        assert (error if isinstance(error, str) else "").startswith(expected or "")
        assert isinstance(error, str) == bool(expected)
    bad = answers["error"].notna()
    assert answers.loc[bad, ["answer", "score", "abstained", "start", "end"]].isna().all(axis=None)
    good = answers[~bad]
    assert good["score"].between(0, 1).all()
    assert good["abstained"].notna().all()
    assert good["context"].tolist() == [QUESTIONS[i]["context"] for i in (0, 2, 5)]


def test_answers_are_those_of_the_python_api(answers, project, metadata):
    answerer = QuestionAnswerer.from_project(
        project,
        runtime_params={
            "generation": {"max_new_tokens": 6},
            "model": {"compute_dtype": "float32"},
        },
    )
    pairs = [(QUESTIONS[i]["context"], QUESTIONS[i]["question"]) for i in (0, 2, 5)]
    good = answers[answers["error"].isna()]
    for row, answer in zip(good.to_dict("records"), answerer.answer(pairs), strict=True):
        assert (row["answer"] if isinstance(row["answer"], str) else "") == answer.text
        assert row["score"] == pytest.approx(answer.score, rel=1e-4)
        assert row["abstained"] == answer.abstained
        assert (None if pd.isna(row["start"]) else row["start"]) == answer.start


@pytest.mark.parametrize("kind", [".json", ".jsonl", ".parquet"])
def test_other_files_give_the_same_answers(answers, project, tmp_path, kind):
    again = infer(project, write(tmp_path / f"questions{kind}", QUESTIONS))
    columns = ["id", "question", "answer", "abstained", "start", "end"]
    for column in columns:
        ours, expected = (
            [None if pd.isna(value) else value for value in frame[column]]
            for frame in (again, answers)
        )
        assert ours == expected
    assert again["error"].isna().tolist() == answers["error"].isna().tolist()


def test_latest_adapter_answers_unless_a_version_is_pinned(answers, project, tmp_path):
    path = write(tmp_path / "questions.csv", QUESTIONS)
    latest, first = (infer(project, path, {"adapter": version}) for version in (SECOND, FIRST))
    pd.testing.assert_frame_equal(latest, answers)
    assert not first["score"].equals(answers["score"])


def test_a_threshold_in_the_parameters_decides(project, tmp_path):
    path = write(tmp_path / "questions.csv", QUESTIONS)
    assert infer(project, path, no_answer_threshold=0.0)["abstained"].dropna().all()
    assert not infer(project, path, no_answer_threshold=1.0)["abstained"].dropna().any()


def test_chunks_are_answered_one_at_a_time(project, metadata, tmp_path, parameters, monkeypatch):
    path = write(tmp_path / "questions.csv", QUESTIONS[:1] * 7)
    answerer = QuestionAnswerer.from_project(project)
    sizes = []
    answer = answerer.answer
    monkeypatch.setattr(answerer, "answer", lambda pairs: sizes.append(len(pairs)) or answer(pairs))
    inference = parameters.inference.model_copy(update={"chunk_size": 3})
    chunks = answer_questions(answerer, QuestionFile(path), inference)
    assert sizes == []
    assert len(next(chunks)) == 3
    assert sizes == [3]
    assert [len(chunk) for chunk in chunks] == [3, 1]
    assert sizes == [3, 3, 1]


@pytest.mark.parametrize("kind", [".csv", ".json", ".jsonl", ".parquet"])
def test_memory_does_not_grow_with_the_file(tmp_path, kind):
    def peak(n):
        rows = [{"context": f"Town {i} has {i} wells." * 9, "question": "?"} for i in range(n)]
        questions = QuestionFile(write(tmp_path / f"{n}{kind}", rows))
        del rows
        tracemalloc.start()
        try:
            assert len(questions) == n
            chunks = questions.chunks(100)
            assert sum(len(chunk) for chunk in chunks) == n
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(3000)
    assert peak(12000) < 1.2 * peak(3000)


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("q.csv", "id,text,question\n1,a,b\n", "has no column context, only id, text, question"),
        ("q.csv", "a,b\n1,2\n", "no column context and no column question"),
        ("q.csv", "context,question\nx,y\nx,y,z\n", "Expected 2 fields in line 3, saw 3"),
        ("q.csv", "context,question\n", "holds no questions"),
        ("q.csv", "", "cannot be read: No columns"),
        ("q.json", '[{"context": "x", ', "cannot be read"),
        ("q.json", '["x"]', "item 1 is no object with context and question but 'x'"),
        ("q.json", "[]", "holds no questions"),
        ("q.jsonl", '{"context": "x"}\n{oops}\n', "line 2: Expecting property name"),
        ("q.parquet", "no parquet", "cannot be read: Parquet magic bytes not found"),
        ("q.xlsx", "", r"may end in \.csv, \.json, \.jsonl, \.parquet"),
    ],
)
def test_a_broken_file_is_named_before_anything_is_answered(tmp_path, name, content, complaint):
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=complaint) as caught:
        len(QuestionFile(path))
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("kind", [".json", ".jsonl"])
def test_half_a_surrogate_pair_is_the_rows_error(project, metadata, tmp_path, kind):
    path = tmp_path / f"q{kind}"
    bad = {"id": "x", "context": "Ada is \ud83d here.", "question": "Who is here?"}
    rows = [json.dumps(QUESTIONS[0]), json.dumps(bad)]
    path.write_text("\n".join(rows) if kind == ".jsonl" else f"[{','.join(rows)}]")
    answers = infer(project, path)
    assert answers["error"].isna().tolist() == [True, False]
    assert answers["error"][1] == "The context holds half a surrogate pair; remove it."
    assert answers["context"][1] == "Ada is \\ud83d here."


def test_a_broken_file_leaves_no_answers(project, metadata, tmp_path):
    versions = set((project / "data/07_model_output/answers.csv").glob("*"))
    path = tmp_path / "questions.jsonl"
    path.write_text(json.dumps(QUESTIONS[0]) + "\n{oops}\n", encoding="utf-8")
    with pytest.raises(InputError, match="line 2"):
        infer(project, path, chunk_size=1)
    with pytest.raises(InputError, match="new_questions: there is no .*inference.questions_file="):
        infer(project, tmp_path / "nowhere.csv")
    assert set((project / "data/07_model_output/answers.csv").glob("*")) == versions


@pytest.mark.parametrize("line", ["Ada, she was born in London.,Where?", "1,Ada, she was.,Where?"])
def test_commas_outside_quotes_are_refused_and_not_read_as_something_else(tmp_path, line):
    path = tmp_path / "questions.csv"
    path.write_text(f"context,question\n{line}\nAda.,Who?\n", encoding="utf-8")
    with pytest.raises(InputError, match="line 2 has more fields than the 2 columns .*in quotes"):
        len(QuestionFile(path))


def test_a_file_that_the_catalog_does_not_read_is_refused(project, metadata):
    given = project / "conf/mine/parameters.yml"
    given.parent.mkdir()
    given.write_text("inference: {questions_file: mine.csv}", encoding="utf-8")
    told = "questions_file is mine.csv, but the catalog's new_questions reads .*globals.yml"
    with (
        KedroSession.create(project, env="mine") as session,
        pytest.raises(InputError, match=told),
    ):
        session.run(pipeline_names=["inference"])


def test_an_answerer_tells_that_it_holds_the_whole_base(project, metadata, caplog):
    with caplog.at_level(logging.INFO, logger="flan_qa_pipeline"):
        QuestionAnswerer.from_project(
            project, runtime_params={"distributed": {"fsdp": True, "num_processes": 2}}
        )
    assert "distributed.fsdp affects kedro run only; this process holds the base." in caplog.text


def test_example_questions_are_a_file_of_questions():
    [chunk] = QuestionFile(REPOSITORY / "data/01_raw/example_questions.csv").chunks(1000)
    assert len(chunk) == len(set(chunk["id"])) > 5
    assert chunk.map(lambda text: bool(text.strip())).all(axis=None)


def test_growing_csv_adds_within_a_run_and_begins_anew_in_the_next(tmp_path):
    def open_version(version):
        return GrowingCSVDataset(filepath=str(tmp_path / "a.csv"), version=Version(None, version))

    frames = [pd.DataFrame({"x": ["é, 1", "2\n"], "y": [1, 2]}), pd.DataFrame({"x": ["3"], "y": 3})]
    dataset = open_version("v1")
    for frame in frames:
        dataset.save(frame)
    pd.testing.assert_frame_equal(
        dataset.load(), pd.concat(frames, ignore_index=True), check_dtype=False
    )
    open_version("v2").save(frames[1])
    assert open_version("v2").load()["x"].tolist() == [3]
    with pytest.raises(DatasetError, match="must not exist if versioning is enabled"):
        open_version("v1").save(frames[0])
    for _ in range(2):
        plain = GrowingCSVDataset(filepath=str(tmp_path / "plain.csv"))
        plain.save(frames[0])
    assert len(plain.load()) == 2


FORMULAS = [
    "=cmd()", "+1+1", "-2+3", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "＝1", "'=1", "''=1", "-40 °C",
]  # fmt: skip
HARMLESS = ["-40", "+3.5", "1,000", "5%", "'tis", "a=1", " =1", "", "é\n=1"]


def test_formulas_are_saved_as_texts_and_loaded_as_they_were(tmp_path):
    frame = pd.DataFrame({"id": FORMULAS + HARMLESS, "n": -1.5, "start": pd.array([-1] * 20)})
    load_args = {"dtype": {"id": str, "start": "Int64"}, "keep_default_na": False}
    for kind in (TextCSVDataset, GrowingCSVDataset):
        path = tmp_path / f"{kind.__name__}.csv"
        dataset = kind(filepath=str(path), load_args=load_args, save_args={"index": False})
        dataset.save(frame)
        plain = pd.read_csv(path, dtype=str, keep_default_na=False)
        assert plain["id"].tolist() == [f"'{text}" for text in FORMULAS] + HARMLESS
        assert set(plain["n"]) == {"-1.5"}
        pd.testing.assert_frame_equal(dataset.load(), frame, check_dtype=False)


def test_formulas_of_a_file_of_questions_reach_the_answers_as_texts(project, metadata, tmp_path):
    rows = [{"id": "=cmd()", "context": "@Ada lives in London.", "question": "-Where?"}]
    answers = infer(project, write(tmp_path / "q.jsonl", rows))
    assert answers[["id", "context", "question"]].to_dict("records") == rows
    [path] = sorted((project / "data/07_model_output/answers.csv").glob("*/answers.csv"))[-1:]
    assert (
        path.read_text(encoding="utf-8")
        .splitlines()[1]
        .startswith("'=cmd(),'@Ada lives in London.,'-Where?,")
    )


def test_a_missing_id_is_never_that_of_another_row(tmp_path):
    given = ["2", None, "", "5", None, "05", "x", "row 9", None]
    rows = [{"id": id_, "context": "Ada.", "question": "Who?"} for id_ in given]
    path = tmp_path / "q.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    [chunk] = QuestionFile(path).chunks(100)
    assert chunk["id"].tolist() == ["2", "row 2", "3", "5", "row 5", "05", "x", "row 9", "9"]


def test_what_cannot_be_an_id_is_the_rows_error(project, metadata, tmp_path):
    ids = ["a\0b", "x" * 10**6, "fine"]
    rows = [{"id": id_, "context": "Ada is here.", "question": "Who?"} for id_ in ids]
    rows.append({"id": "z", "context": "Ada is here.", "question": "\u200b\u200d"})
    answers = infer(project, write(tmp_path / "q.jsonl", rows))
    errors = answers["error"].tolist()
    assert errors[0] == "The id holds a NUL character; remove it."
    assert errors[1] == "The id has 1,000,000 characters; shorten it to 1,000 at most."
    assert pd.isna(errors[2])
    assert errors[3] == "The question is empty; give it as text."


def test_columns_and_delimiters_of_new_questions(project, metadata, tmp_path):
    path = tmp_path / "q.tsv"
    path.write_text("Passage;Question\nAda is in London.;Where is Ada?\n", encoding="utf-8")
    answers = infer(project, path, columns={"context": "passage"})
    assert answers["context"].tolist() == ["Ada is in London."]
    assert answers["error"].isna().all()
    with pytest.raises(InputError, match="no column context, only Passage, Question; .*inference"):
        infer(project, path)


def test_a_pipe_is_refused_before_the_model_is_loaded(project, metadata, tmp_path):
    os.mkfifo(tmp_path / "q.csv")
    with pytest.raises(InputError, match=f"{tmp_path}/q.csv is neither a file nor a folder"):
        infer(project, tmp_path / "q.csv")


def asked(metadata, *arguments, **kwargs):
    """Run `kedro ask`; a GPU would log what `generation.batch_tokens: auto` comes to."""
    given = ["--params=generation.batch_tokens=8192", *arguments]
    return CliRunner().invoke(ask, given, obj=metadata, catch_exceptions=False, **kwargs)


def test_ask_answers_each_question(metadata, tmp_path):
    context = "Ada was born in London in 1815."
    questions = ["--question", "Where was Ada born?", "--question", "When was Ada born?"]
    result = asked(metadata, "--context", context, *questions)
    assert result.exit_code == 0
    answers = QuestionAnswerer.from_project(metadata.project_path).answer(
        [(context, question) for question in questions[1::2]]
    )
    lines = result.stdout.splitlines()
    assert lines[::2] == [answer.text or "no answer in this context" for answer in answers]
    for answer, line in zip(answers, lines[1::2], strict=True):
        assert f"score {answer.score:.2f}" in line
    path = tmp_path / "context.txt"
    path.write_text(context, encoding="utf-8")
    assert asked(metadata, "--context-file", str(path), *questions).output == result.output
    origin = result.stderr.replace("\n", " ")
    assert origin.startswith(
        f"Adapter {SECOND} (the latest; none is promoted) answers, on the base"
    )
    shown = asked(metadata, "--context", context, *questions, env={"FORCE_COLOR": "1"}).output
    wrapped = click.unstyle(shown).splitlines()
    assert max(map(len, wrapped)) <= 80 < max(map(len, lines))
    assert " ".join(wrapped).split() == result.output.split()
    path.write_text(context + " ö", encoding="latin-1")
    refused = asked(metadata, "--context-file", str(path), *questions)
    assert refused.exit_code == 1
    assert f"{path} is not UTF-8 (" in refused.output


def test_ask_logs_choices_on_stderr(metadata, monkeypatch, caplog):
    logger = logging.getLogger("flan_qa_pipeline")
    load_answerer = flan_qa_pipeline.cli._load_answerer

    def load(*arguments):
        logger.info("This was chosen.")
        return load_answerer(*arguments)

    monkeypatch.setattr(flan_qa_pipeline.cli, "_load_answerer", load)
    monkeypatch.setattr(logger, "handlers", [RichHandler()])
    with caplog.at_level(logging.INFO, logger.name):
        result = asked(metadata, "--context=Ada was born.", "--question=Where?")
    assert "This was chosen." in result.stderr
    assert len(result.stdout.splitlines()) == 2
    assert not rich.get_console().stderr


def test_ask_is_interactive_without_a_question(metadata):
    result = asked(metadata, input="Ada was born in London.\nWhere?\n  \nWhen?\n")
    assert result.exit_code == 0
    assert result.output.count("no-answer probability") == 2
    assert "The question is empty" in result.output
    ended = asked(metadata, "--context", "Ada.", input="\n")
    assert "no-answer probability" not in ended.output
    assert ended.exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--context", "", "--question", "Who?"], "Error: The context is empty"),
        (["--context", "x", "--question", "Who? " * 300], "Error: The question takes"),
        (["--context", "x", "--context-file", "-"], "not both"),
        (["--load-versions=questions:2026"], "ask loads nothing but adapter"),
        (["--load-versions=adapter:2020"], f"no 2020 in .*name one of: {FIRST}, {SECOND}"),
        (["--params=generation.max_tokens=1"], "did you mean max_new_tokens"),
    ],
)
def test_ask_refuses_in_one_line(metadata, arguments, complaint):
    result = asked(metadata, *arguments)
    assert result.exit_code != 0
    assert pd.Series([result.output]).str.contains(complaint).all()


THIRD = "2026-01-03T00.00.00.000Z"


@pytest.fixture
def damaged(project):
    """Another version of the adapter, whose files are to be damaged."""
    adapters = project / "data/06_models/adapter"
    shutil.copytree(adapters / SECOND, adapters / THIRD)
    yield adapters / THIRD / "adapter"
    shutil.rmtree(adapters / THIRD)


@pytest.mark.parametrize("digests", [True, False])
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("adapter_model.safetensors", b""),
        ("adapter_model.safetensors", b"\x80\x04}."),
        ("adapter_config.json", b"[]"),
        ("adapter_config.json", b'{"target_modules": "(a+)+$"}'),
        ("provenance.json", b"[]"),
        ("provenance.json", b'{"model": {}, "prompt": {}}'),
        ("provenance.json", b'{"model": {"name": 7}, "prompt": {"template": ""}}'),
        ("training.json", b"{"),
        ("tokenizer.json", b"{}"),
        ("tokenizer_config.json", b"[]"),
    ],
)
def test_ask_serve_and_run_refuse_a_damaged_adapter_in_the_same_sentence(
    project, metadata, damaged, tmp_path, digests, name, content
):
    (damaged / name).write_bytes(content)
    if not digests:
        (damaged / "digests.json").unlink()
    path = write(tmp_path / "questions.csv", QUESTIONS[:1])
    with pytest.raises(InputError) as refused:
        infer(project, path)
    sentence = f"Error: {refused.value}\n"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    for command, arguments in (
        (ask, ["--context", "x", "--question", "Who?"]),
        (serve, [f"--port={port}"]),
    ):
        if command is serve:
            pytest.importorskip("gradio", reason="serve needs gradio (.[app])")
        result = CliRunner().invoke(command, arguments, obj=metadata, catch_exceptions=False)
        assert result.exit_code == 1
        assert result.output.endswith(sentence)
        assert (result.output == sentence) is digests


def test_ask_takes_a_pinned_adapter(metadata):
    question = ["--context", "Ada was born in London.", "--question", "Where was Ada born?"]
    outputs = {
        version: asked(metadata, *question, f"--load-versions=adapter:{version}").stdout
        for version in (FIRST, SECOND)
    }
    assert outputs[SECOND] == asked(metadata, *question).stdout != outputs[FIRST]


@pytest.fixture
def promoted_file(project):
    path = project / "data/06_models/promoted_adapter.json"
    yield path
    path.unlink(missing_ok=True)


def test_a_promoted_adapter_answers_unless_a_version_is_named(
    metadata, project, tmp_path, promoted_file, caplog
):
    def call(command, *arguments):
        return CliRunner().invoke(command, arguments, obj=metadata, catch_exceptions=False)

    refused = call(promote, "2020")
    assert refused.exit_code == 1 and f"name one of: {FIRST}, {SECOND}." in refused.output
    assert not promoted_file.exists()
    assert f"Adapter {FIRST} (promoted) answers, on the base" in call(promote, FIRST).output
    question = ["--context", "Ada was born in London.", "--question", "Where was Ada born?"]
    assert asked(metadata, *question).stderr.startswith(f"Adapter {FIRST} (promoted)")
    path = write(tmp_path / "questions.csv", QUESTIONS[:1])
    for versions, told in (
        (None, f"{FIRST} (promoted)"),
        ({"adapter": SECOND}, f"{SECOND} (named)"),
    ):
        caplog.clear()
        infer(project, path, versions)
        assert caplog.text.count("Adapter ") == 1 and f"Adapter {told} answers" in caplog.text
    promoted_file.write_text('{"version": "2020"}')
    for content, complaint in (
        ('{"version": "2020"}', "adapter: there is no 2020 .* Version 2020 is the promoted one; "),
        ("{", r"promoted_adapter.json cannot be read: .*; "),
        ('{"version": "../2020"}', "promoted_adapter.json cannot be read: .*; "),
    ):
        promoted_file.write_text(content)
        with pytest.raises(InputError, match=complaint + "promote a saved version with `kedro pro"):
            infer(project, path)
        assert "kedro promote <version>" in asked(metadata, *question).output
    assert call(promote, SECOND).exit_code == 0
    assert asked(metadata, *question).exit_code == 0


def test_kedros_own_commands_stay(project):
    commands = KedroCLI(project).list_commands(None)
    assert {"ask", "run", "catalog", "registry", "package"} <= set(commands)
