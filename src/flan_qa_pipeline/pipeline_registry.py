"""The registered pipelines."""

from importlib import import_module

from kedro.pipeline import Pipeline

PACKAGES = "flan_qa_pipeline.pipelines"
# Name of a pipeline: the functions that make its parts, in packages that import torch.
PIPELINES = {
    "__default__": (
        "data_engineering.create_pipeline",
        "modeling.create_pipeline",
        "reporting.create_pipeline",
    ),
    "data_engineering": ("data_engineering.create_pipeline",),
    "modeling": ("modeling.create_pipeline",),
    "reporting": ("reporting.create_pipeline",),
    "evaluate": ("reporting.create_pipeline",),
    "merge": ("modeling.create_merge_pipeline",),
    "inference": ("inference.create_pipeline",),
    "compare": ("compare.create_pipeline",),
    "pretrain": ("pretrain.create_pipeline",),
}


def register_pipelines() -> dict[str, Pipeline]:
    """Map pipeline names to pipelines.

    `__default__` joins data engineering, modeling and reporting. `evaluate`, another name of
    reporting, makes predictions, scores and tables from the saved windows and adapter, without
    training. `__default__` leaves out `inference`, which answers a file of new questions,
    `compare`, which sets two saved versions side by side, `pretrain`, which makes an English base
    model, and `merge`, which makes a model without an adapter for serving.
    """
    made = {part: _made(part) for parts in PIPELINES.values() for part in parts}
    return {
        name: sum((made[part] for part in parts), Pipeline([])) for name, parts in PIPELINES.items()
    }


def _made(part: str) -> Pipeline:
    package, _, function = part.partition(".")
    pipeline: Pipeline = getattr(import_module(f"{PACKAGES}.{package}"), function)()
    return pipeline
