"""`kedro run --env=squad` against a stand-in for the hub, and the same commands without one."""

import json
import os
import subprocess
import sys

import pandas as pd
import pytest
from click.testing import CliRunner
from conftest import copy_project
from hub_server import BASE, COMMIT, SQUAD, SQUAD_COMMIT, read_repository, running_hub
from kedro.framework.session import KedroSession
from kedro.framework.startup import bootstrap_project
from peft import AutoPeftModelForSeq2SeqLM

import flan_qa_pipeline.cli
from flan_qa_pipeline.data.squad import flatten
from flan_qa_pipeline.errors import InputError
from flan_qa_pipeline.models.adapter import load_adapter

# The last run, without a hub, measures memory in another process, which reads the cache, too.
SHORT = {
    "data": {"max_train_questions": 32, "max_validation_questions": 8},
    "model": {"compute_dtype": "float32"},
    "tokenization": {"max_source_length": 128, "doc_stride": 32},
    "generation": {"max_new_tokens": 4},
    "training": {"max_steps": 2, "eval_strategy": "no"},
    "reporting": {"memory_formats": ["float32"]},
}


def parquet_of(articles, folder):
    rows = pd.DataFrame(flatten({"data": articles}, "corpus")).drop(columns="is_impossible")
    rows.to_parquet(folder / "rows.parquet")
    return (folder / "rows.parquet").read_bytes()


@pytest.fixture(scope="module")
def hub(tmp_path_factory, tiny_base, corpus):
    """A hub with a tiny base in FLAN-T5's layout, which has moved on since, and a squad_v2."""
    folder = tmp_path_factory.mktemp("repositories")
    files = read_repository(tiny_base)
    config = json.loads(files["config.json"])
    others = ("pytorch_model.bin", "tf_model.h5", "flax_model.msgpack", "README.md", "train.py")
    files |= dict.fromkeys(others, b"neither read nor run")
    files["config.json"] = json.dumps(config | {"auto_map": {"AutoModel": "train.T5"}}).encode()
    with (
        pytest.MonkeyPatch.context() as patch,
        running_hub(patch, tmp_path_factory.mktemp("cache")) as hub,
    ):
        base = hub.add(BASE, files, COMMIT)
        moved = json.dumps(config | {"vocab_size": config["vocab_size"] + 8}).encode()
        base.commits["b" * 40] = files | {"config.json": moved}
        base.branches["main"] = "b" * 40
        parts = {"train": corpus["data"][:24], "validation": corpus["data"][24:]}
        data = {
            f"squad_v2/{name}-00000-of-00001.parquet": parquet_of(articles, folder)
            for name, articles in parts.items()
        }
        hub.add(SQUAD, data | {"README.md": b"A card."}, SQUAD_COMMIT, kind="datasets")
        yield hub


@pytest.fixture(scope="module")
def project(tmp_path_factory, corpus):
    root = tmp_path_factory.mktemp("project")
    copy_project(root)
    (root / "data/01_raw").mkdir(parents=True)
    paragraph = corpus["data"][25]["paragraphs"][0]
    rows = [[paragraph["context"], qa["question"]] for qa in paragraph["qas"]]
    questions = pd.DataFrame(rows, columns=["context", "question"])
    questions.to_csv(root / "data/01_raw/example_questions.csv", index=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        bootstrap_project(root)
        yield root


def run(project, *pipelines, **changes):
    with KedroSession.create(
        project_path=project, env="squad", runtime_params=SHORT | changes
    ) as session:
        session.run(pipeline_names=list(pipelines) or None)
        return project / "data/06_models/adapter" / session.session_id / "adapter"


def use_the_adapter(project):
    """Do everything that needs a trained adapter."""
    for pipeline in ("evaluate", "inference", "merge"):
        run(project, pipeline)
    result = CliRunner().invoke(
        flan_qa_pipeline.cli.ask,
        ["--env=squad", "--context=Ada was born in London.", "--question=Where?"],
        obj=bootstrap_project(project),
        catch_exceptions=False,
    )
    assert result.exit_code == 0, result.output
    assert "score" in result.output


@pytest.fixture(scope="module")
def first_run(hub, project):
    """`kedro run --env=squad` with an empty cache: what it says, and the adapter it saves."""
    parameters = ",".join(
        f"{section}.{name}={value}".replace("'", "")
        for section, values in (SHORT | {"reporting": {"memory_formats": []}}).items()
        for name, value in values.items()
    )
    result = subprocess.run(  # noqa: S603
        [sys.executable, "-m", "kedro", "run", "--env=squad", f"--params={parameters}"],
        env=os.environ | {"COLUMNS": "1000"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    [adapter] = project.glob("data/06_models/adapter/*/adapter")
    return result, adapter


def test_the_first_run_fetches_what_it_reads_and_shows_it(hub, first_run):
    result, _ = first_run
    files = read_repository_names(hub, BASE)
    data = {f"squad_v2/{name}-00000-of-00001.parquet" for name in ("train", "validation")}
    assert set(hub.sent) == files | data
    whole = sum(len(hub.repositories["models", BASE].commits[COMMIT][name]) for name in files)
    assert f"Fetch {BASE} at {COMMIT}: {len(files)} files, {whole / 1e6:.1f} MB" in result.stdout
    assert f"{whole / 1e6:.2f}MB / " in result.stderr
    asked = [request for request in hub.requests if "/resolve/" in request]
    assert all(COMMIT in request or SQUAD_COMMIT in request for request in asked)


def read_repository_names(hub, name):
    unread = (".bin", ".h5", ".msgpack", ".md", ".py")
    files = hub.repositories["models", name].commits[COMMIT]
    return {file for file in files if not file.endswith(unread)}


def test_hub_id_and_commits_are_recorded(first_run):
    _, adapter = first_run
    provenance = json.loads((adapter / "provenance.json").read_text())
    assert (provenance["model"]["name"], provenance["model"]["revision"]) == (BASE, COMMIT)
    recorded = json.loads((adapter / "training.json").read_text())["run"]["parameters"]
    assert recorded["model"]["revision"] == COMMIT
    assert f"@{SQUAD_COMMIT}/" in recorded["data"]["train_file"]
    config = json.loads((adapter / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == (BASE, COMMIT)
    assert load_adapter(adapter).config.revision == COMMIT


def test_pefts_automatic_class_loads_the_base_at_its_commit(hub, first_run):
    _, adapter = first_run
    asked = len(hub.requests)
    model = AutoPeftModelForSeq2SeqLM.from_pretrained(adapter)
    assert model.peft_config["default"].revision == COMMIT
    # transformers looks for an adapter in the base's main branch, whatever the revision
    of_base = [request for request in hub.requests[asked:] if BASE in request]
    assert of_base and all(COMMIT in r or r.endswith("main/adapter_config.json") for r in of_base)


def test_a_branch_is_recorded_as_its_commit(hub, project, first_run, caplog):
    files = hub.repositories["models", BASE]
    files.branches["main"] = COMMIT
    changes = {
        "train_file": SQUAD_FILE.format("train"),
        "validation_file": SQUAD_FILE.format("validation"),
    }
    adapter = run(
        project,
        model=SHORT["model"] | {"revision": "main"},
        data=SHORT["data"] | changes,
        reporting={"memory_formats": []},
    )
    assert json.loads((adapter / "provenance.json").read_text())["model"]["revision"] == COMMIT
    recorded = json.loads((adapter / "training.json").read_text())["run"]["parameters"]["data"]
    assert f"@{SQUAD_COMMIT}/" in recorded["train_file"]
    assert caplog.text.count("a later run may read others") == 3
    files.branches["main"] = "b" * 40
    with pytest.raises(
        InputError, match=f"model.revision is '{'b' * 40}', trained with '{COMMIT}'"
    ):
        run(project, "evaluate", model=SHORT["model"] | {"revision": "main"})


SQUAD_FILE = f"hf://datasets/{SQUAD}/squad_v2/{{}}-00000-of-00001.parquet"


def test_after_that_nothing_is_asked_for_and_the_hub_may_be_gone(hub, project, first_run):
    before = list(hub.requests)
    use_the_adapter(project)
    assert hub.requests == before
    hub.stop()
    run(project)
    use_the_adapter(project)
    assert hub.requests == before
