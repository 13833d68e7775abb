"""FSDP: spread a model's weights over the processes, for a base too large for one GPU.

Each process keeps a share of the weights of T5's blocks and gathers a block while it computes.
Packed weights travel packed, because bitsandbytes stores them under a floating dtype
(`bnb_4bit_quant_storage`). All processes must call a sharded model together.

FSDP: Zhao et al. 2023, "PyTorch FSDP: Experiences on Scaling Fully Sharded Data Parallel",
arXiv:2304.11277; with QLoRA: https://huggingface.co/docs/peft/accelerate/fsdp.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from accelerate import PartialState
from peft import PeftModel
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from flan_qa_pipeline.errors import InputError
from flan_qa_pipeline.models.adapter import base_of


def shard(model: PreTrainedModel | PeftModel) -> PreTrainedModel | PeftModel:
    """Keep this process's share of the weights of all blocks on its device.

    Embeddings, final norms and head lie outside of blocks and stay whole in every process.

    Raises:
        InputError: the adapter has weights outside of blocks.
    """
    base = base_of(model)
    outside = [base.shared, base.lm_head]
    for stack in (base.encoder, base.decoder):
        outside.append(stack.final_layer_norm)
        for block in stack.block:
            fully_shard(block, reshard_after_forward=True)
        whole_here = {weight for part in outside for weight in part.parameters()}
        fully_shard(stack, ignored_params=whole_here)
    for name, weight in model.named_parameters():
        if weight.requires_grad and not isinstance(weight, DTensor):
            raise InputError(
                f"distributed.fsdp: {name} is outside of T5's blocks, where nothing is sharded; "
                "leave it out of lora.target_modules."
            )
    for part in outside:
        part.to(PartialState().device)
    return model


@contextmanager
def whole_decoder(model: PreTrainedModel | PeftModel) -> Iterator[None]:
    """Gather a sharded model's decoder once, for all tokens that it decodes in the block."""
    blocks = base_of(model).decoder.block
    for block in blocks:
        block.unshard()
    try:
        yield
    finally:
        for block in blocks:
            block.reshard()
