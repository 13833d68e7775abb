"""Answers, scores, tables and figures of the untouched base and of the fine-tuned model."""

import logging
from dataclasses import asdict, fields
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from datasets import DatasetDict, concatenate_datasets
from peft import PeftModel
from transformers import PreTrainedModel

from flan_qa_pipeline.answering.generation import GeneratedAnswer
from flan_qa_pipeline.answering.window_answers import answer_windows
from flan_qa_pipeline.config.parameters import (
    DataParameters,
    GenerationParameters,
    ModelParameters,
    PromptParameters,
    ReportingParameters,
)
from flan_qa_pipeline.data.fingerprints import fingerprint_rows
from flan_qa_pipeline.data.squad import gold_texts, one_line
from flan_qa_pipeline.data.tokenized import require_made_of
from flan_qa_pipeline.evaluation.breakdown import breakdown, question_word
from flan_qa_pipeline.evaluation.no_answer_threshold import (
    PrecisionRecall,
    abstention_rows,
    candidates,
    precision_recall,
)
from flan_qa_pipeline.evaluation.run_costs import cost_rows, memory_sizes
from flan_qa_pipeline.evaluation.scoring import per_question_scores, score_predictions
from flan_qa_pipeline.evaluation.subject import scored_on, subject, trained_on
from flan_qa_pipeline.models.adapter import Adapter, attach_adapter, provenance_of
from flan_qa_pipeline.models.loading import load_base_model, load_tokenizer
from flan_qa_pipeline.models.sharding import shard
from flan_qa_pipeline.reporting.figures import MODELS
from flan_qa_pipeline.reporting.html_report import render_report
from flan_qa_pipeline.reporting.tables import (
    breakdown_markdown,
    cost_markdown,
    memory_markdown,
    other_abstention_sentences,
    readable_breakdown,
    readable_costs,
    readable_memory,
    readable_scores,
    scores_markdown,
)

logger = logging.getLogger(__name__)

ABSTENTION_NOTE = (
    "The model abstains on a question if its no-answer probability is above the threshold. "
    "Train articles: the threshold with the best F1 on questions from train articles that were "
    "held out from training. Best EM and best F1 on validation: the official script's best_exact "
    "and best_f1, whose thresholds are chosen on the scored questions, so they are upper bounds "
    "and not results."
)
COST_NOTE = (
    "Training speed excludes evaluations. The table has the nodes that had ended when it was made; "
    "node_times.csv of the same version has all nodes. Peaks cover the whole process."
)
MEMORY_NOTE = (
    "The base's weights are calculated from their shapes, as loaded and as peft's "
    "prepare_model_for_kbit_training leaves them; weights that are not in NF4 count as bfloat16. "
    "NF4 here is packed, as with model.dequantize=false. The training peak is measured: the most "
    "memory that torch allocates in a step on the longest windows, with the batch and the device "
    "in the last column and the run's compute dtype beside NF4. It is missing if memory did not "
    "suffice or if reporting.memory_formats excludes the format."
)


def load_baseline_model(model: ModelParameters, fsdp: bool = False) -> PreTrainedModel:
    """Load the base model without an adapter, quantized as for training."""
    base = load_base_model(model, to_shard=fsdp)
    return shard(base) if fsdp else base


def load_finetuned_model(
    model: ModelParameters,
    prompt: PromptParameters,
    adapter: Adapter,
    questions: DatasetDict,
    fsdp: bool = False,
) -> PeftModel:
    """Load the base and attach the trained adapter.

    The adapter is merged where the weights are neither packed in 4 bits nor sharded.
    """
    if _trained_on_others(adapter, questions):
        logger.warning(
            "The adapter was trained on other questions than the version loaded; it may have seen "
            "the questions that score it, so no model card quotes these scores. Name the versions "
            "of its run with --load-versions=questions:…,tokenized_questions:…."
        )
    base = load_base_model(model, to_shard=fsdp)
    qa_model = attach_adapter(base, adapter, provenance_of(model, prompt))
    if fsdp:
        return shard(qa_model)
    if not getattr(base, "is_quantized", False):
        qa_model.merge_adapter()
    return qa_model


def _trained_on_others(adapter: Adapter, questions: DatasetDict) -> bool:
    trained_on = adapter.training["run"]["fingerprints"]["questions"]["train"]
    return bool(fingerprint_rows(questions["train"]) != trained_on)


def predict(
    qa_model: PreTrainedModel | PeftModel,
    questions: DatasetDict,
    tokenized_questions: DatasetDict,
    model: ModelParameters,
    prompt: PromptParameters,
    generation: GenerationParameters,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Answer the validation and the calibration questions greedily.

    Returns:
        Two tables, of the validation and the calibration questions, with the columns `id`,
        `prediction_text` ("" abstains), `score` (the log-probability of the prediction),
        `answer_text` (the best answer, also where the model abstains) and `no_answer_score` (the
        log-odds of abstaining against `answer_text`, in nats).

    Raises:
        InputError: the tokenized questions were not made of `questions`.
    """
    scored = {split: fingerprint_rows(questions[split]) for split in ("validation", "calibration")}
    require_made_of(tokenized_questions, scored)
    validation, calibration = tokenized_questions["validation"], tokenized_questions["calibration"]
    answers = answer_windows(
        qa_model,
        load_tokenizer(model),
        concatenate_datasets([validation, calibration]),
        prompt,
        generation,
        description="Answer with the " + ("adapter" if isinstance(qa_model, PeftModel) else "base"),
    )
    generated = pd.DataFrame(
        [merged.generated for merged in answers.values()], columns=GeneratedAnswer._fields
    )
    frame = pd.DataFrame(
        {
            "id": list(answers),
            "prediction_text": generated["text"],
            "score": generated["log_prob"],
            "answer_text": generated["answer"],
            "no_answer_score": generated["no_answer_log_odds"],
        }
    )
    ids = set(validation["id"][:])
    validates = np.array([id_ in ids for id_ in answers], dtype=bool)  # isin takes 20 times as long
    return frame[validates], frame[~validates].reset_index(drop=True)


def score(questions: DatasetDict, predictions: pd.DataFrame) -> dict[str, Any]:
    """Score the answers with SQuAD 2.0's EM and F1, in percent: overall, HasAns and NoAns."""
    return score_predictions(_texts(predictions), gold_texts(questions["validation"]))


def tabulate_questions(
    questions: DatasetDict,
    baseline_predictions: pd.DataFrame,
    finetuned_predictions: pd.DataFrame,
) -> pd.DataFrame:
    """List every validation question with its gold answers and each model's answer, EM and F1."""
    frame = questions["validation"].to_pandas()
    golds = gold_texts(questions["validation"])
    answers = [golds[id_] for id_ in frame["id"]]
    columns = {
        "id": frame["id"],
        "title": frame["title"],
        "question": frame["question"],
        "context": frame["context"],
        "answers": answers,
        "answer_start": [list(row["answer_start"]) for row in frame["answers"]],
        "is_impossible": [not texts for texts in answers],
        "question_word": frame["question"].map(question_word),
        "answer_words": pd.Series(
            [len(texts[0].split()) if texts else None for texts in answers], dtype="Int64"
        ),
        "context_words": [len(context.split()) for context in frame["context"]],
    }
    for label, predictions in zip(
        MODELS, (baseline_predictions, finetuned_predictions), strict=True
    ):
        texts = _texts(predictions)
        scores = per_question_scores(texts, golds)
        columns[label] = [texts[id_] for id_ in frame["id"]]
        columns[f"{label} EM"] = [100 * scores[id_].exact_match for id_ in frame["id"]]
        columns[f"{label} F1"] = [100 * scores[id_].f1 for id_ in frame["id"]]
    return pd.DataFrame(columns)


def tabulate_breakdown(
    question_table: pd.DataFrame, reporting: ReportingParameters
) -> tuple[pd.DataFrame, str]:
    """Break EM and F1 down by kind of question, with a paired bootstrap interval of each gain."""
    table = breakdown(
        question_table,
        MODELS,
        resamples=reporting.bootstrap_resamples,
        confidence=reporting.confidence,
        seed=reporting.seed,
    )
    return table, breakdown_markdown(table, reporting.confidence)


def tabulate_scores(
    breakdown_table: pd.DataFrame, question_table: pd.DataFrame, reporting: ReportingParameters
) -> tuple[pd.DataFrame, str]:
    """Select the scores of all, answerable and unanswerable questions from the breakdown.

    Sentences below the Markdown table name phrases by which a model abstains in other words.
    """
    groups = breakdown_table["group"]
    table = breakdown_table[groups.isin(["all", "answerable"])].drop(columns="group")
    markdown = scores_markdown(table, MODELS, reporting.confidence)
    return table, "\n\n".join([markdown, *other_abstention_sentences(question_table, MODELS)])


def record_evaluation(
    score_table: pd.DataFrame,
    adapter: Adapter,
    run_record: dict[str, Any],
    data: DataParameters,
    questions: DatasetDict,
    reporting: ReportingParameters,
) -> dict[str, Any]:
    """Record which adapter was scored, on what and how well; a model card quotes it.

    The card quotes no record with `may_have_seen`: the adapter was trained on other questions than
    those that these were held out of.
    """
    return {
        "version": run_record["run_id"],
        "adapter": adapter.training["run"].get("run_id"),
        "corpus": scored_on(data, questions),
        "may_have_seen": _trained_on_others(adapter, questions),
        "labels": list(MODELS),
        "confidence": reporting.confidence,
        "scores": score_table.to_dict("records"),
    }


def tabulate_abstention(
    questions: DatasetDict,
    baseline_predictions: pd.DataFrame,
    finetuned_predictions: pd.DataFrame,
    baseline_calibration_predictions: pd.DataFrame,
    finetuned_calibration_predictions: pd.DataFrame,
) -> tuple[pd.DataFrame, str, pd.DataFrame]:
    """Compare greedy abstention with thresholds chosen on train articles and on the validation set.

    Returns:
        The table, the table as Markdown, and the precision of the answers given at every threshold
        by model, with the columns of `no_answer_threshold.PrecisionRecall`.
    """
    calibration = questions["calibration"]
    if not len(calibration):
        logger.info("No threshold is calibrated: the calibration articles contain no questions.")
    rows, curves = [], []
    for label, predictions, calibrating in zip(
        MODELS,
        (baseline_predictions, finetuned_predictions),
        (baseline_calibration_predictions, finetuned_calibration_predictions),
        strict=True,
    ):
        answers = candidates(gold_texts(questions["validation"]), predictions)
        chosen_on = candidates(gold_texts(calibration), calibrating) if len(calibration) else None
        rows += [{"model": label, **row} for row in abstention_rows(answers, chosen_on)]
        if answers.has_answer.any():
            curve = precision_recall(answers.scores["F1"], answers.na_probs, answers.has_answer)
            curves.append(pd.DataFrame({"model": label, **asdict(curve)}))
    table = pd.DataFrame(rows)
    shown = table.astype(object).where(table.notna(), None)
    markdown = shown.to_markdown(index=False, floatfmt=".4g", missingval="")
    none = pd.DataFrame(columns=["model", *(field.name for field in fields(PrecisionRecall))])
    return table, f"{markdown}\n\n{ABSTENTION_NOTE}\n", pd.concat(curves) if curves else none


def sample_questions(question_table: pd.DataFrame, reporting: ReportingParameters) -> pd.DataFrame:
    """Draw a random sample of questions with gold answers and each model's answer and F1."""
    size = min(reporting.sample_answers, len(question_table))
    sample = question_table.sample(size, random_state=reporting.seed)
    sample["gold"] = sample["answers"].map(one_line)
    columns = ["id", "question", "context", "gold"]
    return sample[[*columns, *(name for m in MODELS for name in (m, f"{m} F1"))]]


def tabulate_costs(
    adapter: Adapter,
    question_table: pd.DataFrame,
    questions: DatasetDict,
    node_costs: dict[str, dict[str, Any]],
) -> tuple[pd.DataFrame, str]:
    """List parameters, memory, speed and the wall time of the nodes that have ended."""
    table = pd.DataFrame(
        cost_rows(
            adapter.training,
            node_costs,
            n_answered=len(question_table) + len(questions["calibration"]),
            adapter_bytes=sum(weight.nbytes for weight in adapter.state_dict.values()),
        )
    )
    return table, f"{cost_markdown(table)}\n{COST_NOTE}\n"


def tabulate_memory(adapter: Adapter, training_memory: dict[str, Any]) -> tuple[pd.DataFrame, str]:
    """List the memory of the weights and of a training step with the base in several formats."""
    table = memory_sizes(adapter.training["base_weights"], training_memory)
    return table, f"{memory_markdown(table)}\n{MEMORY_NOTE}\n"


def build_report(
    question_table: pd.DataFrame,
    score_table: pd.DataFrame,
    breakdown_table: pd.DataFrame,
    abstention_table: pd.DataFrame,
    cost_table: pd.DataFrame,
    memory_table: pd.DataFrame,
    score_figure: go.Figure,
    context_length_figure: go.Figure,
    abstention_figure: go.Figure,
    training_figure: go.Figure,
    adapter: Adapter,
    run_record: dict[str, Any],
    model: ModelParameters,
    data: DataParameters,
    questions: DatasetDict,
    reporting: ReportingParameters,
) -> str:
    """Put tables, figures and the browsable questions into one self-contained HTML page."""
    interval = (
        f"In brackets: {reporting.confidence:.0%} paired bootstrap interval of the gain, "
        f"{reporting.bootstrap_resamples} resamples of questions."
    )
    return render_report(
        title=f"{subject(model, data, questions)}, before and after fine-tuning",
        facts=_facts(adapter, run_record, data, questions),
        summary={
            "Scores": (
                readable_scores(score_table, MODELS, reporting.confidence),
                " ".join([interval, *other_abstention_sentences(question_table, MODELS)]),
            ),
        },
        figures={
            "Scores before and after fine-tuning": score_figure,
            "F1 against context length": context_length_figure,
            "Precision against abstention": abstention_figure,
            "Training": training_figure,
        },
        tables={
            "Breakdown": (readable_breakdown(breakdown_table, reporting.confidence), interval),
            "Abstention": (abstention_table, ABSTENTION_NOTE),
        },
        question_table=question_table,
        labels=MODELS,
        costs={
            "Memory": (readable_memory(memory_table), MEMORY_NOTE),
            "Cost": (readable_costs(cost_table), COST_NOTE),
        },
    )


def _facts(
    adapter: Adapter, run_record: dict[str, Any], data: DataParameters, questions: DatasetDict
) -> dict[str, str]:
    """List what the report's results come from."""
    trained = adapter.training["run"]
    parameters = trained.get("parameters")
    git, base = run_record["git"], adapter.provenance["model"]
    facts = {
        "date": run_record["started"],
        "version": run_record["run_id"],
        "commit": git and git["commit"][:10] + (" with changes" if git["dirty"] else ""),
        "device": run_record["device"],
        "trained on device": trained.get("device"),
        "base": base["name"] + (f" at {base['revision'][:10]}" if base.get("revision") else ""),
        "adapter": trained.get("run_id"),
        "LoRA rank": adapter.config.r,
        "training steps": adapter.training["steps"],
        "seed": parameters and parameters["training"]["seed"],
        "training data": trained_on(trained),
        "training file": parameters and parameters["data"]["train_file"],
        "validation": f"{len(questions['validation'])} questions from {scored_on(data, questions)}",
        "validation file": data.validation_file,
    }
    if facts["trained on device"] == facts["device"]:
        del facts["trained on device"]
    return {name: str(value) for name, value in facts.items() if value is not None}


def _texts(predictions: pd.DataFrame) -> dict[str, str]:
    return dict(zip(predictions["id"], predictions["prediction_text"], strict=True))
