from typing import Any

from kedro.pipeline import Pipeline, node

from .nodes import (
    attach_lora,
    fingerprint_inputs,
    measure_memory,
    merge_adapter,
    quantize_base_model,
    train_adapter,
)


def create_pipeline(**kwargs: Any) -> Pipeline:
    """Quantize the base model, attach LoRA and train the adapter.

    In a run with `reporting`, the base answers and leaves the memory before the training begins:
    Kedro first runs the nodes that wait for fewer others, and `fingerprint_inputs` stands between
    the windows and the training.
    """
    return Pipeline(
        [
            node(
                quantize_base_model,
                inputs=["params:model", "params:distributed.fsdp"],
                outputs="base_model",
                name="quantize_base_model",
                tags=["quantize"],
            ),
            node(
                attach_lora,
                inputs=["base_model", "params:lora", "params:training"],
                outputs="lora_model",
                name="attach_lora",
                tags=["train"],
            ),
            node(
                fingerprint_inputs,
                inputs=["lora_model", "tokenized_questions", "questions"],
                outputs="training_inputs",
                name="fingerprint_inputs",
                tags=["train"],
            ),
            node(
                train_adapter,
                inputs=[
                    "lora_model",
                    "tokenized_questions",
                    "questions",
                    "training_inputs",
                    "params:model",
                    "params:prompt",
                    "params:tokenization",
                    "params:generation",
                    "params:training",
                    "run_record",
                    "params:distributed.fsdp",
                ],
                outputs="adapter",
                name="train_adapter",
                tags=["train"],
            ),
            node(
                measure_memory,
                inputs=[
                    "adapter",
                    "tokenized_questions",
                    "params:model",
                    "params:training",
                    "params:reporting",
                ],
                outputs="training_memory",
                name="measure_memory",
                tags=["memory"],
            ),
        ],
        tags=["modeling"],
        namespace="modeling",
        prefix_datasets_with_namespace=False,
    )


def create_merge_pipeline(**kwargs: Any) -> Pipeline:
    """Merge a saved adapter into its base, for serving."""
    return Pipeline(
        [
            node(
                merge_adapter,
                inputs=["params:model", "params:prompt", "adapter", "adapter_evaluation"],
                outputs="merged_model",
                name="merge_adapter",
                tags=["merge"],
            ),
        ],
    )
