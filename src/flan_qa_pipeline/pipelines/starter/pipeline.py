from typing import Any

from kedro.pipeline import Pipeline, node

from .nodes import (
    build_pretraining_examples,
    generate_pretraining_corpus,
    generate_starter_corpus,
    pretrain_base_model,
    train_starter_tokenizer,
)


def create_pipeline(**kwargs: Any) -> Pipeline:
    """Generate the starter corpus and make the starter base model from scratch."""
    return Pipeline(
        [
            node(
                generate_starter_corpus,
                inputs=["starter_kinds", "params:starter"],
                outputs=["starter_train", "starter_validation"],
                name="generate_starter_corpus",
                tags=["corpus"],
            ),
            node(
                generate_pretraining_corpus,
                inputs=["pretraining_kinds", "params:starter"],
                outputs="pretraining_corpus",
                name="generate_pretraining_corpus",
                tags=["corpus"],
            ),
            node(
                train_starter_tokenizer,
                inputs=[
                    "pretraining_corpus",
                    "starter_train",
                    "params:starter",
                ],
                outputs="starter_tokenizer",
                name="train_starter_tokenizer",
                tags=["pretrain"],
            ),
            node(
                build_pretraining_examples,
                inputs=[
                    "pretraining_corpus",
                    "starter_tokenizer",
                    "params:starter",
                ],
                outputs="pretraining_examples",
                name="build_pretraining_examples",
                tags=["pretrain"],
            ),
            node(
                pretrain_base_model,
                inputs=[
                    "pretraining_examples",
                    "starter_tokenizer",
                    "params:starter",
                ],
                outputs="starter_model",
                name="pretrain_base_model",
                tags=["pretrain"],
            ),
        ],
        tags=["starter"],
    )
