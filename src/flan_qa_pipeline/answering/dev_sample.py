"""A sample of the dev questions, answered and scored during training."""

from dataclasses import dataclass
from typing import Any

import pandas as pd
from datasets import Dataset
from peft import PeftModel
from transformers import PreTrainedTokenizerBase

from flan_qa_pipeline.answering.window_answers import answer_windows
from flan_qa_pipeline.config.parameters import (
    GenerationParameters,
    PromptParameters,
    TrainingParameters,
)
from flan_qa_pipeline.data.squad import gold_texts, one_line
from flan_qa_pipeline.evaluation.scoring import score_predictions

ANSWERS_SHOWN = 20


@dataclass(frozen=True)
class DevSample:
    """Questions, and their tokenized windows.

    Attributes:
        questions: SQuAD rows with `id`, `question` and `answers`.
        windows: columns `id` (of the question), `window` and `input_ids`.
    """

    questions: list[dict[str, Any]]
    windows: Dataset


def draw_sample(questions: Dataset, windows: Dataset, training: TrainingParameters) -> DevSample:
    """Draw `training.eval_questions` of the questions at random, or all if there are fewer."""
    size = min(training.eval_questions, len(questions))
    drawn = questions.shuffle(seed=training.seed).select(range(size))
    ids = set(drawn["id"][:])
    kept = [i for i, id_ in enumerate(windows["id"][:]) if id_ in ids]
    return DevSample(list(drawn), windows.select(kept))


def answer_sample(
    qa_model: PeftModel,
    *,
    tokenizer: PreTrainedTokenizerBase,
    sample: DevSample,
    prompt: PromptParameters,
    generation: GenerationParameters,
) -> dict[str, float | str]:
    """Answer and score sampled questions, as the report does for all.

    Returns:
        `exact` and `f1` in percent, and `answers`, a Markdown table of the first questions with
        their gold answers and the model's.
    """
    questions = sample.questions
    answers = answer_windows(qa_model, tokenizer, sample.windows, prompt, generation)
    texts = {id_: merged.generated.text for id_, merged in answers.items()}
    golds = gold_texts(questions)
    scores = score_predictions(texts, golds)
    table = pd.DataFrame(
        {
            "question": [question["question"] for question in questions],
            "gold": [one_line(golds[question["id"]]) for question in questions],
            "answer": [texts[question["id"]] for question in questions],
        }
    ).head(ANSWERS_SHOWN)
    return {
        "exact": scores["exact"],
        "f1": scores["f1"],
        "answers": table.map(lambda text: text.replace("|", "\\|")).to_markdown(
            index=False, disable_numparse=True
        ),
    }
