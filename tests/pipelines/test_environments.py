"""Environments of the project: other files, other datasets and broken configurations."""

import io
import json
from pathlib import Path

import pandas as pd
import pytest
import yaml
from click.testing import CliRunner
from datasets import Dataset, DatasetDict, load_from_disk
from kedro.framework.startup import bootstrap_project

import flan_qa_pipeline.cli
from flan_qa_pipeline.data.squad import flatten
from flan_qa_pipeline.errors import InputError
from pipelines.kedro_project import SELECT, load, read, run

FLATTEN = ["data_engineering.flatten_train_questions"]


@pytest.mark.parametrize("file", ["parameters", "catalog", "globals"])
@pytest.mark.parametrize(
    "content",
    [
        *(b"- a\n- b", b"\xff\xfe\0a", b"a: 1\na: 2", b"a: !!python/object:os.system {}"),
        *(b"a: \0", b"a: *b", b"&a [*a]", b"a: ${", b"null: 3", bytes(range(256)), b"a: [b"),
    ],
)
def test_a_broken_configuration_is_told_in_a_line_with_the_file(project, file, content):
    path = project / f"conf/broken_{file}/{file}.yml"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    metadata = bootstrap_project(project)
    options = [f"--env=broken_{file}", "--pipelines=compare"]
    refused = CliRunner().invoke(flan_qa_pipeline.cli.run, options, obj=metadata)
    path.unlink()
    assert refused.exit_code == 1
    assert refused.output.startswith("Error: ") and str(path) in refused.output
    assert refused.output.count("\n") == 1


def environment(project: Path, name: str, **files: dict) -> str:
    for file, content in files.items():
        path = project / f"conf/{name}/{file}.yml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return name


def test_a_misspelt_global_is_told(project, full_run, tiny_run):
    env = environment(project, "misspelt", globals={"trainfile": "a.json", "bucket": "s3://b"})
    with pytest.raises(InputError, match="Unknown global trainfile: did you mean train_file"):
        run(project, tiny_run, env=env)


def test_an_environment_names_the_versions_to_compare(project, full_run, tiny_run):
    env = environment(
        project, "compared", globals={"compare_first": full_run, "compare_second": full_run}
    )
    version = run(project, tiny_run, "compare", env=env)
    table = pd.read_csv(io.StringIO(read(project, "comparison_table.csv", version)))
    assert (table["F1 first"] == table["F1 second"]).all()
    assert table["questions"].iloc[0] == 40


def test_environment_of_globals_alone(project, full_run, tiny_run, corpus):
    articles = corpus["data"][:5]
    path = project / "data/01_raw/fewer.json"
    path.write_text(json.dumps({"version": "v2.0", "data": articles}), encoding="utf-8")
    env = environment(project, "fewer", globals={"train_file": "data/01_raw/fewer.json"})
    version = run(project, tiny_run, "data_engineering", env=env, to_nodes=SELECT)
    questions = load_from_disk(project / f"data/03_primary/questions/{version}/questions")
    titles = {t for name in ("train", "dev", "calibration") for t in questions[name]["title"]}
    assert titles == {article["title"] for article in articles}
    assert set(questions["validation"]["title"]) == {a["title"] for a in corpus["data"][24:]}
    run(project, tiny_run, "data_engineering")


def test_saved_datasets_instead_of_json(project, full_run, tiny_run, corpus):
    rows = list(flatten({"data": corpus["data"][:5]}, "corpus"))
    splits = DatasetDict(train=Dataset.from_list(rows))
    folder = project / "data/01_raw/saved"
    splits.save_to_disk(folder)
    entry = {"type": "huggingface.ArrowDataset", "path": "${globals:train_file}"}

    def read(path: Path) -> str:
        env = environment(
            project, "saved", globals={"train_file": str(path)}, catalog={"raw_train": entry}
        )
        return run(project, tiny_run, "data_engineering", env=env, to_nodes=FLATTEN)

    read(folder / "train")
    with pytest.raises(InputError, match=f"{folder} holds a DatasetDict .*{folder / 'train'}"):
        read(folder)


def test_a_hub_dataset_is_refused_before_any_work(project, full_run, tiny_run):
    entry = {"type": "huggingface.HFDataset", "dataset_name": "rajpurkar/squad_v2"}
    env = environment(project, "hub", catalog={"raw_train": entry})
    with pytest.raises(InputError, match="raw_train is of type HFDataset.*save_to_disk"):
        run(project, tiny_run, "data_engineering", env=env)


def test_environment_squad_reads_parquet_and_a_snapshot_folder(project, tiny_run, corpus, tmp_path):
    files = {}
    for name, articles in (("train", corpus["data"][:24]), ("validation", corpus["data"][24:])):
        files[f"{name}_file"] = str(tmp_path / f"{name}.parquet")
        rows = pd.DataFrame(flatten({"data": articles}, name)).drop(columns="is_impossible")
        rows.to_parquet(files[f"{name}_file"])
    parameters = tiny_run | {
        "data": tiny_run["data"] | files,
        "training": {"max_steps": 2, "gradient_accumulation_steps": 1, "eval_strategy": "no"},
    }
    version = run(project, parameters, env="squad")
    assert load(project, "score_table", version)["questions"].iloc[0] == 40
    folder = project / "data/06_models/adapter" / version / "adapter"
    provenance = json.loads((folder / "provenance.json").read_text())
    assert provenance["tokenization"]["max_source_length"] == 512
    run(project, tiny_run, "data_engineering")
