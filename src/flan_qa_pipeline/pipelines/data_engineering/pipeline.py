from typing import Any

from kedro.pipeline import Pipeline, node

from .nodes import (
    apply_unanswerable_policy,
    flatten_questions,
    reject_long_questions,
    split_by_article,
    tokenize_questions,
)


def create_pipeline(**kwargs: Any) -> Pipeline:
    """Load, check, split by article, select and tokenize questions."""
    return Pipeline(
        [
            node(
                flatten_questions,
                inputs=[
                    "raw_train",
                    "params:data.train_file",
                    "params:data.on_invalid",
                    "params:data.columns",
                ],
                outputs=["checked_train_questions", "invalid_train_questions"],
                name="flatten_train_questions",
                tags=["load"],
            ),
            node(
                reject_long_questions,
                inputs=[
                    "checked_train_questions",
                    "invalid_train_questions",
                    "params:data.train_file",
                    "params:data.on_invalid",
                    "params:model",
                    "params:prompt",
                    "params:tokenization",
                ],
                outputs=["train_questions", "rejected_train_questions"],
                name="reject_long_train_questions",
                tags=["load"],
            ),
            node(
                flatten_questions,
                inputs=[
                    "raw_validation",
                    "params:data.validation_file",
                    "params:data.on_invalid",
                    "params:data.columns",
                ],
                outputs=["checked_validation_questions", "invalid_validation_questions"],
                name="flatten_validation_questions",
                tags=["load"],
            ),
            node(
                reject_long_questions,
                inputs=[
                    "checked_validation_questions",
                    "invalid_validation_questions",
                    "params:data.validation_file",
                    "params:data.on_invalid",
                    "params:model",
                    "params:prompt",
                    "params:tokenization",
                ],
                outputs=["validation_questions", "rejected_validation_questions"],
                name="reject_long_validation_questions",
                tags=["load"],
            ),
            node(
                split_by_article,
                inputs=["train_questions", "validation_questions", "params:data"],
                outputs="article_splits",
                name="split_by_article",
                tags=["split"],
            ),
            node(
                apply_unanswerable_policy,
                inputs=["article_splits", "params:data"],
                outputs="questions",
                name="apply_unanswerable_policy",
                tags=["split"],
            ),
            node(
                tokenize_questions,
                inputs=[
                    "questions",
                    "params:model",
                    "params:prompt",
                    "params:tokenization",
                    "params:data",
                ],
                outputs="tokenized_questions",
                name="tokenize_questions",
                tags=["tokenize"],
            ),
        ],
        tags=["data_engineering"],
        namespace="data_engineering",
        prefix_datasets_with_namespace=False,
    )
