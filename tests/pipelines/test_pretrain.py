"""The pipeline `pretrain` from text and questions to a packed base, at a tiny size."""

import json
from pathlib import Path

import pandas as pd
import pytest
from conftest import copy_project
from datasets import load_from_disk
from english import read_english, short_pretraining, write_english
from kedro.framework.session import KedroSession
from kedro.framework.startup import bootstrap_project
from safetensors.torch import load_file
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from flan_qa_pipeline.data.squad import flatten
from flan_qa_pipeline.errors import InputError
from flan_qa_pipeline.models.loading import load_base_model
from flan_qa_pipeline.pipelines.pretrain.nodes import hold_out_articles


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A copy of the project with the contexts of an English corpus as text."""
    root = tmp_path_factory.mktemp("project")
    copy_project(root)
    write_english(root, 30)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        bootstrap_project(root)
        yield root


@pytest.fixture
def options(raw_parameters):
    return short_pretraining(raw_parameters)


def run(options, **kwargs):
    with KedroSession.create(runtime_params=options) as session:
        session.run(pipeline_names=["pretrain"], **kwargs)


def newest(dataset: str) -> Path:
    (folder,) = Path("data").glob(f"0?_*/{dataset}")
    return max(folder.iterdir()) / folder.name


def test_pretrain_makes_bases_that_plain_transformers_reads(
    project, options, parameters, caplog, monkeypatch
):
    class Ended(BaseException):
        pass

    def end(*args, **kwargs):
        raise Ended

    with monkeypatch.context() as patch, pytest.raises(Ended):
        patch.setattr("flan_qa_pipeline.pipelines.pretrain.nodes.score_answers", end)
        run(options)
    base = AutoModelForSeq2SeqLM.from_pretrained("data/06_models/pretrained_base")
    heads = load_file(newest("pretrained_base_heads.safetensors"))
    assert base.shared.weight.isfinite().all() and "span_head.layers.0.weight" in heads
    assert not any("head.layers" in name or "generator" in name for name in base.state_dict())

    run(options, from_nodes=["evaluate_pretrained_base"])
    run(options, from_nodes=["pack_pretrained_base"])
    base = AutoModelForSeq2SeqLM.from_pretrained("data/06_models/pretrained_base")
    packed = AutoModelForSeq2SeqLM.from_pretrained("data/06_models/pretrained_base_nf4")
    assert base.lm_head.weight.data_ptr() != base.shared.weight.data_ptr()
    assert str(base.dtype) == "torch.bfloat16"
    assert packed.is_loaded_in_4bit
    for folder in ("pretrained_base", "pretrained_base_nf4"):
        tokenizer = AutoTokenizer.from_pretrained(f"data/06_models/{folder}")
        assert len(tokenizer) == 1504
    sizes = [
        Path("data/06_models", folder, "model.safetensors").stat().st_size
        for folder in ("pretrained_base", "pretrained_base_nf4")
    ]
    assert sizes[1] < sizes[0]
    model = parameters.model.model_copy(update={"name": "data/06_models/pretrained_base"})
    assert load_base_model(model).num_parameters() > 0
    changes = {"name": "data/06_models/pretrained_base_nf4", "skip_modules": ["wo"]}
    assert load_base_model(model.model_copy(update=changes)).num_parameters() > 0
    log = pd.read_csv(newest("pretraining_reader_log.csv"))
    assert log["step"].tolist() == [2, 4, 6, 8]
    assert log["stage"].tolist() == [0, 0, 1, 1]
    scores = json.loads(newest("pretraining_scores.json").read_text())
    of_the_base = {"held_out", "held_out_forced", "trained_on"}
    assert set(scores) == of_the_base | {"held_out_span_head", "held_out_span_head_forced"}
    assert "held_out_span_head_forced: has_answer " in caplog.text
    for kind in scores.values():
        assert 0 < kind["has_answer"] + kind["no_answer"] <= 6
        assert kind["has_answer_f1"] is None or 0 <= kind["has_answer_f1"] <= 100

    held_out = load_from_disk(str(newest("encoded_questions")))
    text = load_from_disk(str(newest("encoded_text")))
    assert len(set(text["article"])) == 28
    assert "2 articles with the title of a held-out one were left out" in caplog.text
    contexts = {tuple(ids) for ids in text["ids"]}
    paragraphs = held_out["paragraphs"]["ids"]
    assert not contexts & {tuple(paragraphs[row["paragraph"]]) for row in held_out["held_out"]}
    assert contexts & {tuple(paragraphs[row["paragraph"]]) for row in held_out["train"]}


def test_held_out_articles_are_those_of_a_fine_tuning(parameters):
    from datasets import Dataset

    from flan_qa_pipeline.pipelines.data_engineering.nodes import split_by_article

    rows = list(flatten({"version": "v2.0", "data": read_english(60)}, "the corpus"))
    train = Dataset.from_list([row for row in rows if row["title"] != rows[0]["title"]])
    validation = Dataset.from_list([row for row in rows if row["title"] == rows[0]["title"]])
    ours = hold_out_articles(train, parameters.data)
    later = split_by_article(train, validation, parameters.data)
    for name in ("train", "dev", "calibration"):
        assert ours[name]["id"] == later[name]["id"]
    with pytest.raises(InputError, match="validation_fraction pools two files"):
        hold_out_articles(train, parameters.data.model_copy(update={"validation_fraction": 0.1}))


def test_a_folder_without_text_is_named(project, options):
    options["pretrain"]["text_folder"] = "data/01_raw/nothing"
    with pytest.raises(
        InputError, match=r"there is no .*nothing; name a folder of \.jsonl files with"
    ):
        run(options)


def test_text_without_its_fields_is_named(project, options, tmp_path):
    (tmp_path / "bad.jsonl").write_text('{"title": "A", "body": "B"}\n')
    options["pretrain"]["text_folder"] = str(tmp_path)
    with pytest.raises(InputError, match="bad.jsonl has no field 'text'"):
        run(options, to_nodes=["train_pretraining_tokenizer"])
