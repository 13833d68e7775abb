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
AT_ONCE = 2  # batches on a GPU with room for them, which `auto` finds at `MOST` alone
SHARE, SHARE_OF_SHARDED = 0.85, 0.5  # of the free memory; FSDP gathers weights in the rest
LENGTHS = (64, 512)  # of inputs: the shorter, the more logits; the longer, the more scores
FORCED_TOKENS = 4  # decoded at once for each input: the start, and an abstention of a few tokens


def batches_at_once(model: PreTrainedModel | PeftModel, batch_tokens: int) -> int:
    """Return how many batches are answered at a time: two on a GPU that has room for them.

    Where memory is the limit, one batch is answered in less time than two halves of it side by
    side, most of all from packed weights, which every pass unpacks. A CPU and a sharded model
    answer one at a time.

    Args:
        batch_tokens: the most input tokens in a batch, padding included.
    """
    if model.device.type == "cpu" or model_has_dtensor(model):
        return 1
    return AT_ONCE if AT_ONCE * batch_tokens * bytes_per_token(model) <= _room(model) else 1


def resolve_batch_tokens(
    batch_tokens: Literal["auto"] | int, model: PreTrainedModel | PeftModel
) -> int:
    """Turn a `batch_tokens` parameter into a number of tokens; log what `auto` comes to.

    `auto` is 8,192 on a CPU. On a GPU it is the largest power of two up to 262,144 for which a
    batch takes at most 85% of the free memory of every process's GPU, or half of it if the weights
    are sharded. All processes must call this.
    """
    if batch_tokens != "auto":
        return batch_tokens
    if model.device.type == "cpu":
        return ON_A_CPU
    per_token = bytes_per_token(model)
    room = min(gather_json(_room(model)))
    if room < AT_ONCE * MOST * per_token:
        clear_device_cache()  # torch keeps freed memory for the stream that used it
    fitting = max(FEWEST, min(MOST, room // per_token))
    chosen = 1 << fitting.bit_length() - 1
    at_once = batches_at_once(model, chosen)
    logger.info(
        "generation.batch_tokens auto: %d tokens, %d batches at a time (%d of %d usable MiB).",
        chosen,
        at_once,
        at_once * chosen * per_token / MIB,
        room / MIB,
    )
    return chosen


def _room(model: PreTrainedModel | PeftModel) -> int:
    """Return the bytes of a GPU that answering may take."""
    share = SHARE_OF_SHARDED if model_has_dtensor(model) else SHARE
    return int(share * free_memory(model.device))


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
