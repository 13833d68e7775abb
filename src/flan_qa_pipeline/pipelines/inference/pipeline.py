from typing import Any

from kedro.pipeline import Pipeline, node

from .nodes import answer_questions, load_question_answerer


def create_pipeline(**kwargs: Any) -> Pipeline:
    """Answer a file of new questions with a saved adapter."""
    return Pipeline(
        [
            node(
                load_question_answerer,
                inputs=[
                    "adapter",
                    "params:model.dequantize",
                    "params:model.compute_dtype",
                    "params:model.attn_implementation",
                    "params:tokenization",
                    "params:generation",
                    "params:inference",
                    "params:distributed.fsdp",
                ],
                outputs="question_answerer",
                name="load_question_answerer",
                tags=["finetuned", "predict"],
            ),
            node(
                answer_questions,
                inputs=["question_answerer", "new_questions", "params:inference"],
                outputs="answers",
                name="answer_questions",
                tags=["finetuned", "predict"],
            ),
        ],
        tags=["inference"],
    )
