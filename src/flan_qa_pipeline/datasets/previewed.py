"""Kedro datasets that Kedro-Viz previews for reading: rounded tables, Markdown, HTML pages."""

import re
from pathlib import Path
from typing import Any

import pandas as pd
from kedro_datasets._typing import HTMLPreview, TablePreview  # as Kedro-Viz documents
from kedro_datasets.pandas import CSVDataset
from kedro_datasets.text import TextDataset
from markdown_it import MarkdownIt

from flan_qa_pipeline.runtime.kedro_private import load_path

DIGITS = 4
SEPARATOR = "<span hidden>\u2028</span>"
SYNTAX = re.compile(r"[_*`\]](?![^<]*>)")  # of Markdown, outside tags
HEAD = re.compile(
    r"(?P<title><h1>.*?</h1>).*?(?P<facts><p class=\"facts\">.*?</p>)"
    r".*?(?P<table><table.*?</table>)",
    re.DOTALL,
)


class TableDataset(CSVDataset):
    """A CSV file of numbers, which its preview rounds to `DIGITS` digits; the file keeps all.

    Takes the arguments of `pandas.CSVDataset`.

    Example:
    ```yaml
    score_table:
      type: flan_qa_pipeline.datasets.previewed.TableDataset
      filepath: data/08_reporting/score_table.csv
    ```
    """

    def preview(self, nrows: int = 5) -> TablePreview:
        shown = super().preview(nrows)
        rows = [[_rounded(value) for value in row] for row in shown["data"]]
        return TablePreview({**shown, "data": rows})


class MarkdownDataset(TextDataset):
    """A Markdown file, which its preview shows as a page with a link to the file.

    Takes the arguments of `text.TextDataset`.

    Example:
    ```yaml
    score_table_markdown:
      type: flan_qa_pipeline.datasets.previewed.MarkdownDataset
      filepath: data/08_reporting/score_table.md
    ```
    """

    def preview(self) -> HTMLPreview:
        return _previewed(self, MarkdownIt("js-default").render(self.load()))


class PageDataset(TextDataset):
    """An HTML page of this project; its preview is the page's head and first table, with a link.

    Takes the arguments of `text.TextDataset`.

    Example:
    ```yaml
    report:
      type: flan_qa_pipeline.datasets.previewed.PageDataset
      filepath: data/08_reporting/report.html
    ```
    """

    def preview(self) -> HTMLPreview:
        head = HEAD.search(self.load())
        return _previewed(self, "".join(head.groups()) if head else "")


def _previewed(dataset: TextDataset, html: str) -> HTMLPreview:
    """Add a link to the dataset's file; show the HTML as it is.

    Kedro-Viz reads it as Markdown, too: it joins pairs of `_` and `*` on one line, turns `[a](b)`
    into a link, whatever its scheme, and starts a new line at each line feed. A hidden line
    separator after such a character prevents that.
    """
    one_line = " ".join(html.split()).replace("</span><span>", "</span> <span>")
    path = Path(str(load_path(dataset)))
    link = path.as_uri() if path.is_absolute() else str(path)
    shown = SYNTAX.sub(rf"\g<0>{SEPARATOR}", one_line)
    return HTMLPreview(f"{shown}\n\n[Open the file]({link.replace('_', '%5F')})")


def _rounded(value: Any) -> Any:
    if pd.isna(value):
        return ""
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value
