"""Real English at a small size: the first articles of the English corpus."""

import json
import re
from pathlib import Path

from transformers import T5Tokenizer

from flan_qa_pipeline.config.parameters import PretrainParameters
from flan_qa_pipeline.evaluation.subject import question_id
from flan_qa_pipeline.pretraining.encoding import train_sentencepiece

ENGLISH = Path(__file__).resolve().parents[1] / "data/01_raw/starter_train.json"


def read_english(articles: int) -> list[dict]:
    """The first articles of the English corpus, in SQuAD's schema."""
    return json.loads(ENGLISH.read_text(encoding="utf-8"))["data"][:articles]


def read_short_english(articles: int) -> list[dict]:
    """The first articles, cut to two or three paragraphs of three or four questions.

    A paragraph ends with the sentence that answers its second question. One or two of its questions
    have no answer.
    """
    return [
        {
            "title": article["title"],
            "paragraphs": [
                shorten(article["title"], i, paragraph, n_impossible=1 + (number + i) % 2)
                for i, paragraph in enumerate(article["paragraphs"][: 2 + number % 2])
            ],
        }
        for number, article in enumerate(read_english(articles))
    ]


def shorten(title: str, number: int, paragraph: dict, *, n_impossible: int) -> dict:
    context = paragraph["context"]
    ends = [match.end() for match in re.finditer(r"[.!?](?= |$)", context)]
    last_words = sorted(
        (max(a["answer_start"] + len(a["text"]) for a in qa["answers"]), i)
        for i, qa in enumerate(paragraph["qas"])
        if qa["answers"]
    )[:2]
    impossible = [i for i, qa in enumerate(paragraph["qas"]) if not qa["answers"]][:n_impossible]
    kept = sorted([i for _, i in last_words] + impossible)
    qas = [paragraph["qas"][i] for i in kept]
    return {
        "context": context[: next(end for end in ends if end >= last_words[-1][0])],
        "qas": [
            qa | {"id": question_id(title, number, i, qa["question"])} for i, qa in enumerate(qas)
        ],
    }


def write_english(root: Path, articles: int) -> None:
    """Write a project's questions on the first articles, and their contexts as text."""
    found = read_english(articles)
    (root / "data/01_raw/text").mkdir(parents=True)
    questions = json.dumps({"version": "v2.0", "data": found})
    (root / "data/01_raw/questions.json").write_text(questions, encoding="utf-8")
    with (root / "data/01_raw/text/one.jsonl").open("w", encoding="utf-8") as file:
        for number, article in enumerate(found):
            text = "\n".join(p["context"] for p in article["paragraphs"])
            file.write(json.dumps({"title": article["title"], "id": number, "text": text}) + "\n")


def short_pretraining(raw_parameters: dict) -> dict:
    """Parameters of a run of a few steps on what `write_english` writes."""
    pretrain = small(raw_parameters["pretrain"]).model_dump()
    pretrain["architecture"] |= {"vocab_size": 1504, "d_model": 64, "d_kv": 32, "d_ff": 128}
    pretrain["base"]["stages"] = [
        stage | {"mixture": stage["mixture"] | {"generated": 0.0}}
        for stage in pretrain["base"]["stages"]
    ]
    return {"data": {"train_file": "data/01_raw/questions.json"}, "pretrain": pretrain}


def train_small_tokenizer(articles: list[dict], vocab_size: int = 1500) -> T5Tokenizer:
    paragraphs = [p for article in articles for p in article["paragraphs"]]
    lines = [p["context"] for p in paragraphs]
    lines += [qa["question"] for p in paragraphs for qa in p["qas"]]
    return train_sentencepiece(lines, vocab_size)


def small(pretrain: dict, **changes) -> PretrainParameters:
    """The configured pretraining with a tiny model, few steps and small batches."""
    mixture = pretrain["base"]["stages"][0]["mixture"] | {"generated": 0, "denoising": 0.3}
    stage = {"steps": 4, "mixture": mixture}
    phase = pretrain["reader"] | {"warmup_steps": 1, "decay_steps": 2, "stages": [stage, stage]}
    sizes = {
        "vocab_size": 1500,
        "d_model": 32,
        "d_kv": 16,
        "d_ff": 64,
        "num_layers": 1,
        "num_decoder_layers": 1,
        "num_heads": 2,
    }
    return PretrainParameters.model_validate(
        pretrain
        | {
            "architecture": sizes,
            "text_share": 1.0,
            "batches": pretrain["batches"]
            | {
                "denoising": {"rows": 4, "source": 64, "target": 32},
                "short": {"rows": 4, "source": 256, "target": 40},
                "long": {"rows": 2, "source": 384, "target": 40},
            },
            "replaced_tokens": {"weight": 8.0, "share": 0.15, "d_model": 16, "num_layers": 1},
            "span_head": {"weight": 0.5},
            "reader": phase,
            "base": phase,
            "generation": pretrain["generation"] | {"answers": 8, "batch_size": 4, "min_f1": 0.0},
            "evaluation": {"questions": 6, "batch_size": 4},
            "logging_steps": 2,
            "save_steps": 3,
            "compile": False,  # takes longer than these tests on a GPU
        }
        | changes
    )
