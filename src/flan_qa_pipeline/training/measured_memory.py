"""The memory that a training step takes with the base in several formats, measured by training.

Every format is measured in a separate process: a process cannot reset its peak memory, which the
run reports, and only its end is sure to free all its memory.
"""

import gc
import logging
import os
import warnings
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import Any

import torch
import transformers
from accelerate.utils import patch_environment
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from bitsandbytes.nn import Linear4bit
from peft import LoraConfig, PeftModel, get_peft_model, prepare_model_for_kbit_training
from torch.profiler import ProfilerActivity, profile
from tqdm.auto import tqdm
from transformers import (
    BitsAndBytesConfig,
    DataCollatorForSeq2Seq,
    PreTrainedModel,
    PreTrainedTokenizerBase,
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
from flan_qa_pipeline.training.quiet_process import begin_quietly
from flan_qa_pipeline.training.torch_private import peak_of_profile
from flan_qa_pipeline.training.transformers_private import use_one_gpu

logger = logging.getLogger(__name__)

Batch = list[dict[str, list[int]]]
OF_SEVERAL_PROCESSES = ("RANK", "LOCAL_RANK", "WORLD_SIZE")
LARGE = 2**20  # bytes; glibc returns larger freed blocks at once, which halves the process


def training_peaks(
    formats: Sequence[Format],
    model: ModelParameters,
    lora: LoraConfig,
    training: TrainingParameters,
    batch: Batch,
) -> dict[Format, int | None]:
    """Measure the peak memory of a training step in each format, after a step on one window.

    The first step lets the optimizer allocate its state. The peak counts what torch allocates on
    the GPU, or on the CPU where there is no GPU.

    Args:
        formats: the formats of the base to measure.
        model: the parameters of the base.
        lora: the configuration of the adapter.
        training: decides optimizer and gradient checkpointing.
        batch: `input_ids` and `labels` of the step's windows.

    Returns:
        The peak in bytes by format; None for a format that does not fit in memory.
    """
    clear_device_cache(garbage_collection=True)  # a training ran in this process before
    peaks: dict[Format, int | None] = {}
    while waiting := [form for form in formats if form not in peaks]:
        with (
            patch_environment(MALLOC_MMAP_THRESHOLD_=LARGE),
            ProcessPoolExecutor(
                1, mp_context=get_context("spawn"), initializer=begin_quietly
            ) as pool,
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
                        "A training step in %s does not fit in memory%s.",
                        form,
                        ", or so it seems: its process was killed" if killed else "",
                    )
                    peaks[form] = None
                    if killed:
                        break
    return peaks


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
    batch: Batch,
) -> int:
    """Train two steps, on one window and on the batch; return the peak memory in bytes."""
    for name in OF_SEVERAL_PROCESSES:
        os.environ.pop(name, None)
    os.environ["KINETO_LOG_LEVEL"] = "99"  # the profiler logs that it starts and stops
    transformers.logging.disable_progress_bar()
    gc.collect()  # an earlier format leaves garbage
    gc.freeze()  # later collections skip the imported modules
    torch.cuda.empty_cache()
    peft_model, autocasts = _build_model(form, model, lora, training)
    trainer = _build_trainer(peft_model, load_tokenizer(model), training, batch, autocasts)
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        trainer.train()
        return torch.cuda.max_memory_allocated()
    held = held_bytes(peft_model)
    cpu = [ProfilerActivity.CPU]
    with warnings.catch_warnings():  # torch 2.11 gives this one before the first cycle, too
        warnings.filterwarnings("ignore", message=".*Profiler clears events")
        with profile(activities=cpu, profile_memory=True) as profiler:
            trainer.train()
    return held + peak_of_profile(profiler)


def _build_model(
    form: Format, model: ModelParameters, lora: LoraConfig, training: TrainingParameters
) -> tuple[PeftModel, bool]:
    """Build the model with its adapter; also return whether training it needs autocast."""
    if form == "NF4 here":
        packed = model.model_copy(update={"load_in_4bit": True, "dequantize": False})
        peft_model = get_peft_model(load_base_model(packed), lora)
        return peft_model, not fuse(peft_model)
    base = prepare_by_libraries(load_by_libraries(form, model), training)
    return get_peft_model(base, lora), True


def _build_trainer(
    peft_model: PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    training: TrainingParameters,
    batch: Batch,
    autocasts: bool,
) -> Seq2SeqTrainer:
    """Build a plain Trainer whose two examples are batches: of the first window, and of all."""
    on_gpu = torch.cuda.is_available()
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
    use_one_gpu(arguments)
    trainer = Seq2SeqTrainer(
        model=peft_model,
        args=arguments,
        train_dataset=[batch[:1], batch],
        data_collator=lambda batches: collate(batches[0]),
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def held_bytes(model: torch.nn.Module) -> int:
    """Return the bytes of parameters, buffers and the scales of 4-bit blocks."""
    tensors = [*model.parameters(), *model.buffers()]
    for module in model.modules():
        if isinstance(module, Linear4bit):
            state = module.weight.quant_state
            tensors += [state.absmax] + ([state.state2.absmax] if state.nested else [])
    return sum(tensor.nbytes for tensor in tensors)
