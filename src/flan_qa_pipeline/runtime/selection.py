"""Which pipelines and nodes a command names, checked before it starts."""

import difflib
import inspect
from typing import Any

from kedro.framework.project import pipelines
from kedro.pipeline import Pipeline

from flan_qa_pipeline.errors import InputError, in_one_line

NODES = ("node_names", "from_nodes", "to_nodes")
FILTERS = (*NODES, "tags", "from_inputs", "to_outputs")


def require_known(options: dict[str, Any]) -> dict[str, Any]:
    """Check that the pipelines, nodes, tags and datasets exist that the options of `run` name.

    Args:
        options: the options of `kedro run`, by name, as its callback gets them. A node's name may
            lack its namespace.

    Returns:
        The options, with the full names of nodes.

    Raises:
        InputError: names what does not exist, or a node that cannot run as the options ask.
    """
    chosen = [options["pipeline"]] if options["pipeline"] else options["pipelines"]
    pipelines.set_requested(chosen or None)
    known = dict(pipelines)
    selected = Pipeline([])
    for name in chosen or ["__default__"]:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(sorted(known))}."
            raise InputError(f"There is no pipeline {name}: {hint}")
        selected += known[name]
    full_names = {node.short_name: node.name for node in selected.nodes}
    options = options | {
        option: [full_names.get(name, name) for name in options[option]] for option in NODES
    }
    try:
        selected = selected.filter(
            **{name: options[name] for name in FILTERS}, node_namespaces=options["namespaces"]
        )
    except ValueError as error:
        raise InputError(f"{in_one_line(error)}.") from error
    streams = [node.name for node in selected.nodes if inspect.isgeneratorfunction(node.func)]
    if options["is_async"] and streams:
        raise InputError(f"--async: {streams[0]} writes as it goes; leave the option out.")
    return options
