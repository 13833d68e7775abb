"""What training takes in memory with the base in several formats, measured by training.

The steps are taken in a process of their own: a process cannot take back its peak, which the run
reports, and ends with all its memory freed.
"""

import gc
import logging
import os
import signal
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import accumulate
from multiprocessing import get_context
from typing import Any

import torch
import transformers
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from bitsandbytes.nn import Linear4bit
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from torch.profiler import ProfilerActivity, profile
from tqdm.auto import tqdm
from transformers import (
    BitsAndBytesConfig,
    DataCollatorForSeq2Seq,
    PreTrainedModel,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    T5ForConditionalGeneration,
)
from transformers.trainer_callback import PrinterCallback

from flan_qa_pipeline.config.parameters import Format, ModelParameters, TrainingParameters
from flan_qa_pipeline.models.device import resolve_compute_dtype
from flan_qa_pipeline.models.fused_lora import fuse
from flan_qa_pipeline.models.loading import (
    as_transformers_t5,
    base_folder,
    is_stored_in_4_bits,
    load_base_model,
    load_tokenizer,
)

logger = logging.getLogger(__name__)

OF_SEVERAL_PROCESSES = ("RANK", "LOCAL_RANK", "WORLD_SIZE")


def training_peaks(
    formats: Sequence[Format],
    model: ModelParameters,
    lora: LoraConfig,
    training: TrainingParameters,
    batch: list[dict[str, list[int]]],
) -> dict[Format, int | None]:
    """Map each format to the largest memory in bytes that torch allocates in a training step.

    On a GPU that of the GPU, else that of the CPU. None where it does not suffice. A step on one
    window goes before, since the optimizer's state is there from its end.

    Args:
        batch: input_ids and labels of the step's windows.
    """
    clear_device_cache(garbage_collection=True)  # of the training before it
    peaks: dict[Format, int | None] = {}
    while waiting := [form for form in formats if form not in peaks]:
        with (
            ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=_quietly) as pool,
            tqdm(waiting, desc="Measure memory", unit="format", leave=False) as bar,
        ):
            for form in bar:
                try:
                    step = pool.submit(_training_peak, form, model, lora, training, batch)
                    peaks[form] = step.result()
                except RuntimeError as error:
                    killed = isinstance(error, BrokenProcessPool)
                    if not (killed or should_reduce_batch_size(error)):
                        raise
                    logger.warning(
                        "Memory does not suffice for a training step in %s%s.",
                        form,
                        ", it seems: its process was killed" if killed else "",
                    )
                    peaks[form] = None
                    if killed:
                        break
    return peaks


def _quietly() -> None:
    """Leave warnings to the run's own process, and end without a traceback on Ctrl+C."""
    logging.disable(logging.WARNING)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else the run ignores it
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def load_by_libraries(form: Format, model: ModelParameters) -> PreTrainedModel:
    """Load the base as transformers and bitsandbytes document it.

    They get the unpacked weights of a base that is stored in 4 bits.
    """
    quantized = form.startswith("NF4")
    dtype = resolve_compute_dtype(model.compute_dtype) if quantized else getattr(torch, form)
    nf4 = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )
    source: dict[str, Any] = {"pretrained_model_name_or_path": base_folder(model)}
    if is_stored_in_4_bits(model):
        unpacked = load_base_model(model.model_copy(update={"dequantize": True}))
        plain = as_transformers_t5(unpacked)
        plain.config.tie_word_embeddings = True  # of embeddings; the head differs from them
        source = {"pretrained_model_name_or_path": None, "config": plain.config}
        source["state_dict"] = plain.state_dict()
    base = T5ForConditionalGeneration.from_pretrained(
        **source,
        local_files_only=True,
        dtype=dtype,
        quantization_config=nf4 if quantized else None,
        device_map={"": 0 if torch.cuda.is_available() else "cpu"},
        use_safetensors=True,
    )
    base.name_or_path = model.name
    return base


def prepare_by_libraries(base: PreTrainedModel, training: TrainingParameters) -> PreTrainedModel:
    """Prepare a loaded base for training as peft documents it."""
    if not getattr(base, "is_quantized", False):
        return base
    return prepare_model_for_kbit_training(
        base,
        use_gradient_checkpointing=training.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False},
    )


def _training_peak(
    form: Format,
    model: ModelParameters,
    lora: LoraConfig,
    training: TrainingParameters,
    batch: list[dict[str, list[int]]],
) -> int:
    for name in OF_SEVERAL_PROCESSES:
        os.environ.pop(name, None)
    os.environ["KINETO_LOG_LEVEL"] = "99"  # the profiler tells that it starts and stops
    transformers.logging.disable_progress_bar()
    gc.collect()  # what an earlier format has left
    torch.cuda.empty_cache()
    if form == "NF4 here":
        packed = model.model_copy(update={"load_in_4bit": True, "dequantize": False})
        peft_model = get_peft_model(load_base_model(packed), lora)
        autocasts = not fuse(peft_model)
    else:
        base = prepare_by_libraries(load_by_libraries(form, model), training)
        peft_model = get_peft_model(base, lora)
        autocasts = True
    on_gpu = torch.cuda.is_available()
    tokenizer = load_tokenizer(model)
    collate = DataCollatorForSeq2Seq(tokenizer, model=peft_model, pad_to_multiple_of=8)
    arguments = Seq2SeqTrainingArguments(
        output_dir=training.output_dir,
        num_train_epochs=1,
        per_device_train_batch_size=1,
        train_sampling_strategy="sequential",
        optim=training.optim,
        gradient_checkpointing=training.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        bf16=autocasts and peft_model.get_base_model().dtype == torch.bfloat16,
        use_cpu=not on_gpu,
        dataloader_pin_memory=on_gpu,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # else the batch is split among all GPUs
    trainer = Seq2SeqTrainer(
        model=peft_model,
        args=arguments,
        train_dataset=[batch[:1], batch],
        data_collator=lambda batches: collate(batches[0]),
    )
    trainer.remove_callback(PrinterCallback)
    gc.collect()
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
        trainer.train()
        return torch.cuda.max_memory_allocated()
    held = held_bytes(peft_model)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        trainer.train()
    events = profiler.profiler.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    return held + max(accumulate(size for _, size in changes))


def held_bytes(model: torch.nn.Module) -> int:
    """Bytes of parameters, buffers and the scales of 4-bit blocks."""
    tensors = [*model.parameters(), *model.buffers()]
    for module in model.modules():
        if isinstance(module, Linear4bit):
            state = module.weight.quant_state
            tensors += [state.absmax] + ([state.state2.absmax] if state.nested else [])
    return sum(tensor.nbytes for tensor in tensors)
