"""What a run prints at its end, as a terminal of 80 columns shows it."""

import re

import pandas as pd
import pytest

from flan_qa_pipeline.reporting.run_summary import (
    WIDTH,
    describe_saved,
    print_next_steps,
    print_scores,
    print_sentences,
    tuned,
    without_gain,
)

LABELS = ("baseline", "fine-tuned")


@pytest.fixture
def table():
    rows = []
    for group, subset in (("all", "overall"), ("answerable", "NoAns"), ("question word", "who")):
        row = {"group": group, "subset": subset, "questions": 123_456}
        for metric in ("EM", "F1"):
            row |= {f"{metric} {label}": 100.0 for label in LABELS}
            row |= {f"{metric} gain": -51.25, f"{metric} gain low": -100.0}
            row[f"{metric} gain high"] = -33.333
        rows.append(row)
    return pd.DataFrame(rows)


def test_scores_fit_the_terminal_and_keep_their_digits(table, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    print_scores(table, LABELS, 0.95, "t5 on [bold]a.json")
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= WIDTH
    assert "t5 on [bold]a.json" in lines
    rows = [re.sub("[│┃]", " ", line).split() for line in lines]
    assert rows[3] == ["subset", "metric", "questions", *LABELS, "gain", "[95%]"]
    expected = ["123456", "100.00", "100.00", "-51.25", "[-100.00,", "-33.33]"]
    assert [row for row in rows if "123456" in row] == [
        [subset, metric, *expected] for subset in ("overall", "NoAns") for metric in ("EM", "F1")
    ]


def test_three_lines_say_what_to_do_next(capsys):
    report = "/a/long/path" * 10 + "/[bold]/report.html"
    versions = ["2026-11-24T18.19.09.442Z", "2026-11-23T08.00.00.000Z", "2026-11-22T08.00.00.000Z"]
    print_next_steps(report, versions[0], versions)
    where, ask, compare = capsys.readouterr().out.splitlines()
    assert where.split(maxsplit=1) == ["Report", report]
    assert ask.endswith(" kedro ask --load-versions=adapter:2026-11-24T18.19.09.442Z")
    assert f"compare.first={versions[1]},compare.second={versions[0]}" in compare
    assert len(ask) <= WIDTH


def test_the_latest_adapter_needs_no_version_and_one_run_no_comparison(capsys):
    print_next_steps("report.html", versions=["2026-11-24T18.19.09.442Z"])
    assert capsys.readouterr().out.splitlines()[1:] == ["Ask      kedro ask"]


def test_sentences_are_wrapped_and_paths_in_them_stay_whole(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    path = "data/" + "long-name/" * 9
    print_sentences(f"version 2026-11-24T18.19.09.442Z: {path}, {'a/b-c, ' * 30}", "Saved")
    print_sentences("One word - " * 20, stderr=True)
    printed, errors = capsys.readouterr()
    first, second, *rest = printed.splitlines()
    assert first == "Saved    version 2026-11-24T18.19.09.442Z:"
    assert second == f"{'':9}{path},"
    assert len(rest) > 1 and all(line.startswith(" " * 9) for line in rest)
    assert max(map(len, [*rest, *errors.splitlines()])) <= WIDTH
    assert not printed.count("-\n") and errors.startswith("One word")


@pytest.mark.parametrize(
    ("gain", "low", "high", "said"),
    [
        (0.5, 0.1, 0.9, None),
        (0.5, 0.0, 1.0, "The gain may be chance: F1 +0.50 [+0.00, +1.00]."),
        (0.0, 0.0, 0.0, "Fine-tuning did not help: F1 +0.00 [+0.00, +0.00]."),
        (-2.0, -3.0, -1.0, "Fine-tuning did not help: F1 -2.00 [-3.00, -1.00]."),
    ],
)
def test_a_run_without_gain_says_so_and_what_to_try(gain, low, high, said):
    scores = {"F1 gain": [gain, 9], "F1 gain low": [low, 9], "F1 gain high": [high, 9]}
    line = without_gain(pd.DataFrame({"subset": ["overall", "NoAns"], **scores}))
    assert (line and line.partition(" Train on")[0]) == said
    assert line is None or "training.learning_rate" in line


def test_what_was_saved_fits_one_line_however_much_it_is():
    places = [f"data/08/{name}" for name in "abcd"]
    assert describe_saved([], [], None) == ""
    assert describe_saved(["data/x"], ["data/x"], None) == "data/x"
    assert describe_saved([], places, "V") == f"version V: {', '.join(places)}"
    many = describe_saved(["data/x/V/x"], [*places, "data/06/e"], "V")
    assert many == "data/x/V/x, version V: data/06/e, 4 in data/08"


def test_a_line_scores_the_threshold_of_train_articles():
    greedy = {"model": "fine-tuned", "decision": "greedy", "threshold": None, "F1": 60.0}
    chosen = greedy | {"decision": "train articles", "threshold": 0.7438, "F1": 62.627}
    table = pd.DataFrame([greedy, chosen]).assign(**{"HasAns F1": 65.19, "NoAns F1": 56.25})
    line = tuned(table, "fine-tuned")
    assert line == "no_answer_threshold 0.744: F1 62.63 (HasAns 65.19, NoAns 56.25)"
    answerable = table.assign(**{"NoAns F1": None})
    assert tuned(answerable, "fine-tuned").endswith("F1 62.63 (HasAns 65.19)")
    assert tuned(table.query("decision == 'greedy'"), "fine-tuned") is None
    assert tuned(table.assign(F1=[63.0, 62.627]), "fine-tuned") is None
