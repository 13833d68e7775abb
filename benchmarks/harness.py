"""Helpers of the benchmarks: FLAN-T5 snapshots, single nodes, measurements, files of results.

Memory and speed do not depend on the values of weights, so random weights measure them; they say
nothing of quality.
"""

import gc
import json
import logging
import os
import subprocess
import time
from operator import attrgetter
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import torch
import transformers
from bitsandbytes.functional import quantize_4bit
from kedro.config import OmegaConfigLoader
from kedro.io import DataCatalog, MemoryDataset
from kedro.pipeline import Pipeline
from kedro.runner import SequentialRunner
from peft import LoraConfig
from safetensors.torch import save_file
from transformers import AutoTokenizer, BitsAndBytesConfig, T5Config, set_seed

from flan_qa_pipeline.config.parameters import LoraParameters, Parameters
from flan_qa_pipeline.models.loading import load_base_model
from flan_qa_pipeline.models.quantization import dequantize
from flan_qa_pipeline.models.t5 import QuantizableT5
from flan_qa_pipeline.runtime.provenance import git_commit, package_versions

PROJECT = Path(__file__).resolve().parents[1]
STARTER = PROJECT / "data/06_models/starter_t5"
CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
MIB = 2**20
SAMPLED_EVERY = 0.02  # seconds
# config.json of google/flan-t5-*; tiny is for trying the scripts out.
SHAPES = {
    "tiny": {"d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4},
    "small": {"d_model": 512, "d_kv": 64, "d_ff": 1024, "num_layers": 8, "num_heads": 6},
    "base": {"d_model": 768, "d_kv": 64, "d_ff": 2048, "num_layers": 12, "num_heads": 12},
    "large": {"d_model": 1024, "d_kv": 64, "d_ff": 2816, "num_layers": 24, "num_heads": 16},
    "xl": {"d_model": 2048, "d_kv": 64, "d_ff": 5120, "num_layers": 24, "num_heads": 32},
    "xxl": {"d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64},
}


def silence() -> None:
    """Keep logs and progress bars of the libraries off the terminal, which shows the results."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    logging.getLogger("kedro").setLevel(logging.WARNING)


def config_of(size: str) -> T5Config:
    """Return the configuration of a FLAN-T5 shape, a key of `SHAPES`."""
    return T5Config(
        vocab_size=32128,
        dropout_rate=0.1,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
        decoder_start_token_id=0,
        **SHAPES[size],
    )


def write_snapshot(size: str, folder: Path, *, learned: bool = False) -> None:
    """Save a bfloat16 model of a FLAN-T5 shape with the starter's tokenizer, which has fewer ids.

    Args:
        size: a key of `SHAPES`.
        folder: receives the snapshot.
        learned: embed the weights of the starter model; otherwise the weights are random and the
            loss is near chance.
    """
    AutoTokenizer.from_pretrained(STARTER).save_pretrained(folder)
    config = config_of(size)
    set_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(DEVICE):
        model = QuantizableT5(config)
    model.lm_head.weight.data /= config.d_model**0.5  # unit variance, as for a tied head
    if learned:
        starter = {"name": str(STARTER), "compute_dtype": "bfloat16"}
        base = load_base_model(load_parameters("base", {"model": starter}).model)
        put_inside(dequantize(base), model)
    torch.set_default_dtype(torch.float32)
    model.save_pretrained(folder)


@torch.no_grad()
def write_packed_snapshot(size: str, folder: Path) -> None:
    """Save a FLAN-T5 shape whose linear layers, the head excepted, are stored in NF4.

    Layers of one shape hold the same random weights, packed once, so even XXL takes seconds.
    """
    AutoTokenizer.from_pretrained(STARTER).save_pretrained(folder)
    config = config_of(size)
    with torch.device("meta"):
        model = QuantizableT5(config)
    torch.manual_seed(0)
    linear = {
        f"{name}.weight"
        for name, part in model.named_modules()
        if isinstance(part, torch.nn.Linear) and name != "lm_head"
    }
    packed: dict[torch.Size, dict[str, torch.Tensor]] = {}
    stored = {}
    for name, weight in model.named_parameters():
        if name not in linear:
            norm, deviation = name.endswith("norm.weight"), config.d_model**-0.5
            drawn = torch.ones(weight.shape) if norm else torch.randn(weight.shape) * deviation
            stored[name] = drawn.bfloat16()
            continue
        if weight.shape not in packed:
            packed[weight.shape] = pack(weight.shape)
        stored |= {name + key: part.clone() for key, part in packed[weight.shape].items()}
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    config.quantization_config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
        llm_int8_skip_modules=["lm_head"],
    ).to_dict()
    config.save_pretrained(folder)


def pack(shape: torch.Size) -> dict[str, torch.Tensor]:
    """Pack a random weight in NF4; return what a checkpoint stores of it, by the key's ending."""
    drawn = torch.randn(shape, device=DEVICE, dtype=torch.bfloat16) * shape[1] ** -0.5
    data, state = quantize_4bit(drawn, quant_type="nf4", compress_statistics=True)
    parts = {"": data} | {f".{key}": part for key, part in state.as_dict(packed=True).items()}
    return {key: part.cpu().contiguous() for key, part in parts.items()}


@torch.no_grad()
def put_inside(small: QuantizableT5, large: QuantizableT5) -> None:
    """Make a larger model compute the same as a small one: its weights, padded with zeros.

    Layers that the small model lacks add nothing. Zeros lower the mean square that a norm divides
    by, and the norm's weights compensate for it. Ids that the small model lacks are as probable as
    padding.
    """
    heads = {"q": 0, "k": 0, "v": 0, "o": 1}
    given = small.state_dict()
    for name, weight in large.named_parameters():
        weight.zero_()
        if name not in given:
            continue
        part = given[name].to(weight.device)
        kind = name.split(".")[-2]
        if kind in heads:  # heads differ in width
            dim = heads[kind]
            weight = weight.unflatten(dim, (-1, large.config.d_kv))
            part = part.unflatten(dim, (-1, small.config.d_kv))
        elif "norm" in kind:
            part = part * (small.config.d_model / large.config.d_model) ** 0.5
        weight[tuple(slice(n) for n in part.shape)] = part
        if kind == "lm_head":
            weight[len(part) :] = weight[small.config.pad_token_id]


def load_parameters(environment: str, changes: dict[str, Any]) -> Parameters:
    """Read the parameters of an environment in conf/ and change some of them."""
    loader = OmegaConfigLoader(
        conf_source=str(PROJECT / "conf"),
        base_env="base",
        default_run_env=environment,
        merge_strategy={"parameters": "soft", "globals": "soft"},
        runtime_params=changes,
    )
    return Parameters.model_validate(loader["parameters"])


def lora_config(lora: LoraParameters) -> LoraConfig:
    """Configure LoRA as tutorials do."""
    return LoraConfig(
        task_type="SEQ_2_SEQ_LM",
        target_modules=lora.target_modules,
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
    )


def run_node(pipeline: Pipeline, parameters: Parameters, data: dict[str, Any], name: str) -> None:
    """Run one node of a pipeline, named with or without its namespace; add outputs to `data`."""
    node = Pipeline([n for n in pipeline.nodes if name in (n.name, n.short_name)])
    for given in node.inputs():
        if given.startswith("params:"):
            data[given] = attrgetter(given.removeprefix("params:"))(parameters)
    held = {given: MemoryDataset(data[given], copy_mode="assign") for given in node.inputs()}
    made = {output: MemoryDataset(copy_mode="assign") for output in node.outputs()}
    SequentialRunner().run(node, DataCatalog(held | made))
    data |= {output: dataset.load() for output, dataset in made.items()}


def free() -> None:
    """Free unused memory and reset the GPU's peak."""
    gc.collect()
    if CUDA:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def facts() -> dict[str, Any]:
    """Return the device, the versions of the packages and the commit of a result."""
    return {
        "device": torch.cuda.get_device_name() if CUDA else f"CPU, {torch.get_num_threads()} cores",
        "versions": package_versions(),
        "git": git_commit(PROJECT),
    }


def write_results(
    folder: Path, name: str, given: dict[str, Any], results: list[dict[str, Any]]
) -> str:
    """Write NAME.json and NAME.md into the folder; return the Markdown table."""
    folder.mkdir(parents=True, exist_ok=True)
    content = json.dumps({**given, "results": results}, indent=2)
    (folder / f"{name}.json").write_text(content + "\n", encoding="utf-8")
    frame = pd.DataFrame(results).astype(object)
    shown = frame.map(lambda value: _rounded(value) if isinstance(value, float) else value)
    table = shown.where(frame.notna(), "").to_markdown(index=False, disable_numparse=True)
    (folder / f"{name}.md").write_text(f"{table}\n\n{json.dumps(given)}\n", encoding="utf-8")
    return table


def _rounded(value: float) -> str:
    return f"{value:,.1f}" if abs(value) >= 10 else f"{value:.3g}"


def measured(command: list[str], folder: Path) -> dict[str, float]:
    """Run a command in a folder; return its seconds and its peaks of memory in MiB.

    `all` is the process's ru_maxrss. The other peaks are sampled: `own` is the memory that the
    process has allocated (RssAnon), `files` the pages of files that it has mapped (RssFile), such
    as libraries and Arrow files, whose pages the kernel reclaims when memory is short.

    Raises:
        SystemExit: the command failed; the exit message is its output.
    """
    started = time.perf_counter()
    peaks = {"RssAnon": 0, "RssFile": 0}
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log)  # noqa: S603
        status = Path(f"/proc/{process.pid}/status")
        while os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
            for name in peaks.keys() & fields.keys():
                peaks[name] = max(peaks[name], int(fields[name].split()[0]) * 1024)
            time.sleep(SAMPLED_EVERY)
        _, code, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(code)
    seconds = time.perf_counter() - started
    if process.returncode:
        raise SystemExit((folder / "log").read_text())
    return {
        "seconds": seconds,
        "all MiB": usage.ru_maxrss * 1024 / MIB,
        "own MiB": peaks["RssAnon"] / MIB,
        "files MiB": peaks["RssFile"] / MIB,
    }
