"""The private parts of transformers' models that this project relies on, under public names.

`tests/models/test_models_transformers_private.py` checks each against the installed version.
`training/transformers_private.py` holds the private parts of the Trainer.
"""

from transformers import PreTrainedConfig, PreTrainedModel


def attention_of(config: PreTrainedConfig) -> str:
    """Return the name of the attention that a model with this configuration computes."""
    return str(config._attn_implementation)


def set_attention(config: PreTrainedConfig, name: str) -> None:
    """Choose the attention of the models that are built from a configuration.

    transformers' public `set_attn_implementation` changes a built model.
    """
    config._attn_implementation = name


def allow_every_layer(model: PreTrainedModel) -> None:
    """Open T5's feed-forward `wo` to quantization.

    transformers keeps `wo` out, because its output overflows float16; bfloat16 and float32, the
    compute dtypes of this project, hold it. transformers reads the list from this attribute of an
    initialized model and offers no public way to change it.
    """
    model._keep_in_fp32_modules = set()
