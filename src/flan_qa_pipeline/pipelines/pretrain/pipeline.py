from typing import Any

from kedro.pipeline import Pipeline, node

from flan_qa_pipeline.pipelines.data_engineering.nodes import flatten_questions

from .nodes import (
    check_question_sets,
    encode_splits,
    encode_text,
    evaluate_base,
    generate_questions,
    hold_out_articles,
    pack_base,
    pretrain_base,
    pretrain_reader,
    train_tokenizer,
)


def create_pipeline(**kwargs: Any) -> Pipeline:
    """Pretrain an English base model from scratch, evaluate it and pack it."""
    return _data() + _models()


def _data() -> Pipeline:
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
                name="check_pretraining_questions",
            ),
            node(
                hold_out_articles,
                inputs=["checked_train_questions", "params:data"],
                outputs="held_out_splits",
                name="hold_out_articles",
            ),
            node(
                check_question_sets,
                inputs=[
                    "pretraining_question_sets",
                    "params:pretrain.question_folder",
                    "params:data.on_invalid",
                    "params:data.columns",
                ],
                outputs=["further_questions", "rejected_further_questions"],
                name="check_question_sets",
            ),
            node(
                train_tokenizer,
                inputs=["pretraining_text", "held_out_splits", "params:pretrain"],
                outputs="pretraining_tokenizer",
                name="train_pretraining_tokenizer",
            ),
            node(
                encode_text,
                inputs=["pretraining_text", "pretraining_tokenizer", "held_out_splits"],
                outputs="encoded_text",
                name="encode_text",
            ),
            node(
                encode_splits,
                inputs=["held_out_splits", "pretraining_tokenizer", "further_questions"],
                outputs="encoded_questions",
                name="encode_questions",
            ),
        ],
        tags=["pretraining_data"],
    )


def _models() -> Pipeline:
    encoded = ["pretraining_tokenizer", "encoded_text", "encoded_questions"]
    in_all_processes = [
        node(
            pretrain_reader,
            inputs=[*encoded, "params:pretrain"],
            outputs=["pretrained_reader", "pretrained_reader_heads", "pretraining_reader_log"],
            name="pretrain_reader",
        ),
        node(
            generate_questions,
            inputs=[
                "pretrained_reader",
                "pretraining_tokenizer",
                "encoded_text",
                "params:pretrain",
            ],
            outputs="generated_questions",
            name="generate_questions",
        ),
        node(
            pretrain_base,
            inputs=[
                "pretrained_reader",
                "pretrained_reader_heads",
                *encoded,
                "generated_questions",
                "params:pretrain",
            ],
            outputs=[
                "pretrained_base",
                "base_tokenizer",
                "pretrained_base_heads",
                "pretraining_base_log",
            ],
            name="pretrain_base",
        ),
        node(
            evaluate_base,
            inputs=[
                "pretrained_base",
                "pretrained_base_heads",
                "pretraining_tokenizer",
                "encoded_questions",
                "params:pretrain",
            ],
            outputs="pretraining_scores",
            name="evaluate_pretrained_base",
        ),
    ]
    pack = node(
        pack_base,
        inputs=["pretrained_base", "pretraining_tokenizer", "params:pretrain.float8"],
        outputs=["packed_base", "packed_tokenizer"],
        name="pack_pretrained_base",
        tags=["pack"],
    )
    return Pipeline(in_all_processes, tags=["pretrain_base"]) + Pipeline([pack])
