"""What a model card says of a base and data on the hub, and what it leaves open."""

import pytest
from huggingface_hub import ModelCard
from peft import LoraConfig

from flan_qa_pipeline.errors import InputError
from flan_qa_pipeline.evaluation.subject import EMBEDDED_CORPUS
from flan_qa_pipeline.models.adapter import Adapter
from flan_qa_pipeline.reporting.model_card import (
    adapter_card,
    adapter_version,
    completed,
    merged_card,
    overall_f1,
)

VERSION, COMMIT = "2026-01-01T00.00.00.000Z", "7bcac572ce56db69c1ea7c8af255c5d7c9672fc2"
STARTER = "data/01_raw/starter_train.json"
SQUAD = "hf://datasets/rajpurkar/squad_v2@main/squad_v2/train-00000-of-00001.parquet"
EVALUATION = {
    "corpus": "a corpus",
    "labels": ["baseline", "fine-tuned"],
    "confidence": 0.9,
    "scores": [
        {"subset": "overall", "questions": 3}
        | {
            f"{metric} {column}": value
            for metric in ("EM", "F1")
            for column, value in {
                "baseline": 1.0,
                "fine-tuned": 2.5,
                "gain": 1.5,
                "gain low": -1.0,
                "gain high": 4.0,
            }.items()
        }
    ],
}


@pytest.fixture
def adapter():
    def make(base="google/flan-t5-base", revision=COMMIT, train_file=SQUAD, **training):
        provenance = {
            "model": {
                "name": base,
                "revision": revision,
                "load_in_4bit": True,
                "quant_type": "nf4",
                "skip_modules": ["lm_head"],
            },
            "prompt": {"template": "a|b {question} {context}", "abstention": "none"},
        }
        data = {"train_file": train_file, "validation_file": "dev.json"}
        run = {"run_id": VERSION, "parameters": {"data": data}}
        return Adapter(
            LoraConfig(target_modules=["q", "v"], r=4),
            {},
            None,
            provenance,
            {"run": run, "steps": 20} | training,
        )

    return make


def test_a_base_and_data_on_the_hub_are_named_by_their_ids(adapter):
    card = ModelCard(adapter_card(adapter()))
    assert (card.data.base_model, card.data.datasets) == (
        "google/flan-t5-base",
        ["rajpurkar/squad_v2"],
    )
    assert card.data.license is None
    assert f'from_pretrained("google/flan-t5-base", revision="{COMMIT}")' in card.text
    assert "QuestionAnswerer.from_folder(folder)" in card.text
    assert "| base | google/flan-t5-base | apache-2.0 |" in card.text
    assert "| data | rajpurkar/squad_v2 | cc-by-sa-4.0 |" in card.text
    assert r"`a\|b {question} {context}`" in card.text
    assert "answered no dev questions" in card.text


def test_a_licence_is_named_if_all_parts_have_it(adapter, tmp_path):
    base = tmp_path / "base"
    base.mkdir()
    local = adapter(base=str(base), revision=None, train_file=STARTER)
    assert ModelCard(adapter_card(local)).data.license is None
    (base / "README.md").write_text("---\nlicense: apache-2.0\n---\nA base.", encoding="utf-8")
    card = ModelCard(adapter_card(local))
    assert card.data.license == "apache-2.0"
    assert card.data.base_model is None is card.data.datasets
    assert str(tmp_path) not in str(card)
    (base / "README.md").write_text("---\n- broken: [\n---\n", encoding="utf-8")
    assert ModelCard(adapter_card(local)).data.license is None


def test_the_embedded_corpus_is_named_whatever_its_file_is_called(adapter):
    renamed = adapter(train_file="mine.json")
    assert "| mine.json | not known here |" in adapter_card(renamed)
    renamed.training["run"]["corpora"] = {"train": EMBEDDED_CORPUS}
    card = adapter_card(renamed)
    assert f"| data | {EMBEDDED_CORPUS} | apache-2.0 |" in card
    assert "The starter corpus is small" in card and "mine.json" not in card


@pytest.mark.parametrize(
    ("best_step", "said"), [(10, "F1 61.00. They chose"), (None, "F1 62.00.\n"), (7, "no dev")]
)
def test_the_dev_scores_are_those_of_the_saved_weights(adapter, best_step, said):
    log = [{"step": step, "eval_f1": f1, "eval_exact": 1.0} for step, f1 in ((10, 61), (20, 62))]
    assert said in adapter_card(adapter(best_step=best_step, log=log))


def test_scores_come_once_and_all_else_stays(adapter):
    card = adapter_card(adapter())
    assert adapter_version(card) == VERSION
    assert completed(card, {}) == card
    edited = card.replace("## Limits", "## Mine\n\nKept.\n\n## Limits")
    scored = completed(edited, EVALUATION)
    assert "Kept." in scored
    assert "| overall  | F1       |           3 |       1.00 |         2.50 |" in scored
    assert "+1.50 [-1.00, +4.00]" in scored
    assert [r.metric_value for r in ModelCard(scored).data.eval_results] == [2.5, 2.5]
    assert completed(scored, EVALUATION | {"scores": []}) == scored
    assert (overall_f1(card), overall_f1(scored)) == (None, (2.5, "a corpus"))


def test_a_merged_card_names_the_repository_that_it_is_loaded_from(adapter):
    card = completed(merged_card(adapter(), EVALUATION), {}, "ada/merged")
    assert 'from_pretrained("ada/merged")' in card
    assert "--params=model.name=ada/merged,model.revision=main" in card
    assert "path/to/this/folder" not in card
    assert ModelCard(card).data.model_name == "ada/merged"


def test_metadata_that_cannot_be_read_are_a_sentence():
    for broken in ("---\na: [\n---\n", "---\n- a\n---\n"):
        with pytest.raises(InputError, match="The metadata at the top of README.md cannot be read"):
            completed(broken, {})
