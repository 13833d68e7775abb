"""What is saved with a model card, and how it gets to the hub: the real client, a stand-in hub."""

import dataclasses
import os
import re
import subprocess
import sys

import pytest
import torch
from click.testing import CliRunner
from conftest import copy_project
from hub_server import OWNER, read_repository
from huggingface_hub import ModelCard
from kedro.framework.session import KedroSession
from kedro.framework.startup import bootstrap_project
from kedro.io import DatasetError
from kedro.io.core import Version

from flan_qa_pipeline.cli import push
from flan_qa_pipeline.datasets.adapter import AdapterDataset
from flan_qa_pipeline.datasets.merged_model import MergedModelDataset
from flan_qa_pipeline.datasets.reading import load
from flan_qa_pipeline.errors import InputError
from flan_qa_pipeline.files import CARD, DIGESTS
from flan_qa_pipeline.hub_upload import commit_files
from flan_qa_pipeline.models.loading import load_base_model

# huggingface_hub uploads to Git LFS with an argument that httpx deprecates
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

FIRST, SECOND = "2026-01-01T00.00.00.000Z", "2026-01-02T00.00.00.000Z"
TOKEN = "hf_secret"  # noqa: S105
SUM = "print(sum(w.double().sum().item() for n, w in model.named_parameters() if 'lora' in n))\n"
ADAPTER, MERGED = f"{OWNER}/reader", f"{OWNER}/merged-reader"


@pytest.fixture(scope="module")
def trained(train, training):
    """A trained adapter as a run saves it: its record names its version and its data."""
    _, adapter = train(training)
    parameters = {
        "data": {"train_file": "hf://datasets/rajpurkar/squad_v2@main/train.parquet"},
        "training": {"learning_rate": 0.05},
    }
    run = adapter.training["run"] | {"run_id": FIRST, "parameters": parameters}
    return dataclasses.replace(adapter, training=adapter.training | {"run": run})


@pytest.fixture(scope="module")
def evaluation():
    metrics = {
        f"{metric} {column}": value
        for metric, shift in (("EM", 0.0), ("F1", 1.0))
        for column, value in (
            ("baseline", 50 + shift),
            ("fine-tuned", 80.25 + shift),
            ("gain", 30.25),
            ("gain low", 20.5),
            ("gain high", 40.0),
        )
    }
    return {
        "version": SECOND,
        "adapter": FIRST,
        "corpus": "rajpurkar/squad_v2",
        "labels": ["baseline", "fine-tuned"],
        "confidence": 0.95,
        "scores": [{"subset": "overall", "questions": 40, **metrics}],
    }


@pytest.fixture(scope="module")
def project(tmp_path_factory, trained, evaluation, float32, prompt_parameters):
    """A project with an adapter, a merge and three evaluations, of which one may be quoted."""
    root = tmp_path_factory.mktemp("project")
    copy_project(root)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        bootstrap_project(root)
        place = str(root / "data/06_models/adapter")
        AdapterDataset(filepath=place, version=Version(None, FIRST)).save(trained)
        base = {name: getattr(float32, name) for name in ("name", "compute_dtype", "load_in_4bit")}
        with KedroSession.create(root, runtime_params={"model": base}) as session:
            catalog = session.load_context().catalog
            records = catalog["evaluation_record"]
            for version, record in (
                (SECOND, evaluation),
                ("2026-01-03T00.00.00.000Z", evaluation | {"adapter": SECOND, "scores": []}),
                ("2026-01-04T00.00.00.000Z", evaluation | {"may_have_seen": True, "scores": []}),
            ):
                records._copy(_version=Version(None, version)).save(record)
            session.run(pipeline_names=["merge"])
        yield root


def invoke(project, *arguments):
    return CliRunner().invoke(push, arguments, obj=bootstrap_project(project))


@pytest.fixture
def signed_in(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)


def saved(project, name):
    [folder] = project.glob(f"data/06_models/{name}/*/{name}")
    return folder


def held(hub, name):
    repository = hub.repositories["models", name]
    return repository.commits[repository.branches["main"]]


def code_blocks(card, **places):
    """The card's Python, with real folders in the place of the paths that it leaves open."""
    blocks = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
    for path, folder in places.items():
        blocks = [block.replace(f'"path/to/{path}"', f'"{folder}"') for block in blocks]
    return blocks


def run_code(code):
    """Run code in a new process, as a user would, and return what it printed."""
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-c", code],
        env=os.environ | {"HF_HUB_DISABLE_XET": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_adapters_card_says_what_is_known_when_it_is_saved(project, trained):
    card = ModelCard.load(saved(project, "adapter") / CARD)
    [kept] = [
        e
        for e in trained.training["log"]
        if e.get("step") == trained.training["best_step"] and "eval_f1" in e
    ]
    assert f"F1 {kept['eval_f1']:.2f}" in card.text
    assert card.data.library_name == "peft"
    assert card.data.datasets == ["rajpurkar/squad_v2"]
    assert card.data.get("adapter_version") == FIRST
    assert card.data.base_model is None  # a folder
    assert card.data.license is None  # data and base differ from the code
    assert card.data.eval_results is None
    assert "| data | rajpurkar/squad_v2 | cc-by-sa-4.0 |" in card.text
    assert "| base | tiny_base0 | not known here |" in card.text
    assert "| code | flan_qa_pipeline | apache-2.0 |" in card.text
    assert "| learning_rate | 0.05 |" in card.text


def test_the_code_of_the_adapters_card_runs(project, tiny_base):
    folder = saved(project, "adapter")
    places = {"this/folder": folder, tiny_base.name: tiny_base}
    plain, own = code_blocks((folder / CARD).read_text(encoding="utf-8"), **places)
    names = {}
    exec(plain + own, names)  # noqa: S102
    assert 0 <= names["answer"].score <= 1


def test_the_merged_model_has_the_scores_with_intervals_and_its_code_runs(project):
    folder = saved(project, "merged")
    card = ModelCard.load(folder / CARD)
    [row] = re.findall(r"\| overall +\| F1 .*", card.text)
    assert row.split()[-9:] == "| 51.00 | 81.25 | +30.25 [+20.50, +40.00] |".split()
    results = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert results == {"exact_match": 80.25, "f1": 81.25}
    assert card.data.eval_results[0].dataset_name == "rajpurkar/squad_v2"
    [plain] = code_blocks(str(card), **{"this/folder": folder})
    exec(plain, {})  # noqa: S102


def test_a_merged_model_is_a_base_and_a_version(project, float32):
    folder = saved(project, "merged")
    load_base_model(float32.model_copy(update={"name": str(folder)}))
    dataset = MergedModelDataset(filepath=str(folder.parents[1]), version=Version(None, None))
    merged = load(dataset)
    assert merged.model.dtype == torch.bfloat16
    assert merged.card == (folder / CARD).read_text(encoding="utf-8")


def test_a_merged_model_without_a_version_gets_a_sentence(project, tmp_path):
    read = load(MergedModelDataset(filepath=str(saved(project, "merged"))))
    unversioned = MergedModelDataset(filepath=str(tmp_path / "merged"))
    unversioned.save(read)
    unversioned.save(read)
    versioned = MergedModelDataset(filepath=str(tmp_path / "merged"), version=Version(None, None))
    with pytest.raises(InputError, match="saved without a version; .*--pipelines=merge"):
        load(versioned)


def test_an_edited_card_loads_and_is_not_overwritten(trained, tmp_path):
    plain = AdapterDataset(filepath=str(tmp_path / "adapter"))
    plain.save(trained)
    plain.save(trained)
    with (tmp_path / "adapter" / CARD).open("a", encoding="utf-8") as card:
        card.write("Mine.")
    load(plain)
    with pytest.raises(DatasetError, match="README.md was not saved with an adapter"):
        plain.save(trained)
    assert (tmp_path / "adapter" / CARD).read_text(encoding="utf-8").endswith("Mine.")


def test_a_dry_run_lists_the_files_and_asks_nothing(project, hub):
    (saved(project, "adapter") / ".notes.json").write_text("{}", encoding="utf-8")
    result = invoke(project, "adapter", "--dry-run")
    (saved(project, "adapter") / ".notes.json").unlink()
    assert result.exit_code == 0, result.output
    files, _, last = result.output.partition("adapter ")
    assert sorted(line.split()[1] for line in files.splitlines()) == sorted(
        path.name for path in saved(project, "adapter").iterdir()
    )
    assert last.startswith(f"{FIRST} would go to flan-qa-adapter; nothing was")
    assert max(map(len, result.output.splitlines())) <= 80
    assert not hub.requests


def test_a_pushed_adapter_is_complete_and_loads_with_peft_and_with_this_project(
    project, hub, signed_in, tiny_base, trained
):
    result = invoke(project, "adapter", f"--repo={ADAPTER}", "--private")
    assert result.exit_code == 0, result.output
    assert f"adapter {FIRST} is at {hub.url}/{ADAPTER}." in result.output
    assert TOKEN not in result.output
    assert hub.messages == [f"Upload adapter {FIRST} of flan_qa_pipeline"]
    assert hub.repositories["models", ADAPTER].private
    local, remote = read_repository(saved(project, "adapter")), held(hub, ADAPTER)
    assert remote.keys() == {*local, ".gitattributes"}
    assert all(remote[name] == content for name, content in local.items() if name != CARD)
    card = ModelCard(remote[CARD].decode())
    assert [r.metric_value for r in card.data.eval_results] == [80.25, 81.25]
    assert not any(
        "/lfs/" in request and token
        for request, token in hub.tokens.items()
        if request.startswith("PUT")
    )

    plain, own = code_blocks(str(card), **{tiny_base.name: tiny_base})
    assert f'PeftModel.from_pretrained(base, "{ADAPTER}")' in plain
    assert f'snapshot_download("{ADAPTER}")' in own
    sums = sum(weight.double().sum().item() for weight in trained.state_dict.values())
    printed = run_code(plain + SUM + own).splitlines()
    assert float(printed[-2]) == pytest.approx(sums)
    assert 0 <= float(printed[-1].split()[-1]) <= 1


def test_a_push_replaces_the_one_before_and_leaves_other_files(project, hub, signed_in):
    assert invoke(project, "merged", f"--repo={MERGED}").exit_code == 0
    files = held(hub, MERGED)
    files["notes.txt"] = b"of the owner"
    again = invoke(project, "merged", f"--repo={MERGED}")
    assert again.exit_code == 0, again.output
    assert held(hub, MERGED) == files
    commit_files(MERGED, {"config.json": b"{}", DIGESTS: b"{}"}, "Smaller")
    assert held(hub, MERGED).keys() == {"config.json", DIGESTS, "notes.txt", ".gitattributes"}


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        (("repos/create", 403), "access refused (403): use a token that may write"),
        (("repos/create", 401), "access refused (401): log in with `hf auth login`"),
        (("preupload", 404), "the hub answers 404"),
        (("commit", 422), "the hub answers 422"),
        (("commit", 503), "the hub answers 503: run again later"),
        (("PUT /lfs", 403), "access refused (403)"),
        (("commit", "refuse"), "the connection was lost or the hub stayed silent: run again"),
    ],
)
def test_what_the_hub_refuses_is_one_sentence(project, hub, signed_in, fault, told):
    hub.fail(*fault)
    result = invoke(project, "adapter", f"--repo={ADAPTER}")
    assert result.exit_code == 1
    [error] = [line for line in result.output.splitlines() if "Error" in line]
    assert error.startswith(f"Error: Not uploaded to {ADAPTER}: ")
    assert told in error
    assert TOKEN not in result.output
    assert not hub.messages


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--repo=a b"], "'a b' is no hub id"),
        ([f"--load-versions=adapter:{SECOND}"], f"there is no {SECOND} in .*one of: {FIRST}"),
        (["--load-versions=merged_model:x"], "push loads nothing but adapter"),
        ([f"--repo={ADAPTER}", "--private"], f"{ADAPTER} is public and nothing was uploaded"),
    ],
)
def test_a_wrong_command_is_one_sentence(project, hub, signed_in, arguments, told):
    hub.add(ADAPTER, {}, "a" * 40)
    result = invoke(project, "adapter", *arguments)
    assert result.exit_code == 1
    assert re.search(told, result.output)
    assert not hub.messages


def test_without_a_token_nothing_is_asked(project, hub):
    result = invoke(project, "adapter")
    assert "Error: The hub takes uploads with a token only: set HF_TOKEN" in result.output
    assert not hub.requests


def test_a_damaged_version_is_not_uploaded(project, hub, signed_in):
    path = saved(project, "adapter") / "provenance.json"
    before = path.read_bytes()
    path.write_bytes(before + b" ")
    result = invoke(project, "adapter")
    path.write_bytes(before)
    assert "provenance.json is not as it was saved" in result.output
    assert not hub.requests
