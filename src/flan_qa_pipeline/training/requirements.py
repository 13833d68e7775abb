"""Checks, before a run starts, that its processes on this machine can train."""

from importlib.util import find_spec
from typing import get_args

import torch

from flan_qa_pipeline.config.parameters import OfBitsandbytes, Parameters
from flan_qa_pipeline.errors import InputError
from flan_qa_pipeline.training.cuda_graphs import graph_obstacles, require_capturable

TRACKERS = {  # what installs those that this project does not depend on
    "wandb": "wandb",
    "mlflow": "'flan_qa_pipeline[mlflow]'",
}
NOT_FOR_SHARDS = {*get_args(OfBitsandbytes), "adafactor"}


def require_trainable(parameters: Parameters, processes: int) -> None:
    """Check that this many processes can train with these parameters on this machine.

    Raises:
        InputError: names the parameter that rules it out, and a remedy.
    """
    training = parameters.training
    if parameters.distributed.fsdp and training.optim in NOT_FOR_SHARDS:
        raise InputError(
            f"training.optim: {training.optim} does not support the sharded weights of "
            "distributed.fsdp; choose adamw_torch."
        )
    if training.optim.startswith("paged") and not torch.cuda.is_available():
        raise InputError(
            f"training.optim: {training.optim} pages its state between GPU and CPU, and there is "
            "no GPU; choose adamw_8bit or adamw_torch."
        )
    if training.report_to in TRACKERS and find_spec(training.report_to) is None:
        raise InputError(
            f"training.report_to: {training.report_to} is not installed; pip install "
            f"{TRACKERS[training.report_to]}, or choose tensorboard or none."
        )
    if training.auto_find_batch_size is True and processes > 1:
        raise InputError(
            f"training.auto_find_batch_size: {processes} processes cannot search for a batch size, "
            "because one may run out of memory alone; set it to auto or false and lower "
            "training.per_device_train_batch_size."
        )
    if training.cuda_graphs is True:
        require_capturable(
            graph_obstacles(
                training,
                use_dora=parameters.lora.use_dora,
                keeps_activations=parameters.model.dequantize is not False,
                fsdp=parameters.distributed.fsdp,
            )
        )
