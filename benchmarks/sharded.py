"""A base spread over GPUs (distributed.fsdp): python benchmarks/sharded.py OUTPUT_FOLDER

Loads a FLAN-T5 shape that is stored in NF4 with random weights, trains it some steps, saves the
adapter, loads it, and answers questions, by this project's nodes: in one process, which holds the
whole base, and in several, which share it with FSDP. Every window has the full length. A process
trains on its own batch, so the effective batch grows with their number. Memory is the largest
peak of all processes. Without a GPU the processes compute on the CPU and exchange over gloo.
"""

import argparse
import logging
import statistics
import time
from pathlib import Path
from typing import Any, ClassVar

import torch
from accelerate import PartialState
from harness import (
    CUDA,
    SHAPES,
    free,
    load_parameters,
    run_node,
    silence,
    write_packed_snapshot,
)
from turns import (
    await_turn,
    end_turn,
    measure_in_turns,
    numbers,
    powers_of_two,
    read_questions,
    timed,
    write_questions,
)
from usual_recipe import MODELING, NEW_TOKENS, REPORTING, random_questions

from flan_qa_pipeline.config.parameters import Parameters
from flan_qa_pipeline.datasets.adapter import AdapterDataset
from flan_qa_pipeline.models.device import peak_memory
from flan_qa_pipeline.models.exchange import gather_json
from flan_qa_pipeline.training import trainer
from flan_qa_pipeline.training.step_timer import StepTimer

MB = 10**6
WARM_UP = 2  # steps left out of the seconds a step


class EachStep(StepTimer):
    """Notes when each step ends, on the GPU, too."""

    ends: ClassVar[list[float]] = []

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        super().on_step_end(*args, **kwargs)
        if CUDA:
            torch.cuda.synchronize()
        self.ends.append(time.perf_counter())


def parameters_for(options: argparse.Namespace, fsdp: bool) -> Parameters:
    """Read the parameters of conf/squad for some steps on packed weights."""
    return load_parameters(
        "squad",
        {
            "model": {"name": str(options.work / "snapshot"), "dequantize": False},
            "lora": {"target_modules": options.target_modules},
            "generation": {"max_new_tokens": NEW_TOKENS},
            "distributed": {"fsdp": fsdp},
            "training": {
                "output_dir": str(options.work / "checkpoints"),
                "logging_dir": str(options.work / "tensorboard"),
                "max_steps": options.steps,
                "per_device_train_batch_size": options.batch_size,
                "gradient_accumulation_steps": 1,
                "auto_find_batch_size": False,
                "optim": "adamw_torch",
                "eval_strategy": "no",
                "save_strategy": "no",
                "load_best_model_at_end": False,
                "logging_steps": 1,
            },
        },
    )


def on_gpu(name: str) -> float | None:
    """Return a figure of the GPU's memory in MB, the largest of all processes."""
    return max(gather_json(getattr(torch.cuda, name)())) / MB if CUDA else None


def work(options: argparse.Namespace) -> None:
    """Load, train, save and answer as one of the processes; the first one writes the figures."""
    process = PartialState(cpu=not CUDA)
    await_turn(options)
    if process.is_main_process:
        logging.getLogger("flan_qa_pipeline").setLevel(logging.INFO)
    trainer.StepTimer = EachStep
    began = time.perf_counter()
    parameters = parameters_for(options, fsdp=process.num_processes > 1)
    data = read_questions(options.work)
    loading = timed(parameters, data, MODELING, "quantize_base_model")
    run_node(MODELING, parameters, data, "attach_lora")
    training = sum(
        timed(parameters, data, MODELING, name) for name in ("fingerprint_inputs", "train_adapter")
    )
    record = data["adapter"].training
    each = [end - start for start, end in zip(EachStep.ends, EachStep.ends[1:], strict=False)]
    found = {
        "load s": loading,
        "training node s": training,
        "s a step": statistics.median(each[WARM_UP - 1 :]),
        "training peak MB": on_gpu("max_memory_allocated"),
        "losses": [entry["loss"] for entry in record["log"] if "loss" in entry],
        "trainable parameters": record["trainable_parameters"],
        "held by all MB": record["weights_bytes"] / MB,
    }
    saved = AdapterDataset(filepath=str(options.work / f"adapter_{process.num_processes}"))
    if process.is_main_process:
        saved.save(data["adapter"])
    process.wait_for_everyone()
    data["adapter"] = saved.load()
    data["finetuned_model"] = data.pop("lora_model").eval()
    data.pop("base_model")
    if options.reload:
        del data["finetuned_model"]
        free()
        run_node(REPORTING, parameters, data, "load_finetuned_model")
    found["weights MB"] = on_gpu("memory_allocated")
    found["evaluation s"] = timed(parameters, data, REPORTING, "predict_finetuned")
    run_node(REPORTING, parameters, data, "score_finetuned")
    found |= {
        "questions scored": data["finetuned_scores"]["total"],
        "evaluation peak MB": on_gpu("max_memory_allocated"),
        "host peak MB": max(gather_json(peak_memory()["process"])) / MB,
        "whole": time.perf_counter() - began,
    }
    end_turn(options, found)


def rows_of(
    count: int, measured: dict[int, dict[str, Any]], options: argparse.Namespace
) -> list[dict[str, Any]]:
    """Return the row of the results in so many processes."""
    found = measured[count]
    samples = count * options.batch_size
    asked = options.questions + 8
    row = {
        "processes": count,
        "weights MB": found["weights MB"],
        "training peak MB": found["training peak MB"],
        "evaluation peak MB": found["evaluation peak MB"],
        "host peak MB": found["host peak MB"],
        "load s": found["load s"],
        "s a step": found["s a step"],
        "samples/s": samples / found["s a step"],
        "answers/s": asked / found["evaluation s"],
        "questions scored": found["questions scored"],
    }
    return [row]


def facts_of(results: list[dict[str, Any]], options: argparse.Namespace) -> dict[str, Any]:
    """Return what the results depend on."""
    return {
        "size": options.size,
        "batch size of a process": options.batch_size,
        "source tokens": options.source_tokens,
        "LoRA targets": options.target_modules,
    }


def parse_options() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("--processes", type=numbers, default=powers_of_two(), help="such as 1,2,4")
    parser.add_argument("--size", default="xl", choices=SHAPES)
    parser.add_argument("--batch-size", type=int, default=8, help="of a process")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--questions", type=int, default=56, help="answered")
    parser.add_argument("--source-tokens", type=int, default=512, help="of every window")
    parser.add_argument("--target-modules", default="q+v", help="of LoRA; all-linear, or names")
    parser.add_argument("--reload", action="store_true", help="load the base again to answer")
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def prepare(options: argparse.Namespace) -> None:
    """Write snapshot and questions for the largest number of processes."""
    write_packed_snapshot(options.size, options.work / "snapshot")
    free()
    data = random_questions(
        max(options.processes) * options.batch_size * options.steps,
        options.questions,
        options.source_tokens,
        options.source_tokens,
    )
    write_questions(data, options.work)


def main() -> None:
    """Measure in every number of processes and write the results."""
    options = parse_options()
    silence()
    if options.work:
        work(options)
    else:
        measure_in_turns(f"sharded_{options.size}", options, prepare, rows_of, facts_of)


if __name__ == "__main__":
    main()
