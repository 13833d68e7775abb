"""This project against the usual recipe: python benchmarks/usual_recipe.py OUTPUT_FOLDER

The usual recipe trains with Seq2SeqTrainer, batches of 8 padded to 243 tokens, NF4 without `wo`,
float16 autocast on a GPU (float32 on a CPU), reentrant gradient checkpointing and peft's upcasts,
and evaluates one question at a time by sampling. This project runs its nodes as conf/ configures
them. Both use the same base model, questions, LoRA targets and rank in one process. The recipe's
learning rate is the project's times the square root of the ratio of their batches.

`--size starter` (the default) uses the embedded model and corpus. A FLAN-T5 size uses random
weights of its shape and random tokens of SQuAD 2.0's lengths (196 on average), or with `--learned`
the starter model embedded in that shape and its corpus. The project trains twice: on the recipe's
samples, to compare the curves of the loss, and on more of them. Greedy decoding of one question at
a time checks the project's answers.
"""

import argparse
import json
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, DatasetDict, DatasetInfo
from harness import (
    CUDA,
    DEVICE,
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
from peft import PeftModel, get_peft_model, prepare_model_for_kbit_training
from transformers import (
    BitsAndBytesConfig,
    DataCollatorForSeq2Seq,
    GenerationConfig,
    PreTrainedTokenizerBase,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    T5ForConditionalGeneration,
    set_seed,
)
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from flan_qa_pipeline.answering.generation import is_abstention
from flan_qa_pipeline.config.parameters import Parameters, TrainingParameters
from flan_qa_pipeline.data.fingerprints import fingerprint_splits
from flan_qa_pipeline.data.tokenized import describe
from flan_qa_pipeline.models.batching import NO_LABEL, collate
from flan_qa_pipeline.models.device import resolve_attention
from flan_qa_pipeline.models.loading import load_tokenizer
from flan_qa_pipeline.pipelines import data_engineering, modeling, reporting
from flan_qa_pipeline.runtime.provenance import package_versions
from flan_qa_pipeline.training.step_timer import StepTimer

DATA, MODELING, REPORTING = (
    package.create_pipeline() for package in (data_engineering, modeling, reporting)
)
MIB = 2**20
USUAL_BATCH, USUAL_LENGTH = 8, 243
SAMPLES_LOGGED = 512  # from one loss of a curve to the next
SQUAD_LENGTHS = {"mean": 5.21, "sigma": 0.35}  # of the logarithm: 196 tokens on average
NEW_TOKENS = 6
HELD_OUT = 512  # validation windows for the loss after training


def measures(samples: int, seconds: float) -> dict[str, Any]:
    """Return the columns of a result; the peak is the GPU's since its last reset."""
    return {
        "samples": samples,
        "seconds": seconds,
        "per second": samples / seconds,
        "peak MiB": torch.cuda.max_memory_allocated() / MIB if CUDA else None,
    }


def effective_batch(training: TrainingParameters) -> int:
    """Return the samples that the optimizer sees in a step."""
    return training.per_device_train_batch_size * training.gradient_accumulation_steps


def starter_questions(parameters: Parameters) -> dict[str, Any]:
    """Run the nodes of data engineering on the embedded corpus; return their outputs."""
    data: dict[str, Any] = {}
    for name in ("train", "validation"):
        path = PROJECT / f"data/01_raw/starter_{name}.json"
        data[f"raw_{name}"] = json.loads(path.read_text(encoding="utf-8"))
    for node in DATA.nodes:
        run_node(DATA, parameters, data, node.name)
    return data


def random_questions(
    n_train: int, n_validation: int, max_length: int, min_length: int = 49
) -> dict[str, Any]:
    """Draw random tokens of SQuAD 2.0's lengths; a third of the answers are the same abstention.

    Lengths outside of `min_length` and `max_length` become these.
    """
    rng = np.random.default_rng(0)
    questions, tokenized = DatasetDict(), DatasetDict()
    sizes = {"train": n_train, "dev": 8, "calibration": 8, "validation": n_validation}
    for split, size in sizes.items():
        ids = [f"{split}-{i}" for i in range(size)]
        questions[split] = Dataset.from_dict(
            {"id": ids, "question": ids, "answers": [{"text": [], "answer_start": []}] * size}
        )
    info = DatasetInfo(description=describe({}, fingerprint_splits(questions)))
    for split, size in sizes.items():
        lengths = rng.lognormal(SQUAD_LENGTHS["mean"], SQUAD_LENGTHS["sigma"], size)
        tokenized[split] = Dataset.from_dict(
            {
                "id": questions[split]["id"][:],
                "window": [0] * size,
                "input_ids": [
                    np.append(rng.integers(100, 4000, int(n)), 1).astype(np.int32)
                    for n in lengths.clip(min_length - 1, max_length - 1)
                ],
                "labels": [
                    np.array([50, 51, 1])
                    if rng.random() < 1 / 3
                    else np.append(rng.integers(100, 300, rng.integers(1, 8)), 1)
                    for _ in range(size)
                ],
            },
            info=info,
        )
    return {"questions": questions, "tokenized_questions": tokenized}


class UsualRecipe:
    """Trains and evaluates as tutorials do."""

    def __init__(self, parameters: Parameters):
        self.parameters = parameters
        self.tokenizer = load_tokenizer(parameters.model)
        dtype = torch.float16 if CUDA else torch.float32
        base = T5ForConditionalGeneration.from_pretrained(
            parameters.model.name,
            dtype=dtype,
            quantization_config=BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type="nf4",
                bnb_4bit_use_double_quant=True,
                bnb_4bit_compute_dtype=dtype,
            ),
            device_map={"": 0 if CUDA else "cpu"},
        )
        base = prepare_model_for_kbit_training(
            base, gradient_checkpointing_kwargs={"use_reentrant": True}
        )
        set_seed(parameters.training.seed)
        self.model = get_peft_model(base, lora_config(parameters.lora))

    def _pad(self, row: dict[str, Any]) -> dict[str, Any]:
        ids = row["input_ids"][:USUAL_LENGTH]
        missing = USUAL_LENGTH - len(ids)
        return {
            "input_ids": ids + [self.tokenizer.pad_token_id] * missing,
            "attention_mask": [1] * len(ids) + [0] * missing,
        }

    def train(self, windows: Dataset, work: Path) -> dict[str, Any]:
        """Train for one pass over the windows, in random order."""
        free()
        timer = StepTimer()
        training = self.parameters.training
        trainer = Seq2SeqTrainer(
            model=self.model,
            args=Seq2SeqTrainingArguments(
                output_dir=str(work),
                num_train_epochs=1,
                per_device_train_batch_size=USUAL_BATCH,
                learning_rate=training.learning_rate
                * (USUAL_BATCH / effective_batch(training)) ** 0.5,
                lr_scheduler_type=training.lr_scheduler_type,
                gradient_checkpointing=True,
                gradient_checkpointing_kwargs={"use_reentrant": True},
                fp16=CUDA,
                use_cpu=not CUDA,
                logging_steps=SAMPLES_LOGGED // USUAL_BATCH,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                dataloader_pin_memory=CUDA,
                label_names=["labels"],
            ),
            train_dataset=windows.map(self._pad),
            processing_class=self.tokenizer,
            data_collator=DataCollatorForSeq2Seq(self.tokenizer, model=self.model),
        )
        for callback in (PrinterCallback, ProgressCallback):
            trainer.remove_callback(callback)
        trainer.add_callback(timer)
        trainer.train()
        return {
            **measures(len(windows), timer.seconds),
            "curve": loss_curve(trainer.state.log_history, USUAL_BATCH),
        }

    @torch.inference_mode()
    def answer(self, windows: Dataset, max_new_tokens: int) -> dict[str, Any]:
        """Answer the windows one by one, by sampling."""
        free()
        model = self.model.eval()
        model.gradient_checkpointing_disable()
        model.config.use_cache = True
        started = time.perf_counter()
        for ids in windows["input_ids"]:
            output = model.generate(
                input_ids=torch.tensor([ids[:USUAL_LENGTH]], device=DEVICE),
                do_sample=True,
                max_new_tokens=max_new_tokens,
            )
            self.tokenizer.decode(output[0], skip_special_tokens=True)
        seconds = time.perf_counter() - started
        return measures(len(windows), seconds)


def train_by_project(parameters: Parameters, data: dict[str, Any]) -> dict[str, Any]:
    """Run the nodes of modeling for one pass over the training windows."""
    free()
    for name in ("quantize_base_model", "attach_lora", "fingerprint_inputs", "train_adapter"):
        run_node(MODELING, parameters, data, name)
    record = data["adapter"].training
    return {
        **measures(record["samples"], record["seconds"]),
        "curve": loss_curve(
            record["log"], record["batch_size"] * record["gradient_accumulation_steps"]
        ),
    }


def answer_by_project(parameters: Parameters, data: dict[str, Any]) -> dict[str, Any]:
    """Answer the validation and calibration windows with the node of reporting."""
    free()
    started = time.perf_counter()
    run_node(REPORTING, parameters, data, "predict_finetuned")
    seconds = time.perf_counter() - started
    n = sum(len(data["tokenized_questions"][name]) for name in ("validation", "calibration"))
    return measures(n, seconds)


@torch.inference_mode()
def held_out_loss(model: PeftModel, windows: Dataset, pad_token_id: int) -> float:
    """Return the mean loss per target token, without dropout."""
    model.eval()
    total = count = 0
    rows = windows.to_list()
    for start in range(0, len(rows), USUAL_BATCH):
        batch = collate(rows[start : start + USUAL_BATCH], pad_token_id)
        tokens = batch["labels"].ne(NO_LABEL).sum().item()
        loss = model(**{name: part.to(DEVICE) for name, part in batch.items()}).loss
        total += tokens * loss.item()
        count += tokens
    return total / count


def loss_curve(log: list[dict[str, Any]], batch: int) -> list[tuple[int, float]]:
    """Extract pairs of the samples seen and the loss from a Trainer's log."""
    return [(entry["step"] * batch, entry["loss"]) for entry in log if "loss" in entry]


@torch.inference_mode()
def differences(
    model: PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    windows: Dataset,
    answers: dict[str, str],
    abstention: str,
    max_new_tokens: int,
) -> dict[str, Any]:
    """Compare the project's answers with greedy decoding of one window at a time.

    A single forward pass scores each text that differs. The largest gap, in nats, between the most
    probable token and the token in the text shows how close the two were to a tie.
    """
    model.eval()
    greedy = GenerationConfig(
        do_sample=False,
        max_new_tokens=max_new_tokens,
        decoder_start_token_id=model.config.decoder_start_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    gaps = []
    started = time.perf_counter()
    for id_, ids in zip(windows["id"], windows["input_ids"], strict=True):
        source = torch.tensor([ids], device=DEVICE)
        output = model.generate(input_ids=source, generation_config=greedy)
        text = tokenizer.decode(output[0], skip_special_tokens=True).strip()
        if answers[id_] == ("" if is_abstention(text, abstention) else text):
            continue
        given = tokenizer(answers[id_] or abstention)["input_ids"][:max_new_tokens]
        target = torch.tensor([given], device=DEVICE)
        start = torch.full_like(target[:, :1], model.config.decoder_start_token_id)
        logits = model(
            input_ids=source, decoder_input_ids=torch.cat([start, target[:, :-1]], dim=1)
        ).logits.float()
        gap = logits.max(dim=-1).values - logits.gather(2, target.unsqueeze(2)).squeeze(2)
        gaps.append(gap.max().item())
    return {
        "questions compared": len(windows),
        "greedy, one at a time, per second": len(windows) / (time.perf_counter() - started),
        "answers that differ": len(gaps),
        "largest gap of a differing answer, nats": max(gaps, default=0.0),
    }


def curves(usual: list[tuple[int, float]], here: list[tuple[int, float]]) -> list[dict[str, Any]]:
    """Join both curves; each loss is the mean over the last `SAMPLES_LOGGED` samples."""
    losses = dict(here)
    return [
        {"samples": samples, "loss, usual": loss, "loss, here": losses[samples]}
        for samples, loss in usual
        if samples in losses
    ]


def parameters_for(options: argparse.Namespace, model: Path, work: Path) -> Parameters:
    """Read the parameters that both share, without evaluation during training."""
    starter = options.size == "starter"
    generation = {} if starter else {"max_new_tokens": NEW_TOKENS}
    environment = "base" if starter else "squad"
    batch = effective_batch(load_parameters(environment, {}).training)
    return load_parameters(
        environment,
        {
            "model": {"name": str(model), "attn_implementation": options.attention},
            "data": {"max_train_questions": None, "unanswerable_share": None},
            "lora": {"target_modules": options.target_modules},
            "generation": generation,
            "training": {
                "output_dir": str(work / "checkpoints"),
                "logging_dir": str(work / "tensorboard"),
                "num_train_epochs": 1,
                "logging_steps": max(1, SAMPLES_LOGGED // batch),
                "eval_strategy": "no",
                "save_strategy": "no",
                "load_best_model_at_end": False,
            },
        },
    )


def parse_options() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("--size", default="starter", choices=["starter", *SHAPES])
    parser.add_argument("--learned", action="store_true", help="starter weights and corpus")
    parser.add_argument("--usual-samples", type=int, default=1024, help="trained on by the recipe")
    parser.add_argument("--samples", type=int, default=8192, help="at most, trained on here")
    parser.add_argument("--usual-questions", type=int, default=64, help="answered by the recipe")
    parser.add_argument("--questions", type=int, default=11873, help="answered by the project")
    parser.add_argument("--compared", type=int, default=200, help="decoded one at a time, too")
    parser.add_argument("--target-modules", default="q+v", help="of LoRA; all-linear, or names")
    parser.add_argument("--attention", default="auto", choices=["auto", "eager", "sdpa", "triton"])
    options = parser.parse_args()
    if options.learned and options.size in ("starter", "tiny"):
        parser.error("--learned: give a --size larger than the starter model")
    return options


def prepare(options: argparse.Namespace, parameters: Parameters) -> dict[str, Any]:
    """Prepare questions and windows, and the record that training needs."""
    data = (
        starter_questions(parameters)
        if options.size == "starter" or options.learned
        else random_questions(
            options.samples, options.questions, parameters.tokenization.max_source_length
        )
    )
    return data | {"run_record": {"run_id": "benchmark", "versions": package_versions()}}


class Comparison:
    """Measures both ways on the same data, and keeps the rows of results and the curves."""

    def __init__(self, options: argparse.Namespace, parameters: Parameters, work: Path):
        self.options, self.parameters, self.work = options, parameters, work
        self.data = prepare(options, parameters)
        self.windows = self.data["tokenized_questions"]
        self.train = self.windows["train"].shuffle(seed=0)
        self.same_samples = self.train.select(range(min(options.usual_samples, len(self.train))))
        self.results: list[dict[str, Any]] = []
        self.curves: dict[str, list[tuple[int, float]]] = {}

    def keep(self, part: str, way: str, row: dict[str, Any]) -> None:
        """Keep a row with its speed relative to the first row of the same part; print it."""
        if "curve" in row:
            self.curves[way] = row.pop("curve")
        self.results.append({"part": part, "way": way, **row})
        usual = next(row for row in self.results if row["part"] == part)
        self.results[-1]["ratio"] = row["per second"] / usual["per second"]
        print(json.dumps(self.results[-1]), flush=True)

    def loss_held_out(self, model: PeftModel) -> float:
        """Return the loss on the first validation windows that have an answer."""
        held_out = self.windows["validation"].filter(bool, input_columns="labels")
        held_out = held_out.select(range(min(HELD_OUT, len(held_out))))
        pad_token_id = load_tokenizer(self.parameters.model).pad_token_id
        return held_out_loss(model, held_out, pad_token_id)

    def measure_usual(self) -> None:
        """Train and evaluate by the usual recipe."""
        usual = UsualRecipe(self.parameters)
        trained = usual.train(self.same_samples, self.work)
        trained["loss held out"] = self.loss_held_out(usual.model)
        self.keep("training", "usual", trained)
        asked = self.windows["validation"].select(range(self.options.usual_questions))
        new_tokens = self.parameters.generation.max_new_tokens
        self.keep("evaluation", "usual", usual.answer(asked, new_tokens))

    def measure_project(self) -> None:
        """Train on the recipe's samples and on more, then answer twice, by the project's nodes."""
        parameters, data = self.parameters, self.data
        self.windows["train"] = self.same_samples
        trained = train_by_project(parameters, data)
        trained["loss held out"] = self.loss_held_out(data["lora_model"])
        self.keep("training", "here, the same samples", trained)
        data.pop("lora_model"), data.pop("base_model")
        self.windows["train"] = self.train.select(range(min(self.options.samples, len(self.train))))
        self.keep("training", "here", train_by_project(parameters, data))
        data.pop("lora_model"), data.pop("base_model")
        run_node(REPORTING, parameters, data, "load_finetuned_model")
        self.keep("evaluation", "here, first time", answer_by_project(parameters, data))
        self.keep("evaluation", "here", answer_by_project(parameters, data))

    def check_answers(self) -> dict[str, Any]:
        """Compare the project's answers to questions of one window with greedy decoding."""
        validation, frame = self.windows["validation"], self.data["finetuned_predictions"]
        counts = Counter(validation["id"])
        compared = validation.filter(lambda id_: counts[id_] == 1, input_columns="id")
        return differences(
            self.data["finetuned_model"],
            load_tokenizer(self.parameters.model),
            compared.select(range(min(self.options.compared, len(compared)))),
            dict(zip(frame["id"], frame["prediction_text"], strict=True)),
            self.parameters.prompt.abstention,
            self.parameters.generation.max_new_tokens,
        )


def main() -> None:
    """Measure both ways and write the results."""
    options = parse_options()
    silence()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        model = STARTER
        if options.size != "starter":
            model = work / "snapshot"
            write_snapshot(options.size, model, learned=options.learned)
        comparison = Comparison(options, parameters_for(options, model, work), work)
        comparison.measure_usual()
        comparison.measure_project()
        checked = comparison.check_answers()
    print(json.dumps(checked), flush=True)
    losses = curves(comparison.curves["usual"], comparison.curves["here, the same samples"])
    given = facts() | {
        "size": options.size,
        "LoRA targets": options.target_modules,
        "attention": resolve_attention(options.attention),
        **checked,
        "losses": losses,
    }
    name = f"usual_recipe_{options.size}" + ("_learned" if options.learned else "")
    name += "" if options.attention == "auto" else f"_{options.attention}"
    print(write_results(options.output, name, given, comparison.results))
    print(json.dumps(losses))


if __name__ == "__main__":
    main()
