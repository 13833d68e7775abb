"""One process against several, one GPU each: python benchmarks/scaling.py OUTPUT_FOLDER

Trains and evaluates FLAN-T5-base's shape with random weights and random tokens of SQuAD 2.0's
lengths (see usual_recipe.py), by this project's nodes, on the same windows in every number of
processes. A process trains on batches of 32, so the effective batch grows with their number.
Without a GPU the processes compute on the CPU and exchange over gloo.

Rows: the whole node of training; its steps alone, without evaluations, logs and checkpoints but
with the capture of CUDA graphs; the node of evaluation, the first and the second time. `ratio`
compares with one process. The row of SQuAD 2.0's whole training file is calculated: the node as
measured, and as many more or fewer steps as an epoch of the file needs. Each of them takes the
median of what a step took between two logs of the second half. Results from before November 28,
2026 give the mean of the second half without captures. Results from before November 27 spread the
extra time of the first steps over the file.
By Amdahl's law the ratio of n processes is 1 / (s + (1 - s) / n); `share that does not scale` is s.
An all-reduce of as many bytes as the gradients, and one of 256 MiB, are timed
alone; `bus GB/s` is of the large one, 2 (n - 1) / n times its bytes by its time, as NCCL's tests
count. The JSON also has the ratios of more processes by that law. `limit` is the ratio of steps
that take as long as one process's median, plus that all-reduce. The GPU computes during most of
`captures s`.
"""

import argparse
import gc
import logging
import time
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any, ClassVar, NamedTuple

import torch
from accelerate import PartialState
from harness import (
    CUDA,
    SHAPES,
    free,
    load_parameters,
    run_node,
    silence,
    write_snapshot,
)
from transformers import TrainerControl, TrainerState, TrainingArguments
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
from flan_qa_pipeline.training import trainer
from flan_qa_pipeline.training.cuda_graphs import GraphedPasses
from flan_qa_pipeline.training.step_timer import StepTimer

MIB = 2**20
LARGE = 256 * MIB
REPEATED = 20  # all-reduces timed
CALCULATED = (4, 8, 16)  # processes that Amdahl's law gives a ratio for
SQUAD_SAMPLES = 130319  # SQuAD 2.0's training file
WHOLE = "training node, all of SQuAD 2.0, calculated"
PARTS = ("training node", WHOLE, "training steps", "evaluation, first time", "evaluation")


def parameters_for(options: argparse.Namespace) -> Parameters:
    """Read the parameters of conf/squad, without evaluation during training."""
    return load_parameters(
        "squad",
        {
            "model": {"name": str(options.work / "snapshot")},
            "lora": {"target_modules": options.target_modules},
            "generation": {"max_new_tokens": NEW_TOKENS},
            "training": {
                "output_dir": str(options.work / "checkpoints"),
                "logging_dir": str(options.work / "tensorboard"),
                "num_train_epochs": options.epochs,
                "per_device_train_batch_size": options.batch_size,
                "gradient_accumulation_steps": 1,
                "auto_find_batch_size": False,
                "eval_strategy": "no",
                "save_strategy": "no",
                "load_best_model_at_end": False,
            },
        },
    )


class Mark(NamedTuple):
    """How far a training has come: its steps and their seconds."""

    step: int
    seconds: float


class Marks(StepTimer):
    """Notes a mark at every log, when the GPU has finished."""

    noted: ClassVar[list[Mark]] = []

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        super().on_step_end(args, state, control, **kwargs)
        if control.should_log:
            self.noted.append(Mark(state.global_step, self.seconds))


class TimedPasses(GraphedPasses):
    """Notes how long each capture of a graph takes the CPU, while the GPU computes."""

    seconds: ClassVar[list[float]] = []

    def _capture(self, batch: dict[str, torch.Tensor]) -> Any:
        started = time.perf_counter()
        captured = super()._capture(batch)
        self.seconds.append(time.perf_counter() - started)
        return captured


def seconds_a_step(whole: Mark) -> float:
    """Return the median seconds of a step between the second half's marks, or of all steps."""
    late = [mark for mark in Marks.noted if mark.step >= whole.step / 2]
    pairs = list(pairwise(late)) or [(Mark(0, 0.0), whole)]
    return median((end.seconds - start.seconds) / (end.step - start.step) for start, end in pairs)


def all_reduce_seconds(n_bytes: int) -> float:
    """Return the seconds of an all-reduce of float32 numbers; 0 in one process."""
    process = PartialState()
    if process.num_processes == 1:
        return 0.0
    tensor = torch.zeros(n_bytes // 4, device=process.device)
    for _ in range(3):
        torch.distributed.all_reduce(tensor)
    if CUDA:
        torch.cuda.synchronize()
    process.wait_for_everyone()
    started = time.perf_counter()
    for _ in range(REPEATED):
        torch.distributed.all_reduce(tensor)
    if CUDA:
        torch.cuda.synchronize()
    return (time.perf_counter() - started) / REPEATED


def work(options: argparse.Namespace) -> None:
    """Train and evaluate as one of the processes; the first one writes what it measured."""
    process = PartialState(cpu=not CUDA)
    await_turn(options)
    if process.is_main_process:
        logging.getLogger("flan_qa_pipeline").setLevel(logging.INFO)
    trainer.GraphedPasses, trainer.StepTimer = TimedPasses, Marks
    started = time.perf_counter()
    parameters = parameters_for(options)
    data = read_questions(options.work)
    gc.freeze()  # as the hooks of a run do
    for name in ("quantize_base_model", "attach_lora"):
        run_node(MODELING, parameters, data, name)
    training = sum(
        timed(parameters, data, MODELING, name) for name in ("fingerprint_inputs", "train_adapter")
    )
    record = data["adapter"].training
    data.pop("lora_model"), data.pop("base_model")
    run_node(REPORTING, parameters, data, "load_finetuned_model")
    first, second = (timed(parameters, data, REPORTING, "predict_finetuned") for _ in range(2))
    gradient_bytes = 4 * record["trainable_parameters"]
    large = min(LARGE, 8 * gradient_bytes) if not CUDA else LARGE
    found = {
        "training node": training,
        "training steps": record["seconds"],
        "evaluation, first time": first,
        "evaluation": second,
        "captures": len(TimedPasses.seconds),
        "captures s": sum(TimedPasses.seconds),
        "steps": record["steps"],
        "s a step": seconds_a_step(Mark(record["steps"], record["seconds"])),
        "losses": [entry["loss"] for entry in record["log"] if "loss" in entry],
        "gradient bytes": gradient_bytes,
        "all-reduce s": all_reduce_seconds(gradient_bytes),
        "large bytes": large,
        "large all-reduce s": all_reduce_seconds(large),
        "peak MiB": torch.cuda.max_memory_allocated() / MIB if CUDA else None,
        "whole": time.perf_counter() - started,
    }
    end_turn(options, found)


def rows_of(
    count: int, measured: dict[int, dict[str, Any]], options: argparse.Namespace
) -> list[dict[str, Any]]:
    """Return the rows of the results in so many processes, beside one process's."""
    found, one = measured[count], measured[1]
    found[WHOLE] = whole_file(count, found, options)
    rows = []
    for part in PARTS:
        trained = options.samples * options.epochs
        n = trained if part.startswith("training") else options.questions + 8
        n = SQUAD_SAMPLES if part == WHOLE else n
        ratio = one[part] / found[part]
        row = {"part": part, "processes": count, "n": n, "seconds": found[part]}
        row |= {"per second": n / found[part], "ratio": ratio}
        if count > 1:
            row["share that does not scale"] = (count / ratio - 1) / (count - 1)
        if count > 1 and part == "training steps":
            bus = 2 * (count - 1) / count * found["large bytes"] / found["large all-reduce s"]
            row |= {
                "all-reduce MB": found["gradient bytes"] / 1e6,
                "all-reduce ms": 1e3 * found["all-reduce s"],
                "bus GB/s": bus / 1e9,
                "captures s": found["captures s"],
                "limit": count * one["s a step"] / (one["s a step"] + found["all-reduce s"]),
            }
        rows.append(row)
    return rows


def expected(results: list[dict[str, Any]]) -> dict[str, dict[int, float]]:
    """Calculate the ratios of more processes from the last shares that do not scale."""
    shares = {
        row["part"]: row["share that does not scale"]
        for row in results
        if "share that does not scale" in row
    }
    return {
        part: {n: 1 / (share + (1 - share) / n) for n in CALCULATED}
        for part, share in shares.items()
    }


def facts_of(results: list[dict[str, Any]], options: argparse.Namespace) -> dict[str, Any]:
    """Return what the results depend on, and what follows from them."""
    return {
        "size": options.size,
        "batch size of a process": options.batch_size,
        "epochs": options.epochs,
        "LoRA targets": options.target_modules,
        "ratios by Amdahl's law": expected(results),
    }


def parse_options() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("output", type=Path)
    parser.add_argument(
        "--processes",
        type=numbers,
        default=powers_of_two(),
        help="such as 1,2,4; default: powers of two, all GPUs",
    )
    parser.add_argument("--size", default="base", choices=SHAPES)
    parser.add_argument("--batch-size", type=int, default=32, help="of a process")
    parser.add_argument("--samples", type=int, default=65536, help="trained on")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--questions", type=int, default=23746, help="answered")
    parser.add_argument("--target-modules", default="q+v", help="of LoRA; all-linear, or names")
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.processes = sorted({1, *options.processes})
    return options


def whole_file(count: int, found: dict[str, Any], options: argparse.Namespace) -> float:
    """Calculate the seconds of the node on as many samples as SQuAD 2.0's training file has."""
    more = SQUAD_SAMPLES / (count * options.batch_size) - found["steps"]
    seconds: float = found["training node"] + found["s a step"] * more
    return seconds


def prepare(options: argparse.Namespace) -> None:
    """Write snapshot and questions."""
    write_snapshot(options.size, options.work / "snapshot")
    free()
    length = parameters_for(options).tokenization.max_source_length
    data = random_questions(options.samples, options.questions, length)
    write_questions(data, options.work)


def main() -> None:
    """Prepare snapshot and questions, measure in every number of processes, write the results."""
    options = parse_options()
    silence()
    if options.work:
        work(options)
    else:
        measure_in_turns(f"scaling_{options.size}", options, prepare, rows_of, facts_of)


if __name__ == "__main__":
    main()
