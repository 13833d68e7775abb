"""Two versions question by question, and the table of costs."""

import pandas as pd
import pytest

from flan_qa_pipeline.config.parameters import CompareParameters
from flan_qa_pipeline.errors import InputError
from flan_qa_pipeline.evaluation.run_costs import cost_rows
from flan_qa_pipeline.models.device import MIB
from flan_qa_pipeline.pipelines.compare.nodes import (
    compare_costs,
    list_changed_answers,
    pair_questions,
    tabulate_comparison,
)
from flan_qa_pipeline.reporting.tables import cost_markdown

COMPARE = CompareParameters(first="v1", second="v2")


def questions(said, **changes):
    rows = [
        {
            "id": id_,
            "title": "t",
            "question": "Who?",
            "context": "cat dog",
            "answers": ["cat"],
            "answer_start": [0],
            "is_impossible": False,
            "question_word": "who",
            "answer_words": 1,
            "context_words": 2,
            "baseline": "",
            "baseline EM": 0.0,
            "baseline F1": 0.0,
            "fine-tuned": text,
            "fine-tuned EM": 100.0 * (text == "cat"),
            "fine-tuned F1": 100.0 * (text == "cat"),
        }
        | changes
        for id_, text in said.items()
    ]
    return pd.DataFrame(rows)


FIRST = questions({"a": "cat", "b": "dog", "c": "dog", "x": "cat"})
SECOND = questions({"c": "cat", "b": "cat", "a": "", "y": "cat"})


def test_pairs_are_the_shared_questions_in_the_first_order():
    pairs = pair_questions(FIRST, SECOND, COMPARE)
    assert pairs["id"].tolist() == ["a", "b", "c"]
    assert pairs["first"].tolist() == ["cat", "dog", "dog"]
    assert pairs["second"].tolist() == ["", "cat", "cat"]
    assert not any(column.startswith("baseline") for column in pairs)


def test_the_comparison_counts_and_names_what_changed(parameters):
    pairs = pair_questions(FIRST, SECOND, COMPARE)
    table, markdown = tabulate_comparison(pairs, COMPARE, parameters.reporting)
    overall = table.set_index("subset").loc["overall"]
    assert overall["questions"] == 3
    assert overall["EM first"] == pytest.approx(100 / 3)
    assert overall["EM gain"] == pytest.approx(100 / 3)
    assert markdown.startswith("first: v1, second: v2")
    changed = list_changed_answers(pairs)
    assert changed[["id", "outcome"]].values.tolist() == [
        ["a", "broken"],
        ["b", "fixed"],
        ["c", "fixed"],
    ]


def test_versions_without_a_shared_question_are_refused():
    with pytest.raises(InputError, match="v1 and v2 share no question"):
        pair_questions(FIRST, questions({"z": "cat"}), COMPARE)


@pytest.mark.parametrize("changes", [{"answers": ["dog"]}, {"context": "other"}])
def test_a_question_that_is_not_the_same_is_named(changes):
    with pytest.raises(InputError, match=f"Question 'a' has another {next(iter(changes))}"):
        pair_questions(FIRST, questions({"a": "cat"}, answer_start=[0], **changes), COMPARE)


TRAINING = {
    "trainable_parameters": 1000,
    "total_parameters": 50_000,
    "weights_bytes": 3 * MIB,
    "samples": 640,
    "seconds": 8.0,
    "peak_memory": {"process": 700 * MIB},
}
NODES = {
    "train_adapter": {"seconds": 9.0, "peak_memory": {"process": 700 * MIB}},
    "predict_finetuned": {"seconds": 4.0, "peak_memory": {"process": 900 * MIB}},
    "tabulate_costs": {"started": 1.0},
}


def test_costs_of_training_answering_and_nodes():
    rows = {
        (row["kind"], row["quantity"]): (row["value"], row["unit"])
        for row in cost_rows(TRAINING, NODES, n_answered=100, adapter_bytes=MIB // 2)
    }
    assert rows["parameters", "trainable share"] == (2.0, "%")
    assert rows["memory", "weights, base and adapter"] == (3.0, "MiB")
    assert rows["memory", "weights of the adapter"] == (0.5, "MiB")
    assert rows["memory", "peak until training ended, process"] == (700.0, "MiB")
    assert rows["memory", "peak of this run, process"] == (900.0, "MiB")
    assert rows["speed", "training"] == (80.0, "samples/s")
    assert rows["speed", "evaluation, finetuned"] == (25.0, "questions/s")
    assert rows["time", "node train_adapter"] == (9.0, "s")
    assert ("time", "node tabulate_costs") not in rows


def test_costs_side_by_side():
    tables = [
        pd.DataFrame(cost_rows(TRAINING | {"seconds": s}, nodes, n_answered=100, adapter_bytes=1))
        for s, nodes in ((8.0, NODES), (4.0, {}))
    ]
    merged = compare_costs(*tables).set_index("quantity")
    assert merged.loc["training", ["first", "second"]].tolist() == [80.0, 160.0]
    assert pd.isna(merged.loc["node train_adapter", "second"])
    assert "1,000" in cost_markdown(tables[0])
