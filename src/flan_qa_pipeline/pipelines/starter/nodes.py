"""The embedded corpus and the small base model that `kedro run` works on without a network."""

import random
from typing import Any

import torch
from datasets import Dataset, Features, List, Value
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
    corrupt_spans,
    crop_context,
    initialize_reader,
    lookup_example,
    scaled_parameter_groups,
    train_unigram_tokenizer,
)
from flan_qa_pipeline.progress import LossInProgressBar
from flan_qa_pipeline.squad import flatten, split_titles
from flan_qa_pipeline.starter_corpus import generate_corpus

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
    return Dataset.from_list(
        [
            {
                "context": record["context"],
                "question": record["question"],
                "answer": record["answers"]["text"][0],
            }
            for record in flatten(corpus, "the pretraining corpus")
        ]
    )


def train_starter_tokenizer(
    pretraining_corpus: Dataset, starter_train: dict[str, Any], starter: StarterParameters
) -> T5Tokenizer:
    """Train the unigram tokenizer on equal parts of both corpora and on the pretraining prompts."""
    questions = list(flatten(starter_train, "the starter corpus"))
    sample = pretraining_corpus.select(range(min(len(questions), len(pretraining_corpus))))
    rows = [*questions, *sample]
    prompts = starter.pretraining.prompts
    prompts = prompts * (len(rows) // len(prompts))
    texts = [*dict.fromkeys(row["context"] for row in rows), *(row["question"] for row in rows)]
    return train_unigram_tokenizer([*texts, *prompts], starter.architecture.vocab_size)


def build_pretraining_examples(
    pretraining_corpus: Dataset, tokenizer: T5Tokenizer, starter: StarterParameters
) -> Dataset:
    """Line up the curriculum: lookups from easy to hard, then the corpus, cropped and whole."""
    pretraining = starter.pretraining
    rng = random.Random(pretraining.seed)  # noqa: S311
    pieces = sorted(piece for piece in tokenizer.get_vocab() if piece.removeprefix("▁").isalnum())
    stages = []
    for level, stage in enumerate(pretraining.lookups):
        rows = []
        for _ in range(stage.examples):
            easier = rng.choice(pretraining.lookups[: level + 1])
            shape = (stage if rng.random() < 0.7 else easier).model_dump(exclude={"examples"})
            context, question, answer = lookup_example(pieces, rng, **shape)
            prompt = rng.choice(pretraining.lookup_prompts)
            rows.append((prompt.format(question=question, context=context), answer))
        stages.append(rows)
    for examples, sentences in (
        (pretraining.cropped_examples, 2),
        (pretraining.whole_examples, None),
    ):
        rows = []
        for index in rng.sample(range(len(pretraining_corpus)), examples):
            row = pretraining_corpus[index]
            context = row["context"]
            if sentences:
                context = crop_context(context, row["answer"], sentences)
            prompt = rng.choice(pretraining.prompts)
            rows.append((prompt.format(question=row["question"], context=context), row["answer"]))
        stages.append(rows)
    batches = []
    for rows in stages:
        batches += _batch_by_length(_encode(rows, tokenizer, pretraining, rng), pretraining, rng)
    examples = [example for batch in batches for example in batch]
    return Dataset.from_list(examples, features=EXAMPLE_FEATURES)


def _encode(
    rows: list[tuple[str, str]],
    tokenizer: T5Tokenizer,
    pretraining: PretrainingParameters,
    rng: random.Random,
) -> list[dict[str, list[int]]]:
    """Tokenize; a share of the sources becomes a span-corruption example instead."""
    sentinel_ids = tokenizer.convert_tokens_to_ids([f"<extra_id_{i}>" for i in range(SENTINELS)])
    end = [tokenizer.eos_token_id]
    sources, targets = (
        tokenizer(list(texts), add_special_tokens=False)["input_ids"]
        for texts in zip(*rows, strict=True)
    )
    examples = []
    for source, target in zip(sources, targets, strict=True):
        if rng.random() < pretraining.span_corruption_fraction:
            source, target = corrupt_spans(
                source,
                sentinel_ids,
                rng,
                noise_density=pretraining.noise_density,
                mean_span_length=pretraining.mean_span_length,
            )
        examples.append({"input_ids": source + end, "labels": target + end})
    return examples


def _batch_by_length(
    examples: list[dict[str, list[int]]], pretraining: PretrainingParameters, rng: random.Random
) -> list[list[dict[str, list[int]]]]:
    """Group examples of similar length into batches, in random order."""
    size = pretraining.per_device_train_batch_size
    batches = []
    for start in range(0, len(examples), 50 * size):
        chunk = sorted(examples[start : start + 50 * size], key=lambda e: len(e["input_ids"]))
        part = [chunk[i : i + size] for i in range(0, len(chunk), size)]
        rng.shuffle(part)
        batches += part
    return batches


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
                    "learning_rate",
                    "warmup_steps",
                    "weight_decay",
                    "seed",
                }
            ),
            num_train_epochs=1,
            lr_scheduler_type="cosine",
            bf16=torch.cuda.is_available(),
            train_sampling_strategy="sequential",
            dataloader_num_workers=4 if torch.cuda.is_available() else 0,
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
                "params": scaled_parameter_groups(model, pretraining.learning_rate),
                "betas": (0.9, 0.98),
                "weight_decay": pretraining.weight_decay,
                "fused": True,
            },
        ),
    )
    trainer.remove_callback(ProgressCallback)
    trainer.add_callback(LossInProgressBar())
    trainer.train()
    return model.cpu()
