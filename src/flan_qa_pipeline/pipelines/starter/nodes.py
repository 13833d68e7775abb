"""The embedded corpus and the small base model that `kedro run` works on without a network."""

import logging
import os
import random
from functools import partial
from typing import Any

import pyarrow.compute as pc
import torch
from datasets import Dataset, Features, List, Value, concatenate_datasets
from transformers import (
    DataCollatorForSeq2Seq,
    T5Config,
    T5ForConditionalGeneration,
    T5Tokenizer,
    Trainer,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_callback import ProgressCallback

from flan_qa_pipeline.parameters import PretrainingParameters, StarterParameters
from flan_qa_pipeline.pretraining import (
    SENTINELS,
    PieceRenamer,
    corrupt_spans,
    crop_context,
    initialize_reader,
    lookup_example,
    lookup_words,
    parameter_groups,
    train_unigram_tokenizer,
)
from flan_qa_pipeline.progress import LossInProgressBar
from flan_qa_pipeline.squad import flatten, split_titles
from flan_qa_pipeline.starter_corpus import generate_corpus

logger = logging.getLogger(__name__)

COUNTED = 20_000

EXAMPLE_FEATURES = Features({"input_ids": List(Value("int32")), "labels": List(Value("int32"))})


def generate_starter_corpus(
    kinds: dict[str, Any], starter: StarterParameters
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Generate the starter corpus and split its articles into train and validation."""
    corpus = generate_corpus(kinds, **starter.corpus.model_dump())
    train_titles = split_titles(
        (article["title"] for article in corpus["data"]),
        starter.train_fraction,
        starter.corpus.seed,
    )
    train, validation = (
        corpus | {"data": [a for a in corpus["data"] if (a["title"] in train_titles) is is_train]}
        for is_train in (True, False)
    )
    return train, validation


def generate_pretraining_corpus(kinds: dict[str, Any], starter: StarterParameters) -> Dataset:
    """Generate the pretraining corpus: other topics, words and phrasings, all answerable."""
    corpus = generate_corpus(kinds, **starter.pretraining_corpus.model_dump())
    rows = [
        {
            "title": record["title"],
            "context": record["context"],
            "question": record["question"],
            "answer": record["answers"]["text"][0],
        }
        for record in flatten(corpus, "the pretraining corpus")
    ]
    values: dict[str, list[str]] = {}
    for row in rows:
        values.setdefault(row["context"], []).append(row["answer"])
    return Dataset.from_list([row | {"values": values[row["context"]]} for row in rows])


def train_starter_tokenizer(
    pretraining_corpus: Dataset, starter_train: dict[str, Any], starter: StarterParameters
) -> T5Tokenizer:
    """Train the unigram tokenizer on equal parts of both corpora and on the pretraining prompts."""
    questions = list(flatten(starter_train, "the starter corpus"))
    sample = pretraining_corpus.select(range(min(len(questions), len(pretraining_corpus))))
    articles: dict[str, list[str]] = {}
    for row in (*questions, *sample):
        articles.setdefault(row["title"], []).extend((row["context"], row["question"]))
    documents = [" ".join(texts) for texts in articles.values()]
    prompts = starter.pretraining.prompts * (len(documents) // len(starter.pretraining.prompts))
    return train_unigram_tokenizer([*documents, *prompts], starter.architecture.vocab_size)


def build_pretraining_examples(
    pretraining_corpus: Dataset, tokenizer: T5Tokenizer, starter: StarterParameters
) -> Dataset:
    """Line up the curriculum: lookups from easy to hard, then the corpus, cropped and whole."""
    pretraining = starter.pretraining
    rng = random.Random(pretraining.seed)  # noqa: S311
    vocabulary = tokenizer.get_vocab().items()
    pieces = sorted(i for piece, i in vocabulary if piece.removeprefix("▁").isalnum())
    words = lookup_words(tokenizer)
    end = [tokenizer.eos_token_id]
    stages = []
    for stage in pretraining.lookups:
        examples = []
        for _ in range(stage.examples):
            context, question, answer = lookup_example(
                pieces, words, rng, **stage.model_dump(exclude={"examples"})
            )
            source = context + question if rng.random() < 0.5 else question + context
            examples.append({"input_ids": source + end, "labels": answer + end})
        stages.append(Dataset.from_list(examples, features=EXAMPLE_FEATURES))
    sample = pretraining_corpus.select(range(min(COUNTED, len(pretraining_corpus))))
    renamer = PieceRenamer(tokenizer, sample.unique("context"))
    for n_examples, sentences in (
        (pretraining.cropped_examples, 2),
        (pretraining.whole_examples, None),
    ):
        drawn = rng.choices(range(len(pretraining_corpus)), k=n_examples)
        stages.append(
            pretraining_corpus.select(drawn).map(
                partial(
                    _encode,
                    tokenizer=tokenizer,
                    renamer=renamer,
                    pretraining=pretraining,
                    sentences=sentences,
                    seed=rng.random(),
                ),
                batched=True,
                with_indices=True,
                remove_columns=pretraining_corpus.column_names,
                features=EXAMPLE_FEATURES,
                num_proc=os.cpu_count(),
                desc=f"Encoding {'cropped' if sentences else 'whole'} contexts",
            )
        )
    size = pretraining.per_device_train_batch_size
    return concatenate_datasets(
        [stage.select(_batches_by_length(stage, size, rng)) for stage in stages]
    )


def _encode(
    rows: dict[str, list[Any]],
    indices: list[int],
    *,
    tokenizer: T5Tokenizer,
    renamer: PieceRenamer,
    pretraining: PretrainingParameters,
    sentences: int | None,
    seed: float,
) -> dict[str, list[list[int]]]:
    """Put rows into prompts and tokenize; some are renamed, some become span corruption."""
    rng = random.Random(f"{seed} {indices[0]}")  # noqa: S311
    if sentences:
        contexts = [
            crop_context(context, answer, sentences, rng)
            for context, answer in zip(rows["context"], rows["answer"], strict=True)
        ]
    else:
        contexts = rows["context"]
    prompts = [
        rng.choice(pretraining.prompts).format(question=question, context=context)
        for question, context in zip(rows["question"], contexts, strict=True)
    ]

    def ids(texts: list[str]) -> list[list[int]]:
        return tokenizer(texts, add_special_tokens=False)["input_ids"]

    sources, targets = ids(prompts), ids(rows["answer"])
    parts = zip(ids(contexts), ids(rows["question"]), map(ids, rows["values"]), strict=True)
    for i, (context, question, values) in enumerate(parts):
        if rng.random() < pretraining.renamed_fraction:
            new = renamer.draw(context, question, values, rng)
            sources[i] = [new.get(token, token) for token in sources[i]]
            targets[i] = [new.get(token, token) for token in targets[i]]
    sentinel_ids = tokenizer.convert_tokens_to_ids([f"<extra_id_{i}>" for i in range(SENTINELS)])
    for i, source in enumerate(sources):
        if rng.random() < pretraining.span_corruption_fraction:
            sources[i], targets[i] = corrupt_spans(
                source,
                sentinel_ids,
                rng,
                noise_density=pretraining.noise_density,
                mean_span_length=pretraining.mean_span_length,
            )
    end = [tokenizer.eos_token_id]
    return {
        "input_ids": [source + end for source in sources],
        "labels": [target + end for target in targets],
    }


def _batches_by_length(examples: Dataset, size: int, rng: random.Random) -> list[int]:
    """Order the examples so that batches of `size` hold similar lengths and come at random."""
    lengths = pc.list_value_length(examples.data.column("input_ids")).to_pylist()
    batches = []
    for start in range(0, len(examples), 50 * size):
        chunk = sorted(range(start, min(start + 50 * size, len(examples))), key=lengths.__getitem__)
        part = [chunk[i : i + size] for i in range(0, len(chunk), size)]
        rng.shuffle(part)
        batches += part
    return [i for batch in batches for i in batch]


def pretrain_base_model(
    examples: Dataset, tokenizer: T5Tokenizer, starter: StarterParameters
) -> T5ForConditionalGeneration:
    """Train a small T5 v1.1 from scratch, once through the curriculum in its order."""
    architecture, pretraining = starter.architecture, starter.pretraining
    set_seed(pretraining.seed)
    model = T5ForConditionalGeneration(
        T5Config(
            **architecture.model_dump(),
            feed_forward_proj="gated-gelu",
            tie_word_embeddings=False,
            dropout_rate=0.0,
            decoder_start_token_id=tokenizer.pad_token_id,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )
    initialize_reader(model)
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            **pretraining.model_dump(
                include={
                    "output_dir",
                    "per_device_train_batch_size",
                    "warmup_steps",
                    "seed",
                }
            ),
            num_train_epochs=1,
            lr_scheduler_type="cosine",
            use_cpu=not torch.cuda.is_available(),
            bf16=_multiplies_bfloat16(),
            train_sampling_strategy="sequential",
            dataloader_num_workers=8 if torch.cuda.is_available() else 0,
            dataloader_pin_memory=torch.cuda.is_available(),
            logging_steps=50,
            save_strategy="no",
            report_to="none",
        ),
        train_dataset=examples,
        processing_class=tokenizer,
        data_collator=DataCollatorForSeq2Seq(tokenizer, model=model, pad_to_multiple_of=8),
        optimizer_cls_and_kwargs=(
            torch.optim.AdamW,
            {
                "params": parameter_groups(
                    model, pretraining.learning_rate, pretraining.embedding_learning_rate
                ),
                "betas": (0.9, 0.98),
                "weight_decay": 0.0,
                "fused": True,
            },
        ),
    )
    trainer.remove_callback(ProgressCallback)
    trainer.add_callback(LossInProgressBar())
    trainer.train()
    model.config.use_cache = True
    return model.to("cpu", torch.bfloat16)


def _multiplies_bfloat16() -> bool:
    """Whether this device multiplies bfloat16 matrices natively; logs what it means."""
    if torch.cuda.is_available():
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = torch.cpu._is_avx512_bf16_supported()
    logger.info("Pretraining computes in %s.", "bfloat16 (autocast)" if native else "float32")
    return native
