"""The embedded corpus and the small base model that `kedro run` works on without a network."""

import logging
import os
from typing import Any

import torch
from datasets import Dataset
from transformers import (
    DataCollatorForSeq2Seq,
    T5ForConditionalGeneration,
    T5Tokenizer,
    Trainer,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_callback import ProgressCallback

from flan_qa_pipeline.config.parameters import StarterParameters
from flan_qa_pipeline.data.squad import flatten, split_titles
from flan_qa_pipeline.models.device import multiplies_bfloat16
from flan_qa_pipeline.pretraining.pretraining import (
    ReadingExamples,
    build_reader,
    parameter_groups,
    train_unigram_tokenizer,
)
from flan_qa_pipeline.pretraining.starter_corpus import generate_corpus
from flan_qa_pipeline.training.progress import LossInProgressBar

logger = logging.getLogger(__name__)


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
                "title": record["title"],
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
    articles: dict[str, list[str]] = {}
    for row in (*questions, *sample):
        articles.setdefault(row["title"], []).extend((row["context"], row["question"]))
    documents = [" ".join(texts) for texts in articles.values()]
    prompts = starter.pretraining.prompts * (len(documents) // len(starter.pretraining.prompts))
    return train_unigram_tokenizer([*documents, *prompts], starter.architecture.vocab_size)


def build_pretraining_examples(
    pretraining_corpus: Dataset, tokenizer: T5Tokenizer, starter: StarterParameters
) -> ReadingExamples:
    """Line up the curriculum: lookups from easy to hard, then the corpus, cropped and whole."""
    return ReadingExamples(pretraining_corpus, tokenizer, starter.pretraining)


def pretrain_base_model(
    examples: ReadingExamples, tokenizer: T5Tokenizer, starter: StarterParameters
) -> T5ForConditionalGeneration:
    """Train a small T5 v1.1 from scratch, once through the curriculum in its order."""
    pretraining = starter.pretraining
    set_seed(pretraining.seed)
    model = build_reader(tokenizer, **starter.architecture.model_dump())
    native = multiplies_bfloat16()
    logger.info("Pretraining computes in %s.", "bfloat16 (autocast)" if native else "float32")
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
            bf16=native,
            train_sampling_strategy="sequential",
            dataloader_num_workers=min(os.cpu_count() or 1, 16) - 1,
            dataloader_pin_memory=torch.cuda.is_available(),
            logging_steps=50,
            logging_nan_inf_filter=False,  # it waits for the device at every step
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
    trainer.add_callback(LossInProgressBar("Pretrain the base model"))
    trainer.train()
    model.config.use_cache = True
    return model.to("cpu", torch.bfloat16)
