"""The state of a training as JSON and tensors, and the random number generators in it."""

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch


def pack(value: Any, tensors: dict[str, torch.Tensor], place: str = "") -> Any:
    """Turn nested state into JSON values, and move its tensors into `tensors`.

    Dictionaries keep keys that are not strings, tuples stay tuples and NumPy arrays stay arrays.

    Args:
        value: nested dictionaries, lists and tuples of numbers, strings, tensors and arrays.
        tensors: receives a copy of each tensor on the CPU, under its place in the state.
        place: the place of `value` in the state, such as `/optimizer/state`.

    Returns:
        A value that `json.dumps` takes and `unpack` restores.

    Raises:
        TypeError: names the place of a value of any other type.
    """
    if isinstance(value, torch.Tensor):
        tensors[place] = value.detach().to("cpu", copy=True).contiguous()
        return {"tensor": place}
    if isinstance(value, np.ndarray):
        return {"array": pack(torch.from_numpy(value), tensors, place)}
    if isinstance(value, Mapping):
        items = value.items()
        return {"dict": [[key, pack(item, tensors, f"{place}/{key}")] for key, item in items]}
    if isinstance(value, list | tuple):
        packed = [pack(item, tensors, f"{place}/{i}") for i, item in enumerate(value)]
        return packed if isinstance(value, list) else {"tuple": packed}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{place} is a {type(value).__name__}, which JSON cannot hold")


def unpack(value: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    """Restore the state that `pack` has turned into JSON values and tensors.

    Raises:
        ValueError: `pack` makes no such value.
        KeyError: a tensor is missing.
    """
    if isinstance(value, list):
        return [unpack(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    match kind:
        case "tensor":
            return tensors[content]
        case "array":
            return unpack(content, tensors).numpy()
        case "tuple":
            return tuple(unpack(item, tensors) for item in content)
        case "dict":
            return {key: unpack(item, tensors) for key, item in content}
    raise ValueError(f"unknown kind {kind!r}")


def random_state() -> dict[str, Any]:
    """Return the state of every random number generator that a training process draws from."""
    return {
        "python": random.getstate(),
        "numpy": np.random.get_state(),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    }


def set_random_state(state: Mapping[str, Any]) -> None:
    """Set every random number generator to a state that `random_state` has returned."""
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
