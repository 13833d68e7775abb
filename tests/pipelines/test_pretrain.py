"""The pipeline `pretrain` from text and questions to a packed base, at a tiny size."""

import json
import re
import shutil
from functools import cache
from pathlib import Path

import pandas as pd
import pytest
import yaml
from conftest import REPOSITORY, copy_project
from datasets import Dataset, load_from_disk
from english import read_english, read_short_english, short_pretraining, write_english
from kedro.framework.session import KedroSession
from kedro.framework.startup import bootstrap_project
from safetensors.torch import load_file
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from flan_qa_pipeline.data.fingerprints import fingerprint_weights
from flan_qa_pipeline.data.squad import flatten
from flan_qa_pipeline.errors import InputError
from flan_qa_pipeline.models.loading import load_base_model, load_transformers_t5
from flan_qa_pipeline.models.quantization import dequantize
from flan_qa_pipeline.pipelines.pretrain import nodes
from flan_qa_pipeline.pipelines.pretrain.nodes import hold_out_articles
from flan_qa_pipeline.pretraining import greedy_answers, phases, question_generation
from flan_qa_pipeline.pretraining.encoding import train_sentencepiece


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


@pytest.fixture(scope="module", autouse=True)
def tokenizer_once():
    """Train one tokenizer for all runs on the same text, which takes a minute on some machines."""
    train = cache(train_sentencepiece)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nodes, "train_sentencepiece", lambda lines, size: train(tuple(lines), size))
        yield


@pytest.fixture
def options(raw_parameters):
    return short_pretraining(raw_parameters)


def run(options, env=None, **kwargs):
    with KedroSession.create(runtime_params=options, env=env) as session:
        session.run(pipeline_names=["pretrain"], **kwargs)


def newest(dataset: str) -> Path:
    (folder,) = Path("data").glob(f"0?_*/{dataset}")
    return max(folder.iterdir()) / folder.name


def test_pretrain_makes_bases_that_plain_transformers_reads(
    project, options, parameters, caplog, transformers_log, monkeypatch
):
    class Ended(BaseException):
        pass

    def end(*args, **kwargs):
        raise Ended

    with monkeypatch.context() as patch, pytest.raises(Ended):
        patch.setattr(greedy_answers, "score_answers", end)
        run(options)
    assert "tied weights" not in transformers_log.text
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
    scores = json.loads(newest("pretrained_base_scores.json").read_text())
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


def decay(env):
    return {"env": env, "from_nodes": ["generate_questions"]}


def shorten(env):
    """Give the stages of an environment two steps, no further sets, and eight questions to ask."""
    path = Path(f"conf/{env}/parameters_pretrain.yml")
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    pretrain = content["pretrain"]
    pretrain.setdefault("generation", {})["answers"] = 8
    pretrain["base"] |= {"warmup_steps": 1, "decay_steps": 6}
    for stage in pretrain["base"]["stages"]:
        stage["steps"] = 2
        stage["mixture"]["extra"] = 0
    path.write_text(yaml.safe_dump(content), encoding="utf-8")


def saved_files():
    kept = (path for path in Path("data").rglob("*") if path.is_file())
    return {path: path.read_bytes() for path in kept if "checkpoint" not in str(path)}


def test_later_decays_go_on_from_the_saved_base(project, options, monkeypatch):
    shorten("second_decay")
    shorten("third_decay")
    run(options, to_nodes=["evaluate_pretrained_base"])
    first = AutoModelForSeq2SeqLM.from_pretrained("data/06_models/pretrained_base")
    first_heads = load_file(newest("pretrained_base_heads.safetensors"))
    before = saved_files()
    for name in ("base", "seed"):
        del options["pretrain"][name]
    options["pretrain"]["generation"] = {"min_f1": 0.0, "batch_size": 4}
    question = AutoTokenizer.from_pretrained("data/06_models/pretrained_base")(
        "What is the name of it?", add_special_tokens=False
    )["input_ids"]
    write, made_by, starts = question_generation.write, [], []

    def asking(model, rows, batch_size, **choices):
        made_by.append(fingerprint_weights(model))
        written = write(model, rows, batch_size, **choices)
        return [question] * len(written) if choices["do_sample"] else written

    def noting(module):
        starts.append(fingerprint_weights(module))
        return starts[-1]

    monkeypatch.setattr(question_generation, "write", asking)
    monkeypatch.setattr(phases, "fingerprint_weights", noting)
    run(options, **decay("second_decay"))

    assert set(made_by) == {fingerprint_weights(first)}
    assert starts[0] == fingerprint_weights(first.float())
    assert {path: path.read_bytes() for path in before} == before
    second = AutoModelForSeq2SeqLM.from_pretrained("data/06_models/second_decay_base")
    heads = load_file(newest("second_decay_base_heads.safetensors"))
    assert str(second.dtype) == "torch.bfloat16"
    for name, weight in second.float().state_dict().items():
        assert weight.isfinite().all() and not weight.equal(first.state_dict()[name]), name
    assert heads.keys() == first_heads.keys()
    assert any(not heads[name].equal(first_heads[name]) for name in heads)
    assert pd.read_csv(newest("second_decay_base_log.csv"))["stage"].tolist() == [0, 1, 2]
    assert len(pd.read_parquet(newest("second_decay_base_questions.parquet"))) == 8
    assert "held_out" in json.loads(newest("second_decay_base_scores.json").read_text())
    packed = AutoModelForSeq2SeqLM.from_pretrained("data/06_models/second_decay_base_nf4")
    assert packed.is_loaded_in_4bit
    vocabulary = AutoTokenizer.from_pretrained("data/06_models/pretrained_base").get_vocab()
    for folder in ("second_decay_base", "second_decay_base_nf4"):
        tokenizer = AutoTokenizer.from_pretrained(f"data/06_models/{folder}")
        assert tokenizer.get_vocab() == vocabulary and len(vocabulary) == 1504

    config = json.loads(Path("data/06_models/second_decay_base/config.json").read_text())
    assert config["tie_word_embeddings"] is config["scale_decoder_outputs"] is False

    before, asked = saved_files(), len(made_by)
    run(options, **decay("third_decay"))
    assert set(made_by[asked:]) == {fingerprint_weights(second.bfloat16())}
    assert {path: path.read_bytes() for path in before} == before
    assert newest("third_decay_base_heads.safetensors").exists()
    assert Path("data/06_models/third_decay_base_nf4/model.safetensors").exists()


def test_the_sixth_decay_goes_on_from_the_packed_base_that_ships(project, options, monkeypatch):
    shorten("sixth_decay")
    for name in ("base", "seed", "replaced_tokens", "span_head"):
        options["pretrain"].pop(name, None)
    starts = []

    def noting(module):
        starts.append(fingerprint_weights(module))
        return starts[-1]

    monkeypatch.setattr(phases, "fingerprint_weights", noting)
    folder = Path("data/06_models/starter_t5")
    shutil.copytree(REPOSITORY / folder, folder, dirs_exist_ok=True)
    before = {path: path.read_bytes() for path in folder.iterdir()}
    data = "check_pretraining_questions,hold_out_articles,check_question_sets,encode_text"
    run(options, env="sixth_decay", node_names=[*data.split(","), "encode_questions"])
    run(options, **decay("sixth_decay"))
    shipped = dequantize(load_transformers_t5(folder)).float().cpu()
    base = AutoModelForSeq2SeqLM.from_pretrained("data/06_models/sixth_decay_base").float()
    assert base.config.dropout_rate == options["pretrain"].get("dropout", 0.1)
    assert starts == [fingerprint_weights(shipped)]
    for name, weight in base.state_dict().items():
        assert weight.isfinite().all() and not weight.equal(shipped.state_dict()[name]), name
    assert {path: path.read_bytes() for path in before} == before
    packed = AutoModelForSeq2SeqLM.from_pretrained("data/06_models/sixth_decay_base_nf4")
    assert packed.is_loaded_in_4bit and packed.num_parameters() == base.num_parameters()


def test_a_decay_encodes_other_text_with_the_tokenizer_of_the_first_run(project, options):
    shorten("third_decay")
    run(options, to_nodes=["encode_text"])
    before = saved_files()
    options["pretrain"]["text_folder"] = "data/01_raw/other_text"
    Path("data/01_raw/other_text").mkdir()
    lines = [{"title": f"New {n}", "id": n, "text": f"Other text, number {n}."} for n in range(3)]
    Path("data/01_raw/other_text/a.jsonl").write_text("\n".join(map(json.dumps, lines)))
    page = (REPOSITORY / "docs/pretraining.md").read_text(encoding="utf-8")
    (nodes,) = set(re.findall(r"--nodes=(\S+)", page))
    run(options, env="third_decay", node_names=nodes.split(","))
    assert {path: path.read_bytes() for path in before} == before
    text = load_from_disk(str(newest("encoded_text")))
    assert len(set(text["article"])) == 3


@pytest.mark.parametrize(
    ("env", "reader"),
    [
        ("second_decay", "pretrained_base"),
        ("third_decay", "second_decay_base"),
        ("fourth_decay", "third_decay_base"),
        ("fifth_decay", "fourth_decay_base"),
        ("sixth_decay", "starter_t5"),
    ],
)
def test_a_decay_does_not_replace_the_base_that_it_starts_from(project, options, env, reader):
    run(options, to_nodes=["encode_text", "encode_questions"])
    with pytest.raises(InputError, match=f"{reader}, which .* only reads; give --from-nodes"):
        run(options, env=env, from_nodes=["pretrain_reader"])


@pytest.mark.parametrize(
    ("env", "remedy"),
    [
        ("second_decay", "make it first with .*kedro run --pipelines"),
        ("third_decay", "make it first with .*--env=second_decay"),
        ("fourth_decay", "make it first with .*--env=third_decay"),
        ("fifth_decay", "make it first with .*--env=fourth_decay"),
        ("sixth_decay", "restore it from the repository"),
    ],
)
def test_a_decay_without_its_reader_names_the_remedy(project, options, env, remedy):
    shutil.rmtree("data/06_models", ignore_errors=True)  # other tests' bases
    run(options, to_nodes=["encode_text", "encode_questions"])
    with pytest.raises(InputError, match=remedy):
        run(options, **decay(env))


@pytest.mark.parametrize(
    ("env", "share"),
    [
        ("second_decay", 0.43),
        ("third_decay", 0.62),
        ("fourth_decay", 0.5),
        ("fifth_decay", 0.6),
        ("sixth_decay", 0.5),
    ],
)
def test_a_decay_has_lower_rates_and_other_draws(project, env, share):
    with KedroSession.create(env=env) as session:
        later = session.load_context().config_loader["parameters"]["pretrain"]
    with KedroSession.create() as session:
        first = session.load_context().config_loader["parameters"]["pretrain"]
    rates, highest = (p["base"]["optimizer"] for p in (later, first))
    for name in ("matrix_lr", "embedding_lr", "head_lr", "other_lr"):
        assert rates[name] == pytest.approx(share * highest[name])
    assert rates["weight_decay"] == highest["weight_decay"]
    assert later["seed"] != first["seed"]
    steps = sum(stage["steps"] for stage in later["base"]["stages"])
    assert 0.9 * steps < later["base"]["decay_steps"] <= steps
    assert later["batches"] == first["batches"]


def test_further_questions_are_checked_and_held_out(project, options, parameters, caplog):
    articles = read_english(33)
    rows = Dataset.from_list(list(flatten({"version": "v2.0", "data": articles[:30]}, "")))
    held_out = hold_out_articles(rows, parameters.data)["dev"][0]
    same_title = next(a for a in articles if a["title"] == held_out["title"])
    folder = Path("data/01_raw/sets")
    folder.mkdir()
    further = articles[30:] + [same_title | {"title": same_title["title"].replace(" ", "_")}]
    (folder / "a.json").write_text(json.dumps({"version": "v2.0", "data": further}))
    lines = [
        {"context": "Ada lived in London.", "question": "Where was it?", "answers": ["London"]},
        {"context": "Ada lived in London.", "question": "When was it?", "answers": []},
        {"context": "Ada lived in London.", "question": "Where was it?", "answers": ["Rome"]},
        {"context": f" {held_out['context'].upper()}", "question": "Why?", "answers": []},
    ]
    (folder / "more").mkdir()
    (folder / "more/b.jsonl").write_text("\n".join(map(json.dumps, lines)))

    run(options, to_nodes=["encode_questions"])
    without = load_from_disk(str(newest("encoded_questions")))
    options["pretrain"]["question_folder"] = str(folder)
    with pytest.raises(InputError, match="sets/more/b.jsonl.*'Rome' does not stand in the context"):
        run(options, to_nodes=["encode_questions"])
    run(options | {"data": options["data"] | {"on_invalid": "skip"}}, to_nodes=["encode_questions"])
    encoded = load_from_disk(str(newest("encoded_questions")))
    assert set(without) == {"paragraphs", "train", "held_out"}
    for name in without:
        assert encoded[name][: len(without[name])] == without[name][:], name
    assert "'Rome'" in pd.read_csv(newest("rejected_further_questions.csv"))["problem"].item()
    found = list(flatten({"version": "v2.0", "data": articles[30:]}, ""))
    extra = encoded["extra"]
    assert len(extra) == len(found) + 2
    assert extra["gold"][: len(found)] == [row["answers"]["text"] for row in found]
    assert extra["gold"][-2:] == [["London"], []]
    numbers = [encoded["paragraphs"]["article"][n] for n in extra["paragraph"]]
    assert numbers == sorted(numbers) and len(set(numbers)) == 4
    assert numbers[0] == max(without["paragraphs"]["article"]) + 1


def test_a_question_folder_that_is_not_there_is_named(project, options):
    options["pretrain"]["question_folder"] = "data/01_raw/no_sets"
    with pytest.raises(InputError, match="no .*no_sets; name a folder of files of questions"):
        run(options)
    shutil.copytree("data/01_raw/text", "data/01_raw/no_sets/.hidden")
    with pytest.raises(InputError, match="no_sets holds no file of questions"):
        run(options)


def parquet_of(articles, folder):
    rows = pd.DataFrame(flatten({"version": "v2.0", "data": articles}, ""))
    rows.to_parquet(folder / "rows.parquet")
    return (folder / "rows.parquet").read_bytes()


def test_a_question_folder_on_the_hub_is_fetched_once(project, options, hub, tmp_path):
    articles = read_english(33)[30:]
    files = {
        "sets/a.parquet": parquet_of(articles[:1], tmp_path),
        "sets/more/b.parquet": parquet_of(articles[1:], tmp_path),
        "other/c.parquet": b"not read",
    }
    hub.add("ada/sets", files, "c" * 40, kind="datasets")
    options["pretrain"]["question_folder"] = f"hf://datasets/ada/sets@{'c' * 40}/sets"
    run(options, to_nodes=["encode_questions"])
    assert set(hub.sent) == {"sets/a.parquet", "sets/more/b.parquet"}
    hub.stop()
    run(options, to_nodes=["encode_questions"])
    found = list(flatten({"version": "v2.0", "data": articles}, ""))
    encoded = load_from_disk(str(newest("encoded_questions")))
    assert encoded["extra"]["gold"][:] == [row["answers"]["text"] for row in found]


def test_folders_on_the_hub_that_cannot_be_read_are_named(project, options, hub):
    hub.add("ada/sets", {"sets/a.json": b"{}", "b.parquet": b"rows"}, "c" * 40, kind="datasets")
    folder = f"hf://datasets/ada/sets@{'c' * 40}"
    options["pretrain"]["question_folder"] = f"{folder}/sets"
    with pytest.raises(InputError, match="no Parquet file in sets at c*; it has sets/a.json.$"):
        run(options)
    options["pretrain"] |= {"question_folder": None, "text_folder": folder}
    with pytest.raises(InputError, match="text_folder: .* does not read from the hub, .*download"):
        run(options)
    assert not hub.sent


def test_a_stage_that_wants_further_questions_trains_on_them(project, options):
    folder = Path("data/01_raw/further")
    folder.mkdir()
    articles = read_english(33)[30:] + read_short_english(36)[33:]  # for long and short batches
    (folder / "a.json").write_text(json.dumps({"version": "v2.0", "data": articles}))
    options["pretrain"]["question_folder"] = str(folder)
    for stage in options["pretrain"]["base"]["stages"]:
        stage["mixture"] |= dict.fromkeys(("cloze", "answerable", "unanswerable", "asking"), 0.0)
        stage["mixture"] |= {"extra": 1.0}
    run(options, to_nodes=["pretrain_base"])
    assert len(pd.read_csv(newest("pretrained_base_log.csv"))) == 4
