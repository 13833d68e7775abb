"""Quantize the base, attach LoRA, train the adapter, measure memory, merge."""

import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import torch
from accelerate import PartialState
from datasets import DatasetDict
from peft import PeftModel, get_peft_model
from pydantic import BaseModel
from transformers import PreTrainedModel, set_seed

from flan_qa_pipeline.answering.dev_sample import answer_sample, draw_sample
from flan_qa_pipeline.config.parameters import (
    GenerationParameters,
    LoraParameters,
    ModelParameters,
    PromptParameters,
    ReportingParameters,
    TokenizationParameters,
    TrainingParameters,
)
from flan_qa_pipeline.data.fingerprints import (
    fingerprint_json,
    fingerprint_splits,
    fingerprint_weights,
)
from flan_qa_pipeline.data.tokenized import require_made_of
from flan_qa_pipeline.evaluation.adapter_scores import dev_score
from flan_qa_pipeline.evaluation.subject import recognized
from flan_qa_pipeline.models.adapter import (
    Adapter,
    attach_adapter,
    extract_adapter,
    lora_config,
    provenance_of,
)
from flan_qa_pipeline.models.device import device_name
from flan_qa_pipeline.models.fused_lora import fuse
from flan_qa_pipeline.models.loading import (
    as_transformers_t5,
    load_base_model,
    load_tokenizer,
)
from flan_qa_pipeline.models.merged_model import MergedModel
from flan_qa_pipeline.models.quantization import dequantize
from flan_qa_pipeline.models.sharding import shard
from flan_qa_pipeline.reporting.model_card import merged_card
from flan_qa_pipeline.training.arguments import build_arguments
from flan_qa_pipeline.training.cuda_graphs import captures_graphs
from flan_qa_pipeline.training.measured_memory import training_peaks
from flan_qa_pipeline.training.record import training_record
from flan_qa_pipeline.training.trainer import build_trainer

logger = logging.getLogger(__name__)

NOT_IN_FINGERPRINT = {"output_dir", "logging_dir", "report_to", "save_total_limit", "resume"}


def quantize_base_model(model: ModelParameters, fsdp: bool = False) -> PreTrainedModel:
    """Load the base model with its linear layers in 4 bits and all weights frozen."""
    return load_base_model(model, to_shard=fsdp)


def attach_lora(
    base_model: PreTrainedModel, lora: LoraParameters, training: TrainingParameters
) -> PeftModel:
    """Attach new LoRA matrices to the target modules and log how many parameters train."""
    set_seed(training.seed)
    model = get_peft_model(base_model, lora_config(lora))
    fuse(model)
    trainable, total = model.get_nb_trainable_parameters()
    logger.info(
        "LoRA trains %s of %s parameters (%.2f%%).",
        f"{trainable:,}",
        f"{total:,}",
        100 * trainable / total,
    )
    return model


def fingerprint_inputs(
    lora_model: PeftModel, tokenized_questions: DatasetDict, questions: DatasetDict
) -> dict[str, Any]:
    """Hash the data that a training reads, split by split, and the weights that it starts from.

    Windows and weights are hashed side by side.

    Raises:
        InputError: the tokenized questions were not made of `questions`.
    """
    of_questions = fingerprint_splits(questions)
    require_made_of(tokenized_questions, of_questions)
    with ThreadPoolExecutor(1) as beside:
        of_model = beside.submit(fingerprint_weights, lora_model)
        of_windows = fingerprint_splits(tokenized_questions)
        return {
            "questions": of_questions,
            "tokenized_questions": of_windows,
            "model": of_model.result(),
        }


def train_adapter(
    lora_model: PeftModel,
    tokenized_questions: DatasetDict,
    questions: DatasetDict,
    training_inputs: dict[str, Any],
    model: ModelParameters,
    prompt: PromptParameters,
    tokenization: TokenizationParameters,
    generation: GenerationParameters,
    training: TrainingParameters,
    run_record: dict[str, Any],
    fsdp: bool = False,
) -> Adapter:
    """Train, or resume from the last checkpoint of the same training; return the adapter.

    Args:
        training_inputs: what `fingerprint_inputs` returns.
        run_record: the run's `run_id`, which names its folder in `training.logging_dir`, its
            `versions` of packages, and whatever else the adapter's record should hold.
        fsdp: spread the weights of the model over the processes.
    """
    cuda_graphs = captures_graphs(lora_model, training, fsdp)
    fingerprint = _fingerprint_training(
        training_inputs, run_record["versions"], lora_model, training, [model, prompt, generation]
    )
    if fsdp:
        shard(lora_model)
    tokenizer = load_tokenizer(model)
    held_out = tokenized_questions["dev"].filter(bool, input_columns="labels")
    arguments = build_arguments(
        training,
        lora_model,
        checkpoints=Path(training.output_dir) / fingerprint,
        n_eval_windows=len(held_out),
    )
    trainer = build_trainer(
        lora_model,
        arguments,
        training,
        tokenizer,
        train_windows=tokenized_questions["train"],
        eval_windows=held_out,
        answer_questions=partial(
            answer_sample,
            tokenizer=tokenizer,
            sample=draw_sample(questions["dev"], tokenized_questions["dev"], training),
            prompt=prompt,
            generation=generation,
        ),
        log_folder=Path(training.logging_dir) / run_record["run_id"],
        cuda_graphs=cuda_graphs,
    )
    trainer.train_or_resume(training.resume)
    run = run_record | {"fingerprints": training_inputs, "corpora": recognized(questions)}
    record = training_record(trainer, model, fingerprint=fingerprint, run=run)
    provenance = provenance_of(model, prompt, tokenization=tokenization, generation=generation)
    _log_dev_score(provenance, record)
    return extract_adapter(lora_model, tokenizer, provenance, record)


def measure_memory(
    adapter: Adapter,
    tokenized_questions: DatasetDict,
    model: ModelParameters,
    training: TrainingParameters,
    reporting: ReportingParameters,
) -> dict[str, Any]:
    """Measure the peak memory of a training step on the longest windows, by format of the base."""
    windows = tokenized_questions["train"].select_columns(["input_ids", "labels"])
    lengths = pc.list_value_length(windows.with_format("arrow")[:]["input_ids"]).to_numpy()
    longest = np.argsort(-lengths, kind="stable")[: adapter.training["batch_size"]]
    batch = windows.select(longest).to_list()
    formats = reporting.memory_formats
    return {
        "device": device_name(),
        "batch_size": len(batch),
        "source_tokens": len(batch[0]["input_ids"]),
        "peaks": training_peaks(formats, model, adapter.config, training, batch) if formats else {},
    }


def merge_adapter(
    model: ModelParameters,
    prompt: PromptParameters,
    adapter: Adapter,
    adapter_evaluation: Mapping[str, Any],
) -> MergedModel:
    """Add the adapter to the dequantized base; return the model in bfloat16, with its card.

    The sum is computed in float32. The base keeps its quantization error, since the adapter was
    trained on it. With `model.compute_dtype` auto it is quantized from the dtype that the training
    quantized from, if the adapter records it.

    Args:
        adapter_evaluation: the newest record that `record_evaluation` made of the adapter, or {}.
    """
    trained_from = adapter.training.get("quantized_from_dtype")
    if model.compute_dtype == "auto" and trained_from:
        model = model.model_copy(update={"compute_dtype": trained_from})
    base = dequantize(load_base_model(model)).float()
    base.config.tie_word_embeddings = False
    qa_model = attach_adapter(base, adapter, provenance_of(model, prompt))
    merged = as_transformers_t5(qa_model.merge_and_unload()).to(torch.bfloat16)
    return MergedModel(merged, adapter.tokenizer, merged_card(adapter, adapter_evaluation))


def _log_dev_score(provenance: dict[str, Any], record: dict[str, Any]) -> None:
    """Log the dev F1 of the adapter that is kept; `build_arguments` logs that there is none."""
    if score := dev_score(provenance, record):
        logger.info(
            "Kept: step %d of %d, the %s, with F1 %.2f on dev questions.",
            score.step,
            record["steps"],
            "best" if record["best_step"] else "last",
            score.f1,
        )


def _fingerprint_training(
    inputs: dict[str, Any],
    versions: dict[str, str],
    lora_model: PeftModel,
    training: TrainingParameters,
    other_sections: Sequence[BaseModel],
) -> str:
    """Hash everything that a training's result depends on; its checkpoints lie under this name."""
    return fingerprint_json(
        [
            inputs,
            versions,
            lora_model.peft_config["default"].to_dict(),
            *(section.model_dump() for section in other_sections),
            training.model_dump(exclude=NOT_IN_FINGERPRINT),
            PartialState().num_processes,
        ]
    )
