"""What the reporting pipeline records about an evaluation."""

from types import SimpleNamespace

import pandas as pd
import pytest
from datasets import Dataset, DatasetDict

from flan_qa_pipeline.data.fingerprints import fingerprint_rows
from flan_qa_pipeline.pipelines.reporting.nodes import record_evaluation


@pytest.mark.parametrize("others", [False, True])
def test_a_record_says_whether_the_adapter_may_have_seen_the_questions(parameters, others):
    rows = {"id": ["a", "b"], "context": ["c", "c"], "question": ["d", "e"], "title": ["t", "t"]}
    train, validation = Dataset.from_dict(rows), Dataset.from_dict(rows)
    trained_on = fingerprint_rows(train.select([0]) if others else train)
    run = {"run_id": "v", "fingerprints": {"questions": {"train": trained_on}}}
    record = record_evaluation(
        pd.DataFrame({"subset": ["overall"]}),
        SimpleNamespace(training={"run": run}),
        {"run_id": "w"},
        parameters.data,
        DatasetDict(train=train, validation=validation),
        parameters.reporting,
    )
    assert record["may_have_seen"] is others
    assert (record["version"], record["adapter"]) == ("w", "v")
