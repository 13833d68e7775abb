"""Saved runs side by side: what differs, in the terminal and as a page."""

import pytest

from flan_qa_pipeline.reporting.run_summary import WIDTH, print_runs
from flan_qa_pipeline.reporting.runs import (
    SavedRun,
    differing_parameters,
    run_table,
    runs_page,
    tabulate_differences,
)

FIRST, SECOND, THIRD = (f"2026-11-2{day}T18.35.15.756Z" for day in (4, 5, 6))


def parameters(folder="a", **lora):
    return {
        "data": {"train_file": "hf://datasets/a/very-long-name/" + "x" * 60, "seed": None},
        "model": {"name": "data/06_models/starter_t5", "skip_modules": ["lm_head", "q"]},
        "lora": {"r": 32, "use_dora": False} | lora,
        "training": {"output_dir": folder, "seed": 13},
        "serving": {"port": lora.get("r", 1)},
    }


@pytest.fixture
def runs():
    scores = {name: {"EM": 100.0, "F1": 99.123} for name in ("overall", "HasAns", "NoAns")}
    log = [{"step": 5, "eval_f1": 80.0}, {"step": 9, "eval_f1": 70.0}, {"step": 9, "loss": 1.0}]
    return [
        SavedRun(
            FIRST,
            adapter=FIRST,
            promoted=True,
            parameters=parameters(),
            training={"best_step": 5, "log": log},
            scores=scores,
            seconds=90.0,
            memory_mib=123_456.7,
        ),
        SavedRun(
            SECOND,
            adapter=FIRST,
            parameters=parameters(r=8, use_dora=True, folder="b"),
            training={"best_step": None, "steps": 9, "log": log},
            scores={"overall": scores["overall"]},
        ),
        SavedRun(THIRD),
    ]


def test_parameters_that_change_results_and_differ_are_named(runs):
    assert differing_parameters(runs) == {
        "lora.r": ["32", "8", ""],
        "lora.use_dora": ["false", "true", ""],
    }
    assert differing_parameters(runs[::2]) == {}


def test_a_comparison_lists_what_differs(runs):
    table = tabulate_differences(runs[:2], ("first", "second"))
    assert table.columns.tolist() == ["parameter", "first", "second"]
    assert table.values.tolist() == [
        ["version", FIRST, SECOND],
        ["version of the adapter", FIRST, FIRST],
        ["lora.r", "32", "8"],
        ["lora.use_dora", "false", "true"],
    ]


def test_the_newest_run_stands_first_and_what_it_lacks_is_empty(runs):
    table = run_table(runs)
    assert table["version"].tolist() == [THIRD, SECOND, FIRST]
    assert table["base"].tolist() == ["", "starter_t5", "starter_t5"]
    assert table["dev F1"].tolist()[1:] == [70.0, 80.0]
    assert table["minutes"].tolist()[2] == 1.5
    assert table["promoted"].tolist() == ["", "", "yes"]
    assert "promoted" not in run_table(runs[1:])
    assert table.iloc[0, 1:].isin(["", None]).sum() + table.iloc[0, 1:].isna().sum() >= 12


def test_the_list_fits_the_terminal(runs, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    print_runs(runs)
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= WIDTH
    rows = [line.split() for line in printed.splitlines()]
    assert [FIRST, "EM", "100.00", "100.00", "100.00", "80.00", "1.5", "123,457"] in rows
    assert ["starter_t5", "F1", "99.12", "99.12", "99.12"] in rows
    assert ["lora.r=8"] in rows
    assert rows.count(["promoted"]) == 1 and rows.index(["promoted"]) > rows.index(["lora.r=8"])
    assert [row[0] for row in rows if "EM" in row] == [THIRD, SECOND, FIRST]


def test_the_page_escapes_what_it_shows(runs):
    hostile = SavedRun("<script>alert(1)</script>", parameters=parameters(r="<img src=x>"))
    page = runs_page([*runs, hostile])
    assert "<script>alert" not in page and "<img" not in page
    assert "&lt;img src=x&gt;" in page
    assert "plotly" not in page
