"""What subclasses of library layers rely on; a failure names what a library has changed."""

import inspect

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers.models.t5.modeling_t5 import T5Attention

from flan_qa_pipeline.models.fused_lora import FUSED
from flan_qa_pipeline.models.loading import load_base_model
from flan_qa_pipeline.models.subclasses import become
from flan_qa_pipeline.models.t5 import (
    LEAN_LAYERS,
    TRITON,
    TRITON_LAYERS,
    SharedMaskAttention,
)
from flan_qa_pipeline.models.transformers_private import attention_of

# what the subclasses' methods read of their library's layers
READ = {
    "T5Attention": {"has_relative_attention_bias", "layer_idx", "q", "k", "v", "o"},
    "T5DenseGatedActDense": {"wi_0", "wi_1", "wo", "act", "dropout"},
    "T5LayerNorm": {"weight", "variance_epsilon"},
    "Linear": {"lora_A", "lora_B", "lora_bias", "lora_dropout", "lora_variant", "scaling"},
}
READ["Linear"] |= {"active_adapters", "base_layer", "disable_adapters", "merged"}
READ["Linear4bit"] = READ["Linear"]


@pytest.mark.parametrize(
    "subclasses", [LEAN_LAYERS, TRITON_LAYERS, FUSED], ids=["T5", "Triton", "LoRA"]
)
def test_a_subclass_adds_methods_and_no_state(subclasses):
    for layer, subclass in subclasses.items():
        assert issubclass(subclass, layer)
        assert subclass.__init__ is layer.__init__, f"{subclass} initializes itself"
        theirs, ours = (list(inspect.signature(c.forward).parameters)[1] for c in (layer, subclass))
        assert ours in (theirs, "hidden_states"), f"{layer}.forward takes {theirs} first"


def test_t5s_attention_takes_the_arguments_that_its_subclass_hands_on():
    theirs, ours = (
        list(inspect.signature(layer.forward).parameters)
        for layer in (T5Attention, SharedMaskAttention)
    )
    assert theirs == ours, f"transformers' T5Attention.forward takes {theirs}; adapt models/t5.py"


@pytest.mark.parametrize("packed", [True, False])
def test_the_libraries_still_build_the_layers_that_are_replaced(float32, packed):
    base = load_base_model(float32.model_copy(update={"dequantize": not packed}))
    lora = LoraConfig(task_type="SEQ_2_SEQ_LM", target_modules="all-linear", r=2)
    model = get_peft_model(base, lora)
    built = {type(module) for module in model.modules()}
    assert built & set(FUSED), f"peft puts none of {list(FUSED)} on the base"
    on_triton = attention_of(model.config) == TRITON
    replacing = LEAN_LAYERS | (TRITON_LAYERS if on_triton else {})
    assert set(replacing.values()) <= built, "transformers builds T5 of other layers"
    for layer, subclass in (FUSED | {c: c for c in replacing.values()}).items():
        name = next(kind.__name__ for kind in subclass.__mro__ if kind.__name__ in READ)
        for module in (module for module in model.modules() if type(module) is layer):
            missing = {key for key in READ[name] if not hasattr(module, key)}
            assert not missing, f"{layer} has no {missing} any more"


def test_a_module_keeps_its_weights_and_a_subclass_its_class():
    class Doubled(torch.nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    class Other(torch.nn.Linear):
        pass

    model = torch.nn.Sequential(torch.nn.Linear(2, 2), Other(2, 2))
    weight, x = model[0].weight, torch.ones(1, 2)
    once = model[0](x)
    become(model, {torch.nn.Linear: Doubled})
    assert model[0].weight is weight
    torch.testing.assert_close(model[0](x), 2 * once)
    assert type(model[1]) is Other
