"""`kedro check-data` and runs on files of one's own, in a copy of the project."""

import json
import os
import re

import pandas as pd
import pytest
from click.testing import CliRunner
from datasets import Dataset
from kedro.framework.session import KedroSession
from kedro.framework.startup import bootstrap_project

from flan_qa_pipeline.cli import check_data
from flan_qa_pipeline.data.squad import flatten
from flan_qa_pipeline.errors import InputError


@pytest.fixture(scope="module")
def metadata(project):
    return bootstrap_project(project)


@pytest.fixture(scope="module")
def rows(corpus):
    """The corpus as rows of one answer without its place, as people keep them in tables."""
    return [
        {
            "title": row["title"],
            "passage": row["context"],
            "Question": row["question"],
            "gold": next(iter(row["answers"]["text"]), ""),
        }
        for row in flatten(corpus, "corpus")
    ]


NAMED = {"context": "passage", "answers": "gold"}


def checked(metadata, tiny_base, file, *params):
    given = ",".join([f"model.name={tiny_base}", *params])
    return CliRunner().invoke(
        check_data, [str(file), f"--params={given}"], obj=metadata, catch_exceptions=False
    )


def test_it_counts_measures_and_lists_what_is_rejected(project, metadata, tiny_base, rows, caplog):
    bad = [
        rows[0] | {"gold": "Nowhere"},
        rows[1] | {"gold": "Else"},
        rows[0] | {"Question": "Why? " * 300},
        rows[0] | {"Question": "\u200b"},
    ]
    path = project / "own.csv"
    pd.DataFrame(rows + bad).to_csv(path, index=False, sep=";")
    before = sorted(project.rglob("*"))
    named = [f"data.columns.{name}={column}" for name, column in NAMED.items()]
    result = checked(metadata, tiny_base, path, *named)
    assert result.exit_code == 0
    assert max(map(len, result.output.splitlines())) <= 80
    assert sorted(project.rglob("*")) == before
    table = result.output.replace(",", "").split()
    answerable = sum(bool(row["gold"]) for row in rows)
    for number in (len(rows), answerable, len(rows) - answerable):
        assert str(number) in table
    printed = [line.split("│") for line in result.output.splitlines() if "│" in line]
    lines = {first.strip(): others for first, *others in printed}
    median, _, longest = (int(text) for text in lines["context"])
    assert 20 < median < longest < 400
    windows = int(lines["all"][0])
    kinds = ["that hold an answer", 'labelled "no answer"']
    kinds.append("with an answer's words elsewhere, not trained on")
    assert windows == sum(int(lines[kind][0]) for kind in kinds) >= len(rows)
    assert "does not stand in the context" in " ".join(table)
    assert [cells[0].strip() for key, cells in lines.items() if key.startswith("the answer")] == [
        "2"
    ]
    assert "4 rejected: a run stops at the first one" in result.output
    assert f"{path}: 3 invalid records were left out; the first: " in caplog.text


def test_it_names_what_cannot_be_checked(project, metadata, tiny_base):
    (project / "own.txt").write_text("Ada was here.")
    assert "it may end in .csv" in checked(metadata, tiny_base, project / "own.txt").output
    assert "There is no" in checked(metadata, tiny_base, project / "nowhere.csv").output
    unnamed = checked(metadata, tiny_base, project / "data/01_raw/starter_train.json", "data.x=1")
    assert "Unknown parameter data.x" in unnamed.output
    (project / "own.jsonl").write_text('{"context": "", "question": "", "answers": ""}')
    result = checked(metadata, tiny_base, project / "own.jsonl")
    assert result.exit_code == 1
    assert "own.jsonl holds no valid questions" in result.output


def run(project, tiny_base, **data):
    parameters = {"model": {"name": str(tiny_base)}, "data": data}
    with KedroSession.create(project, runtime_params=parameters) as session:
        session.run(pipeline_names=["data_engineering"])
        catalog = session.load_context().catalog
        return {
            name: catalog.load(name, version=session.session_id)
            for name in ("questions", "rejected_train_questions")
        }


def test_a_run_reads_files_of_ones_own(project, metadata, tiny_base, rows, capsys):
    held_out = {row["title"] for row in rows[-40:]}
    train = [row for row in rows if row["title"] not in held_out]
    long = rows[0] | {"Question": "Why? " * 300, "title": "=1+1"}
    pd.DataFrame([*train, long]).to_csv(project / "own.csv", index=False)
    validation = [row for row in rows if row["title"] in held_out]
    Dataset.from_list(validation).save_to_disk(project / "own_validation")
    files = {"train_file": "own.csv", "validation_file": "own_validation", "columns": NAMED}
    made = run(project, tiny_base, on_invalid="skip", **files)
    assert len(made["questions"]["validation"]) == len(validation)
    assert sum(map(len, made["questions"].values())) == len(rows)
    [rejected] = made["rejected_train_questions"].to_dict("records")
    assert rejected["source"] == "own.csv"
    place = "data/08_reporting/rejected_train_questions.csv/"
    told = re.findall(r"^Rejected (.*)\n +(.*)", capsys.readouterr().out, re.MULTILINE)
    assert len(told) == 1 and told[0][0] == "1 record, listed in"
    assert told[0][1].startswith(place) and (project / told[0][1]).is_file()
    assert rejected["id"].startswith(f"row {len(train) + 1} ")
    with pytest.raises(InputError, match="own.csv: question 'row .*' takes .* shorten the quest"):
        run(project, tiny_base, on_invalid="error", **files)


def test_a_pipe_is_refused_before_any_work(project, metadata, tiny_base):
    os.mkfifo(project / "pipe.json")
    before = sorted((project / "data").rglob("*"))
    for name in ("train_file", "validation_file"):
        with pytest.raises(InputError, match="pipe.json is neither a file nor a folder but a pipe"):
            run(project, tiny_base, **{name: "pipe.json"})
    assert sorted((project / "data").rglob("*")) == before
    text = json.dumps({"data": []})
    (project / "empty.json").write_text(text)
    with pytest.raises(InputError, match="empty.json holds no questions"):
        run(project, tiny_base, train_file="empty.json")
