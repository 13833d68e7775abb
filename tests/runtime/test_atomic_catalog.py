"""Saving through the catalog: killed in the middle, on a full disk, while other runs save."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml
from conftest import CONF
from kedro.io import CatalogConfigResolver, DatasetError
from kedro.io.core import generate_timestamp

from flan_qa_pipeline.files import written_aside
from flan_qa_pipeline.runtime.atomic_catalog import AtomicCatalog, VersionNotSavedError

FIRST, SECOND = "2026-01-01T00.00.00.000Z", "2026-01-02T00.00.00.000Z"
KINDS = {
    "questions": "huggingface.ArrowDataset",
    "finetuned_predictions": "pandas.ParquetDataset",
    "finetuned_scores": "json.JSONDataset",
    "node_times": "pandas.CSVDataset",
    "score_table": "flan_qa_pipeline.datasets.previewed.TableDataset",
    "sample_answers": "flan_qa_pipeline.datasets.question_file.TextCSVDataset",
    "score_table_markdown": "flan_qa_pipeline.datasets.previewed.MarkdownDataset",
    "report": "flan_qa_pipeline.datasets.previewed.PageDataset",
    "score_figure": "plotly.JSONDataset",
    "adapter": "flan_qa_pipeline.datasets.adapter.AdapterDataset",
    "merged_model": "flan_qa_pipeline.datasets.merged_model.MergedModelDataset",
    "pretrained_base_heads": "kedro_datasets_experimental.safetensors.SafetensorsDataset",
}
# Saves every kind of data small, then large: in a forked process each, which the kernel kills as
# it writes past `limit` bytes of a file, or, without a limit, on a disk that has no room for it.
SAVER = """
import os, resource, shutil, signal, subprocess, sys
import pandas, plotly.graph_objects, torch, yaml
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoTokenizer, T5Config, T5ForConditionalGeneration
from flan_qa_pipeline.models.adapter import Adapter
from flan_qa_pipeline.models.merged_model import MergedModel
from flan_qa_pipeline.runtime.atomic_catalog import AtomicCatalog

tokenizer, first, second, *roots = sys.argv[1:]


def data(name, n):
    text = "".join(chr(97 + i * i % 26) for i in range(n))
    match config[name]["type"]:
        case "huggingface.ArrowDataset":
            return Dataset.from_dict({"text": [text]})
        case kind if kind.endswith(("ParquetDataset", "CSVDataset", "TableDataset")):
            return pandas.DataFrame({"text": [f"{i} {i * i}" for i in range(n // 4)]})
        case "json.JSONDataset":
            return {"text": text}
        case kind if kind.endswith(("MarkdownDataset", "PageDataset")):
            return text
        case kind if kind.endswith("SafetensorsDataset"):
            return {"w": torch.rand(n // 4)}
        case "plotly.JSONDataset":
            return plotly.graph_objects.Figure(layout={"title": {"text": text}})
        case kind if kind.endswith("MergedModelDataset"):
            sizes = {"d_model": 16, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2}
            model = T5ForConditionalGeneration(T5Config(vocab_size=8 + n // 64, **sizes))
            return MergedModel(model, AutoTokenizer.from_pretrained(tokenizer), text)
    return Adapter(
        LoraConfig(task_type="SEQ_2_SEQ_LM", target_modules=["q"]),
        {"w": torch.rand(n // 4)},
        AutoTokenizer.from_pretrained(tokenizer),
        {
            "model": {"name": "base", "load_in_4bit": False},
            "prompt": {"template": "{question} {context}", "abstention": "none"},
        },
        {},
    )


def save(name, version, n, limit):
    process = os.fork()
    if process:
        return os.waitpid(process, 0)[1]
    if limit:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    try:
        AtomicCatalog.from_config(config, save_version=version).save(name, data(name, n))
    except Exception as error:
        print(type(error).__name__, " ".join(str(error).split()), flush=True)
        os._exit(1)
    os._exit(0)


for root, limit in zip(roots, (200_000, 0)):
    os.chdir(root)
    config = yaml.safe_load(open("catalog.yml"))
    if not limit:
        os.mkdir("data")
        subprocess.run("mount -t tmpfs -o size=700k none data".split(), check=True)
    for name in NAMES:
        print(name, save(name, first, 40, 0), save(name, second, 800_000, limit), flush=True)
    if not limit:
        shutil.copytree("data", "data.kept")
    print("end", flush=True)
"""


@pytest.fixture(scope="module")
def catalog_config():
    """The project's own entries of every kind that is versioned.

    All but the file of answers, which grows chunk by chunk.
    """
    text = re.sub(r"\$\{[^}]*\}", "x", (CONF / "catalog.yml").read_text(encoding="utf-8"))
    config = {name: entry for name, entry in yaml.safe_load(text).items() if entry.get("versioned")}
    del config["answers"]
    resolver = CatalogConfigResolver(config)
    config |= {name: resolver.resolve_pattern(name) for name in KINDS}
    assert {entry["type"] for entry in config.values()} == set(KINDS.values())
    return config


@pytest.fixture(scope="module")
def saved(tmp_path_factory, tiny_base, catalog_config):
    """Two folders that one process saved in, and the lines it wrote on each.

    In the first, the kernel killed the processes that saved much; in the second, `data` was a small
    disk, which only Linux with leave to mount can give (unshare -Urm).
    """
    roots = [tmp_path_factory.mktemp(name) for name in ("killed", "full")]
    for root in roots:
        (root / "catalog.yml").write_text(yaml.safe_dump(catalog_config), encoding="utf-8")
    unshare = [shutil.which("unshare") or "unshare", "-Urm"]
    mount = "mount -t tmpfs -o size=700k none .".split()
    try:
        subprocess.run([*unshare, *mount], cwd=roots[1], capture_output=True, check=True)  # noqa: S603
    except (OSError, subprocess.CalledProcessError):
        unshare = []
        del roots[1]
    code = SAVER.replace("NAMES", repr(list(KINDS)))
    output = subprocess.run(  # noqa: S603
        [*unshare, sys.executable, "-c", code, *map(str, (tiny_base, FIRST, SECOND, *roots))],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    lines = [part.splitlines() for part in output.split("end\n")[:-1]]
    return list(zip(roots, lines, strict=True))


def check_only_the_first_version_is_there(tmp_path, config, monkeypatch, names):
    monkeypatch.chdir(tmp_path)
    catalog = AtomicCatalog.from_config(config)
    for name in names:
        assert catalog[name].list_versions(full_path=False) == [FIRST]
        assert catalog.load(name) is not None
        folder = Path(config[name].get("filepath") or config[name]["path"])
        assert [version.name for version in folder.iterdir()] == [FIRST]


def test_a_process_killed_while_it_saves_leaves_no_version(saved, catalog_config, monkeypatch):
    root, lines = saved[0]
    killed = 25  # SIGXFSZ
    assert lines == [f"{name} 0 {killed}" for name in KINDS]
    remains = [path for path in (root / "data").rglob(".*") if path.is_dir()]
    assert len(remains) >= len(KINDS)
    check_only_the_first_version_is_there(root, catalog_config, monkeypatch, KINDS)
    catalog = AtomicCatalog.from_config(catalog_config, save_version=SECOND)
    catalog.save("report", "whole")
    assert AtomicCatalog.from_config(catalog_config).load("report") == "whole"


def test_a_full_disk_is_told_and_leaves_earlier_versions_whole(saved, catalog_config, monkeypatch):
    if len(saved) < 2:
        pytest.skip("a small disk needs Linux and leave to mount a tmpfs (unshare -Urm)")
    root, lines = saved[1]
    for name, error, result in zip(KINDS, lines[::2], lines[1::2], strict=True):
        assert error.startswith(f"VersionNotSavedError {name}: version {SECOND} was not saved in ")
        assert "No space left on device" in error
        assert result == f"{name} 0 256"
    disk = root / "data"
    disk.rmdir()
    (root / "data.kept").rename(disk)
    assert not [path for path in disk.rglob(".*")]
    check_only_the_first_version_is_there(root, catalog_config, monkeypatch, KINDS)


def test_a_run_reads_what_it_saved_and_not_what_others_saved_meanwhile(
    tmp_path, catalog_config, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    ours, theirs = (
        AtomicCatalog.from_config(catalog_config, save_version=version)
        for version in (FIRST, SECOND)
    )
    theirs.save("finetuned_scores", {"exact": 2})
    ours.save("finetuned_scores", {"exact": 1})
    ours.release("finetuned_scores")
    assert ours.load("finetuned_scores") == {"exact": 1}
    assert theirs.load("finetuned_scores") == {"exact": 2}
    assert AtomicCatalog.from_config(catalog_config).load("finetuned_scores") == {"exact": 2}


def test_a_run_adds_to_and_reads_its_own_growing_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = yaml.safe_load((CONF / "catalog.yml").read_text(encoding="utf-8"))
    ours, theirs = (
        AtomicCatalog.from_config({"answers": config["answers"]}, save_version=version)
        for version in (FIRST, SECOND)
    )
    for n, catalog in enumerate((ours, theirs, ours, theirs)):
        catalog.save("answers", pd.DataFrame({"a": [n]}))
    assert ours.load("answers")["a"].tolist() == [0, 2]
    assert theirs.load("answers")["a"].tolist() == [1, 3]
    assert FIRST in str(ours["answers"]._get_load_path())


def test_a_version_is_never_overwritten(tmp_path, catalog_config, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ours, theirs = (AtomicCatalog.from_config(catalog_config, save_version=FIRST) for _ in "12")
    ours.save("score_table", pd.DataFrame({"a": [1]}))
    with pytest.raises(DatasetError, match="must not exist if versioning is enabled"):
        theirs.save("score_table", pd.DataFrame({"a": [2]}))
    assert ours.load("score_table")["a"].tolist() == [1]


def test_of_two_that_write_the_same_version_at_once_one_fails(tmp_path):
    with pytest.raises(FileExistsError), written_aside(tmp_path / "version") as slower:
        (slower / "file").write_text("slower")
        with written_aside(tmp_path / "version") as faster:
            (faster / "file").write_text("faster")
    assert [path.name for path in tmp_path.iterdir()] == ["version"]
    assert (tmp_path / "version/file").read_text() == "faster"


def test_that_another_was_faster_is_told_though_its_folder_is_gone_by_then(tmp_path, monkeypatch):
    folder = tmp_path / "version"
    rename = Path.rename

    def rename_then_lose(path, target):
        try:
            return rename(path, target)
        finally:
            shutil.rmtree(folder)

    with pytest.raises(FileExistsError), written_aside(folder):
        folder.mkdir()
        (folder / "file").touch()
        monkeypatch.setattr(Path, "rename", rename_then_lose)
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_saved_is_named(tmp_path, catalog_config, monkeypatch):
    monkeypatch.chdir(tmp_path)
    catalog = AtomicCatalog.from_config(catalog_config, save_version=generate_timestamp())
    with pytest.raises(VersionNotSavedError, match="finetuned_scores: .*not JSON serializable"):
        catalog.save("finetuned_scores", {"a": object()})
    assert not list((tmp_path / "data/08_reporting").iterdir())
    catalog.save("finetuned_scores", json.loads('{"a": 1}'))
