"""A short training, alone or as one of several processes: python steps.py SPECIFICATION OUTPUT"""

import json
import sys
from pathlib import Path

import torch
from accelerate import PartialState
from datasets import Dataset
from safetensors.torch import save_file

from flan_qa_pipeline.config.parameters import LoraParameters, ModelParameters, TrainingParameters
from flan_qa_pipeline.models.adapter import adapter_weights
from flan_qa_pipeline.models.loading import load_base_model, load_tokenizer
from flan_qa_pipeline.pipelines.modeling.nodes import attach_lora
from flan_qa_pipeline.training import trainer as trainer_module
from flan_qa_pipeline.training.arguments import build_arguments
from flan_qa_pipeline.training.common_lengths import CommonLengths
from flan_qa_pipeline.training.trainer import build_trainer

STEPS, EFFECTIVE_BATCH = 4, 8


class EagerPasses:
    """Takes the place of graphs where there is no GPU."""

    def __init__(self, model, gradients, scale):
        self._model, self._gradients, self._scale = model, gradients, scale
        self.shapes = []

    def __call__(self, batch):
        self.shapes.append([batch[name].shape[1] for name in ("input_ids", "labels")])
        self._gradients.attach()
        loss = self._model(**batch).loss * self._scale
        loss.backward()
        return loss.detach()

    def clear(self):
        pass


def take_steps(specification, *, graphs):
    """Train on made windows; return the adapter's weights, the log and the shapes of batches."""
    model_parameters = ModelParameters(**specification["model"])
    training = TrainingParameters(**specification["training"])
    model = attach_lora(
        load_base_model(model_parameters), LoraParameters(**specification["lora"]), training
    )
    ids = torch.arange(20, 20 + STEPS * EFFECTIVE_BATCH)
    windows = Dataset.from_dict(
        {
            "input_ids": [[i] * (5 + i * 7 % 23) + [1] for i in ids.tolist()],
            "labels": [[i] * (1 + i * 5 % 11) + [1] for i in ids.tolist()],
        }
    )
    arguments = build_arguments(
        training, model, checkpoints=Path(training.output_dir), n_eval_windows=0
    )
    trainer = build_trainer(
        model,
        arguments,
        training,
        load_tokenizer(model_parameters),
        train_windows=windows,
        eval_windows=windows,
        answer_questions=None,
        log_folder=Path(training.logging_dir),
        cuda_graphs=graphs,
    )
    trainer.train_or_resume("never")
    assert trainer.model_wrapped is model
    logs = [[e["loss"], e["grad_norm"]] for e in trainer.state.log_history if "grad_norm" in e]
    shapes = getattr(trainer._graphed_passes, "shapes", None)
    return adapter_weights(model), logs, shapes


def main():
    """Train with and without graphs; the first process writes what came out."""
    specification, output = json.loads(sys.argv[1]), Path(sys.argv[2])
    process = PartialState(cpu=not torch.cuda.is_available())
    if not torch.cuda.is_available():
        trainer_module.GraphedPasses = EagerPasses
    logs, weights, shapes = {}, {}, {}
    for graphs in (False, True):
        found, logs[graphs], shapes[graphs] = take_steps(specification, graphs=graphs)
        weights |= {f"{graphs}.{name}": weight.cpu() for name, weight in found.items()}
    own = torch.full((2, 3 + process.process_index), 4, device=process.device)
    batch = {"input_ids": own, "attention_mask": own, "labels": own[:, :2]}
    common = {name: part.tolist() for name, part in CommonLengths(9)(batch).items()}
    (output / f"{process.process_index}.json").write_text(
        json.dumps({"logs": [logs[False], logs[True]], "shapes": shapes[True], "common": common})
    )
    save_file(weights, output / f"{process.process_index}.safetensors")
    process.destroy_process_group()


if __name__ == "__main__":
    main()
