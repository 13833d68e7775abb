"""A copy of the project with a tiny base model, and one full run in it."""

import pytest
from conftest import make_project
from kedro.framework.startup import bootstrap_project

from pipelines.kedro_project import run


@pytest.fixture(scope="module")
def project(tmp_path_factory, corpus):
    """A copy of the project whose data is a small corpus; runs happen inside it."""
    root = tmp_path_factory.mktemp("project")
    make_project(root, corpus)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        bootstrap_project(root)
        yield root


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
