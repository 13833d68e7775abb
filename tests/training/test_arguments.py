"""Every training parameter is either transformers' under its own name or one of the project's."""

from dataclasses import fields
from importlib.util import find_spec

import pytest
import torch
from transformers import Seq2SeqTrainingArguments
from transformers.integrations import MLflowCallback, TensorBoardCallback, WandbCallback

from flan_qa_pipeline.config.parameters import TrainingParameters
from flan_qa_pipeline.errors import InputError
from flan_qa_pipeline.models.loading import load_base_model
from flan_qa_pipeline.pipelines.modeling.nodes import attach_lora
from flan_qa_pipeline.training import requirements
from flan_qa_pipeline.training.arguments import SHARED_WITH_TRANSFORMERS, build_arguments
from flan_qa_pipeline.training.progress import LastingTensorBoard, NumbersInMlflow
from flan_qa_pipeline.training.requirements import require_trainable
from flan_qa_pipeline.training.trainer import build_trainer

OF_THE_PROJECT = {
    "output_dir",  # of all trainings; each has a folder in it
    "logging_dir",
    "report_to",  # transformers adds its own callback for wandb alone
    "auto_find_batch_size",
    "cuda_graphs",
    "eval_strategy",  # "no" where there is nothing to evaluate
    "eval_questions",
    "load_best_model_at_end",
    "early_stopping_patience",
    "early_stopping_threshold",
    "resume",
}


@pytest.fixture
def model(float32, lora, training):
    return attach_lora(load_base_model(float32), lora, training)


def test_every_parameter_has_one_owner():
    """A new parameter fails here until it is decided who reads it."""
    assert SHARED_WITH_TRANSFORMERS.isdisjoint(OF_THE_PROJECT)
    assert SHARED_WITH_TRANSFORMERS | OF_THE_PROJECT == TrainingParameters.model_fields.keys()
    assert {field.name for field in fields(Seq2SeqTrainingArguments)} >= SHARED_WITH_TRANSFORMERS


def test_shared_parameters_reach_transformers_as_they_are(model, training, tmp_path):
    arguments = build_arguments(training, model, checkpoints=tmp_path, n_eval_windows=3)
    given = {name: getattr(training, name) for name in SHARED_WITH_TRANSFORMERS}
    assert {name: getattr(arguments, name) for name in given} == given
    assert arguments.output_dir == str(tmp_path)
    assert arguments.eval_strategy == training.eval_strategy == "epoch"
    assert arguments.device.type == model.device.type
    assert not arguments.bf16
    assert not arguments.load_best_model_at_end
    assert not arguments.auto_find_batch_size


@pytest.mark.parametrize(
    ("tracker", "given", "callbacks"),
    [
        ("tensorboard", "none", {LastingTensorBoard}),
        ("none", "none", set()),
        pytest.param(
            "mlflow",
            "none",
            {NumbersInMlflow},
            marks=pytest.mark.skipif(
                find_spec("mlflow") is None, reason="mlflow is not installed (.[mlflow])"
            ),
        ),
    ],
)
def test_the_log_goes_to_the_chosen_tracker(
    model, training, windows, tokenizer, tmp_path, tracker, given, callbacks
):
    chosen = training.model_copy(update={"report_to": tracker})
    arguments = build_arguments(chosen, model, checkpoints=tmp_path, n_eval_windows=3)
    assert arguments.report_to == ([] if given == "none" else [given])
    trainer = build_trainer(
        model,
        arguments,
        chosen,
        tokenizer,
        train_windows=windows["train"],
        eval_windows=windows["dev"],
        answer_questions=lambda model: {},
        log_folder=tmp_path,
        cuda_graphs=False,
    )
    trackers = (TensorBoardCallback, MLflowCallback, WandbCallback)
    found = {type(c) for c in trainer.callback_handler.callbacks if isinstance(c, trackers)}
    assert found == callbacks


@pytest.mark.parametrize("tracker", ["wandb", "mlflow"])
def test_a_tracker_that_is_not_installed_is_refused(parameters, monkeypatch, tracker):
    monkeypatch.setattr(requirements, "find_spec", lambda name: None)
    training = parameters.training.model_copy(update={"report_to": tracker})
    given = parameters.model_copy(update={"training": training})
    with pytest.raises(InputError, match=f"training.report_to: {tracker} is not installed; pip"):
        require_trainable(given, processes=1)


@pytest.mark.parametrize(("n_windows", "strategy"), [(0, "epoch"), (3, "no")])
def test_without_windows_or_strategy_nothing_is_evaluated(
    model, training, tmp_path, caplog, n_windows, strategy
):
    training = training.model_copy(update={"eval_strategy": strategy})
    with caplog.at_level("INFO", logger="flan_qa_pipeline"):
        arguments = build_arguments(training, model, checkpoints=tmp_path, n_eval_windows=n_windows)
    assert arguments.eval_strategy == "no"
    assert caplog.messages[-1] == "Training runs without evaluation and keeps the last adapter."


@pytest.mark.parametrize("use_dora", [False, True])
def test_only_dora_on_a_bfloat16_base_is_autocast(model_parameters, lora, training, use_dora):
    base = load_base_model(model_parameters.model_copy(update={"compute_dtype": "bfloat16"}))
    model = attach_lora(base, lora.model_copy(update={"use_dora": use_dora}), training)
    assert model.get_base_model().dtype is torch.bfloat16
    arguments = build_arguments(training, model, checkpoints=training.output_dir, n_eval_windows=0)
    assert arguments.bf16 is use_dora
