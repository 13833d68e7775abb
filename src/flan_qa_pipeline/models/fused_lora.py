"""LoRA layers in fewer passes over the activations than peft's.

peft scales LoRA's output in one pass, adds it to the layer's output in another, and multiplies in
the adapter's dtype, float32, which casts every activation. Here the float32 LoRA weights are cast
to the dtype of the activations, and each product is added as it is computed.

LoRA: Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models", arXiv:2106.09685.
"""

from typing import TYPE_CHECKING, Any

import torch
from peft import PeftModel
from peft.tuners import lora
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from torch.nn.functional import linear

from flan_qa_pipeline.models.subclasses import become

if TYPE_CHECKING:
    from peft.tuners.lora import LoraLayer as _LoraLayer
else:
    _LoraLayer = object  # with another base Python refuses to swap the class of a layer


class _Product(torch.autograd.Function):
    """x Wᵀ + s d Aᵀ Bᵀ for a frozen W.

    Shapes: x and d (rows, in), W (out, in), A (r, in), B (out, r). d is x after LoRA's dropout, or
    None without dropout. A and B may be float32: they are cast to the dtype of x, B together with
    its scaling s. Under autocast x must already have autocast's dtype.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        dropped: torch.Tensor | None,
        weight: torch.Tensor,
        lora_a: torch.Tensor,
        lora_b: torch.Tensor,
        scaling: float,
    ) -> torch.Tensor:
        given = x if dropped is None else dropped
        ctx.scaling, ctx.drops, ctx.dtype = scaling, dropped is not None, lora_a.dtype
        lora_a, lora_b = lora_a.to(x.dtype), _scaled(lora_b, scaling, x.dtype)
        narrow = given @ lora_a.t()
        ctx.save_for_backward(given, narrow, weight, lora_a, lora_b)
        return (x @ weight.t()).addmm_(narrow, lora_b.t())

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        given, narrow, weight, lora_a, lora_b = ctx.saved_tensors
        of_narrow = grad @ lora_b
        of_x = grad @ weight if ctx.needs_input_grad[0] else None
        of_dropped = None
        if ctx.drops:
            of_dropped = of_narrow @ lora_a if ctx.needs_input_grad[1] else None
        elif of_x is not None:
            of_x.addmm_(of_narrow, lora_a)
        of_a = _scaled_product(of_narrow.t(), given, 1.0, ctx.dtype)
        of_b = _scaled_product(grad.t(), narrow, ctx.scaling, ctx.dtype)
        return of_x, of_dropped, None, of_a, of_b, None


def _scaled_product(
    a: torch.Tensor, b: torch.Tensor, scaling: float, dtype: torch.dtype
) -> torch.Tensor:
    """Multiply, scale and cast; a GPU does all in one pass."""
    if a.device.type != "cuda" or a.dtype.itemsize >= dtype.itemsize:
        return _scaled(a @ b, scaling, dtype)
    ignored = torch.empty((a.shape[0], b.shape[1]), dtype=dtype, device=a.device)
    return torch.addmm(ignored, a, b, out_dtype=dtype, beta=0, alpha=scaling)


def _scaled(part: torch.Tensor, scaling: float, dtype: torch.dtype) -> torch.Tensor:
    """Scale and cast; a GPU does both in one pass."""
    return torch.mul(part, scaling, out=torch.empty_like(part, dtype=dtype))


class _Fused(_LoraLayer):
    """A LoRA layer that adds the product of one plain adapter in place.

    peft computes everything else: DoRA, biases, several adapters, merged or disabled ones.
    """

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        name = self.active_adapters[0] if len(self.active_adapters) == 1 else None
        if (
            name not in self.lora_A
            or name in self.lora_variant
            or self.disable_adapters
            or self.merged
            or self.lora_bias[name]
            or args
            or kwargs
        ):
            return super().forward(x, *args, **kwargs)
        dropout = self.lora_dropout[name]
        drops = self.training and not isinstance(dropout, nn.Identity)
        lora_a, lora_b = (part[name].weight for part in (self.lora_A, self.lora_B))
        rows = x.flatten(0, -2)
        dropped = dropout(rows) if drops else None
        layer, scaling = self.base_layer, self.scaling[name]
        if type(layer) is nn.Linear and layer.bias is None:
            result = _Product.apply(rows, dropped, layer.weight, lora_a, lora_b, scaling)
        else:
            narrow = linear(rows if dropped is None else dropped, lora_a.to(x.dtype))
            result = torch.addmm(layer(rows), narrow, lora_b.to(x.dtype).t(), alpha=scaling)
        return result.unflatten(0, x.shape[:-1])


class FusedLinear(_Fused, lora.Linear):
    """LoRA on a linear layer."""


class FusedLinear4bit(_Fused, lora.Linear4bit):
    """LoRA on a 4-bit layer."""


FUSED: dict[type[nn.Module], type[nn.Module]] = {
    lora.Linear: FusedLinear,
    lora.Linear4bit: FusedLinear4bit,
}


def fuse(model: PeftModel) -> bool:
    """Let LoRA layers compute as this module does.

    Returns:
        Whether all of them do; DoRA's leave it to peft.
    """
    become(model, FUSED)
    layers = [part for part in model.modules() if isinstance(part, BaseTunerLayer)]
    return all(isinstance(layer, _Fused) and not layer.lora_variant for layer in layers)
