"""Validation of all parameters at once, with a sentence for each mistake."""

import difflib
from collections.abc import Sequence
from typing import Any, get_args

from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from flan_qa_pipeline.config.parameters import Parameters
from flan_qa_pipeline.errors import InputError

REMOVED = {
    f"data.{key}": "tokenized questions are kept in the catalog alone; delete the key"
    for key in ("cache_dir", "cached_results")
}


def check_parameters(raw: dict[str, Any]) -> Parameters:
    """Check the parameters of all files and of `--params` against their models.

    Args:
        raw: the sections of the parameters files, merged.

    Raises:
        InputError: names every unknown or invalid parameter, with the nearest known name.
    """
    try:
        return Parameters.model_validate(raw)
    except ValidationError as error:
        found: dict[str, list[ErrorDetails]] = {}
        for problem in error.errors():
            found.setdefault(_place(problem), []).append(problem)
        problems = [_explain(place, problems) for place, problems in found.items()]
        raise InputError(f"{'; '.join(problems)} (conf/*/parameters*.yml or --params).") from None


def _place(problem: ErrorDetails) -> str:
    """Join the keys and list indices of a location, without the types that pydantic tried."""
    *_, last = location = problem["loc"]
    parts = [
        part
        for i, part in enumerate(location)
        if isinstance(part, int) or part in _fields(location[:i])
    ]
    unknown = [last] if problem["type"] == "extra_forbidden" else []
    return ".".join(map(str, parts + unknown))


def _explain(place: str, problems: list[ErrorDetails]) -> str:
    """Describe the mistake in one parameter, given a problem for each type that it may have."""
    first = problems[0]
    if first["type"] == "extra_forbidden":
        if place in REMOVED:
            return f"Parameter {place} is gone: {REMOVED[place]}"
        *section, name = first["loc"]
        known = _fields(section)
        elsewhere = [f"{other}.{name}" for other in _fields([]) if name in _fields([other])]
        near = elsewhere or difflib.get_close_matches(str(name), known, n=1)
        hint = f"did you mean {' or '.join(near)}?" if near else f"known here: {', '.join(known)}"
        return f"Unknown parameter {place}: {hint}"
    if first["type"] == "missing":
        return f"Parameter {place} is missing"
    reasons = [problem["msg"].removeprefix("Value error, ") for problem in problems]
    others = [reason.removeprefix("Input should be ") for reason in reasons[1:]]
    reason = " or ".join([*reasons[:1], *others])
    if isinstance(first["input"], dict):  # its validator names the parameter within
        return f"Parameter {place}: {reason}"
    return f"Parameter {place} is {first['input']!r}: {reason}"


def _fields(section: Sequence[str | int]) -> dict[str, FieldInfo]:
    """Return the fields of a section; none if the location leads out of the models."""
    model: Any = Parameters
    for name in section:
        if isinstance(name, str):
            field = getattr(model, "model_fields", {}).get(name)
            model = field and next(iter(get_args(field.annotation)), field.annotation)
    return getattr(model, "model_fields", {})
