"""Kedro datasets that Kedro-Viz previews for reading: rounded tables, Markdown, HTML pages."""

import re
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd
from kedro_datasets._typing import HTMLPreview, TablePreview
from kedro_datasets.pandas import CSVDataset
from kedro_datasets.text import TextDataset
from markdown_it import MarkdownIt

from flan_qa_pipeline.runtime.kedro_private import load_path

DIGITS = 4
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
        return HTMLPreview(MarkdownIt("js-default").render(self.load()) + _link(self))


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
        return HTMLPreview("".join(head.groups() if head else ()) + _link(self))


def _rounded(value: Any) -> Any:
    if pd.isna(value):
        return ""
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value


def _link(dataset: TextDataset) -> str:
    path = str(load_path(dataset))
    href = Path(path).as_uri() if Path(path).is_absolute() else path
    return f'<p><a href="{escape(href)}">{escape(path)}</a></p>'
