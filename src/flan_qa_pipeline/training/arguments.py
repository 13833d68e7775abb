"""transformers' training arguments, from the parameters that it shares with this project."""

import logging
from pathlib import Path

import torch
from peft import PeftModel
from transformers import Seq2SeqTrainingArguments

from flan_qa_pipeline.config.parameters import TrainingParameters
from flan_qa_pipeline.training.transformers_private import use_one_gpu

logger = logging.getLogger(__name__)

SHARED_WITH_TRANSFORMERS = {  # same name, same meaning in Seq2SeqTrainingArguments
    "num_train_epochs",
    "max_steps",
    "per_device_train_batch_size",
    "per_device_eval_batch_size",
    "gradient_accumulation_steps",
    "learning_rate",
    "lr_scheduler_type",
    "warmup_steps",
    "weight_decay",
    "max_grad_norm",
    "optim",
    "gradient_checkpointing",
    "train_sampling_strategy",
    "logging_steps",
    "eval_steps",
    "save_strategy",
    "save_steps",
    "save_total_limit",
    "seed",
}


def build_arguments(
    training: TrainingParameters, model: PeftModel, *, checkpoints: Path, n_eval_windows: int
) -> Seq2SeqTrainingArguments:
    """Build the arguments of a Trainer for a peft model, which decides device and autocast.

    Args:
        training: the parameters; only those in `SHARED_WITH_TRANSFORMERS` reach transformers under
            their own names.
        model: the model to train, on its device.
        checkpoints: the folder of this training's checkpoints.
        n_eval_windows: how many windows there are to evaluate; none switches evaluation off.
    """
    eval_strategy = training.eval_strategy if n_eval_windows else "no"
    if eval_strategy == "no":
        logger.info("Training runs without evaluation and keeps the last adapter.")
    on_gpu = torch.cuda.is_available()
    arguments = Seq2SeqTrainingArguments(
        **training.model_dump(include=SHARED_WITH_TRANSFORMERS),
        output_dir=str(checkpoints),
        eval_strategy=eval_strategy,
        metric_for_best_model="f1",  # of early stopping
        use_cpu=model.device.type == "cpu",
        bf16=needs_autocast(model),
        gradient_checkpointing_kwargs={"use_reentrant": False},
        label_names=["labels"],
        dataloader_pin_memory=on_gpu,
        accelerator_config={"non_blocking": on_gpu},
        logging_nan_inf_filter=False,  # `Divergence` looks for NaN without waiting for the GPU
        report_to="wandb" if training.report_to == "wandb" else "none",  # others: build_trainer
        disable_tqdm=False,  # else a quiet transformers prints every row of the log
    )
    use_one_gpu(arguments)
    return arguments


def needs_autocast(model: PeftModel) -> bool:
    """Return whether torch must cast: DoRA keeps its adapter in float32 on a bfloat16 base."""
    return model.get_base_model().dtype == torch.bfloat16 and uses_dora(model)


def uses_dora(model: PeftModel) -> bool:
    """Return whether the adapter is weight-decomposed (DoRA, Liu et al. 2024, arXiv:2402.09353)."""
    return model.peft_config["default"].use_dora
