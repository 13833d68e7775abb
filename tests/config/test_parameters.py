"""The parameters files are checked before anything runs, and every mistake is named."""

import math
import re

import pytest

import flan_qa_pipeline.cli
from flan_qa_pipeline.config.parameters import Parameters
from flan_qa_pipeline.config.validation import check_parameters
from flan_qa_pipeline.errors import InputError


def complaint(raw):
    with pytest.raises(InputError) as error:
        check_parameters(raw)
    assert str(error.value).endswith("(conf/*/parameters*.yml or --params).")
    return str(error.value)


def test_the_projects_own_parameters_pass(raw_parameters):
    parameters = check_parameters(raw_parameters)
    assert isinstance(parameters, Parameters)
    assert parameters.prompt.template == raw_parameters["prompt"]["template"]
    assert parameters.data.train_file.endswith(".json")


def test_each_hub_id_has_its_own_revision(raw_parameters):
    revisions = raw_parameters["model"]["revision"]
    assert check_parameters(raw_parameters).model.revision is None
    for name in ("google/flan-t5-base", "google/flan-t5-xl"):
        raw_parameters["model"]["name"] = name
        assert check_parameters(raw_parameters).model.revision == revisions[name]
    raw_parameters["model"]["revision"] = "v1"
    assert check_parameters(raw_parameters).model.revision == "v1"


def test_a_revision_of_digits_is_text(raw_parameters):
    raw_parameters["model"]["revision"] = 1234567
    assert check_parameters(raw_parameters).model.revision == "1234567"
    command = ["--params=model.revision=0012e456,lora.r=4"]
    with flan_qa_pipeline.cli.run.make_context("run", command) as context:
        assert context.params["params"] == {"model": {"revision": "0012e456"}, "lora": {"r": 4}}


def test_target_modules_can_be_given_without_commas(raw_parameters):
    for given, meant in {"q+v": ["q", "v"], "q": ["q"], "all-linear": "all-linear"}.items():
        raw_parameters["lora"]["target_modules"] = given
        assert check_parameters(raw_parameters).lora.target_modules == meant


@pytest.mark.parametrize(
    ("given", "names"),
    [("wo", ["wo"]), ("wo+lm_head", ["wo", "lm_head"]), ([], []), (["q"], ["q"])],
)
def test_modules_to_skip_may_be_one_or_several(raw_parameters, given, names):
    raw_parameters["model"]["skip_modules"] = given
    assert check_parameters(raw_parameters).model.skip_modules == names


def test_unknown_section(raw_parameters):
    raw_parameters["lorra"] = {}
    assert "Unknown parameter lorra: did you mean lora?" in complaint(raw_parameters)


def test_unknown_key_near_a_known_one(raw_parameters):
    raw_parameters["training"]["learning_rat"] = 1e-3
    message = complaint(raw_parameters)
    assert "Unknown parameter training.learning_rat: did you mean learning_rate?" in message


@pytest.mark.parametrize("key", ["cache_dir", "cached_results"])
def test_a_key_that_is_gone_is_told(raw_parameters, key):
    raw_parameters["data"][key] = "data/05_model_input/cache"
    message = complaint(raw_parameters)
    assert f"Parameter data.{key} is gone: tokenized questions are kept in the catalog" in message


def test_unknown_key_far_from_all_known_ones(raw_parameters):
    raw_parameters["generation"]["xyz"] = 1
    message = complaint(raw_parameters)
    assert "Unknown parameter generation.xyz: known here: batch_tokens, max_new_tokens" in message


def test_unknown_key_that_another_section_has(raw_parameters):
    raw_parameters |= {"learning_rate": 1, "seed": 2}
    raw_parameters["model"]["max_steps"] = 3
    message = complaint(raw_parameters)
    assert "Unknown parameter learning_rate: did you mean training.learning_rate?" in message
    assert "Unknown parameter model.max_steps: did you mean training.max_steps?" in message
    (names,) = re.findall(r"Unknown parameter seed: did you mean (.*?)\?", message)
    assert {"data.seed", "training.seed"} <= set(names.split(" or "))


def test_unknown_key_that_is_no_name(raw_parameters):
    raw_parameters["data"]["max-train"] = 1
    raw_parameters["serving"]["examples"][0]["con text"] = "a"
    message = complaint(raw_parameters)
    assert "Unknown parameter data.max-train: known here: train_file, " in message
    assert "Unknown parameter serving.examples.0.con text: did you mean context?" in message


@pytest.mark.parametrize(
    ("section", "key", "kinds"),
    [
        ("model", "dequantize", "Input should be 'auto' or a valid boolean"),
        ("training", "cuda_graphs", "Input should be 'auto' or a valid boolean"),
        ("training", "max_steps", "Input should be -1 or a valid integer"),
    ],
)
def test_a_value_of_no_possible_kind_is_told_once(raw_parameters, section, key, kinds):
    raw_parameters[section][key] = "x"
    message = complaint(raw_parameters)
    assert f"Parameter {section}.{key} is 'x': {kinds}" in message
    assert message.count(key) == 1


def test_unknown_key_deep_inside(raw_parameters):
    raw_parameters["pretrain"]["architecture"]["d_modl"] = 1
    message = complaint(raw_parameters)
    assert "Unknown parameter pretrain.architecture.d_modl: did you mean d_model?" in message


def test_a_share_of_further_questions_needs_their_folder(raw_parameters):
    raw_parameters["pretrain"]["base"]["stages"][1]["mixture"]["extra"] = 0.5
    message = complaint(raw_parameters)
    assert message.startswith(
        "Parameter pretrain: base.stages.1.mixture.extra is 0.5, but question_folder names no "
    )
    raw_parameters["pretrain"]["question_folder"] = "data/01_raw/sets"
    assert check_parameters(raw_parameters).pretrain.base.stages[1].mixture.extra == 0.5


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("lora", "r", "many"),
        ("lora", "r", 0),
        ("lora", "target_modules", 5),
        ("training", "learning_rate", -1),
        ("data", "unanswerable", "maybe"),
        ("data", "dev_fraction", 1.0),
        ("data", "dev_fraction", 0.0),
        ("data", "calibration_fraction", 0.0),
        ("training", "max_steps", 0),
        ("data", "validation_fraction", -0.1),
        ("model", "quant_type", "nf5"),
        ("model", "load_in_4bit", "perhaps"),
        ("tokenization", "doc_stride", -1),
        ("prompt", "abstention", ""),
    ],
)
def test_wrong_value_is_named_and_shown(raw_parameters, section, key, value):
    raw_parameters[section][key] = value
    message = complaint(raw_parameters)
    assert f"Parameter {section}.{key}" in message
    assert f" is {value!r}: Input should be" in message or "should have at least" in message


@pytest.mark.parametrize(
    ("section", "key", "value", "reason"),
    [
        ("training", "optim", "adamx", "Input should be 'adamw_torch', 'adamw_torch_fused'"),
        ("training", "optim", "galore_adamw", "Input should be"),
        ("training", "lr_scheduler_type", "cosin", "Input should be 'linear', 'cosine'"),
        ("training", "eval_steps", 1.5, "give a whole number of steps, or a share of all below 1"),
        ("training", "eval_steps", float("inf"), "give a whole number of steps"),
        ("training", "warmup_steps", 1.5, "give a whole number of steps"),
        ("training", "save_steps", 10.5, "give a whole number of steps, or a share of all below 1"),
        ("tokenization", "doc_stride", 300, "would not advance; lower doc_stride"),
    ],
)
def test_value_that_would_fail_in_training_fails_first(raw_parameters, section, key, value, reason):
    raw_parameters[section][key] = value
    assert f"Parameter {section}.{key} is {value!r}: " in complaint(raw_parameters)
    assert reason in complaint(raw_parameters)


@pytest.mark.parametrize(
    ("section", "key", "values"),
    [
        ("data", "seed", [-1, 2**32, 1e30]),
        ("training", "seed", [-1, 2**32]),
        ("reporting", "seed", [-1, 2**32]),
        ("lora", "r", [-1, 10**9, 1e21]),
        ("lora", "alpha", [0, 1e9, math.nan, math.inf]),
        ("lora", "dropout", [math.nan, 1]),
        ("training", "num_train_epochs", [math.inf, math.nan, 0, 1e30]),
        ("training", "per_device_train_batch_size", [1e21, 2**31, math.inf]),
        ("training", "per_device_eval_batch_size", [1e21]),
        ("training", "gradient_accumulation_steps", [1e21]),
        ("training", "learning_rate", [math.inf, math.nan, 1e30, 1e6, 11]),
        ("training", "weight_decay", [math.inf, math.nan, 1e30]),
        ("training", "max_grad_norm", [math.inf, math.nan, -1]),
        ("training", "warmup_steps", [1e30, math.inf, math.nan]),
        ("training", "save_steps", [1e30, math.nan]),
        ("training", "early_stopping_threshold", [math.inf, math.nan]),
        ("training", "output_dir", ["", "a\0b"]),
        ("training", "logging_dir", ["", "a\0b"]),
        ("data", "train_file", ["", "a\0b"]),
        ("model", "name", ["", "a\0b"]),
        ("inference", "chunk_size", [1e21, 0]),
        ("inference", "no_answer_threshold", [math.nan, 2]),
        ("generation", "batch_tokens", [1e21]),
        ("generation", "max_new_tokens", [1e21, 2**30]),
        ("distributed", "timeout_minutes", [math.inf, math.nan, 1e30]),
        ("distributed", "num_processes", [1e21]),
        ("reporting", "bootstrap_resamples", [1e21]),
        ("tokenization", "max_source_length", [1e21]),
    ],
)
def test_a_value_without_sense_is_named(raw_parameters, section, key, values):
    for value in values:
        raw_parameters[section][key] = value
        assert f"Parameter {section}.{key} is {value!r}: " in complaint(raw_parameters)


def test_yaml_no_is_no_evaluation(raw_parameters):
    raw_parameters["training"]["eval_strategy"] = False
    assert check_parameters(raw_parameters).training.eval_strategy == "no"


def test_missing_key_and_missing_section(raw_parameters):
    del raw_parameters["lora"]["alpha"]
    del raw_parameters["reporting"]
    message = complaint(raw_parameters)
    assert "Parameter lora.alpha is missing" in message
    assert "Parameter reporting is missing" in message


@pytest.mark.parametrize(
    ("template", "field"),
    [
        ("context: {context}", "{question}"),
        ("question: {question}", "{context}"),
        ("{question} {question} {context}", "{question}"),
        ("{context} {question} {context}", "{context}"),
    ],
)
def test_template_without_a_field_or_with_it_twice(raw_parameters, template, field):
    raw_parameters["prompt"]["template"] = template
    message = complaint(raw_parameters)
    assert f"Parameter prompt.template is {template!r}" in message
    assert f"must contain {field} exactly once" in message


def test_early_stopping_without_evaluations_is_refused(raw_parameters):
    raw_parameters["training"] |= {"eval_strategy": "no", "early_stopping_patience": 2}
    message = complaint(raw_parameters)
    assert "Parameter training.early_stopping_patience is 2: it needs evaluations" in message


@pytest.mark.parametrize("targets", [[], 3])
def test_bad_target_modules_are_told_once(raw_parameters, targets):
    raw_parameters["lora"]["target_modules"] = targets
    assert complaint(raw_parameters).count("lora.target_modules") == 1


def test_a_bad_target_module_is_told_by_its_place(raw_parameters):
    raw_parameters["lora"]["target_modules"] = ["q", 1]
    assert "Parameter lora.target_modules.1 is 1: Input should be a valid string" in complaint(
        raw_parameters
    )
    assert "function" not in complaint(raw_parameters)


def test_all_mistakes_are_told_at_once(raw_parameters):
    raw_parameters["data"]["sead"] = 1
    raw_parameters["lora"]["r"] = "many"
    message = complaint(raw_parameters)
    assert "data.sead: did you mean seed?" in message
    assert "lora.r is 'many'" in message
