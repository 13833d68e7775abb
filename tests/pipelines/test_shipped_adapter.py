"""The adapter that ships with the base answers until a version is saved, and on its base alone."""

import logging
import shutil

import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from conftest import REPOSITORY, copy_project
from huggingface_hub import ModelCard
from kedro.framework.session import KedroSession
from kedro.framework.startup import bootstrap_project
from kedro.io.core import Version

from flan_qa_pipeline import QuestionAnswerer
from flan_qa_pipeline.cli import cli
from flan_qa_pipeline.datasets.adapter import AdapterDataset
from flan_qa_pipeline.errors import InputError
from flan_qa_pipeline.models.adapter import extract_adapter, load_adapter, provenance_of
from flan_qa_pipeline.models.loading import load_base_model, load_tokenizer
from flan_qa_pipeline.pipelines.modeling.nodes import attach_lora

SHIPPED, TRAINED = "2026-01-02T00.00.00.000Z", "2026-01-03T00.00.00.000Z"
ORIGIN = f"Adapter {SHIPPED} (ships with the base; none was trained here) answers, on the base "
PAIR = ("Ada was born in London.", "Where was Ada born?")


@pytest.fixture(scope="module")
def made(parameters, lora):
    """Make an adapter with weights of a seed, whose training records the version."""
    tokenizer = load_tokenizer(parameters.model)
    provenance = provenance_of(
        parameters.model,
        parameters.prompt,
        tokenization=parameters.tokenization,
        generation=parameters.generation,
    )

    def make(version, seed):
        model = attach_lora(load_base_model(parameters.model), lora, parameters.training)
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(seed)
            for name, weight in model.named_parameters():
                if "lora_B" in name:
                    weight.normal_(std=0.1)
        return extract_adapter(model, tokenizer, provenance, {"run": {"run_id": version}})

    return make


@pytest.fixture
def project(made, tiny_base, tmp_path, monkeypatch):
    """A project with the adapter that ships and no other."""
    copy_project(tmp_path)
    settings = f"model: {{name: {tiny_base}}}\n"
    (tmp_path / "conf/local").mkdir(exist_ok=True)
    (tmp_path / "conf/local/parameters.yml").write_text(settings, encoding="utf-8")
    folder = tmp_path / "data/06_models/starter_adapter"
    AdapterDataset(filepath=str(folder)).save(made(SHIPPED, 1))
    pd.DataFrame([dict(zip(("context", "question"), PAIR, strict=True))]).to_csv(
        tmp_path / "questions.csv"
    )
    monkeypatch.chdir(tmp_path)
    bootstrap_project(tmp_path)
    return tmp_path


def infer(project, **options):
    params = {"inference": {"questions_file": str(project / "questions.csv")}}
    with KedroSession.create(project, runtime_params=params) as session:
        session.run(pipeline_names=["inference"], **options)
        catalog = session.load_context().catalog
        return catalog.load("answers", version=session.session_id)["score"].item()


def asked(project, **options):
    told = []
    answerer = QuestionAnswerer.from_project(project, tell=told.append, **options)
    return answerer.answer([PAIR])[0].score, *told


def promote(project, version):
    done = CliRunner().invoke(cli, ["promote", version], obj=bootstrap_project(project))
    assert done.exit_code == 0, done.output


def test_it_answers_until_a_version_is_saved(project, made, caplog):
    caplog.set_level(logging.INFO)
    score, told = asked(project)
    assert told.startswith(ORIGIN)
    own = QuestionAnswerer.from_folder(project / "data/06_models/starter_adapter")
    assert score == pytest.approx(own.answer([PAIR])[0].score, rel=1e-3, abs=0)
    assert infer(project) == pytest.approx(score, rel=1e-3, abs=0)
    assert [line for line in caplog.messages if line.startswith("Adapter ")] == [told]
    with pytest.raises(InputError, match=f"adapter: there is no {TRAINED}"):
        asked(project, adapter_version=TRAINED)
    version = Version(None, TRAINED)
    AdapterDataset(filepath="data/06_models/adapter", version=version).save(made(TRAINED, 2))
    another, told = asked(project)
    assert told.startswith(f"Adapter {TRAINED} (the latest; none is promoted)")
    assert another != pytest.approx(score, rel=1e-3, abs=0)
    assert infer(project) == pytest.approx(another, rel=1e-3, abs=0)
    promote(project, "shipped")
    again, told = asked(project)
    assert told.startswith(f"Adapter {SHIPPED} (ships with the base; promoted) answers")
    assert (again, infer(project)) == pytest.approx((score, score), rel=1e-3, abs=0)
    with KedroSession.create(project_path=project) as session:
        session.run(pipeline_names=["merge"])
    assert f"Adapter {TRAINED} (the latest; the promoted one, which ships" in caplog.text
    promote(project, TRAINED)
    assert asked(project)[1].startswith(f"Adapter {TRAINED} (promoted)")


def test_its_line_names_the_f1_of_its_card(project):
    card = project / "data/06_models/starter_adapter/README.md"
    assert asked(project)[1].endswith(": no F1 recorded.")
    shutil.copy(REPOSITORY / card.relative_to(project), card)
    [f1] = [
        result.metric_value
        for result in ModelCard.load(card).data.eval_results
        if result.metric_name.startswith("F1 (overall")
    ]
    assert asked(project)[1].endswith(f": F1 {f1:.2f} on SQuAD 2.0 (25 of the 35 dev articles).")
    card.unlink()
    assert asked(project)[1].endswith(": no F1 recorded.")


def test_a_run_loads_it_once(project, monkeypatch):
    loads, load = [], AdapterDataset.load

    def counted(self):
        loads.append(self)
        return load(self)

    monkeypatch.setattr(AdapterDataset, "load", counted)
    assert 0 <= infer(project) <= 1
    assert len(loads) == 1


def test_it_answers_on_the_base_that_it_was_trained_on_alone(project, tmp_path):
    other = {"model": {"name": str(tmp_path / "another")}}
    refused = "does not fit this run: model.name is .*another', trained with .*tiny_base"
    with pytest.raises(InputError, match=refused):
        asked(project, runtime_params=other)
    with (
        KedroSession.create(project, runtime_params=other) as session,
        pytest.raises(InputError, match=refused),
    ):
        session.run(pipeline_names=["inference"])


def test_it_is_merged_and_scored_by_nothing(project):
    for pipeline in ("merge", "evaluate"):
        with (
            KedroSession.create(project) as session,
            pytest.raises(InputError, match=r"adapter: there is no .*06_models/adapter"),
        ):
            session.run(pipeline_names=[pipeline])


def test_a_shipped_adapter_may_be_stored_in_bfloat16(project, made):
    adapter = made(SHIPPED, 1)
    halves = {name: weight.bfloat16() for name, weight in adapter.state_dict.items()}
    adapter.state_dict.update(halves)
    AdapterDataset(filepath="data/06_models/starter_adapter").save(adapter)
    loaded = load_adapter(project / "data/06_models/starter_adapter").state_dict
    assert {weight.dtype for weight in loaded.values()} == {torch.bfloat16}
    assert 0 <= asked(project)[0] <= 1
