"""Muon for the layers' matrices, AdamW for embeddings, head, norms and position biases.

Muon: Jordan et al. 2024, https://kellerjordan.github.io/posts/muon. Scale of its step: Liu et al.
2025, "Muon is Scalable for LLM Training", arXiv:2502.16982. Matrices of one shape are
orthogonalized in one batch, since a launch for each would take longer than a small model's step.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn
from transformers import T5ForConditionalGeneration

from flan_qa_pipeline.config.parameters import PretrainOptimizerParameters
from flan_qa_pipeline.pretraining.objectives import Objectives
from flan_qa_pipeline.pretraining.replaced_tokens import ReplacedTokens
from flan_qa_pipeline.training.torch_private import multiply_all

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
GENERATOR_WEIGHT_DECAY = 0.02
# Learning rates as shares of the model's; the generator's matrices take matrix_lr.
GENERATOR_SHARES = {"embedding": 0.25, "head": 0.5, "other": 0.5}
HEAD_SHARE = 0.25  # of head_lr, for the detector and the span head
Optimizers = list[torch.optim.Optimizer]


def orthogonalize(matrices: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """Move the singular values of every matrix near 1, by Newton-Schulz steps in bfloat16.

    Args:
        matrices: Shape (matrices, rows, columns).
        steps: Number of steps.

    Returns:
        bfloat16, of the same shape. Singular values lie roughly between 0.7 and 1.2.
    """
    a, b, c = NEWTON_SCHULZ
    x = matrices.bfloat16()
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Orthogonalized momentum; the matrices of a group have one shape.

    Args:
        groups: Parameter groups with `params` and, where they differ, `lr` and `scale`.
        lr: Learning rate. The root mean square of a weight's change is 0.2 lr.
        momentum: Of Nesterov's kind.
        weight_decay: Decoupled, times lr.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "scale": 1.0}
        super().__init__(groups, defaults)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Change the weights once."""
        for group in self.param_groups:
            parameters = group["params"]
            gradients = torch.stack([parameter.grad for parameter in parameters])
            state = self.state[parameters[0]]
            if "momentum" not in state:
                state["momentum"] = torch.zeros_like(gradients)
            buffer = state["momentum"]
            buffer.lerp_(gradients, 1 - group["momentum"])
            update = orthogonalize(torch.lerp(gradients, buffer, group["momentum"]))
            size = 0.2 * max(update.shape[-2:]) ** 0.5 * group["lr"] * group["scale"]
            if group["weight_decay"]:
                multiply_all(parameters, 1 - group["lr"] * group["weight_decay"])
            for parameter, change in zip(parameters, update, strict=True):
                parameter.add_(change.float(), alpha=-size)


def build_optimizers(
    model: T5ForConditionalGeneration, rates: PretrainOptimizerParameters
) -> Optimizers:
    """Give every parameter of the model to one of the two optimizers.

    A query projection's step is smaller by the root of the head's width: T5 does not scale
    attention scores by that root, so its query weights are smaller.

    Returns:
        Muon and AdamW, at their largest learning rates.
    """
    matrices, rest = _split(model, "lm_head.weight", model.config.d_kv)
    return [
        Muon(matrices, lr=rates.matrix_lr, weight_decay=rates.weight_decay),
        _adamw([(rest[kind], getattr(rates, f"{kind}_lr")) for kind in rest]),
    ]


def build_part_optimizers(
    objectives: Objectives, rates: PretrainOptimizerParameters
) -> dict[str, Optimizers]:
    """Give every parameter of the auxiliary losses to an optimizer, by the part's name."""
    optimizers: dict[str, Optimizers] = {}
    if objectives.replaced_tokens is not None:
        optimizers["replaced_tokens"] = _for_replaced_tokens(objectives.replaced_tokens, rates)
    if objectives.span_head is not None:
        head = list(objectives.span_head.parameters())
        optimizers["span_head"] = [_adamw([(head, HEAD_SHARE * rates.head_lr)])]
    return optimizers


def _for_replaced_tokens(part: ReplacedTokens, rates: PretrainOptimizerParameters) -> Optimizers:
    matrices, rest = _split(part.generator, None, part.generator.config.d_kv)
    rest["head"] += part.generator_head.parameters()
    groups = [
        (rest[kind], share * getattr(rates, f"{kind}_lr"))
        for kind, share in GENERATOR_SHARES.items()
    ]
    return [
        Muon(matrices, lr=rates.matrix_lr, weight_decay=GENERATOR_WEIGHT_DECAY),
        _adamw([*groups, (list(part.detector.parameters()), HEAD_SHARE * rates.head_lr)]),
    ]


def _split(
    model: nn.Module, head: str | None, d_kv: int
) -> tuple[list[dict[str, Any]], dict[str, list[nn.Parameter]]]:
    """Split a T5's parameters: Muon's groups, and the others by their kind."""
    shapes: dict[tuple[Any, ...], list[nn.Parameter]] = {}
    rest: dict[str, list[nn.Parameter]] = {"embedding": [], "head": [], "other": []}
    for name, parameter in model.named_parameters():
        if name == "shared.weight":
            rest["embedding"].append(parameter)
        elif name == head:
            rest["head"].append(parameter)
        elif parameter.ndim == 2 and "relative_attention_bias" not in name:
            shapes.setdefault((".q." in name, *parameter.shape), []).append(parameter)
        else:
            rest["other"].append(parameter)
    small = d_kv**-0.5
    groups = [{"params": p, "scale": small if key[0] else 1.0} for key, p in shapes.items()]
    return groups, rest


def _adamw(groups: Sequence[tuple[list[nn.Parameter], float]]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(
        [{"params": parameters, "lr": rate} for parameters, rate in groups],
        betas=(0.9, 0.98),
        eps=1e-10,
        weight_decay=0.0,
        fused=groups[0][0][0].is_cuda,
    )
