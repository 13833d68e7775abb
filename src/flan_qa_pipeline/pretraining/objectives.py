"""The losses of a step: the model's own, and those that train its encoder beside it."""

from collections.abc import Sequence

import torch
from torch import nn
from transformers import T5ForConditionalGeneration

from flan_qa_pipeline.config.parameters import PretrainParameters
from flan_qa_pipeline.errors import InputError
from flan_qa_pipeline.pretraining.batches import Batch
from flan_qa_pipeline.pretraining.replaced_tokens import ReplacedTokens
from flan_qa_pipeline.pretraining.span_head import SpanHead

DENOISING = "denoising"
Heads = dict[str, torch.Tensor]  # weights of the parts by name


class Objectives(nn.Module):
    """The parts that auxiliary losses add to a model; a loss with the weight 0 builds none.

    Attributes:
        replaced_tokens: Trains the encoder in batches with span corruption.
        span_head: Trains it in batches with questions.

    Args:
        model: The model to train.
        pretrain: Weights and sizes.
        sentinels: Ids of `<extra_id_0>`, …
    """

    def __init__(
        self,
        model: T5ForConditionalGeneration,
        pretrain: PretrainParameters,
        sentinels: Sequence[int],
    ) -> None:
        super().__init__()
        replaced, span = pretrain.replaced_tokens, pretrain.span_head
        self.replaced_tokens = (
            ReplacedTokens(model.config, replaced, sentinels)
            if replaced.weight and replaced.share
            else None
        )
        self.span_head = SpanHead(model.config.d_model) if span.weight else None
        self._weights = {"replaced_tokens": replaced.weight, "span_head": span.weight}

    def weights(self) -> Heads:
        """Return the weights of all parts by name."""
        return {name: parameter.detach() for name, parameter in self.named_parameters()}

    @torch.no_grad()
    def restore(self, weights: Heads) -> None:
        """Copy what `weights` returned into these parts.

        Raises:
            InputError: The weights have other names or shapes than these parts.
        """
        mine = self.weights()
        for name in sorted(mine.keys() | weights.keys()):
            shapes = [tuple(w[name].shape) if name in w else None for w in (mine, weights)]
            if shapes[0] != shapes[1]:
                raise InputError(
                    "The saved heads of the auxiliary losses do not fit "
                    f"pretrain.replaced_tokens and pretrain.span_head: {name} has the shape "
                    f"{shapes[1]}, not {shapes[0]}; restore these parameters, or run again with "
                    "--from-nodes=pretrain_reader, which trains the heads."
                )
            mine[name].copy_(weights[name])

    def trained_by(self, kind: str) -> list[str]:
        """Name the parts that a kind of batch trains."""
        part = "replaced_tokens" if kind == DENOISING else "span_head"
        return [part] if getattr(self, part) is not None else []

    def losses(
        self, model: T5ForConditionalGeneration, batch: Batch, *, denoises: bool
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Compute the losses of a batch.

        Args:
            model: The model to train.
            batch: What `BatchSource.batch` returns, and `noise`, uniform numbers of the inputs'
                shape, which choose the tokens to replace.
            denoises: Whether it has span corruption.

        Returns:
            The weighted sum to minimize, and the losses in it by name, without gradients:
            `target`, the model's own, and where they are built `replaced_tokens` and `generator`,
            or `span_head`.
        """
        ids, mask = batch["input_ids"], batch["attention_mask"]
        named: dict[str, torch.Tensor] = {}
        seen = ids
        if denoises and self.replaced_tokens is not None:
            seen, named["generator"] = self.replaced_tokens.fill(ids, mask, batch["noise"])
        encoded = model.encoder(input_ids=seen, attention_mask=mask)
        states = encoded.last_hidden_state
        if denoises and self.replaced_tokens is not None:
            named["replaced_tokens"] = self.replaced_tokens.detect(states, seen != ids, mask)
        elif not denoises and self.span_head is not None:
            named["span_head"] = self.span_head.loss(states, mask, batch["places"])
        target: torch.Tensor = model(
            encoder_outputs=encoded, attention_mask=mask, labels=batch["labels"], use_cache=False
        ).loss
        total = target
        for name, loss in named.items():
            total = total + self._weights.get(name, 1.0) * loss
        return total, {name: loss.detach() for name, loss in ({"target": target} | named).items()}
