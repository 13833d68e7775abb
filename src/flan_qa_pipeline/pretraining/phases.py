"""A phase of pretraining, from encoded text and questions to trained weights."""

from pathlib import Path

import pandas as pd
from accelerate import PartialState
from datasets import Dataset, DatasetDict
from transformers import PreTrainedTokenizerBase, T5ForConditionalGeneration

from flan_qa_pipeline.config.parameters import PhaseParameters, PretrainParameters
from flan_qa_pipeline.data.fingerprints import (
    fingerprint_json,
    fingerprint_rows,
    fingerprint_splits,
    fingerprint_weights,
)
from flan_qa_pipeline.pretraining.batches import BatchSource
from flan_qa_pipeline.pretraining.encoding import EncodedQuestions, EncodedText, sentinel_ids
from flan_qa_pipeline.pretraining.objectives import Heads, Objectives
from flan_qa_pipeline.pretraining.reading_tasks import ReadingTasks
from flan_qa_pipeline.pretraining.training_steps import Phase

Trained = tuple[T5ForConditionalGeneration, Heads, pd.DataFrame]


def train_phase(
    model: T5ForConditionalGeneration,
    objectives: Objectives,
    phase: PhaseParameters,
    tokenizer: PreTrainedTokenizerBase,
    text: Dataset,
    questions: DatasetDict,
    generated: Dataset | None,
    pretrain: PretrainParameters,
) -> Trained:
    """Train a model, and the parts of its auxiliary losses, through the stages of a phase.

    The folder of its checkpoints is named by all that decides the weights, so that only the same
    training resumes from them.

    Args:
        model: In float32, on any device.
        objectives: The parts of the auxiliary losses, likewise.
        phase: Learning rates and stages.
        tokenizer: The model's tokenizer.
        text: Rows of `encode_paragraphs`.
        questions: Splits of `encode_by_article`.
        generated: Rows of `generate_questions`.
        pretrain: Everything else.

    Returns:
        The model, the weights of the parts by name, both on the CPU, and a table of the log.

    Raises:
        InputError: Text or questions are too few for a stage, the loss is not finite, a checkpoint
            is damaged, or `max_minutes` are over.
    """
    state = PartialState()
    tasks = ReadingTasks.of(tokenizer, pretrain)
    encoded = EncodedText.of(text)
    asked = EncodedQuestions.of(questions, tasks, generated)
    sources = [
        BatchSource(
            encoded,
            asked,
            tasks,
            pretrain.batches,
            stage.mixture,
            sentinels=sentinel_ids(tokenizer),
            seed=pretrain.seed + number,
            rank=state.process_index,
        )
        for number, stage in enumerate(phase.stages)
    ]
    made_with = {
        "phase": phase.model_dump(exclude_defaults=True),
        "settings": pretrain.model_dump(
            include={"prompts", "asking_prompts", "batches", "dropout", "seed"}
        ),
        "processes": state.num_processes,
        "start": fingerprint_weights(model),
        "tokenizer": tokenizer.get_vocab(),
        "text": fingerprint_rows(text),
        "questions": fingerprint_splits(questions),
        "generated": fingerprint_rows(generated) if generated is not None else None,
    }
    if parts := [name for name, _ in objectives.named_children()]:
        made_with["objectives"] = pretrain.model_dump(include=set(parts))
        made_with["heads"] = fingerprint_weights(objectives)
    folder = Path(pretrain.checkpoint_dir) / fingerprint_json(made_with)[:16]
    training = Phase(
        model.to(state.device), objectives.to(state.device), phase, pretrain, sources, folder
    )
    rows = training.run()
    return model.to("cpu"), objectives.cpu().weights(), pd.DataFrame(rows)
