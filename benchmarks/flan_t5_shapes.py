"""Memory and speed of FLAN-T5's shapes: python benchmarks/flan_t5_shapes.py OUTPUT_FOLDER

Writes a snapshot of each size with random weights, so scores mean nothing, and trains it in four
formats on windows of the full length: float32, bfloat16 and NF4 with transformers, bitsandbytes and
peft alone, and NF4 with this project's nodes. The project's adapter is also saved and loaded, and
answers questions that are scored. Needs no network, and uses a GPU where there is one.
"""

import argparse
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import extract_model_from_parallel
from datasets import DatasetDict
from harness import (
    CUDA,
    PROJECT,
    SHAPES,
    STARTER,
    facts,
    free,
    load_parameters,
    lora_config,
    run_node,
    silence,
    write_results,
    write_snapshot,
)
from peft import get_peft_model
from transformers import DataCollatorForSeq2Seq, Seq2SeqTrainer, Seq2SeqTrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from flan_qa_pipeline.config.parameters import Format, Parameters
from flan_qa_pipeline.datasets.adapter import AdapterDataset
from flan_qa_pipeline.models.device import resolve_attention
from flan_qa_pipeline.models.loading import load_tokenizer
from flan_qa_pipeline.pipelines import data_engineering, modeling, reporting
from flan_qa_pipeline.runtime.provenance import package_versions
from flan_qa_pipeline.training.measured_memory import load_by_libraries, prepare_by_libraries
from flan_qa_pipeline.training.step_timer import StepTimer

MB = 10**6
MODELING, REPORTING = modeling.create_pipeline(), reporting.create_pipeline()
SAVING = "NF4 here, gradient checkpointing, paged 8-bit AdamW"


def long_contexts(source: Path) -> dict[str, Any]:
    """Read SQuAD 2.0 JSON and append to each context the article's other contexts."""
    raw = json.loads(source.read_text(encoding="utf-8"))
    for article in raw["data"]:
        contexts = [paragraph["context"] for paragraph in article["paragraphs"]]
        for i, paragraph in enumerate(article["paragraphs"]):
            paragraph["context"] = " ".join(contexts[i:] + contexts[:i])
    return raw


def held() -> int:
    """Return the bytes that tensors on the GPU requested; the allocator adds 5% for XL's NF4."""
    return torch.cuda.memory_stats()["requested_bytes.all.current"] if CUDA else 0


@contextmanager
def measured(row: dict[str, Any]) -> Iterator[None]:
    """Add the peak memory allocated on the GPU to the row, or the error if it ran out."""
    free()
    before = torch.cuda.memory_allocated() if CUDA else 0
    try:
        yield
        if CUDA:
            row["training peak MB"] = (torch.cuda.max_memory_allocated() - before) / MB
    except torch.OutOfMemoryError:
        row["error"] = "out of memory"


def by_libraries(
    form: Format, parameters: Parameters, tokenized: DatasetDict, tokenizer: Any
) -> dict[str, Any]:
    """Train with transformers, bitsandbytes and peft as their documentation shows."""
    row: dict[str, Any] = {}
    with measured(row):
        before = held()
        base = load_by_libraries(form, parameters.model)
        free()
        row["weights MB"] = (held() - before) / MB
        training = parameters.training
        dtype = base.dtype
        base = prepare_by_libraries(base, training)
        model = get_peft_model(base, lora_config(parameters.lora))
        trainer = Seq2SeqTrainer(
            model=model,
            args=Seq2SeqTrainingArguments(
                output_dir=training.output_dir,
                max_steps=training.max_steps,
                per_device_train_batch_size=training.per_device_train_batch_size,
                optim="adamw_torch",
                bf16=dtype == torch.bfloat16,
                use_cpu=not CUDA,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                dataloader_pin_memory=CUDA,
            ),
            train_dataset=tokenized["train"],
            processing_class=tokenizer,
            data_collator=DataCollatorForSeq2Seq(tokenizer, model=model, pad_to_multiple_of=8),
        )
        timer = StepTimer()
        for callback in (PrinterCallback, ProgressCallback):
            trainer.remove_callback(callback)
        trainer.add_callback(timer)
        trainer.train()
        row["samples/s"] = training.max_steps * training.per_device_train_batch_size / timer.seconds
    return row


def by_this_project(
    parameters: Parameters, data: dict[str, Any], adapter_folder: Path | None
) -> dict[str, Any]:
    """Load and train with the project's nodes; with a folder, also save, load, answer and score."""
    data = data | {"run_record": {"run_id": "benchmark", "versions": package_versions()}}
    row: dict[str, Any] = {}
    with measured(row):
        before = held()
        started = time.perf_counter()
        run_node(MODELING, parameters, data, "quantize_base_model")
        row["load s"] = time.perf_counter() - started
        free()
        row["weights MB"] = (held() - before) / MB
        run_node(MODELING, parameters, data, "attach_lora")
        run_node(MODELING, parameters, data, "fingerprint_inputs")
        run_node(MODELING, parameters, data, "train_adapter")
        training, record = parameters.training, data["adapter"].training
        samples = training.max_steps * training.per_device_train_batch_size
        row["samples/s"] = samples / record["seconds"]
        row["trainable parameters"] = record["trainable_parameters"]
    if adapter_folder is None or "error" in row:
        return row
    model = extract_model_from_parallel(data["lora_model"].eval(), keep_fp32_wrapper=False)
    data["finetuned_model"] = model
    run_node(REPORTING, parameters, data, "predict_finetuned")
    trained = data["finetuned_predictions"]
    dataset = AdapterDataset(filepath=str(adapter_folder))
    dataset.save(data["adapter"])
    del model, data["finetuned_model"], data["lora_model"], data["base_model"]
    free()
    data["adapter"] = dataset.load()
    run_node(REPORTING, parameters, data, "load_finetuned_model")
    started = time.perf_counter()
    run_node(REPORTING, parameters, data, "predict_finetuned")
    seconds = time.perf_counter() - started
    tokenized = data["tokenized_questions"]
    n_windows = sum(len(tokenized[name]) for name in ("validation", "calibration"))
    row["answered windows/s"] = n_windows / seconds
    run_node(REPORTING, parameters, data, "score_finetuned")
    loaded = data["finetuned_predictions"]
    row["answers that saving and loading changed"] = int(
        (trained["prediction_text"] != loaded["prediction_text"]).sum()
    )
    row["largest change of a score, nats"] = float((trained["score"] - loaded["score"]).abs().max())
    row["questions scored"] = data["finetuned_scores"]["total"]
    return row


def parameters_for(folder: Path, work: Path, options: argparse.Namespace) -> Parameters:
    """Read the parameters of conf/squad for this snapshot, a few steps and no evaluation."""
    return load_parameters(
        "squad",
        {
            "model": {
                "name": str(folder),
                "compute_dtype": "bfloat16",
                "dequantize": False,
                "attn_implementation": options.attention,
            },
            "data": {
                "max_train_questions": None,
                "max_validation_questions": 8,
                "max_calibration_questions": 4,
            },
            "tokenization": {"max_source_length": options.max_source_length},
            "lora": {"target_modules": options.target_modules},
            "training": {
                "output_dir": str(work / "checkpoints"),
                "logging_dir": str(work / "tensorboard"),
                "max_steps": options.steps,
                "per_device_train_batch_size": options.batch_size,
                "gradient_accumulation_steps": 1,
                "eval_strategy": "no",
                "save_strategy": "no",
                "load_best_model_at_end": False,
            },
        },
    )


def changed(parameters: Parameters, section: str, **changes: Any) -> Parameters:
    """Return the parameters with changes in one section."""
    part = getattr(parameters, section).model_copy(update=changes)
    return parameters.model_copy(update={section: part})


def prepare(parameters: Parameters, options: argparse.Namespace) -> dict[str, Any]:
    """Prepare the embedded corpus; keep only training windows of the full length."""
    raw = PROJECT / "data/01_raw"
    data = {
        f"raw_{name}": long_contexts(raw / f"starter_{name}.json")
        for name in ("train", "validation")
    }
    pipeline = data_engineering.create_pipeline()
    for node in pipeline.nodes:
        run_node(pipeline, parameters, data, node.name)
    length = parameters.tokenization.max_source_length
    tokenized = data["tokenized_questions"]
    train = tokenized["train"].filter(lambda ids: len(ids) == length, input_columns="input_ids")
    train = train.select(range(options.steps * options.batch_size))
    return data | {"tokenized_questions": DatasetDict(tokenized, train=train)}


def parse_options() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("--sizes", default="small,base,large,xl", help="of " + ", ".join(SHAPES))
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--max-source-length", type=int, default=512, help="of every window")
    parser.add_argument("--target-modules", default="q+v", help="of LoRA; all-linear, or names")
    parser.add_argument("--attention", default="auto", choices=["auto", "eager", "sdpa", "triton"])
    parser.add_argument("--only-here", action="store_true", help="measure this project alone")
    return parser.parse_args()


class Results:
    """The rows measured so far, printed and saved after each."""

    def __init__(self, options: argparse.Namespace):
        self._folder = options.output
        self._given = facts() | {
            "batch size": options.batch_size,
            "steps": options.steps,
            "source tokens": options.max_source_length,
            "LoRA targets": options.target_modules,
            "attention": resolve_attention(options.attention),
        }
        self._rows: list[dict[str, Any]] = []
        self.table = ""

    def keep(
        self, size: str, form: str, measure: Callable[..., dict[str, Any]], *arguments: Any
    ) -> None:
        """Measure a row, or note why it could not be measured."""
        try:
            row = measure(*arguments)
        except Exception as error:  # measure the other formats and sizes
            row = {"error": f"{type(error).__name__}: {error}"[:500]}
        self._rows.append({"size": size, "format": form, **row})
        print(json.dumps(self._rows[-1]), flush=True)
        self.table = write_results(self._folder, "flan_t5_shapes", self._given, self._rows)


def measure_size(
    size: str, work: Path, options: argparse.Namespace, data: dict[str, Any], results: Results
) -> None:
    """Write a snapshot of a size and measure it in every format."""
    snapshot = work / "snapshot"
    started = time.perf_counter()
    write_snapshot(size, snapshot)
    print(f"{size}: snapshot in {time.perf_counter() - started:.1f} s", flush=True)
    parameters = parameters_for(snapshot, work, options)
    whole = changed(parameters, "model", skip_modules=[])
    unpacked = changed(parameters, "model", dequantize=True)
    saving = changed(parameters, "training", gradient_checkpointing=True, optim="paged_adamw_8bit")
    results.keep(size, "NF4 here", by_this_project, parameters, data, work / "adapter")
    results.keep(size, SAVING, by_this_project, saving, data, None)
    results.keep(size, "NF4 here, dequantized once", by_this_project, unpacked, data, None)
    if options.only_here:
        return
    results.keep(size, "NF4 here, head too", by_this_project, whole, data, None)
    tokenizer, tokenized = load_tokenizer(parameters.model), data["tokenized_questions"]
    for form in ("NF4 by the libraries", "bfloat16", "float32"):
        results.keep(size, form, by_libraries, form, parameters, tokenized, tokenizer)


def main() -> None:
    """Measure all sizes that the command line names."""
    options = parse_options()
    silence()
    results = Results(options)
    data = prepare(parameters_for(STARTER, Path(tempfile.gettempdir()), options), options)
    for size in options.sizes.split(","):
        work = Path(tempfile.mkdtemp(prefix=f"flan_t5_{size}_"))
        try:
            measure_size(size, work, options, data, results)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    print(f"\n{results.table}")


if __name__ == "__main__":
    main()
