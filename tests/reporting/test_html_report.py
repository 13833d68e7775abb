"""The HTML report: safe against its data, and alive in a real browser without network."""

import html
import json
import re
import shutil
import subprocess

import pandas as pd
import plotly.graph_objects as go
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flan_qa_pipeline.reporting.html_report import (
    browsable_questions,
    outcome,
    render_report,
    script_json,
)

LABELS = ("baseline", "fine-tuned")
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)
HOSTILE = "</script><script>document.title='broken'</script><img src=x onerror=alert(1)>"

# Runs in the page after its own script and leaves what it saw in an element.
DRIVER = """
const cells = column =>
  [...document.querySelectorAll("#table-1 tbody tr")].map(tr => tr.cells[column].textContent);
const rows = () => [...document.querySelectorAll("#questions tbody tr")].map(tr => tr.dataset.id);
const press = name => document.querySelector(`#filters [data-filter="${name}"]`).click();
const seen = {title: document.title, first_page: rows().length, filters: {}, marks: {}};
for (const button of document.querySelectorAll("#filters button")) {
  button.click();
  seen.filters[button.dataset.filter] = [button.textContent, rows()];
}
press("all");
document.getElementById("next").click();
seen.second_page = rows().length;
const search = document.getElementById("search");
for (const words of ["HOSTILE", "\\u{1F980}", "nothing like it"]) {
  search.value = words;
  search.dispatchEvent(new Event("input"));
  seen.filters["search " + words] = rows();
  for (const tr of document.querySelectorAll("#questions tbody tr"))
    seen.marks[tr.dataset.id] =
      [...tr.querySelectorAll("mark")].map(mark => [mark.className, mark.textContent]);
}
search.value = "";
search.dispatchEvent(new Event("input"));
seen.scores = document.querySelector("#questions tbody tr").cells[3].textContent;
const select = document.getElementById("sort");
seen.orders = {};
for (const order of ["largest gain in F1", "largest loss in F1", "order in the data"]) {
  select.value = order;
  select.dispatchEvent(new Event("change"));
  seen.orders[order] = rows().slice(0, 2);
}
const [subset, em] = document.querySelectorAll("#table-1 th button");
em.click();
seen.ascending = cells(1);
em.click();
seen.descending = cells(1);
seen.sections = [...document.querySelectorAll("section")].map(section => section.id);
seen.sideways = document.documentElement.scrollWidth - innerWidth;
seen.paper = getComputedStyle(document.body).backgroundColor;
seen.drawn = document.querySelector(".figures .main-svg").style.background;
seen.plots = document.querySelectorAll(".figures .main-svg").length > 0;
seen.images = document.querySelectorAll("#questions img").length;
const output = document.createElement("pre");
output.id = "seen";
output.textContent = JSON.stringify(seen);
document.body.append(output);
"""


def question(id_, before, after, answers, context="The red cat sat.", text="Who sat?"):
    def exact(answer):
        return 100.0 * (answer in answers if answers else not answer)

    return {
        "id": id_,
        "title": "Cats",
        "question": text,
        "context": context,
        "answers": answers,
        "answer_start": [context.index(answer) for answer in answers],
        "is_impossible": not answers,
        "baseline": before,
        "baseline EM": exact(before),
        "baseline F1": exact(before),
        "fine-tuned": after,
        "fine-tuned EM": exact(after),
        "fine-tuned F1": exact(after),
    }


@pytest.fixture
def question_table():
    rows = [
        question("fixed", "sat", "red cat", ["red cat"]),
        question("broken", "red cat", "", ["red cat"]),
        question("wrong", "sat", "cat", ["red cat"]),
        question("silent", "sat", "", ["red cat", "cat"]),
        question("right", "", "", []),
        question("talkative", "", "sat", []),
        question(
            "hostile",
            HOSTILE,
            "crab \U0001f980",
            ["\U0001f980 ate <b>it</b>"],
            context=f"\U0001f980\U0001f980 crab \U0001f980 ate <b>it</b> \u2028 {HOSTILE}",
            text=f"hostile {HOSTILE} & 'quotes\"?",
        ),
    ]
    rows += [question(f"more {i}", "", "", []) for i in range(29)]
    return pd.DataFrame(rows)


@pytest.fixture
def page(question_table):
    table = pd.DataFrame({"subset": [HOSTILE, "b"], "EM": [10.5, 9.25], "questions": [3, None]})
    figure = go.Figure(go.Bar(x=["a", HOSTILE], y=[1, 2]), {"title": HOSTILE})
    return render_report(
        title=f"Report {HOSTILE}",
        facts={"base": HOSTILE},
        summary={"Scores": (table, HOSTILE)},
        tables={"Breakdown": (table, HOSTILE)},
        costs={"Cost": (table, "")},
        figures={"Bars": figure, "More bars": figure},
        question_table=question_table,
        labels=LABELS,
    )


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)


@settings(max_examples=200)
@given(json_values | st.just(HOSTILE) | st.just("<!--<script>") | st.just("\u2028\ud800"))
def test_json_comes_back_and_holds_nothing_that_ends_a_script(value):
    text = script_json(value)
    assert json.loads(text) == value
    assert not set("<>&") & set(text)
    assert text.isascii()


def test_numbers_that_json_lacks_are_refused():
    with pytest.raises(ValueError, match="not JSON compliant"):
        script_json({"f1": float("nan")})


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [(0, 1, "fixed"), (1, 0, "broken"), (0, 0, "still wrong"), (1, 1, "still right")],
)
def test_outcome(before, after, expected):
    assert outcome(before, after) == expected


def test_each_context_is_stored_once_and_spans_are_its_code_points(question_table):
    found = browsable_questions(question_table, LABELS)
    assert len(found["contexts"]) == 2
    rows = {row["id"]: row for row in found["questions"]}
    hostile = rows["hostile"]
    (start, end), *_ = hostile["spans"]
    assert found["contexts"][hostile["context"]][start:end] == hostile["gold"][0]
    assert [id_ for id_, row in rows.items() if row["abstained"]] == ["broken", "silent"]
    assert [id_ for id_, row in rows.items() if row["answered"]] == ["talkative"]
    assert (rows["fixed"]["em"], rows["fixed"]["f1"]) == ([0, 100], [0.0, 100.0])


def test_page_escapes_its_data_and_loads_nothing(page):
    own = re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)
    assert "<script" not in own
    assert "<img" not in page.split("<script>")[0]
    assert html.escape(HOSTILE, quote=False) in own.replace("&#39;", "'")
    assert page.count("plotly.js v") == 1
    assert not re.search(r"<(script|link|img)[^>]*(src|href)=\"(?!data:|#)", own)


def in_browser(page, tmp_path, *options):
    """Open a page in Chromium, drive it and return what the driver saw."""
    tmp_path.mkdir(exist_ok=True)
    path = tmp_path / "report.html"
    path.write_text(page.replace("</body>", f"<script>{DRIVER}</script></body>"), encoding="utf-8")
    done = subprocess.run(  # noqa: S603
        [
            BROWSER,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            f"--user-data-dir={tmp_path / 'profile'}",
            "--enable-logging=stderr",
            "--dump-dom",
            *options,
            path.as_uri(),
        ],
        capture_output=True,
        encoding="utf-8",
        check=True,
    )
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert console == []
    return json.loads(html.unescape(re.search(r'<pre id="seen">(.*?)</pre>', done.stdout)[1]))


needs_browser = pytest.mark.skipif(
    BROWSER is None, reason="chromium is not installed (apt-get install chromium), nothing to run"
)


@needs_browser
def test_page_works_in_a_browser(page, tmp_path):
    seen = in_browser(page, tmp_path, "--window-size=1440,900")
    assert seen["title"] == f"Report {HOSTILE}"
    assert (seen["first_page"], seen["second_page"]) == (25, 11)
    filters = seen["filters"]
    assert filters["all"][0] == "all (36)"
    assert filters["fixed"] == ["fixed (1)", ["fixed"]]
    assert filters["broken"] == ["broken (2)", ["broken", "talkative"]]
    name = "answered, though unanswerable"
    assert filters[name] == [f"{name} (1)", ["talkative"]]
    assert filters["still wrong"] == ["still wrong (3)", ["wrong", "silent", "hostile"]]
    assert filters["abstained wrongly"] == ["abstained wrongly (2)", ["broken", "silent"]]
    assert filters["search HOSTILE"] == ["hostile"]
    assert filters["search \U0001f980"] == ["hostile"]
    assert filters["search nothing like it"] == []
    assert seen["marks"]["hostile"] == [
        ["after", "crab "],
        ["gold after", "\U0001f980"],
        ["gold", " ate <b>it</b>"],
    ]
    assert seen["scores"] == "red catEM 100, F1 100"
    assert seen["orders"] == {
        "largest gain in F1": ["fixed", "wrong"],
        "largest loss in F1": ["broken", "talkative"],
        "order in the data": ["fixed", "broken"],
    }
    assert seen["ascending"] == ["9.25", "10.50"]
    assert seen["descending"] == ["10.50", "9.25"]
    assert seen["sections"] == ["summary-1", "figures", "table-1", "browse", "cost-1"]
    assert seen["plots"]
    assert seen["images"] == 0


@needs_browser
@pytest.mark.parametrize("width", [1440, 500])
def test_page_does_not_scroll_sideways(page, tmp_path, width):
    assert in_browser(page, tmp_path, f"--window-size={width},900")["sideways"] <= 0


@needs_browser
def test_page_and_figures_follow_the_dark_color_scheme(page, tmp_path):
    light, dark = (
        in_browser(page, tmp_path / name, *options)
        for name, options in {
            "light": (),
            "dark": ("--blink-settings=preferredColorScheme=0",),
        }.items()
    )
    assert light["paper"] == "rgb(255, 255, 255)" == light["drawn"]
    assert dark["paper"] == "rgb(17, 22, 29)" == dark["drawn"]
