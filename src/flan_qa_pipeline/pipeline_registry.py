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

    `__default__` is data engineering, modeling and reporting. `evaluate` is another name of
    reporting, the partial re-run: predictions, scores and tables from the saved tokenized data
    and adapter, without training. Not part of `__default__`: `inference` answers a file of new
    questions, `compare` sets two saved versions side by side, `starter` makes the embedded corpus
    and base model, `pretrain` an English base model, `merge` a model without adapter for serving.
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
