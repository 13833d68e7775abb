from typing import Any

from kedro.pipeline import Pipeline, node

from flan_qa_pipeline.reporting.figures import plot_comparison

from .nodes import (
    build_comparison_report,
    compare_costs,
    compare_parameters,
    list_changed_answers,
    pair_questions,
    tabulate_comparison,
)


def create_pipeline(**kwargs: Any) -> Pipeline:
    """Compare the fine-tuned answers of two saved versions (`compare.first`, `compare.second`)."""
    return Pipeline(
        [
            node(
                pair_questions,
                inputs=["first_question_table", "second_question_table", "params:compare"],
                outputs="question_pairs",
                name="pair_questions",
            ),
            node(
                tabulate_comparison,
                inputs=["question_pairs", "params:compare", "params:reporting"],
                outputs=["comparison_table", "comparison_table_markdown"],
                name="tabulate_comparison",
            ),
            node(
                compare_parameters,
                inputs="compared_runs",
                outputs="parameter_differences",
                name="compare_parameters",
            ),
            node(
                compare_costs,
                inputs=["first_cost_table", "second_cost_table"],
                outputs="cost_comparison",
                name="compare_costs",
            ),
            node(
                list_changed_answers,
                inputs="question_pairs",
                outputs="changed_answers",
                name="list_changed_answers",
            ),
            node(
                plot_comparison,
                inputs="comparison_table",
                outputs="comparison_figure",
                name="plot_comparison",
            ),
            node(
                build_comparison_report,
                inputs=[
                    "question_pairs",
                    "parameter_differences",
                    "comparison_table",
                    "cost_comparison",
                    "comparison_figure",
                    "params:compare",
                    "params:reporting",
                ],
                outputs="comparison_report",
                name="build_comparison_report",
            ),
        ],
        tags=["compare"],
    )
