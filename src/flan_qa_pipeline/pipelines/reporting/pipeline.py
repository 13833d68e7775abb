from typing import Any

from kedro.pipeline import Pipeline, node
from kedro.pipeline.node import Node

from flan_qa_pipeline.reporting.figures import (
    plot_abstention,
    plot_context_length,
    plot_scores,
    plot_training,
)

from .nodes import (
    build_report,
    load_baseline_model,
    load_finetuned_model,
    predict,
    record_evaluation,
    sample_questions,
    score,
    tabulate_abstention,
    tabulate_breakdown,
    tabulate_costs,
    tabulate_memory,
    tabulate_questions,
    tabulate_scores,
)

SUBJECT = ["params:model", "params:data", "questions"]  # what was scored


def create_pipeline(**kwargs: Any) -> Pipeline:
    """Answer the validation questions with base and adapter; score, tabulate and compare them."""
    return Pipeline(
        [
            _in_namespace("prediction", _predictions()),
            _in_namespace("reporting", [*_scores(), *_tables(), *_figures(), *_report()]),
        ],
        tags=["reporting"],
    )


def _in_namespace(name: str, nodes: list[Node]) -> Pipeline:
    return Pipeline(nodes, namespace=name, prefix_datasets_with_namespace=False)


def _predictions() -> list[Node]:
    """Load the base and the fine-tuned model and answer with each."""
    prediction_inputs = [
        "questions",
        "tokenized_questions",
        "params:model",
        "params:prompt",
        "params:generation",
    ]
    return [
        node(
            load_baseline_model,
            inputs=["params:model", "params:distributed.fsdp"],
            outputs="baseline_model",
            name="load_baseline_model",
            tags=["baseline", "predict"],
        ),
        node(
            predict,
            inputs=["baseline_model", *prediction_inputs],
            outputs=["baseline_predictions", "baseline_calibration_predictions"],
            name="predict_baseline",
            tags=["baseline", "predict"],
        ),
        node(
            load_finetuned_model,
            inputs=[
                "params:model",
                "params:prompt",
                "adapter",
                "questions",
                "params:distributed.fsdp",
            ],
            outputs="finetuned_model",
            name="load_finetuned_model",
            tags=["finetuned", "predict"],
        ),
        node(
            predict,
            inputs=["finetuned_model", *prediction_inputs],
            outputs=["finetuned_predictions", "finetuned_calibration_predictions"],
            name="predict_finetuned",
            tags=["finetuned", "predict"],
        ),
    ]


def _scores() -> list[Node]:
    """Score the answers of both models and compare them question by question."""
    return [
        node(
            score,
            inputs=["questions", "baseline_predictions"],
            outputs="baseline_scores",
            name="score_baseline",
            tags=["baseline", "score"],
        ),
        node(
            score,
            inputs=["questions", "finetuned_predictions"],
            outputs="finetuned_scores",
            name="score_finetuned",
            tags=["finetuned", "score"],
        ),
        node(
            tabulate_questions,
            inputs=["questions", "baseline_predictions", "finetuned_predictions"],
            outputs="question_table",
            name="tabulate_questions",
            tags=["report"],
        ),
        node(
            tabulate_breakdown,
            inputs=["question_table", "params:reporting"],
            outputs=["breakdown_table", "breakdown_table_markdown"],
            name="tabulate_breakdown",
            tags=["report"],
        ),
        node(
            tabulate_scores,
            inputs=["breakdown_table", "question_table", "params:reporting"],
            outputs=["score_table", "score_table_markdown"],
            name="tabulate_scores",
            tags=["report"],
        ),
        node(
            record_evaluation,
            inputs=[
                "score_table",
                "adapter",
                "run_record",
                "params:data",
                "questions",
                "params:reporting",
            ],
            outputs="evaluation_record",
            name="record_evaluation",
            tags=["report"],
        ),
    ]


def _tables() -> list[Node]:
    """Tabulate abstention, cost and memory."""
    return [
        node(
            tabulate_abstention,
            inputs=[
                "questions",
                "baseline_predictions",
                "finetuned_predictions",
                "baseline_calibration_predictions",
                "finetuned_calibration_predictions",
            ],
            outputs=["abstention_table", "abstention_table_markdown", "abstention_curve"],
            name="tabulate_abstention",
            tags=["report"],
        ),
        node(
            tabulate_costs,
            inputs=["adapter", "question_table", "questions", "node_costs"],
            outputs=["cost_table", "cost_table_markdown"],
            name="tabulate_costs",
            tags=["report"],
        ),
        node(
            tabulate_memory,
            inputs=["adapter", "training_memory"],
            outputs=["memory_table", "memory_table_markdown"],
            name="tabulate_memory",
            tags=["report"],
        ),
    ]


def _figures() -> list[Node]:
    """Draw the figures."""
    return [
        node(
            plot_scores,
            inputs=["score_table", *SUBJECT],
            outputs="score_figure",
            name="plot_scores",
            tags=["report"],
        ),
        node(
            plot_abstention,
            inputs=["abstention_curve", "abstention_table", *SUBJECT],
            outputs="abstention_figure",
            name="plot_abstention",
            tags=["report"],
        ),
        node(
            plot_training,
            inputs=["adapter", *SUBJECT],
            outputs="training_figure",
            name="plot_training",
            tags=["report"],
        ),
        node(
            plot_context_length,
            inputs=["breakdown_table", *SUBJECT],
            outputs="context_length_figure",
            name="plot_context_length",
            tags=["report"],
        ),
    ]


def _report() -> list[Node]:
    """Sample answers and build the HTML report."""
    return [
        node(
            sample_questions,
            inputs=["question_table", "params:reporting"],
            outputs="sample_answers",
            name="sample_questions",
            tags=["report"],
        ),
        node(
            build_report,
            inputs=[
                "question_table",
                "score_table",
                "breakdown_table",
                "abstention_table",
                "cost_table",
                "memory_table",
                "score_figure",
                "context_length_figure",
                "abstention_figure",
                "training_figure",
                "adapter",
                "run_record",
                *SUBJECT,
                "params:reporting",
            ],
            outputs="report",
            name="build_report",
            tags=["report"],
        ),
    ]
