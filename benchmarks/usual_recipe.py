"""This project beside the usual recipe: python benchmarks/usual_recipe.py OUTPUT_FOLDER

The usual recipe: Seq2SeqTrainer, batches of 8 padded to 243 tokens, NF4 without `wo`, float16
autocast on a GPU (float32 on a CPU), reentrant gradient checkpointing, peft's upcasts; evaluation
one question at a time, sampled. This project: its nodes as conf/ configures them. Both have the
same base model, questions, LoRA targets and rank, and run in one process. The recipe's learning
rate is the project's times the root of the batches' ratio.

`--size starter` (the default) takes the embedded model and corpus; a FLAN-T5 size takes random
weights of its shape and random tokens of SQuAD 2.0's lengths (mean 196), or with `--learned` the
starter model inside of that shape and its corpus. The project trains twice: first on the recipe's
samples, for the two curves of the loss, then on more of them. Answers of the project are checked
against greedy decoding of one question at a time.
"""

import argparse
import json
import tempfile
import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, DatasetDict
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
from flan_qa_pipeline.models.batching import NO_LABEL, collate
from flan_qa_pipeline.models.device import resolve_attention
from flan_qa_pipeline.models.loading import load_tokenizer
from flan_qa_pipeline.pipelines import data_engineering, modeling, reporting
from flan_qa_pipeline.runtime.provenance import package_versions
from flan_qa_pipeline.training.trainer import StepTimer

DATA, MODELING, REPORTING = (
    package.create_pipeline() for package in (data_engineering, modeling, reporting)
)
MIB = 2**20
USUAL_BATCH, USUAL_LENGTH = 8, 243
SAMPLES_LOGGED = 512  # between two losses of a curve
SQUAD_LENGTHS = {"mean": 5.21, "sigma": 0.35}  # of the logarithm: 196 tokens in the mean
NEW_TOKENS = 6
HELD_OUT = 512  # validation windows whose loss is compared after training


def measures(samples: int, seconds: float) -> dict[str, Any]:
    """A result's columns; the peak is the GPU's since it was last counted anew."""
    return {
        "samples": samples,
        "seconds": seconds,
        "per second": samples / seconds,
        "peak MiB": torch.cuda.max_memory_allocated() / MIB if CUDA else None,
    }


def effective_batch(training: TrainingParameters) -> int:
    """Samples that the optimizer sees in a step."""
    return training.per_device_train_batch_size * training.gradient_accumulation_steps


def starter_questions(parameters: Parameters) -> dict[str, Any]:
    """The embedded corpus through the nodes of data engineering."""
    data: dict[str, Any] = {}
    for name in ("train", "validation"):
        path = PROJECT / f"data/01_raw/starter_{name}.json"
        data[f"raw_{name}"] = json.loads(path.read_text(encoding="utf-8"))
    for node in DATA.nodes:
        run_node(DATA, parameters, data, node.name)
    return data


def random_questions(n_train: int, n_validation: int, max_length: int) -> dict[str, Any]:
    """Random tokens of SQuAD 2.0's lengths; a third of the answers are one same abstention."""
    rng = np.random.default_rng(0)
    questions, tokenized = DatasetDict(), DatasetDict()
    sizes = {"train": n_train, "dev": 8, "calibration": 8, "validation": n_validation}
    for split, size in sizes.items():
        lengths = rng.lognormal(SQUAD_LENGTHS["mean"], SQUAD_LENGTHS["sigma"], size)
        ids = [f"{split}-{i}" for i in range(size)]
        questions[split] = Dataset.from_dict(
            {"id": ids, "question": ids, "answers": [{"text": [], "answer_start": []}] * size}
        )
        tokenized[split] = Dataset.from_dict(
            {
                "id": ids,
                "window": [0] * size,
                "input_ids": [
                    rng.integers(100, 4000, int(n)).tolist() + [1]
                    for n in lengths.clip(48, max_length - 1)
                ],
                "labels": [
                    [50, 51, 1]
                    if rng.random() < 1 / 3
                    else [*rng.integers(100, 300, rng.integers(1, 8)).tolist(), 1]
                    for _ in range(size)
                ],
            }
        )
    return {"questions": questions, "tokenized_questions": tokenized}


class UsualRecipe:
    """Training and evaluation as tutorials show them."""

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
        """One pass over the windows, in a random order."""
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
        """Answer one window after the other, sampling."""
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
    """One pass over the training windows by the nodes of modeling."""
    free()
    for name in ("quantize_base_model", "attach_lora", "train_adapter"):
        run_node(MODELING, parameters, data, name)
    record = data["adapter"].training
    return {
        **measures(record["samples"], record["seconds"]),
        "curve": loss_curve(
            record["log"], record["batch_size"] * record["gradient_accumulation_steps"]
        ),
    }


def answer_by_project(parameters: Parameters, data: dict[str, Any]) -> dict[str, Any]:
    """Answer the validation and calibration windows by the node of reporting."""
    free()
    started = time.perf_counter()
    run_node(REPORTING, parameters, data, "predict_finetuned")
    seconds = time.perf_counter() - started
    n = sum(len(data["tokenized_questions"][name]) for name in ("validation", "calibration"))
    return measures(n, seconds)


@torch.inference_mode()
def held_out_loss(model: PeftModel, windows: Dataset, pad_token_id: int) -> float:
    """Mean loss of a target token, without dropout."""
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
    """(samples seen, loss) of a Trainer's log."""
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
    """How the project's answers differ from greedy decoding of one window at a time.

    Where a text differs, it is scored by the model alone, one window at a time: the largest gap
    between the most probable token and the one given tells how near a tie it was, in nats.
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
    """Both losses, each the mean of the `SAMPLES_LOGGED` samples before."""
    losses = dict(here)
    return [
        {"samples": samples, "loss, usual": loss, "loss, here": losses[samples]}
        for samples, loss in usual
        if samples in losses
    ]


def parameters_for(options: argparse.Namespace, model: Path, work: Path) -> Parameters:
    """The parameters that both share: an environment's, without evaluation during training."""
    starter = options.size == "starter"
    generation = {} if starter else {"max_new_tokens": NEW_TOKENS}
    environment = "base" if starter else "squad"
    batch = effective_batch(load_parameters(environment, {}).training)
    return load_parameters(
        environment,
        {
            "model": {"name": str(model), "attn_implementation": options.attention},
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("--size", default="starter", choices=["starter", *SHAPES])
    parser.add_argument("--learned", action="store_true", help="weights and corpus of the starter")
    parser.add_argument("--usual-samples", type=int, default=1024, help="trained on by the recipe")
    parser.add_argument("--samples", type=int, default=8192, help="trained on by the project")
    parser.add_argument("--usual-questions", type=int, default=64, help="answered by the recipe")
    parser.add_argument("--questions", type=int, default=11873, help="answered by the project")
    parser.add_argument("--compared", type=int, default=200, help="decoded one at a time, too")
    parser.add_argument("--target-modules", default="q+v", help="of LoRA; all-linear, or names")
    parser.add_argument("--attention", default="auto", choices=["auto", "eager", "sdpa"])
    options = parser.parse_args()
    if options.learned and options.size in ("starter", "tiny"):
        parser.error("--learned: give a --size larger than the starter model")
    silence()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        model = STARTER
        if options.size != "starter":
            model = work / "snapshot"
            write_snapshot(options.size, model, learned=options.learned)
        parameters = parameters_for(options, model, work)
        length = parameters.tokenization.max_source_length
        data = (
            starter_questions(parameters)
            if options.size == "starter" or options.learned
            else random_questions(options.samples, options.questions, length)
        )
        data["run_record"] = {"versions": package_versions()}
        windows = data["tokenized_questions"]
        train = windows["train"].shuffle(seed=0)
        held_out = windows["validation"].filter(bool, input_columns="labels")
        held_out = held_out.select(range(min(HELD_OUT, len(held_out))))
        results: list[dict[str, Any]] = []
        found: dict[str, Any] = {}

        def keep(part: str, way: str, row: dict[str, Any]) -> None:
            found[f"{part}, {way}"] = row.pop("curve", None)
            results.append({"part": part, "way": way, **row})
            usual = next(row for row in results if row["part"] == part)
            results[-1]["ratio"] = row["per second"] / usual["per second"]
            print(json.dumps(results[-1]), flush=True)

        usual = UsualRecipe(parameters)
        loss_of = partial(
            held_out_loss, windows=held_out, pad_token_id=usual.tokenizer.pad_token_id
        )
        same_samples = train.select(range(min(options.usual_samples, len(train))))
        trained = usual.train(same_samples, work)
        trained["loss held out"] = loss_of(usual.model)
        keep("training", "usual", trained)
        asked = windows["validation"].select(range(options.usual_questions))
        new_tokens = parameters.generation.max_new_tokens
        keep("evaluation", "usual", usual.answer(asked, new_tokens))
        del usual
        windows["train"] = same_samples
        trained = train_by_project(parameters, data)
        trained["loss held out"] = loss_of(data["lora_model"])
        keep("training", "here, the same samples", trained)
        data.pop("lora_model"), data.pop("base_model")
        windows["train"] = train.select(range(min(options.samples, len(train))))
        keep("training", "here", train_by_project(parameters, data))
        data.pop("lora_model"), data.pop("base_model")
        run_node(REPORTING, parameters, data, "load_finetuned_model")
        keep("evaluation", "here, first time", answer_by_project(parameters, data))
        keep("evaluation", "here", answer_by_project(parameters, data))
        frame = data["finetuned_predictions"]
        counts = Counter(windows["validation"]["id"])
        compared = windows["validation"].filter(lambda id_: counts[id_] == 1, input_columns="id")
        checked = differences(
            data["finetuned_model"],
            load_tokenizer(parameters.model),
            compared.select(range(min(options.compared, len(compared)))),
            dict(zip(frame["id"], frame["prediction_text"], strict=True)),
            parameters.prompt.abstention,
            new_tokens,
        )
        print(json.dumps(checked), flush=True)
        both = curves(found["training, usual"], found["training, here, the same samples"])
        given = facts() | {
            "size": options.size,
            "LoRA targets": options.target_modules,
            "attention": resolve_attention(options.attention),
            **checked,
            "losses": both,
        }
        name = f"usual_recipe_{options.size}" + ("_learned" if options.learned else "")
        name += "" if options.attention == "auto" else f"_{options.attention}"
        print(write_results(options.output, name, given, results))
        print(json.dumps(both))


if __name__ == "__main__":
    main()
