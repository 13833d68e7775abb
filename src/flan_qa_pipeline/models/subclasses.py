"""Modules that a library has built, turned into this project's subclasses of their class.

The subclasses add methods and no state, so Python may change the class of a built module: its
weights stay where they are, on whatever device, packed or not. The libraries offer no public way:
peft's `LoraConfig._register_custom_module` is private, transformers' T5 has no setting for its
layers, and `set_submodule` needs a new module, whose weights are drawn and copied in vain.
"""

from collections.abc import Mapping

from torch.nn import Module


def become(model: Module, subclasses: Mapping[type[Module], type[Module]]) -> None:
    """Change the class of every module whose class is a key; subclasses of the keys stay.

    Args:
        model: the module to search, itself included.
        subclasses: library classes mapped to the subclasses that replace them.
    """
    for module in model.modules():
        module.__class__ = subclasses.get(type(module), type(module))
