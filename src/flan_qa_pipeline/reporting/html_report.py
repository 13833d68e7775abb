"""The report: one HTML file that opens from disk without a network.

Data reaches the page in one of two ways: Jinja escapes it, or it is JSON in which no character can
end the surrounding script element. The page shows values from the JSON as text only.
"""

import json
import re
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

TEMPLATE = files("flan_qa_pipeline.reporting") / "report.html.j2"
_NUMBER = re.compile(r"[-+]?[\d,.]+(e[-+]?\d+)?( \[.*\])?")
_UNSAFE = {ord(char): f"\\u{ord(char):04x}" for char in "<>&"}


def script_json(value: Any) -> Markup:
    """Encode a value as JSON for a script element: ASCII, with `<`, `>` and `&` escaped.

    Raises:
        ValueError: the value holds NaN or an infinity, which JSON cannot express.
    """
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return Markup(text.translate(_UNSAFE))  # noqa: S704


def outcome(before_exact: float, after_exact: float) -> str:
    """Name how exact match changed on a question: fixed, broken, still right or still wrong."""
    if after_exact:
        return "still right" if before_exact else "fixed"
    return "broken" if before_exact else "still wrong"


def browsable_questions(question_table: pd.DataFrame, labels: tuple[str, str]) -> dict[str, Any]:
    """Return the contexts, each once, and the questions for the page's script.

    Offsets count code points, as in SQuAD. `abstained` marks a question that has an answer but on
    which the second model abstained.

    Args:
        question_table: one row per question, with each label's answer, EM and F1.
        labels: the model before and the model after.
    """
    before, after = labels
    contexts: dict[str, int] = {}
    rows = []
    for row in question_table.to_dict("records"):
        answers = list(row["answers"])
        spans = {
            (int(start), int(start) + len(text))
            for text, start in zip(answers, row["answer_start"], strict=True)
        }
        rows.append(
            {
                "id": row["id"],
                "title": row["title"],
                "question": row["question"],
                "context": contexts.setdefault(row["context"], len(contexts)),
                "gold": list(dict.fromkeys(answers)),
                "spans": sorted(spans),
                "before": row[before],
                "after": row[after],
                "f1": [round(row[f"{label} F1"], 1) for label in labels],
                "outcome": outcome(row[f"{before} EM"], row[f"{after} EM"]),
                "abstained": bool(answers) and not row[after],
            }
        )
    return {"contexts": list(contexts), "questions": rows}


def _cell(value: Any) -> tuple[str, bool]:
    """Return the text of a cell, and whether it shows a number."""
    if pd.isna(value):
        return "", True
    if isinstance(value, float):
        value = f"{value:.2f}" if abs(value) >= 0.01 or value == 0 else f"{value:.2e}"
    return str(value), bool(_NUMBER.fullmatch(str(value)))


def render_report(
    *,
    title: str,
    facts: Mapping[str, str],
    tables: Mapping[str, tuple[pd.DataFrame, str]],
    figures: Mapping[str, go.Figure],
    question_table: pd.DataFrame,
    labels: tuple[str, str],
) -> str:
    """Render the page.

    Args:
        title: the page's title and heading.
        facts: name and value of each fact in the page's head.
        tables: a table and a note for each heading.
        figures: a figure for each name.
        question_table: as in `browsable_questions`.
        labels: the model before and the model after.

    Returns:
        The page as HTML.
    """
    environment = Environment(autoescape=True, undefined=StrictUndefined)
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    return template.render(
        title=title,
        facts=facts,
        tables={
            heading: {
                "columns": list(table.columns),
                "rows": [[_cell(value) for value in row] for row in table.itertuples(index=False)],
                "note": note,
            }
            for heading, (table, note) in tables.items()
        },
        labels=labels,
        figures={f"figure-{i}": name for i, name in enumerate(figures)},
        plotlyjs=Markup(get_plotlyjs()),  # noqa: S704
        figure_json=script_json(
            {
                f"figure-{i}": json.loads(figure.to_json())
                for i, figure in enumerate(figures.values())
            }
        ),
        question_json=script_json(browsable_questions(question_table, labels)),
    )
