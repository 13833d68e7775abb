"""How many input tokens a batch to answer holds, by the memory that there is."""

import logging
from typing import Literal

from accelerate.utils import model_has_dtensor
from accelerate.utils.memory import clear_device_cache
from peft import PeftModel
from transformers import PreTrainedModel

from flan_qa_pipeline.models.adapter import base_of
from flan_qa_pipeline.models.device import MIB, free_memory
from flan_qa_pipeline.models.exchange import gather_json

logger = logging.getLogger(__name__)

ON_A_CPU = 8192  # more are no faster there
FEWEST, MOST = 1024, 262144  # on a GPU; more are no faster there
AT_ONCE = 2  # batches on a GPU
SHARE, SHARE_OF_SHARDED = 0.85, 0.5  # of the free memory; FSDP gathers weights in the rest
LENGTHS = (64, 512)  # of inputs: the shorter, the more logits; the longer, the more scores
FORCED_TOKENS = 4  # decoded at once for each input: the start, and an abstention of a few tokens


def batches_at_once(model: PreTrainedModel | PeftModel) -> int:
    """Return how many batches are answered at a time: one on a CPU or by a sharded model."""
    return AT_ONCE if model.device.type == "cuda" and not model_has_dtensor(model) else 1


def resolve_batch_tokens(
    batch_tokens: Literal["auto"] | int, model: PreTrainedModel | PeftModel
) -> int:
    """Turn a `batch_tokens` parameter into a number of tokens; log what `auto` comes to.

    `auto` is 8,192 on a CPU. On a GPU it is the largest power of two up to 262,144 for which the
    batches answered at once take at most 85% of the free memory of every process's GPU, or half of
    it if the weights are sharded. All processes must call this.
    """
    if batch_tokens != "auto":
        return batch_tokens
    if model.device.type == "cpu":
        return ON_A_CPU
    share = SHARE_OF_SHARDED if model_has_dtensor(model) else SHARE
    per_token = bytes_per_token(model) * batches_at_once(model)
    free = min(gather_json(free_memory(model.device)))
    if share * free < MOST * per_token:
        clear_device_cache()  # torch keeps freed memory for the stream that used it
        free = min(gather_json(free_memory(model.device)))
    fitting = int(share * free / per_token)
    chosen = min(MOST, max(FEWEST, 1 << fitting.bit_length() - 1))
    logger.info(
        "generation.batch_tokens auto: %d (%d MiB for %d at once, %d MiB free).",
        chosen,
        chosen * per_token / MIB,
        batches_at_once(model),
        free / MIB,
    )
    return chosen


def bytes_per_token(model: PreTrainedModel | PeftModel) -> int:
    """Return the bytes that answering takes at most for each input token of a large batch.

    The encoder takes its states, a feed-forward layer's activations and the position bias, and
    eager attention three times the scores. Afterwards the decoder takes its keys and values of the
    encoder's states in all layers, and float32 logits of the forced tokens.
    """
    base = base_of(model)
    config, size = base.config, base.dtype.itemsize
    shortest, longest = LENGTHS
    scores = 1 if config._attn_implementation in {"sdpa", "triton"} else 3
    of_encoder = size * (
        4 * config.d_model + 4 * config.d_ff + (1 + scores) * config.num_heads * longest
    )
    keys_and_values = 2 * config.num_decoder_layers * config.num_heads * config.d_kv
    logits = FORCED_TOKENS * config.vocab_size * (size + 2 * 4) / shortest
    of_decoder = size * (2 * config.d_model + keys_and_values) + logits
    return int(max(of_encoder, of_decoder))
