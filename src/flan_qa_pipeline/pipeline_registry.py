"""The registered pipelines."""

from kedro.pipeline import Pipeline

from flan_qa_pipeline.pipelines import (
    compare,
    data_engineering,
    inference,
    modeling,
    pretrain,
    reporting,
    starter,
)


def register_pipelines() -> dict[str, Pipeline]:
    """Map pipeline names to pipelines.

    `__default__` joins data engineering, modeling and reporting. `evaluate`, another name of
    reporting, makes predictions, scores and tables from the saved windows and adapter, without
    training. `__default__` leaves out `inference`, which answers a file of new questions,
    `compare`, which sets two saved versions side by side, `starter`, which makes the embedded
    corpus and base model, `pretrain`, which makes an English base model, and `merge`, which
    makes a model without an adapter for serving.
    """
    data = data_engineering.create_pipeline()
    model = modeling.create_pipeline()
    report = reporting.create_pipeline()
    return {
        "__default__": data + model + report,
        "data_engineering": data,
        "modeling": model,
        "reporting": report,
        "evaluate": report,
        "merge": modeling.create_merge_pipeline(),
        "inference": inference.create_pipeline(),
        "compare": compare.create_pipeline(),
        "starter": starter.create_pipeline(),
        "pretrain": pretrain.create_pipeline(),
    }
