"""What a run costs: parameters, memory, speed, time."""

import resource
import sys
from typing import Any

import pandas as pd
import torch

MIB = 2**20


def peak_memory() -> dict[str, int]:
    """Largest memory so far in bytes: of this process and, where there is one, on the GPU."""
    unit = 1 if sys.platform == "darwin" else 1024
    peak = {"process": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}
    if torch.cuda.is_available():
        peak["GPU"] = torch.cuda.max_memory_allocated()
    return peak


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
    ended = {name: cost for name, cost in node_costs.items() if "seconds" in cost}
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
