"""Runs of a few steps on a tiny base model, and one full run in a copy of the project."""

import pytest

from pipelines.kedro_project import run


@pytest.fixture(scope="module")
def tiny_run(tiny_base):
    """Parameters of a run of a few steps on the tiny base."""
    return {
        "model": {"name": str(tiny_base)},
        "training": {"num_train_epochs": 1, "logging_steps": 2},
        "data": {"max_train_questions": 64, "max_validation_questions": 40},
        "reporting": {"memory_formats": []},
    }


@pytest.fixture(scope="module")
def full_run(project, tiny_run):
    return run(project, tiny_run)
