"""The record of a training that is saved beside its adapter: sizes, speed, memory, log, origin."""

from collections.abc import Mapping
from typing import Any

from flan_qa_pipeline.config.parameters import ModelParameters
from flan_qa_pipeline.evaluation.weight_memory import base_weights
from flan_qa_pipeline.models.device import peak_memory, resolve_attention
from flan_qa_pipeline.training.best_adapter import BestAdapter
from flan_qa_pipeline.training.step_timer import StepTimer
from flan_qa_pipeline.training.trainer import AnsweringTrainer


def training_record(
    trainer: AnsweringTrainer, model: ModelParameters, *, fingerprint: str, run: dict[str, Any]
) -> dict[str, Any]:
    """Collect the JSON record of a finished training, which `training.json` saves.

    Args:
        trainer: has trained; its log's strings, such as tables of answers, are left out.
        model: the parameters of the base.
        fingerprint: identifies the training, as its checkpoints' folder does.
        run: the run's parameters, versions and inputs.
    """
    peft_model = trainer.model
    base = peft_model.get_base_model()
    trainable, total = peft_model.get_nb_trainable_parameters()
    return {
        "trainable_parameters": trainable,
        "total_parameters": total,
        "base_weights": base_weights(base, model.skip_modules, double_quant=model.double_quant),
        "base_digests": dict(base.weight_digests),
        "quantized_from_dtype": base.quantized_from_dtype,
        "weights_bytes": peft_model.get_memory_footprint(),
        "attention": resolve_attention(model.attn_implementation),
        "batch_size": trainer.args.per_device_train_batch_size,
        "gradient_accumulation_steps": trainer.args.gradient_accumulation_steps,
        "processes": trainer.accelerator.num_processes,
        "samples": round(trainer.state.epoch * len(trainer.train_dataset)),
        "seconds": trainer.callback(StepTimer).seconds,
        "steps": trainer.state.global_step,
        "best_step": trainer.callback(BestAdapter).kept_step,
        "peak_memory": peak_memory(),
        "fingerprint": fingerprint,
        "run": run,
        "log": [
            {key: value for key, value in entry.items() if not isinstance(value, str)}
            for entry in trainer.state.log_history
        ],
    }


def kept_evaluation(training: Mapping[str, Any]) -> dict[str, Any] | None:
    """Find the evaluation of the saved adapter on dev questions in a record of training.

    Args:
        training: a record by `training_record`.

    Returns:
        The entry of the log, with `eval_f1` and `eval_exact` in percent; None if the training did
        not answer dev questions at the step of the adapter.
    """
    step = training.get("best_step") or training.get("steps")
    found = (
        entry
        for entry in reversed(training.get("log", []))
        if "eval_f1" in entry and entry.get("step") == step
    )
    return next(found, None)
