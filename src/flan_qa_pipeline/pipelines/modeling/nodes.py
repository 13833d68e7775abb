"""Quantize the base, attach LoRA, train, hand over the adapter."""

import logging
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.compute as pc
import torch
from accelerate import PartialState
from datasets import Dataset, DatasetDict
from peft import PeftModel, get_peft_model
from torch.nn import Linear
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Seq2SeqTrainingArguments,
    set_seed,
)
from transformers.trainer_callback import ProgressCallback

from flan_qa_pipeline.answering.window_answers import answer_windows
from flan_qa_pipeline.config.parameters import (
    GenerationParameters,
    LoraParameters,
    ModelParameters,
    PromptParameters,
    ReportingParameters,
    TokenizationParameters,
    TrainingParameters,
)
from flan_qa_pipeline.data.squad import gold_texts, one_line
from flan_qa_pipeline.data.tokenized import require_made_of
from flan_qa_pipeline.errors import InputError
from flan_qa_pipeline.evaluation.scoring import score_predictions
from flan_qa_pipeline.evaluation.weight_memory import base_weights
from flan_qa_pipeline.models.adapter import (
    Adapter,
    attach_adapter,
    extract_adapter,
    lora_config,
    provenance_of,
)
from flan_qa_pipeline.models.batching import coarse_length, collate, round_up
from flan_qa_pipeline.models.device import peak_memory, resolve_attention
from flan_qa_pipeline.models.fused_lora import fuse
from flan_qa_pipeline.models.loading import (
    as_transformers_t5,
    load_base_model,
    load_tokenizer,
)
from flan_qa_pipeline.models.quantization import dequantize
from flan_qa_pipeline.models.sharding import shard
from flan_qa_pipeline.runtime.provenance import (
    fingerprint_json,
    fingerprint_splits,
    fingerprint_weights,
)
from flan_qa_pipeline.training.measured_memory import training_peaks
from flan_qa_pipeline.training.progress import LastingTensorBoard, LossInProgressBar
from flan_qa_pipeline.training.trainer import (
    AnsweringTrainer,
    BestAdapter,
    StepTimer,
    graph_obstacles,
    require_capturable,
)

logger = logging.getLogger(__name__)

OWN_OPTIONS = {
    "output_dir",
    "logging_dir",
    "auto_find_batch_size",
    "cuda_graphs",
    "eval_strategy",
    "eval_questions",
    "load_best_model_at_end",
    "early_stopping_patience",
    "early_stopping_threshold",
    "resume",
}
NOT_IN_FINGERPRINT = {"output_dir", "logging_dir", "save_total_limit", "resume"}
ANSWERS_SHOWN = 20


def quantize_base_model(model: ModelParameters, fsdp: bool = False) -> PreTrainedModel:
    """Load the base model with its linear layers in 4 bits and all weights frozen."""
    return load_base_model(model, to_shard=fsdp)


def attach_lora(
    base_model: PreTrainedModel, lora: LoraParameters, training: TrainingParameters
) -> PeftModel:
    """Put fresh LoRA matrices on the target modules and report how many parameters train."""
    targets = lora.target_modules
    if targets != "all-linear":
        names = [name for name, part in base_model.named_modules() if isinstance(part, Linear)]
        missing = [
            target
            for target in targets
            if not any(name == target or name.endswith(f".{target}") for name in names)
        ]
        if missing:
            raise InputError(
                f"lora.target_modules: {missing} match no linear module of "
                f"{base_model.name_or_path}; T5's linear layers are q, k, v, o, wi_0, wi_1 and wo "
                "(or use all-linear)."
            )
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


def train_adapter(
    lora_model: PeftModel,
    tokenized_questions: DatasetDict,
    questions: DatasetDict,
    model: ModelParameters,
    prompt: PromptParameters,
    tokenization: TokenizationParameters,
    generation: GenerationParameters,
    training: TrainingParameters,
    run_record: dict[str, Any],
    fsdp: bool = False,
) -> Adapter:
    """Train, or go on from the last checkpoint of the same training; return the adapter.

    With `fsdp` the model is sharded over the processes.
    """
    processes = PartialState().num_processes
    cuda_graphs = _captures_graphs(lora_model, training, processes)
    tokenizer = load_tokenizer(model)
    held_out = tokenized_questions["dev"].filter(bool, input_columns="labels")
    evaluates = training.eval_strategy != "no" and len(held_out) > 0
    if not evaluates:
        logger.info("Nothing is evaluated during training: the last adapter is kept.")
    made_of = fingerprint_splits(questions)
    require_made_of(tokenized_questions, made_of)
    fingerprints = {
        "questions": made_of,
        "tokenized_questions": fingerprint_splits(tokenized_questions),
        "model": fingerprint_weights(lora_model),
    }
    same_training = fingerprint_json(
        [
            fingerprints,
            run_record["versions"],
            lora_model.peft_config["default"].to_dict(),
            *(parameters.model_dump() for parameters in (model, prompt, generation)),
            training.model_dump(exclude=NOT_IN_FINGERPRINT),
            processes,
        ]
    )
    if fsdp:
        shard(lora_model)
    arguments = Seq2SeqTrainingArguments(
        **training.model_dump(exclude=OWN_OPTIONS),
        output_dir=str(Path(training.output_dir) / same_training),
        eval_strategy=training.eval_strategy if evaluates else "no",
        use_cpu=lora_model.device.type == "cpu",
        bf16=_autocasts(lora_model),
        gradient_checkpointing_kwargs={"use_reentrant": False},
        label_names=["labels"],
        dataloader_pin_memory=torch.cuda.is_available(),
        accelerator_config={"non_blocking": torch.cuda.is_available()},
        logging_nan_inf_filter=False,
        ddp_find_unused_parameters=False,
        report_to="none",
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # else the batch is multiplied by all GPUs seen
    trainer = AnsweringTrainer(
        model=lora_model,
        args=arguments,
        train_dataset=tokenized_questions["train"],
        eval_dataset=held_out if evaluates else None,
        processing_class=tokenizer,
        data_collator=partial(
            collate,
            pad_token_id=tokenizer.pad_token_id,
            padded=coarse_length if cuda_graphs else round_up,
        ),
        answer_questions=partial(
            answer_sample,
            tokenizer=tokenizer,
            **_sample(questions, tokenized_questions, training),
            prompt=prompt,
            generation=generation,
        )
        if evaluates
        else None,
        find_batch_size=training.auto_find_batch_size,
        cuda_graphs=cuda_graphs,
    )
    trainer.remove_callback(ProgressCallback)
    timer = StepTimer()
    best = BestAdapter(
        keep=training.load_best_model_at_end,
        patience=training.early_stopping_patience,
        threshold=training.early_stopping_threshold,
    )
    shown = (LossInProgressBar("Train the adapter"), LastingTensorBoard())
    for callback in (*shown, timer, best):
        trainer.add_callback(callback)
    if processes > 1:
        logger.info(
            "%d processes train on batches of %d, accumulated %d times, %d in effect.",
            processes,
            training.per_device_train_batch_size,
            training.gradient_accumulation_steps,
            trainer.get_total_train_batch_size(trainer.args),
        )
    trainer.train_or_resume(training.resume)
    trainable, total = lora_model.get_nb_trainable_parameters()
    record = {
        "trainable_parameters": trainable,
        "total_parameters": total,
        "base_weights": base_weights(
            lora_model.get_base_model(), model.skip_modules, double_quant=model.double_quant
        ),
        "weights_bytes": lora_model.get_memory_footprint(),
        "attention": resolve_attention(model.attn_implementation),
        "batch_size": trainer.args.per_device_train_batch_size,
        "gradient_accumulation_steps": trainer.args.gradient_accumulation_steps,
        "processes": processes,
        "samples": round(trainer.state.epoch * len(tokenized_questions["train"])),
        "seconds": timer.seconds,
        "steps": trainer.state.global_step,
        "best_step": best.best_step if training.load_best_model_at_end else None,
        "peak_memory": peak_memory(),
        "fingerprint": same_training,
        "run": run_record | {"fingerprints": fingerprints},
        "log": [
            {key: value for key, value in entry.items() if not isinstance(value, str)}
            for entry in trainer.state.log_history
        ],
    }
    provenance = provenance_of(model, prompt, tokenization=tokenization, generation=generation)
    return extract_adapter(lora_model, tokenizer, provenance, record)


def measure_memory(
    adapter: Adapter,
    tokenized_questions: DatasetDict,
    model: ModelParameters,
    training: TrainingParameters,
    reporting: ReportingParameters,
) -> dict[str, Any]:
    """Measure what a training step on the longest windows takes with the base in each format."""
    windows = tokenized_questions["train"].select_columns(["input_ids", "labels"])
    lengths = pc.list_value_length(windows.with_format("arrow")[:]["input_ids"]).to_numpy()
    longest = np.argsort(-lengths, kind="stable")[: adapter.training["batch_size"]]
    batch = windows.select(longest).to_list()
    formats = reporting.memory_formats
    return {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU",
        "batch_size": len(batch),
        "source_tokens": len(batch[0]["input_ids"]),
        "peaks": training_peaks(formats, model, adapter.config, training, batch) if formats else {},
    }


def merge_adapter(
    model: ModelParameters, prompt: PromptParameters, adapter: Adapter
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Add the adapter to the dequantized base, in float32; return it in bfloat16, with tokenizer.

    The base is the one that the adapter was trained on, its quantization error included.
    """
    base = dequantize(load_base_model(model.model_copy(update={"compute_dtype": "float32"})))
    base.config.tie_word_embeddings = False
    qa_model = attach_adapter(base, adapter, provenance_of(model, prompt))
    merged = as_transformers_t5(qa_model.merge_and_unload()).to(torch.bfloat16)
    return merged, adapter.tokenizer


def _autocasts(model: PeftModel) -> bool:
    """Whether torch must cast an adapter in float32 on a base in bfloat16: DoRA's."""
    return model.get_base_model().dtype == torch.bfloat16 and _uses_dora(model)


def _uses_dora(model: PeftModel) -> bool:
    return model.peft_config["default"].use_dora


def _captures_graphs(model: PeftModel, training: TrainingParameters, processes: int) -> bool:
    """Whether steps are captured as CUDA graphs: where nothing stands in the way, unless told."""
    if training.cuda_graphs is False:
        return False
    obstacles = graph_obstacles(
        training,
        processes=processes,
        use_dora=_uses_dora(model),
        keeps_activations=model.get_base_model().keeps_activations,
    )
    if training.cuda_graphs is True:
        require_capturable(obstacles)
    if torch.cuda.is_available():
        told = f"not captured: {'; '.join(obstacles)}" if obstacles else "captured"
        logger.info("training.cuda_graphs: steps are %s.", told)
    return not obstacles


def _sample(
    questions: DatasetDict, tokenized_questions: DatasetDict, training: TrainingParameters
) -> dict[str, Any]:
    """Draw the dev questions that are answered during training, with their windows."""
    pool = questions["dev"]
    drawn = pool.shuffle(seed=training.seed).select(range(min(training.eval_questions, len(pool))))
    ids = set(drawn["id"][:])
    windows = tokenized_questions["dev"]
    kept = [i for i, id_ in enumerate(windows["id"][:]) if id_ in ids]
    return {"questions": list(drawn), "windows": windows.select(kept)}


def answer_sample(
    qa_model: PeftModel,
    *,
    tokenizer: PreTrainedTokenizerBase,
    questions: list[dict[str, Any]],
    windows: Dataset,
    prompt: PromptParameters,
    generation: GenerationParameters,
) -> dict[str, float | str]:
    """Answer sampled questions with the model in training: exact, f1 and a table of answers."""
    answers = answer_windows(qa_model, tokenizer, windows, prompt, generation)
    texts = {id_: answer.text for id_, answer in answers.items()}
    golds = gold_texts(questions)
    scores = score_predictions(texts, golds)
    table = pd.DataFrame(
        {
            "question": [question["question"] for question in questions],
            "gold": [one_line(golds[question["id"]]) for question in questions],
            "answer": [texts[question["id"]] for question in questions],
        }
    ).head(ANSWERS_SHOWN)
    return {
        "exact": scores["exact"],
        "f1": scores["f1"],
        "answers": table.map(lambda text: text.replace("|", "\\|")).to_markdown(
            index=False, disable_numparse=True
        ),
    }
