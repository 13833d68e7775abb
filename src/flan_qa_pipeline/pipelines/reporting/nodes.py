"""Answers, scores and tables of the untouched base and of the fine-tuned model."""

from typing import Any

import pandas as pd
import plotly.graph_objects as go
from datasets import DatasetDict
from peft import PeftModel
from transformers import PreTrainedModel

from flan_qa_pipeline.adapter import Adapter, attach_adapter, provenance_of
from flan_qa_pipeline.generation import generate_answers
from flan_qa_pipeline.models import load_base_model, load_tokenizer
from flan_qa_pipeline.parameters import (
    GenerationParameters,
    ModelParameters,
    PromptParameters,
    ReportingParameters,
)
from flan_qa_pipeline.scoring import per_question_scores, score_predictions
from flan_qa_pipeline.windows import WindowAnswer, merge_windows

SUBSET_PREFIXES = {"overall": "", "HasAns": "HasAns_", "NoAns": "NoAns_"}
METRICS = {"EM": "exact", "F1": "f1"}


def load_baseline_model(model: ModelParameters) -> PreTrainedModel:
    """Load the untouched base model, quantized as for training."""
    return load_base_model(model)


def load_finetuned_model(
    model: ModelParameters, prompt: PromptParameters, adapter: Adapter
) -> PeftModel:
    """Load the base model again and attach the trained adapter."""
    return attach_adapter(load_base_model(model), adapter, provenance_of(model, prompt))


def predict(
    qa_model: PreTrainedModel | PeftModel,
    tokenized_questions: DatasetDict,
    model: ModelParameters,
    prompt: PromptParameters,
    generation: GenerationParameters,
) -> pd.DataFrame:
    """Answer every validation question greedily: id, prediction_text ("" abstains), score."""
    windows = tokenized_questions["validation"]
    generated = generate_answers(
        qa_model,
        load_tokenizer(model),
        windows["input_ids"],
        batch_size=generation.batch_size,
        max_new_tokens=generation.max_new_tokens,
        description="Answer with the " + ("adapter" if isinstance(qa_model, PeftModel) else "base"),
    )
    merged = merge_windows(
        (
            WindowAnswer(id_, text, score)
            for id_, (text, score) in zip(windows["id"], generated, strict=True)
        ),
        prompt.abstention,
    )
    return pd.DataFrame(
        [(answer.id, answer.text, answer.score) for answer in merged.values()],
        columns=["id", "prediction_text", "score"],
    )


def score(questions: DatasetDict, predictions: pd.DataFrame) -> dict[str, Any]:
    """Score the answers by SQuAD 2.0's EM and F1, in percent: overall, HasAns and NoAns."""
    return score_predictions(_texts(predictions), _golds(questions))


def tabulate_scores(
    baseline_scores: dict[str, Any], finetuned_scores: dict[str, Any]
) -> tuple[pd.DataFrame, str]:
    """Set baseline and fine-tuned scores side by side, as a table and as Markdown."""
    rows = []
    for subset, prefix in SUBSET_PREFIXES.items():
        if f"{prefix}total" not in baseline_scores:
            continue
        row: dict[str, Any] = {"subset": subset, "questions": baseline_scores[f"{prefix}total"]}
        for label, metric in METRICS.items():
            before, after = (s[f"{prefix}{metric}"] for s in (baseline_scores, finetuned_scores))
            row |= {
                f"{label} baseline": before,
                f"{label} fine-tuned": after,
                f"{label} gain": after - before,
            }
        rows.append(row)
    table = pd.DataFrame(rows)
    return table, table.to_markdown(index=False, floatfmt=".2f") + "\n"


def plot_scores(score_table: pd.DataFrame) -> go.Figure:
    """Draw F1 and EM before and after fine-tuning for each subset."""
    figure = go.Figure()
    for label in METRICS:
        for model in ("baseline", "fine-tuned"):
            values = score_table[f"{label} {model}"]
            figure.add_bar(
                name=f"{label} {model}",
                x=score_table["subset"],
                y=values,
                text=values.round(1),
            )
    figure.update_layout(
        title="SQuAD 2.0 scores before and after fine-tuning",
        yaxis={"title": "percent", "range": [0, 100]},
        barmode="group",
    )
    return figure


def compare_answers(
    questions: DatasetDict,
    baseline_predictions: pd.DataFrame,
    finetuned_predictions: pd.DataFrame,
    reporting: ReportingParameters,
) -> pd.DataFrame:
    """Show a random sample of questions with gold answers and both models' answers and F1."""
    frame = questions["validation"].to_pandas()
    frame = frame.sample(min(reporting.sample_answers, len(frame)), random_state=reporting.seed)
    golds = _golds(questions)
    columns = {
        "id": frame["id"],
        "question": frame["question"],
        "context": frame["context"],
        "gold": [" | ".join(dict.fromkeys(golds[id_])) for id_ in frame["id"]],
    }
    for name, predictions in (
        ("baseline", baseline_predictions),
        ("fine-tuned", finetuned_predictions),
    ):
        texts = _texts(predictions)
        scores = per_question_scores(texts, golds)
        columns[name] = [texts[id_] for id_ in frame["id"]]
        columns[f"{name} F1"] = [100 * scores[id_][1] for id_ in frame["id"]]
    return pd.DataFrame(columns)


def _golds(questions: DatasetDict) -> dict[str, list[str]]:
    validation = questions["validation"]
    return {
        id_: answers["text"]
        for id_, answers in zip(validation["id"], validation["answers"], strict=True)
    }


def _texts(predictions: pd.DataFrame) -> dict[str, str]:
    return dict(zip(predictions["id"], predictions["prediction_text"], strict=True))
