"""The report and the list of runs: HTML files that open from disk without a network.

Data reaches the page in one of two ways: Jinja escapes it, or it is JSON in which no character can
end the surrounding script element. The page shows values from the JSON as text only.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

Tables = Mapping[str, tuple[pd.DataFrame, str]]  # a table and a note for each heading

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
    which the second model abstained, `answered` one that has no answer but that it answered.

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
                "em": [round(row[f"{label} EM"]) for label in labels],
                "f1": [round(row[f"{label} F1"], 1) for label in labels],
                "outcome": outcome(row[f"{before} EM"], row[f"{after} EM"]),
                "abstained": bool(answers) and not row[after],
                "answered": not answers and bool(row[after]),
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


def _shown(table: pd.DataFrame, note: str) -> dict[str, Any]:
    return {
        "columns": list(table.columns),
        "rows": [[_cell(value) for value in row] for row in table.itertuples(index=False)],
        "note": note,
    }


def _render(template: str, **values: Any) -> str:
    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        loader=PackageLoader("flan_qa_pipeline", "reporting"),
    )
    return environment.get_template(template).render(values)


def render_report(
    *,
    title: str,
    facts: Mapping[str, str],
    summary: Tables,
    figures: Mapping[str, go.Figure],
    tables: Tables,
    question_table: pd.DataFrame,
    labels: tuple[str, str],
    costs: Tables,
) -> str:
    """Render a page of two models' results, in the order of the arguments.

    Args:
        title: the page's title and heading.
        facts: name and value of each fact in the page's head.
        summary: the tables above the figures.
        figures: a figure for each name.
        tables: the tables below the figures.
        question_table: as in `browsable_questions`.
        labels: the model before and the model after.
        costs: the tables at the page's end.

    Returns:
        The page as HTML.
    """
    groups = {"summary": summary, "tables": tables, "costs": costs}
    return _render(
        "report.html.j2",
        title=title,
        facts=facts,
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
        **{
            group: {heading: _shown(*table) for heading, table in shown.items()}
            for group, shown in groups.items()
        },
    )


def render_table(title: str, facts: Mapping[str, str], table: pd.DataFrame, note: str) -> str:
    """Render a page that holds one table."""
    return _render("table.html.j2", title=title, facts=facts, table=_shown(table, note))
