"""Quantize the base, attach LoRA, train, hand over the adapter."""

import logging
from typing import Any

import torch
from datasets import DatasetDict
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    DataCollatorForSeq2Seq,
    PreTrainedModel,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    set_seed,
)
from transformers.trainer_callback import ProgressCallback

from flan_qa_pipeline.adapter import Adapter, extract_adapter, provenance_of
from flan_qa_pipeline.errors import InputError
from flan_qa_pipeline.models import load_base_model, load_tokenizer
from flan_qa_pipeline.parameters import (
    LoraParameters,
    ModelParameters,
    PromptParameters,
    TrainingParameters,
)
from flan_qa_pipeline.progress import LossInProgressBar

logger = logging.getLogger(__name__)


def quantize_base_model(model: ModelParameters) -> PreTrainedModel:
    """Load the base model with its linear layers in 4 bits and all weights frozen."""
    return load_base_model(model)


def attach_lora(
    base_model: PreTrainedModel, lora: LoraParameters, training: TrainingParameters
) -> PeftModel:
    """Put fresh LoRA matrices on the target modules and report how many parameters train."""
    targets = lora.target_modules
    if targets != "all-linear":
        names = [name for name, _ in base_model.named_modules()]
        missing = [
            target
            for target in targets
            if not any(name == target or name.endswith(f".{target}") for name in names)
        ]
        if missing:
            raise InputError(
                f"lora.target_modules: {missing} match no module of {base_model.name_or_path}; "
                "T5's linear layers are q, k, v, o, wi_0, wi_1 and wo (or use all-linear)."
            )
    set_seed(training.seed)
    model = get_peft_model(
        base_model,
        LoraConfig(
            task_type="SEQ_2_SEQ_LM",
            target_modules=targets if isinstance(targets, str) else list(targets),
            r=lora.r,
            lora_alpha=lora.alpha,
            lora_dropout=lora.dropout,
            use_rslora=lora.use_rslora,
            use_dora=lora.use_dora,
        ),
    )
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
    model: ModelParameters,
    prompt: PromptParameters,
    training: TrainingParameters,
) -> tuple[Adapter, list[dict[str, Any]]]:
    """Train with Seq2SeqTrainer on length-grouped batches; return the adapter and the log."""
    tokenizer = load_tokenizer(model)
    evaluates = training.eval_strategy != "no" and len(tokenized_questions["dev"]) > 0
    trainer = Seq2SeqTrainer(
        model=lora_model,
        args=Seq2SeqTrainingArguments(
            **training.model_dump(exclude={"logging_dir", "eval_strategy"}),
            eval_strategy=training.eval_strategy if evaluates else "no",
            gradient_checkpointing_kwargs={"use_reentrant": False},
            label_names=["labels"],
            dataloader_pin_memory=torch.cuda.is_available(),
            save_strategy="no",
            report_to="tensorboard",
        ),
        train_dataset=tokenized_questions["train"],
        eval_dataset=tokenized_questions["dev"] if evaluates else None,
        processing_class=tokenizer,
        data_collator=DataCollatorForSeq2Seq(tokenizer, model=lora_model, pad_to_multiple_of=8),
    )
    trainer.remove_callback(ProgressCallback)
    trainer.add_callback(LossInProgressBar())
    trainer.train()
    adapter = extract_adapter(lora_model, tokenizer, provenance_of(model, prompt))
    return adapter, trainer.state.log_history
