"""Training memory by format, measured by training the tiny base in a separate process."""

import subprocess
import sys

import out_of_memory
import pandas as pd
import pytest
from peft import LoraConfig

import flan_qa_pipeline.training.measured_memory
from flan_qa_pipeline.evaluation.run_costs import memory_sizes
from flan_qa_pipeline.evaluation.weight_memory import base_weights
from flan_qa_pipeline.models.loading import load_base_model
from flan_qa_pipeline.reporting.tables import memory_markdown
from flan_qa_pipeline.training.measured_memory import training_peaks

FORMATS = ["float32", "bfloat16", "NF4 by the libraries", "NF4 here"]
WINDOW = {"input_ids": [7, 8, 9] * 20, "labels": [5, 6, 7, 1]}


@pytest.fixture(scope="module")
def given(parameters):
    model = parameters.model.model_copy(update={"compute_dtype": "bfloat16"})
    lora = LoraConfig(task_type="SEQ_2_SEQ_LM", target_modules=["q", "v"], r=4)
    return model, lora, parameters.training


@pytest.fixture(scope="module")
def peaks(given):
    return training_peaks(FORMATS, *given, [WINDOW] * 16)


@pytest.mark.slow
def test_every_format_is_measured(peaks, given):
    assert list(peaks) == FORMATS
    weights = base_weights(load_base_model(given[0]), given[0].skip_modules)
    assert all(peaks[form] > weights["in training"][form] for form in FORMATS)
    assert peaks["NF4 here"] < peaks["NF4 by the libraries"]
    assert peaks["bfloat16"] < peaks["float32"]


@pytest.mark.slow
def test_a_measured_step_is_of_the_batch_given(given, peaks):
    smaller = flan_qa_pipeline.training.measured_memory._training_peak(
        "float32", *given, [WINDOW] * 4
    )
    assert 0 < smaller < peaks["float32"] / 2


def test_what_does_not_fit_is_left_out_with_a_warning(monkeypatch, caplog):
    module = flan_qa_pipeline.training.measured_memory
    monkeypatch.setattr(module, "_training_peak", out_of_memory.end_for_want_of_memory)
    monkeypatch.setattr(module, "begin_quietly", out_of_memory.start)
    formats = ["NF4 here", "float32", "bfloat16", "NF4 by the libraries"]
    assert training_peaks(formats, None, None, None, []) == dict(
        zip(formats, (7, None, None, 7), strict=True)
    )
    assert caplog.messages == [
        "A training step in float32 does not fit in memory.",
        "A training step in bfloat16 does not fit in memory, or so it seems: its process was "
        "killed.",
    ]


def test_table_shows_what_was_measured_and_leaves_the_rest_empty(given):
    weights = base_weights(load_base_model(given[0]), given[0].skip_modules)
    measured = {"batch_size": 8, "source_tokens": 512, "device": "CPU"}
    table = memory_sizes(weights, measured | {"peaks": {"float32": 3 * 2**20, "bfloat16": None}})
    assert table["format"].tolist() == FORMATS
    assert table["training peak MiB"].dropna().to_dict() == {0: 3.0}
    assert table["weights MiB"][1] == weights["loaded"]["bfloat16"] / 2**20
    lines = memory_markdown(table).splitlines()
    assert "3.0 | 8 x 512 tokens, CPU |" in lines[2]
    assert "nan" not in memory_markdown(table)
    none = memory_sizes(weights, measured | {"peaks": {}})
    assert pd.isna(none["training peak MiB"]).all()


def test_the_measuring_process_begins_without_imports_that_log():
    script = (
        "import sys; from flan_qa_pipeline.training.quiet_process import begin_quietly; "
        "print(sorted({'torch', 'transformers', 'bitsandbytes'} & set(sys.modules)))"
    )
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-c", script], capture_output=True, text=True
    )
    assert (done.stdout.strip(), done.stderr) == ("[]", "")
