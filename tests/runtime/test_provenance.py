"""The commit that a run records."""

import re

import pytest
from conftest import REPOSITORY

from flan_qa_pipeline.runtime.provenance import git_commit


def test_the_commit_is_that_of_the_folder(tmp_path):
    if not (REPOSITORY / ".git").exists():
        pytest.skip("the project is not a git checkout here")
    assert re.fullmatch("[0-9a-f]{40}", git_commit(REPOSITORY)["commit"])
    assert git_commit(tmp_path) is None
