"""Model cards of an adapter and of a merged model: what they are, how good, how to load them.

An adapter's card is written when the adapter is saved, before anything is scored, and names its F1
on dev questions. `completed` adds the scores of a later evaluation.
"""

from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from flan_qa_pipeline.errors import InputError, in_one_line
from flan_qa_pipeline.evaluation.subject import EMBEDDED_CORPUS, base_name, corpus_name
from flan_qa_pipeline.files import CARD
from flan_qa_pipeline.hub import PROTOCOL
from flan_qa_pipeline.models.adapter import Adapter
from flan_qa_pipeline.reporting.tables import scores_markdown
from flan_qa_pipeline.training.record import kept_evaluation

TEMPLATE = files("flan_qa_pipeline.reporting") / "model_card.md.j2"
SCORES_HERE = "<!-- scores -->"
HERE = "path/to/this/folder"
TASK = "question-answering"
OVERALL_F1 = "F1 (overall,"
METRICS = {"EM": "exact_match", "F1": "f1"}

APACHE = "apache-2.0"
FLAN_T5 = "google/flan-t5-"
OWN_DATA = "data/01_raw/starter_"
DATA_LICENCES = {"rajpurkar/squad_v2": "cc-by-sa-4.0"}

WHAT_IT_DOES = (
    "It answers questions about a context, or says that the context does not answer them."
)
PLAIN_ADAPTER = """\
from peft import PeftModel
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

base = AutoModelForSeq2SeqLM.from_pretrained({base})
model = PeftModel.from_pretrained(base, "{here}")
tokenizer = AutoTokenizer.from_pretrained("{here}")
"""
PLAIN_MERGED = """\
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

model = AutoModelForSeq2SeqLM.from_pretrained("{here}")
tokenizer = AutoTokenizer.from_pretrained("{here}")
"""
ASK = """
prompt = {template!r}
prompt = prompt.replace("{{question}}", "Where was Ada born?")
prompt = prompt.replace("{{context}}", "Ada was born in London.")
output = model.generate(**tokenizer(prompt, return_tensors="pt"){options})
print(tokenizer.decode(output[0], skip_special_tokens=True))"""
OWN_FOLDER = f'folder = "{HERE}"'
FETCHED_FOLDER = """\
from huggingface_hub import snapshot_download

folder = snapshot_download("{repo_id}")"""
OWN_ADAPTER = """\
from flan_qa_pipeline import QuestionAnswerer

{folder}
answerer = QuestionAnswerer.from_folder(folder{base_model})
[answer] = answerer.answer([("Ada was born in London.", "Where was Ada born?")])
print(answer.text, answer.score)"""
OWN_BASE = f"--params=model.name={HERE}"
FETCHED_BASE = "--params=model.name={repo_id},model.revision=main"


def adapter_card(adapter: Adapter) -> str:
    """Describe an adapter by what is known when it is saved.

    Returns:
        The card in Markdown, with metadata that the hub reads.
    """
    base, base_id = _base(adapter)
    revision = adapter.provenance["model"].get("revision")
    place = f'"{base_id}", revision="{revision}"' if base_id else f'"path/to/{base}"'
    return _render(
        adapter,
        library_name="peft",
        title=f"A LoRA adapter for question answering on {base}",
        summary=f"{WHAT_IT_DOES} It needs the base model {base}, which is not in these files.",
        plain_code=PLAIN_ADAPTER.format(here=HERE, base=place),
        project_language="python",
        project_code=OWN_ADAPTER.format(
            folder=OWN_FOLDER, base_model="" if base_id else f', base_model="path/to/{base}"'
        ),
        limit=f"The training computed on a base with {_precision(adapter)}. On a base of another "
        "precision, single answers may differ.",
    )


def merged_card(adapter: Adapter, evaluation: Mapping[str, Any]) -> str:
    """Describe a model into which an adapter was merged.

    Args:
        adapter: the adapter.
        evaluation: the adapter's evaluation, as in `completed`; empty if there is none.
    """
    base, _ = _base(adapter)
    card = _render(
        adapter,
        library_name="transformers",
        title=f"{base}, fine-tuned for question answering",
        summary=f"{WHAT_IT_DOES} A LoRA adapter was merged into the weights of the base model "
        f"{base}.",
        plain_code=PLAIN_MERGED.format(here=HERE),
        project_language="bash",
        project_code=f"kedro run {OWN_BASE}  # trains further, from this model",
        limit="The scores were measured with the adapter on its base. These weights are their sum, "
        "rounded to bfloat16, so single answers may differ.",
    )
    return completed(card, evaluation)


def completed(card: str, evaluation: Mapping[str, Any], repo_id: str | None = None) -> str:
    """Add to a card what became known after it was written.

    Args:
        card: the card. One that has scores keeps them.
        evaluation: the `corpus` on which the adapter was scored, the `labels` of the compared
            models, the `confidence` of the intervals, and the rows of the table as `scores`; or
            empty.
        repo_id: the repository on the hub to load from; None: a local folder.

    Raises:
        InputError: the card's metadata cannot be read.
    """
    parsed = _parsed(card)
    data: Any = parsed.data
    if evaluation and SCORES_HERE in parsed.text:
        parsed.text = parsed.text.replace(SCORES_HERE, _scores(evaluation))
        data.model_name, data.eval_results = "flan_qa_pipeline", _eval_results(evaluation)
    if repo_id:
        if data.eval_results:
            data.model_name = repo_id
        for here, there in (
            (OWN_FOLDER, FETCHED_FOLDER),
            (OWN_BASE, FETCHED_BASE),
            (f'"{HERE}"', '"{repo_id}"'),
        ):
            parsed.text = parsed.text.replace(here, there.format(repo_id=repo_id))
    return str(parsed)


def adapter_version(card: str) -> str | None:
    """Read from a card which version of an adapter it describes.

    Raises:
        InputError: the card's metadata cannot be read.
    """
    version: str | None = _parsed(card).data.get("adapter_version")
    return version


def overall_f1(card: str) -> tuple[float, str] | None:
    """Read from a card the F1 of all questions, in percent, and the corpus; None without scores.

    Raises:
        InputError: the card's metadata cannot be read.
    """
    for result in _parsed(card).data.get("eval_results") or ():
        value = result.metric_value
        if str(result.metric_name).startswith(OVERALL_F1) and isinstance(value, int | float):
            return value, result.dataset_name
    return None


def _parsed(card: str) -> ModelCard:
    try:
        return ModelCard(card)
    except (ValueError, TypeError, yaml.YAMLError) as error:
        raise InputError(
            f"The metadata at the top of {CARD} cannot be read: {in_one_line(error)}; correct it."
        ) from error


def _render(
    adapter: Adapter, *, library_name: str, plain_code: str, limit: str, **texts: str
) -> str:
    provenance, training = adapter.provenance, adapter.training
    generation = provenance.get("generation")
    example = ASK.format(
        template=provenance["prompt"]["template"],
        options=f", max_new_tokens={generation['max_new_tokens']}" if generation else "",
    )
    licences = _licences(adapter)
    card = ModelCard.from_template(
        _metadata(adapter, library_name, set(licences.values())),
        template_str=TEMPLATE.read_text(encoding="utf-8"),
        dev_scores=_dev_scores(training),
        scores_here=SCORES_HERE,
        facts=_table(("", ""), _facts(adapter).items()),
        plain_code=plain_code + example,
        limits="\n".join(f"- {text}" for text in [limit, *_limits(adapter, library_name)]),
        licences=_table(
            ("part", "name", "licence"),
            ((*part, licence or "not known here") for part, licence in licences.items()),
        ),
        **texts,
    )
    return str(card)


def _metadata(adapter: Adapter, library_name: str, licences: set[str | None]) -> ModelCardData:
    """Make what the hub reads: it takes bases and data sets by their ids only."""
    run = adapter.training.get("run", {})
    on_hub = [corpus_name(file) for file in _data_files(run) if file.startswith(PROTOCOL)]
    return ModelCardData(
        base_model=_base(adapter)[1],
        datasets=list(dict.fromkeys(on_hub)) or None,
        library_name=library_name,
        license=licences.pop() if len(licences) == 1 else None,
        metrics=list(METRICS.values()),
        pipeline_tag=TASK,
        tags=["lora", "t5"],
        adapter_version=run.get("run_id"),
    )


def _licences(adapter: Adapter) -> dict[tuple[str, str], str | None]:
    """Map the parts, by kind and name, to their licences; None where it is not known."""
    corpora = _corpora(adapter.training.get("run", {}))
    return {
        ("base", _base(adapter)[0]): _base_licence(adapter.provenance["model"]),
        **{("data", name): licence for name, licence in corpora.items()},
        **({} if corpora else {("data", "not recorded"): None}),
        ("code", "flan_qa_pipeline"): APACHE,
    }


def _limits(adapter: Adapter, library_name: str) -> list[str]:
    limits = ["It knows no other prompt than the one above."]
    if lengths := adapter.provenance.get("tokenization"):
        limits.append(
            f"It has read at most {lengths['max_source_length']} tokens at a time. "
            f"flan_qa_pipeline reads longer contexts in windows; {library_name} does not."
        )
    if EMBEDDED_CORPUS in _corpora(adapter.training.get("run", {})):
        limits.append("The starter corpus is small: its training file has 2,666 questions.")
    return limits


def _base(adapter: Adapter) -> tuple[str, str | None]:
    """Return the name of the base, and its id if it lies on the hub: only that has a revision."""
    model = adapter.provenance["model"]
    return base_name(model["name"]), model["name"] if model.get("revision") else None


def _precision(adapter: Adapter) -> str:
    model = adapter.provenance["model"]
    if not model["load_in_4bit"]:
        return "weights that are not quantized"
    skipped = ", ".join(model["skip_modules"])
    return f"weights in 4 bits ({model['quant_type'].upper()})" + (
        f", except {skipped}" if skipped else ""
    )


def _corpora(run: Mapping[str, Any]) -> dict[str, str | None]:
    """Map the corpora of a training, as far as its record names them, to their licences."""
    if recognized := run.get("corpora", {}).get("train"):
        return {recognized: APACHE}
    return {corpus_name(file): _data_licence(file) for file in _data_files(run)}


def _data_files(run: Mapping[str, Any]) -> list[str]:
    """Return the files whose questions the training read, as far as its record names them."""
    data = run.get("parameters", {}).get("data")
    if not data:
        return []
    pooled = data.get("validation_fraction") is not None
    return [data["train_file"], *([data["validation_file"]] if pooled else [])]


def _base_licence(model: Mapping[str, Any]) -> str | None:
    if model["name"].startswith(FLAN_T5):
        return APACHE
    card = Path(model["name"]) / CARD
    try:
        licence: str | None = ModelCard(card.read_text(encoding="utf-8")).data.get("license")
        return licence
    except (OSError, ValueError, TypeError, yaml.YAMLError):
        return None


def _data_licence(file: str) -> str | None:
    return APACHE if file.startswith(OWN_DATA) else DATA_LICENCES.get(corpus_name(file))


def _dev_scores(training: Mapping[str, Any]) -> str:
    found = kept_evaluation(training)
    if found is None:
        return "The training answered no dev questions with these weights."
    scores = f"Dev questions: EM {found['eval_exact']:.2f}, F1 {found['eval_f1']:.2f}."
    if training.get("best_step") is None:
        return scores
    return f"{scores} They chose the step of these weights, so this is no test."


def _scores(evaluation: Mapping[str, Any]) -> str:
    before, after = evaluation["labels"]
    table = pd.DataFrame(evaluation["scores"])
    return (
        f"Validation questions of {evaluation['corpus']}, in percent: the base ({before}), this "
        f"model ({after}) and the gain, with its {evaluation['confidence']:.0%} paired bootstrap "
        "interval over the questions.\n\n"
        f"{scores_markdown(table, (before, after), evaluation['confidence']).rstrip()}"
    )


def _eval_results(evaluation: Mapping[str, Any]) -> list[EvalResult]:
    _, after = evaluation["labels"]
    return [
        EvalResult(
            task_type=TASK,
            dataset_type=evaluation["corpus"],
            dataset_name=evaluation["corpus"],
            dataset_split="validation",
            metric_type=metric_type,
            metric_name=f"{metric} ({row['subset']}, {row['questions']} questions)",
            metric_value=round(row[f"{metric} {after}"], 2),
        )
        for row in evaluation["scores"]
        for metric, metric_type in METRICS.items()
    ]


def _facts(adapter: Adapter) -> dict[str, str]:
    """List what the model was made of and by which parameters."""
    training, config, prompt = adapter.training, adapter.config, adapter.provenance["prompt"]
    run = training.get("run", {})
    given = run.get("parameters", {}).get("training", {})
    base, base_id = _base(adapter)
    revision = f" at {adapter.provenance['model']['revision']}" if base_id else ""
    variants = [name for name in ("use_rslora", "use_dora") if getattr(config, name)]
    facts = {
        "base": f"{base}{revision}, {_precision(adapter)}",
        "prompt": f"`{prompt['template']}`",
        "answer where there is none": f"`{prompt['abstention']}`",
        "LoRA": f"rank {config.r}, alpha {config.lora_alpha}, dropout {config.lora_dropout}, on "
        + ", ".join([*sorted(config.target_modules), *variants]),
        "training data": ", ".join(_corpora(run)),
        "steps": str(training.get("steps", "")),
        "step of these weights": str(training.get("best_step") or ""),
        "adapter version": str(run.get("run_id") or ""),
        "packages": ", ".join(
            f"{name} {run['versions'][name]}"
            for name in ("torch", "transformers", "peft", "bitsandbytes")
            if name in run.get("versions", {})
        ),
    }
    chosen = ("num_train_epochs", "per_device_train_batch_size", "learning_rate", "seed")
    facts |= {name: str(given[name]) for name in chosen if name in given}
    return {name: fact for name, fact in facts.items() if fact}


def _table(header: tuple[str, ...], rows: Any) -> str:
    lines = [header, ("---",) * len(header), *rows]
    return "\n".join(
        f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines
    )
