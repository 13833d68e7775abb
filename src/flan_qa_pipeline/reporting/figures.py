"""The report's figures: scores, abstention, training, context length, comparison."""

from html import escape
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from datasets import DatasetDict
from plotly.subplots import make_subplots

from flan_qa_pipeline.config.parameters import DataParameters, ModelParameters
from flan_qa_pipeline.evaluation.no_answer_threshold import PrecisionRecall, tuned_rows
from flan_qa_pipeline.evaluation.subject import subject
from flan_qa_pipeline.models.adapter import Adapter

MODELS = ("baseline", "fine-tuned")
VERSIONS = ("first", "second")  # two saved versions, compared
COLORS = dict(zip(MODELS, ("#9aa5b1", "#1f6feb"), strict=True))
ACCENT = "#c2410c"
RULE = "#94a3b8"
PERCENT = {"title": "percent", "range": [0, 105]}
_LAYOUT: dict[str, Any] = {
    "template": "plotly_white",
    "legend": {"orientation": "h", "y": -0.2},
    "margin": {"t": 80, "r": 20},
}
_POINTS_DRAWN = 400


def _title(
    text: str, model: ModelParameters, data: DataParameters, questions: DatasetDict
) -> dict[str, Any]:
    return {"text": text, "subtitle": {"text": escape(subject(model, data, questions))}}


def plot_scores(
    score_table: pd.DataFrame,
    model: ModelParameters,
    data: DataParameters,
    questions: DatasetDict,
) -> go.Figure:
    """Draw each subset's EM and F1 before and after fine-tuning."""
    figure = make_subplots(cols=2, subplot_titles=["EM", "F1"], shared_yaxes=True)
    for column, metric in enumerate(("EM", "F1"), start=1):
        for label, color in COLORS.items():
            values = score_table[f"{metric} {label}"]
            figure.add_bar(
                name=label,
                x=score_table["subset"],
                y=values,
                text=values.round(1),
                marker_color=color,
                legendgroup=label,
                showlegend=column == 1,
                col=column,
                row=1,
            )
    figure.update_layout(
        title=_title("EM and F1 before and after fine-tuning", model, data, questions),
        barmode="group",
        yaxis=PERCENT,
        **_LAYOUT,
    )
    return figure


def plot_abstention(
    abstention_curve: pd.DataFrame,
    abstention_table: pd.DataFrame,
    model: ModelParameters,
    data: DataParameters,
    questions: DatasetDict,
) -> go.Figure:
    """Draw the precision of the answers given against the share of questions abstained on."""
    figure = go.Figure()
    for label, color in COLORS.items():
        rows = abstention_curve[abstention_curve["model"] == label].drop(columns="model")
        if rows.empty:
            continue
        curve = PrecisionRecall(**{str(name): column.to_numpy() for name, column in rows.items()})
        points = np.linspace(0, len(curve.precision) - 1, _POINTS_DRAWN).round().astype(int)
        points = np.unique(points)
        figure.add_scatter(
            name=f"{label} (average precision {curve.average_precision:.1f})",
            x=100 * curve.abstained[points],
            y=100 * curve.precision[points],
            customdata=np.column_stack([curve.thresholds, 100 * curve.recall])[points],
            hovertemplate="abstained %{x:.1f}%<br>precision %{y:.1f}%<br>"
            "recall %{customdata[1]:.1f}%<br>threshold %{customdata[0]:.3g}",
            line_color=color,
        )
        rows = tuned_rows(abstention_table, label)
        for share in rows["abstained"] / rows["questions"]:
            at = int(np.abs(curve.abstained - share).argmin())
            figure.add_scatter(
                name=f"{label}, threshold from train articles",
                x=[100 * curve.abstained[at]],
                y=[100 * curve.precision[at]],
                mode="markers",
                marker={"size": 12, "color": color, "symbol": "diamond"},
            )
    figure.update_layout(
        title=_title("Precision of the answers given against abstention", model, data, questions),
        xaxis={"title": "questions abstained on, percent", "range": [0, 100]},
        yaxis={**PERCENT, "title": "mean F1 of the answers given, percent"},
        **_LAYOUT,
    )
    return figure


def plot_training(
    adapter: Adapter, model: ModelParameters, data: DataParameters, questions: DatasetDict
) -> go.Figure:
    """Draw loss, learning rate and the scores on held-out train articles over the steps."""
    log = pd.DataFrame(adapter.training["log"], columns=["step", *_CURVES])
    figure = make_subplots(
        rows=3, shared_xaxes=True, vertical_spacing=0.06, row_heights=[0.4, 0.2, 0.4]
    )
    for column, (row, name, color) in _CURVES.items():
        points = log.dropna(subset=[column])
        if len(points):
            figure.add_scatter(
                name=name,
                x=points["step"],
                y=points[column],
                line_color=color,
                mode="lines+markers" if column.startswith("eval_") else "lines",
                row=row,
                col=1,
            )
    best = adapter.training["best_step"]
    if best is not None:
        figure.add_vline(
            x=best,
            line_dash="dot",
            line_color=RULE,
            annotation_text="adapter kept",
            row=3,
            col=1,
        )
    figure.update_layout(title=_title("Training", model, data, questions), height=640, **_LAYOUT)
    figure.update_yaxes(title_text="loss", row=1)
    figure.update_yaxes(title_text="learning rate", row=2)
    figure.update_yaxes(title_text="percent", range=[0, 105], row=3)
    figure.update_xaxes(title_text="step", row=3)
    return figure


_CURVES = {
    "loss": (1, "loss on train", COLORS["baseline"]),
    "eval_loss": (1, "loss on held-out train articles", COLORS["fine-tuned"]),
    "learning_rate": (2, "learning rate", "#64748b"),
    "eval_f1": (3, "F1 on held-out train articles", COLORS["fine-tuned"]),
    "eval_exact": (3, "EM on held-out train articles", ACCENT),
}


def plot_context_length(
    breakdown_table: pd.DataFrame,
    model: ModelParameters,
    data: DataParameters,
    questions: DatasetDict,
) -> go.Figure:
    """Draw F1 against context length, in quarters of the questions."""
    rows = breakdown_table[breakdown_table["group"] == "context length"]
    figure = go.Figure()
    for label, color in COLORS.items():
        figure.add_scatter(
            name=label,
            x=rows["subset"],
            y=rows[f"F1 {label}"],
            customdata=rows["questions"],
            hovertemplate="%{y:.1f} on %{customdata} questions",
            mode="lines+markers",
            line_color=color,
        )
    figure.update_layout(
        title=_title("F1 against context length", model, data, questions),
        yaxis={**PERCENT, "title": "F1, percent"},
        **_LAYOUT,
    )
    return figure


def plot_comparison(comparison_table: pd.DataFrame) -> go.Figure:
    """Draw each group's F1 gain from the first version to the second, with its interval."""
    rows = comparison_table.iloc[::-1]
    figure = go.Figure()
    figure.add_scatter(
        x=rows["F1 gain"],
        y=rows["group"] + ": " + rows["subset"],
        error_x={
            "type": "data",
            "symmetric": False,
            "array": rows["F1 gain high"] - rows["F1 gain"],
            "arrayminus": rows["F1 gain"] - rows["F1 gain low"],
        },
        mode="markers",
        marker={"size": 9, "color": COLORS["fine-tuned"]},
    )
    figure.add_vline(x=0, line_color=RULE)
    figure.update_layout(
        title="F1 of the second version minus the first",
        xaxis_title="points",
        height=160 + 28 * len(rows),
        **_LAYOUT,
    )
    return figure
