"""What a run costs: parameters, memory, speed, time."""

from collections.abc import Sequence
from typing import Any

import pandas as pd
from torch.nn import Linear
from transformers import PreTrainedModel
from transformers.quantizers.quantizers_utils import should_convert_module

from flan_qa_pipeline.config.parameters import Format
from flan_qa_pipeline.models.device import MIB

SKIPPED_BY_LIBRARIES = ("lm_head", "wo")


def nf4_bytes(count: int, *, double_quant: bool = True) -> int:
    """Size of so many weights in NF4 (arXiv:2305.14314).

    Half a byte each, four bytes for every block of 64 or, with double quantization, one and four
    for every 256 of these.
    """
    blocks = -(-count // 64)
    return -(-count // 2) + (blocks + 4 * -(-blocks // 256) if double_quant else 4 * blocks)


def base_weights(
    base: PreTrainedModel, skip_modules: Sequence[str], *, double_quant: bool = True
) -> dict[str, dict[Format, int]]:
    """Bytes that a base takes in each format, loaded and in training, calculated from its shapes.

    transformers leaves the head and T5's feed-forward `wo` out of 4 bits, and peft's
    `prepare_model_for_kbit_training` makes all that is left float32; here all linear layers but
    `skip_modules` are in 4 bits and the rest is bfloat16. The libraries' is with double
    quantization, the one here if `double_quant`. LoRA matrices are not counted.
    """
    linear = {
        name: part.in_features * part.out_features
        for name, part in base.named_modules()
        if isinstance(part, Linear) and ".lora_" not in name
    }
    rest: int = sum(
        parameter.numel()
        for name, parameter in base.named_parameters()
        if ".lora_" not in name and name.removesuffix(".weight") not in linear
    )

    def quantized(skipped: Sequence[str], width: int, double_quant: bool = True) -> int:
        return width * rest + sum(
            nf4_bytes(count, double_quant=double_quant)
            if should_convert_module(name.removesuffix(".base_layer"), skipped)
            else width * count
            for name, count in linear.items()
        )

    loaded: dict[Format, int] = {
        "float32": 4 * (sum(linear.values()) + rest),
        "bfloat16": 2 * (sum(linear.values()) + rest),
        "NF4 by the libraries": quantized(SKIPPED_BY_LIBRARIES, 2),
        "NF4 here": quantized(skip_modules, 2, double_quant),
    }
    prepared: dict[Format, int] = {"NF4 by the libraries": quantized(SKIPPED_BY_LIBRARIES, 4)}
    return {"loaded": loaded, "in training": loaded | prepared}


def cost_rows(
    training: dict[str, Any],
    node_costs: dict[str, dict[str, Any]],
    n_answered: int,
    adapter_bytes: int,
) -> list[dict[str, Any]]:
    """List parameters, memory, speed of training and answering, and the time of every node.

    Args:
        training: the adapter's own record of its training.
        node_costs: node name to its wall time in `seconds` and the `peak_memory` after it; a node
            that has not ended has neither.
        n_answered: questions that each `predict_...` node answered.
        adapter_bytes: size of the adapter's weights.
    """
    ended = {name: cost for name, cost in list(node_costs.items()) if "seconds" in cost}
    share = training["trainable_parameters"] / training["total_parameters"]
    rows = [
        ("parameters", "trainable", training["trainable_parameters"], "parameters"),
        ("parameters", "all", training["total_parameters"], "parameters"),
        ("parameters", "trainable share", 100 * share, "%"),
        ("memory", "weights, base and adapter", training["weights_bytes"] / MIB, "MiB"),
        ("memory", "weights of the adapter", adapter_bytes / MIB, "MiB"),
    ]
    rows += [
        ("memory", f"peak until training ended, {place}", size / MIB, "MiB")
        for place, size in training["peak_memory"].items()
    ]
    last = list(ended.values())[-1]["peak_memory"] if ended else {}
    rows += [
        ("memory", f"peak of this run, {place}", size / MIB, "MiB") for place, size in last.items()
    ]
    rows += [
        ("speed", "training", training["samples"] / training["seconds"], "samples/s"),
        *(
            (
                "speed",
                name.replace("predict_", "evaluation, "),
                n_answered / cost["seconds"],
                "questions/s",
            )
            for name, cost in ended.items()
            if name.startswith("predict_")
        ),
        ("time", "training steps", training["seconds"], "s"),
    ]
    rows += [("time", f"node {name}", cost["seconds"], "s") for name, cost in ended.items()]
    return [dict(zip(("kind", "quantity", "value", "unit"), row, strict=True)) for row in rows]


def node_times(node_costs: dict[str, dict[str, Any]]) -> pd.DataFrame:
    """The wall time of every node in seconds, and the peak memory after it in MiB."""
    return pd.DataFrame(
        [
            {
                "node": name,
                "seconds": cost["seconds"],
                **{f"peak MiB, {place}": size / MIB for place, size in cost["peak_memory"].items()},
            }
            for name, cost in node_costs.items()
        ]
    )


def readable_costs(table: pd.DataFrame) -> pd.DataFrame:
    """The cost table with its values as texts: counts whole, the rest to three digits."""
    return table.assign(
        value=[
            f"{value:,.0f}" if unit == "parameters" or value >= 1000 else f"{value:.3g}"
            for value, unit in zip(table["value"], table["unit"], strict=True)
        ]
    )


def cost_markdown(table: pd.DataFrame) -> str:
    """The cost table as Markdown."""
    align = ["left", "left", "right", "left"]
    shown = readable_costs(table)
    return shown.to_markdown(index=False, colalign=align, disable_numparse=True) + "\n"


def memory_sizes(weights: dict[str, dict[Format, int]], measured: dict[str, Any]) -> pd.DataFrame:
    """What the base's weights and a training step take in each format.

    Args:
        weights: what `base_weights` says.
        measured: the `peaks` in bytes of a step on `batch_size` windows of `source_tokens`, and
            the `device`.
    """
    sizes = pd.DataFrame(
        {
            "weights MiB": weights["loaded"],
            "weights in training MiB": weights["in training"],
            "training peak MiB": pd.Series(measured["peaks"], dtype=float),
        },
        index=list(weights["loaded"]),
    )
    step = f"{measured['batch_size']} x {measured['source_tokens']} tokens, {measured['device']}"
    return (sizes / MIB).rename_axis("format").reset_index().assign(step=step)


def readable_memory(table: pd.DataFrame) -> pd.DataFrame:
    """The memory table with its values as texts."""
    sizes = table.select_dtypes("number")
    return table.assign(**sizes.map(lambda size: "" if pd.isna(size) else f"{size:,.1f}"))


def memory_markdown(table: pd.DataFrame) -> str:
    """The memory table as Markdown."""
    align = ["left", "right", "right", "right", "left"]
    shown = readable_memory(table)
    return shown.to_markdown(index=False, colalign=align, disable_numparse=True) + "\n"
