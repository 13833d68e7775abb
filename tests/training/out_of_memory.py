"""What a process that measures memory runs in place of a training; it imports torch at most."""

import os


def start() -> None:
    """Prepare nothing."""


def end_for_want_of_memory(form, *given):
    match form:
        case "float32":
            import torch

            raise torch.OutOfMemoryError("CUDA out of memory.")
        case "bfloat16":
            os._exit(9)
    return 7
