"""A run's costs: parameters, memory, speed and time."""

from typing import Any

import pandas as pd

from flan_qa_pipeline.config.parameters import Format
from flan_qa_pipeline.models.device import MIB


def cost_rows(
    training: dict[str, Any],
    node_costs: dict[str, dict[str, Any]],
    n_answered: int,
    adapter_bytes: int,
) -> list[dict[str, Any]]:
    """List parameters, memory, speed of training and answering, and the time of each node.

    Args:
        training: the adapter's record of its training.
        node_costs: by node name, its wall time in `seconds` and the `peak_memory` after it, in
            bytes by place. A node that is still running has neither.
        n_answered: number of questions that each `predict_...` node answered.
        adapter_bytes: size of the adapter's weights.

    Returns:
        Rows of kind, quantity, value and unit.
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
    """Tabulate each node's wall time in seconds and the peak memory after it in MiB."""
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


def memory_sizes(weights: dict[str, dict[Format, int]], measured: dict[str, Any]) -> pd.DataFrame:
    """Tabulate the memory of the base's weights and of a training step in each format, in MiB.

    Args:
        weights: bytes by format, as `base_weights` returns them.
        measured: `peaks`, the peak bytes of a step by format; `batch_size` and `source_tokens`,
            the number and length of the step's windows; and the `device`.
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
