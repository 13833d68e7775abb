"""The built wheel, installed in a folder of its own, runs from an empty one."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import version

import pytest
from conftest import REPOSITORY
from packaging.requirements import Requirement
from packaging.version import Version


def call(*command, **kwargs):
    result = subprocess.run(  # noqa: S603
        [sys.executable, "-m", *map(str, command)], capture_output=True, text=True, **kwargs
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder with the wheel's packages alone, and the archive of the configuration."""
    root = tmp_path_factory.mktemp("package")
    source = root / "source"
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in ("conf", "src"):
        shutil.copytree(REPOSITORY / name, source / name, ignore=ignored)
    for path in (source / "conf/local").glob("*.yml"):  # as `kedro package` does
        path.unlink()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, source)
    call("build", "--wheel", "--no-isolation", "--outdir", root, source)
    (wheel,) = root.glob("*.whl")
    call("pip", "install", "--quiet", "--no-deps", "--no-index", "--target", root / "site", wheel)
    conf = shutil.make_archive(str(root / "conf"), "gztar", root_dir=source, base_dir="conf")
    return root / "site", conf


@pytest.mark.slow
@pytest.mark.parametrize("unpacked", [False, True])
def test_the_wheel_runs_in_an_empty_folder(installed, tiny_base, corpus, tmp_path, unpacked):
    site, conf = installed
    files = {}
    for name, articles in (("train", corpus["data"][:24]), ("validation", corpus["data"][24:])):
        files[name] = tmp_path / f"{name}.json"
        files[name].write_text(json.dumps({"data": articles}), encoding="utf-8")
    empty = tmp_path / "empty"
    empty.mkdir()
    if unpacked:
        shutil.unpack_archive(conf, empty, filter="data")
    result = call(
        "flan_qa_pipeline",
        *([] if unpacked else [f"--conf-source={conf}"]),
        f"--params=model.name={tiny_base},data.train_file={files['train']},"
        f"data.validation_file={files['validation']},data.max_train_questions=64,"
        "data.max_validation_questions=20,reporting.memory_formats=[]",
        cwd=empty,
        env=os.environ | {"PYTHONPATH": str(site)},
    )
    assert re.search(r"overall +\S EM +\S +20 \S", result.stdout)
    if unpacked:  # and with it the project's logging
        assert "WARNING" not in result.stdout + result.stderr
        assert "Running node" not in result.stdout + result.stderr
    assert list(empty.glob("data/06_models/adapter/*/adapter/adapter_model.safetensors"))
    (report,) = empty.glob("data/08_reporting/report.html/*/report.html")
    assert f"Report   {report.relative_to(empty)}\n" in result.stdout
    (made,) = empty.glob("data/06_models/adapter/*/adapter/training.json")
    assert json.loads(made.read_text(encoding="utf-8"))["run"]["git"] is None
    (site_of_metric,) = site.glob("flan_qa_pipeline/evaluation/squad_v2_scores/squad_v2_scores.py")
    assert site_of_metric.is_file()


@pytest.mark.parametrize("name", ["accelerate", "bitsandbytes", "kedro", "peft", "transformers"])
def test_no_untested_minor_release_of_a_library_is_allowed(name):
    given = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
    bounds = {r.name: r.specifier for r in map(Requirement, given["project"]["dependencies"])}
    assert bounds[name].contains(version(name))
    assert not bounds[name].contains(f"{Version(version(name)).major}.999")


def test_locks_agree_and_leave_torch_to_its_index():
    locks = {
        path.stem: {
            name: (version, options.count("--hash=sha256:"))
            for name, version, options in re.findall(
                r"^(\S+)==(\S+)(.*\n(?:    .*\n)*)", path.read_text(encoding="utf-8"), re.MULTILINE
            )
        }
        for path in (REPOSITORY / "requirements").glob("*.lock")
    }
    assert locks["build"].items() <= locks["run"].items() <= locks["dev"].items()
    assert all(hashes for _, hashes in locks["dev"].values())
    of_torch = re.compile("torch|triton|nvidia-.*|cuda-.*")
    assert not [name for name in locks["dev"] if of_torch.fullmatch(name)]
