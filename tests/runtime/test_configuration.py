"""The project's configuration: read once for each session, and complete in each environment."""

import os
import re
import subprocess
import sys
from itertools import permutations

import pytest
from conftest import CONF, REPOSITORY
from kedro.config import MissingConfigException
from kedro.validation import ParameterValidator

from flan_qa_pipeline.config.parameters import DataParameters
from flan_qa_pipeline.config.validation import check_parameters
from flan_qa_pipeline.pipeline_registry import register_pipelines
from flan_qa_pipeline.runtime.configuration import ProjectConfigLoader


@pytest.fixture
def load(tmp_path):
    for folder in ("base", "local"):
        (tmp_path / folder).mkdir()
    file = tmp_path / "base/parameters.yml"
    file.write_text("a: {b: 1}", encoding="utf-8")
    options = {"base_env": "base", "default_run_env": "local", "runtime_params": {"a": {"c": 2}}}
    options["merge_strategy"] = {"parameters": "soft"}
    return file, lambda: ProjectConfigLoader(str(tmp_path), **options)


def test_a_file_that_changes_during_a_run_changes_the_next_run_only(load):
    file, loader = load
    first = loader()
    assert first["parameters"] == {"a": {"b": 1, "c": 2}}
    file.write_text("a: {b: 3}", encoding="utf-8")
    assert first["parameters"] == {"a": {"b": 1, "c": 2}}
    assert loader()["parameters"] == {"a": {"b": 3, "c": 2}}


def test_a_kind_without_files_is_missing_whenever_it_is_asked_for(load):
    loader = load[1]()
    for _ in "12":
        with pytest.raises(MissingConfigException):
            loader["catalog"]


@pytest.mark.parametrize("env", sorted({path.parent.name for path in CONF.parent.glob("*/*.yml")}))
def test_each_environment_is_complete(env):
    options = {"base_env": "base", "default_run_env": "local"}
    options["merge_strategy"] = {"parameters": "soft", "globals": "soft"}
    loader = ProjectConfigLoader(str(CONF.parent), env=env, **options)
    check_parameters(loader["parameters"])
    base = loader["globals"]["pretraining"]["base"]
    assert loader["catalog"]["pretrained_base"]["filepath"] == f"data/06_models/{base}"


def test_pipelines_run_together_in_any_order(raw_parameters):
    registered = register_pipelines()
    for order in permutations(registered, 2):
        raw = {name: dict(values) for name, values in raw_parameters.items()}
        validator = ParameterValidator({name: registered[name] for name in order})
        made = validator.validate_raw_params(raw)
        if "data_engineering" in order:
            assert isinstance(made["data"], DataParameters), order


LOGS = """
import logging, sys
from pathlib import Path
from kedro.framework.startup import bootstrap_project

bootstrap_project(Path(sys.argv[1]))
print("configured")
logging.getLogger("kedro").info("of a node")
logging.getLogger("flan_qa_pipeline").info("one two three four five six seven eight")
"""


def test_logs_look_the_same_in_every_folder_of_the_project():
    shown = []
    for folder in (REPOSITORY, REPOSITORY / "docs"):
        done = subprocess.run(  # noqa: S603
            [sys.executable, "-c", LOGS, str(REPOSITORY)],
            cwd=folder,
            env=os.environ | {"COLUMNS": "80"},
            capture_output=True,
            text=True,
            check=True,
        )
        logged = done.stdout.partition("configured\n")[2]
        shown.append(re.sub(r"^\[.*?\]", "", logged))
    assert shown[0].split() == ["INFO", *"one two three four five six seven eight".split()]
    assert shown[1] == shown[0]
