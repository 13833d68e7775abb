from kedro.pipeline import Pipeline, node

from .nodes import (
    compare_answers,
    load_baseline_model,
    load_finetuned_model,
    plot_scores,
    predict,
    score,
    tabulate_scores,
)


def create_pipeline(**kwargs) -> Pipeline:
    """Answer the validation questions with base and adapter; score, tabulate, compare."""
    prediction_inputs = [
        "tokenized_questions",
        "params:model",
        "params:prompt",
        "params:generation",
    ]
    return Pipeline(
        [
            node(
                load_baseline_model,
                inputs="params:model",
                outputs="baseline_model",
                name="load_baseline_model",
                tags=["baseline", "predict"],
            ),
            node(
                predict,
                inputs=["baseline_model", *prediction_inputs],
                outputs="baseline_predictions",
                name="predict_baseline",
                tags=["baseline", "predict"],
            ),
            node(
                load_finetuned_model,
                inputs=["params:model", "params:prompt", "adapter"],
                outputs="finetuned_model",
                name="load_finetuned_model",
                tags=["finetuned", "predict"],
            ),
            node(
                predict,
                inputs=["finetuned_model", *prediction_inputs],
                outputs="finetuned_predictions",
                name="predict_finetuned",
                tags=["finetuned", "predict"],
            ),
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
                tabulate_scores,
                inputs=["baseline_scores", "finetuned_scores"],
                outputs=["score_table", "score_table_markdown"],
                name="tabulate_scores",
                tags=["report"],
            ),
            node(
                plot_scores,
                inputs="score_table",
                outputs="score_figure",
                name="plot_scores",
                tags=["report"],
            ),
            node(
                compare_answers,
                inputs=[
                    "questions",
                    "baseline_predictions",
                    "finetuned_predictions",
                    "params:reporting",
                ],
                outputs="sample_answers",
                name="compare_answers",
                tags=["report"],
            ),
        ],
        tags=["reporting"],
    )
