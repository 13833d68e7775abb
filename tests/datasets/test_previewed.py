"""What Kedro-Viz previews: rounded tables, Markdown and pages with a link to their file."""

import inspect
import re

import pandas as pd
import pytest
from kedro.io.core import Version

from flan_qa_pipeline.datasets.previewed import MarkdownDataset, PageDataset, TableDataset
from flan_qa_pipeline.reporting.html_report import render_table

TABLE = pd.DataFrame({"name": ["a", "b"], "F1": [88.81901, None], "n": [1431, 2]})


def test_a_table_is_previewed_rounded_and_saved_in_full(tmp_path):
    dataset = TableDataset(filepath=str(tmp_path / "a.csv"))
    dataset.save(TABLE)
    assert dataset.load()["F1"][0] == 88.81901
    assert dataset.preview(nrows=2)["data"] == [["a", 88.82, 1431], ["b", "", 2]]
    assert len(dataset.preview(nrows=1)["data"]) == 1


def versioned(kind, tmp_path, text):
    path = tmp_path / "a_file"
    dataset = kind(filepath=str(path), version=Version(None, "v1"))
    dataset.save(text)
    uri = (path / "v1/a_file").as_uri().replace("_", "%5F")
    return dataset, f"\n\n[Open the file]({uri})"


def as_shown_by_kedro_viz(preview):
    """Apply what Kedro-Viz 12 does to HTML that could change its text."""
    for mark in (r"__", r"_", r"\*"):
        preview = re.sub(rf"{mark}([^\n\r\u2028\u2029]*?){mark}", r"<em>\1</em>", preview)
    preview = re.sub(r"`([^`]+)`", r"<code>\1</code>", preview)
    preview = re.sub(r"\[([^\]]+)\]\(([^)]+)\)", r'<a href="\2">\1</a>', preview)
    return preview.replace("\n", "<br>").replace("<span hidden>\u2028</span>", "")


def test_kedro_viz_shows_texts_as_they_are(tmp_path):
    text = "| a_b | c_d | *e* |\n|:---|:---|---:|\n| [x](javascript:alert) | __f__ | g_h |\n"
    dataset, _ = versioned(MarkdownDataset, tmp_path, text.replace("*", "\\*").replace("_", "\\_"))
    shown = as_shown_by_kedro_viz(dataset.preview())
    for cell in ("a_b", "c_d", "*e*", "__f__", "g_h"):
        assert f">{cell}</t" in shown
    assert shown.count("<a ") == 1 and "<em>" not in shown
    assert shown.endswith(">Open the file</a>")


def test_markdown_is_previewed_as_a_page_with_a_link(tmp_path):
    text = TABLE.to_markdown(index=False) + "\n\n<img src=x onerror=alert(1)>\n"
    dataset, link = versioned(MarkdownDataset, tmp_path, text)
    shown = dataset.preview()
    assert shown.count("<td") == 6
    assert "<img" not in shown
    assert shown.endswith(link)


def test_a_page_is_previewed_by_its_head_and_first_table(tmp_path):
    page = render_table("A <title>", {"date": "today"}, TABLE, "A note.")
    dataset, link = versioned(PageDataset, tmp_path, page)
    shown = dataset.preview()
    assert shown.startswith("<h1>A &lt;title&gt;</h1>")
    assert "date: <b>today</b>" in shown and shown.count("<td") == 6
    assert "<script" not in shown and "A note" not in shown
    assert shown.endswith(link)


@pytest.mark.parametrize(
    ("kind", "preview"),
    [(TableDataset, "Table"), (MarkdownDataset, "HTML"), (PageDataset, "HTML")],
)
def test_the_return_type_tells_kedro_viz_the_kind_of_preview(kind, preview):
    assert inspect.signature(kind.preview).return_annotation.__name__ == f"{preview}Preview"
