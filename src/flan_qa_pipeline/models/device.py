"""The device's compute dtype, attention implementation and memory."""

import os
import resource
import shutil
import sys
import sysconfig
from importlib.util import find_spec
from pathlib import Path

import torch
from accelerate.utils import get_max_memory

from flan_qa_pipeline import control_groups
from flan_qa_pipeline.errors import InputError


def multiplies_bfloat16() -> bool:
    """Whether the device multiplies bfloat16 matrices natively: some GPUs, AVX512_BF16, AMX."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16"))


def resolve_compute_dtype(name: str) -> torch.dtype:
    """Turn a `compute_dtype` parameter into a torch dtype.

    `auto` is bfloat16 where the device multiplies it natively, else float32. On an AVX2 CPU, NF4
    with bfloat16 is over ten times slower than with float32; with AVX512_BF16 a training step of
    a T5 of 4.5 M parameters takes 0.36 s in bfloat16 and 0.52 s in float32 on two cores.
    """
    if name != "auto":
        return getattr(torch, name)
    return torch.bfloat16 if multiplies_bfloat16() else torch.float32


def resolve_attention(name: str) -> str:
    """Turn an `attn_implementation` parameter into transformers' name for it.

    `auto` is eager on a CPU, where sdpa is slower, most of all in its backward pass. On a GPU it is
    triton, whose kernels never store the scores, or sdpa where Triton does not work or the GPU has
    no native bfloat16.

    Raises:
        InputError: `triton` is named where it does not work.
    """
    if name == "triton" and (obstacle := triton_obstacle()):
        raise InputError(
            f"model.attn_implementation is triton, but {obstacle}; set it to auto, eager or sdpa."
        )
    if name != "auto":
        return name
    if not torch.cuda.is_available():
        return "eager"
    return "triton" if multiplies_bfloat16() and triton_obstacle() is None else "sdpa"


def triton_obstacle() -> str | None:
    """Say why Triton's kernels cannot run here; None if they can.

    Triton compiles a stub in C, for which it needs a compiler and Python's headers.
    """
    if not torch.cuda.is_available():
        return "there is no GPU"
    if find_spec("triton") is None:
        return "Triton is not installed"
    compilers = [os.environ.get("CC", "gcc"), "clang"]
    if not any(map(shutil.which, compilers)):
        return "there is no C compiler (gcc or clang)"
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        return "Python's headers (Python.h) are not installed"
    return None


def device_name() -> str:
    """Return the name of the GPU, or "CPU"."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"


def free_memory(device: torch.device) -> int:
    """Bytes that this process may still allocate: on the GPU, or its share of main memory.

    Main memory ends at the limit of the container, if it has one.
    """
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    available = min([get_max_memory()["cpu"], *control_groups.free_bytes()])
    return available // int(os.environ.get("LOCAL_WORLD_SIZE", 1))


MIB = 2**20


def peak_memory() -> dict[str, int]:
    """Peak memory so far in bytes, of the process and, if there is a GPU, on the GPU."""
    unit = 1 if sys.platform == "darwin" else 1024
    peak = {"process": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}
    if torch.cuda.is_available():
        peak["GPU"] = torch.cuda.max_memory_allocated()
    return peak
