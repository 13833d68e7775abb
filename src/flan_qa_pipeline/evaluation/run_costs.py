"""What a run costs: parameters, memory, speed, time."""

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
