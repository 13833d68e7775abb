"""The notebook, executed end to end in a copy of the project, on a slice and the tiny base."""

import json
import re

import nbformat
import pandas as pd
import pytest
from conftest import REPOSITORY, copy_project
from nbclient import NotebookClient

NOTEBOOK = REPOSITORY / "notebooks/walkthrough.ipynb"


@pytest.fixture(scope="module")
def notebook():
    return nbformat.read(NOTEBOOK, as_version=4)


@pytest.fixture(scope="module")
def executed(notebook, tmp_path_factory, tiny_base, corpus):
    root = tmp_path_factory.mktemp("project")
    copy_project(root)
    changes = {
        "model": {"name": str(tiny_base)},
        "data": {"max_train_questions": 32, "max_validation_questions": 16},
        "training": {
            "eval_strategy": "no",
            "load_best_model_at_end": False,
            "max_steps": 2,
            "logging_steps": 1,
        },
        "generation": {"max_new_tokens": 6},
        "reporting": {"memory_formats": []},
    }
    for name, articles in (("train", corpus["data"][:24]), ("validation", corpus["data"][24:])):
        path = root / f"{name}.json"
        path.write_text(json.dumps({"version": "v2.0", "data": articles}), encoding="utf-8")
        changes["data"][f"{name}_file"] = str(path)
    (root / "notebooks").mkdir()
    copy = nbformat.from_dict(notebook)
    [parameters] = [c for c in copy.cells if "parameters" in c.metadata.get("tags", [])]
    parameters.source = f"changes = {changes!r}"
    resources = {"metadata": {"path": str(root / "notebooks")}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(root / "src"))
        NotebookClient(copy, timeout=None, resources=resources).execute()
    return root, copy


@pytest.mark.slow
def test_every_step_runs_and_shows_what_the_catalog_holds(executed):
    root, notebook = executed
    outputs = [output for c in notebook.cells if c.cell_type == "code" for output in c.outputs]
    assert not any(output.output_type == "error" for output in outputs)
    shown = " ".join(json.dumps(output) for output in outputs)
    assert "Linear4bit, nf4" in shown
    assert "0 weights are trainable" in shown
    [table] = (root / "data/08_reporting/score_table.csv").glob("*/score_table.csv")
    scores = pd.read_csv(table).round(1)
    assert scores["questions"].iloc[0] == 16
    last = notebook.cells[-2].outputs[-1]["data"]["text/html"]
    for subset in scores["subset"]:
        assert f"<td>{subset}</td>" in last


def test_committed_outputs_are_of_a_whole_run_and_light(notebook):
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert len(outputs) >= 8
    assert not any(output.output_type == "error" for output in outputs)
    assert not any(output.get("name") == "stderr" for output in outputs)
    text = NOTEBOOK.read_text(encoding="utf-8")
    assert len(text) < 60_000
    assert not re.search(r"/(tmp|root|home|work)/", text)
