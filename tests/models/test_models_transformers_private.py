"""The private parts of transformers that models rely on are in the installed version.

Each message says what is missing; `models/transformers_private.py` is the place to mend.
"""

from importlib.metadata import version

import pytest
import torch
from transformers import BitsAndBytesConfig, T5Config, T5ForConditionalGeneration
from transformers.quantizers import AutoHfQuantizer

from flan_qa_pipeline.models import transformers_private

TRANSFORMERS = f"transformers {version('transformers')}"
TINY = {"vocab_size": 8, "d_model": 4, "d_kv": 2, "d_ff": 4, "num_layers": 1, "num_heads": 2}


def tiny_t5(attention):
    config = T5Config(**TINY)
    transformers_private.set_attention(config, attention)
    with torch.device("meta"):
        return T5ForConditionalGeneration(config)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_the_attention_of_a_configuration_is_that_of_the_models_built_from_it(attention):
    model = tiny_t5(attention)
    layers = (*model.encoder.block, *model.decoder.block)
    found = {
        transformers_private.attention_of(block.layer[0].SelfAttention.config) for block in layers
    }
    assert found == {attention}, (
        f"{TRANSFORMERS}: T5 takes its attention from elsewhere than config._attn_implementation"
    )


def test_the_attention_that_is_read_is_the_one_that_the_public_method_sets():
    model = tiny_t5("eager")
    model.set_attn_implementation("sdpa")
    assert transformers_private.attention_of(model.config) == "sdpa", (
        f"{TRANSFORMERS}: set_attn_implementation changes no config._attn_implementation"
    )


def left_out(model):
    """Return the layers that transformers leaves out of 4 bits."""
    quantizer = AutoHfQuantizer.from_config(
        BitsAndBytesConfig(load_in_4bit=True, llm_int8_skip_modules=["lm_head"])
    )
    quantizer.preprocess_model(model=model, device_map={"": "cpu"})
    return quantizer.modules_to_not_convert


def test_every_layer_is_open_to_4_bits():
    assert "wo" in left_out(tiny_t5("eager")), f"{TRANSFORMERS} packs wo; drop allow_every_layer"
    model = tiny_t5("eager")
    transformers_private.allow_every_layer(model)
    assert left_out(model) == ["lm_head"], (
        f"{TRANSFORMERS} does not read model._keep_in_fp32_modules when it quantizes"
    )
