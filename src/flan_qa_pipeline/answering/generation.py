"""Batched greedy decoding: answers, their log-probabilities, how near they are to abstaining."""

import logging
import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import astuple, dataclass
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import model_has_dtensor
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from peft import PeftModel
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from flan_qa_pipeline.errors import InputError
from flan_qa_pipeline.models.adapter import base_of
from flan_qa_pipeline.models.batching import (
    MIN_ROWS,
    coarse_length,
    fill_up,
    length_batches,
    mask,
    pad,
)
from flan_qa_pipeline.models.decoder import Decoder
from flan_qa_pipeline.models.exchange import gather_json
from flan_qa_pipeline.models.sharding import whole_decoder

logger = logging.getLogger(__name__)

OTHER_BEGINNINGS = 32  # tried where an output abstains in other words than the abstention's tokens


@dataclass(frozen=True)
class GeneratedAnswer:
    """What the model says to one input; log-probabilities are of whole sequences, in nats.

    `text` is the greedy output and `score` its log-probability, end token included. `answer` is
    the text itself or, where that abstains, the greedy output that begins otherwise than the
    abstention, and `answer_score` its log-probability. `no_answer_score` is the log-probability
    of the abstention, also as the text says it, minus that of `answer`, which is "" where every
    output tried abstains.
    """

    text: str
    score: float
    answer: str
    answer_score: float
    no_answer_score: float


def generate_answers(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    input_ids: Sequence[Sequence[int]],
    *,
    abstention: str,
    batch_tokens: int,
    max_new_tokens: int,
    description: str | None = "Answer",
) -> list[GeneratedAnswer]:
    """Decode every input greedily; return the answers in the order of the inputs.

    Inputs are batched from the longest to the shortest, at most `batch_tokens` at a time, padding
    included, so that a batch has little padding and one that does not fit in memory fails first;
    it is then answered in halves. Each input is encoded once. Without a `description` there is no
    bar.

    Several processes answer the batches in turn and each returns all answers. The batches are
    those of one process, so the answers are, too. With a sharded model, whose weights each needs
    from the others, all answer all batches, and none in halves.
    """
    process, sharded = PartialState(), model_has_dtensor(model)
    batches = list(length_batches([len(ids) for ids in input_ids], batch_tokens))
    own = batches if sharded else batches[process.process_index :: process.num_processes]
    decoding = _Decoding(model, tokenizer, abstention, max_new_tokens)
    answers: dict[int, GeneratedAnswer] = {}
    with (
        # a sharded model keeps what it allocates here, and may be trained with it afterwards
        torch.no_grad() if sharded else torch.inference_mode(),
        whole_decoder(model) if sharded else nullcontext(),
        tqdm(
            total=sum(map(len, own)),
            desc=description,
            unit="window",
            leave=False,
            disable=description is None or not process.is_main_process,
        ) as progress,
    ):
        for rows in own:
            batch = decoding.fill_up([input_ids[i] for i in rows], len(batches[0]))
            answers |= zip(rows, decoding.answer(batch)[: len(rows)], strict=True)
            progress.update(len(rows))
    if not sharded:
        parts = gather_json([[row, astuple(said)] for row, said in answers.items()])
        answers = {row: GeneratedAnswer(*said) for part in parts for row, said in part}
    if without := sum(not said.answer for said in answers.values()):
        logger.warning(
            "%d of %d windows have no answer beside the abstention: %d other beginnings abstain, "
            "too.",
            without,
            len(answers),
            OTHER_BEGINNINGS,
        )
    return [answers[i] for i in range(len(input_ids))]


class _Decoding:
    """Greedy decoding of batches, and where it abstains, of the best other answer."""

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        tokenizer: PreTrainedTokenizerBase,
        abstention: str,
        max_new_tokens: int,
    ):
        self._model = base_of(model)
        self._tokenizer, self._abstention = tokenizer, abstention
        self._max_new_tokens = max_new_tokens
        self._start = model.config.decoder_start_token_id
        self._end, self._pad = tokenizer.eos_token_id, tokenizer.pad_token_id
        abstaining = tokenizer(abstention)["input_ids"]
        self._abstaining = torch.tensor(abstaining, device=model.device)
        self._silences = [abstaining[0], self._end]
        self._beside_answers = [abstaining[0], *tokenizer.all_special_ids]
        self._abstention_text = tokenizer.decode(abstaining, skip_special_tokens=True)

    def fill_up(self, rows: list[Any], batch_size: int) -> list[Any]:
        """Fill up a batch on a CPU, which keeps a kernel for every shape."""
        return fill_up(rows, batch_size) if self._model.device.type == "cpu" else rows

    def answer(self, input_ids: list[Sequence[int]]) -> list[GeneratedAnswer]:
        """Answer one batch; halve it where it does not fit in memory."""
        try:
            return self._answer(input_ids)
        except RuntimeError as error:
            halvable = len(input_ids) > 1 and not model_has_dtensor(self._model)
            if not halvable or not should_reduce_batch_size(error):
                raise
        clear_device_cache(garbage_collection=True)
        half = len(input_ids) // 2
        logger.info("%d windows do not fit in memory; answering them in halves.", len(input_ids))
        return self.answer(input_ids[:half]) + self.answer(input_ids[half:])

    def _answer(self, input_ids: list[Sequence[int]]) -> list[GeneratedAnswer]:
        """Tell abstentions by one pass, then decode all: what is abstained on, to another answer.

        The pass is over the abstention's own tokens. Where each of them is the most probable one,
        the abstention is what greedy decoding would say. What turns out to abstain in other tokens
        is decoded again, without those that it began with, `OTHER_BEGINNINGS` times at most.
        """
        forced = self._abstaining.expand(len(input_ids), -1)
        decoder, logits = self._begin(input_ids, forced[:, :-1])
        log_probs = logits.log_softmax(-1)
        abstained = log_probs.gather(2, forced.unsqueeze(2)).sum((1, 2))
        says_it = (logits.argmax(-1) == forced).all(1) & (forced.shape[1] <= self._max_new_tokens)
        begin = logits[:, 0]
        silent = says_it | (begin.argmax(-1) == self._end)
        silence = torch.where(says_it, abstained, log_probs[:, 0, self._end])
        banned = torch.zeros_like(begin, dtype=torch.bool)
        banned[:, self._silences] = silent.unsqueeze(1)
        first = begin.masked_fill(banned, -torch.inf).argmax(-1)
        best = self._decode(decoder, begin, first)
        rows: Any = zip(best, silent.tolist(), says_it.tolist(), silence.tolist(), strict=True)
        greedy = [
            (self._abstention_text if says_it else "", silence, says_it) if silent else said
            for said, silent, says_it, silence in rows
        ]
        for _ in range(OTHER_BEGINNINGS):
            unforeseen = [i for i, (text, *_) in enumerate(best) if self._abstains(text)]
            if not unforeseen:
                break
            rows = self.fill_up(unforeseen, len(input_ids))[: len(input_ids)]
            decoder, logits = self._begin([input_ids[i] for i in rows], forced[: len(rows), :0])
            begin = logits[:, 0]
            banned[rows, first[rows]] = True
            banned[:, self._beside_answers] = True
            first[rows] = begin.masked_fill(banned[rows], -torch.inf).argmax(-1)
            for i, said in zip(rows, self._decode(decoder, begin, first[rows]), strict=True):
                best[i] = said
        answers = []
        for (text, score, its_tokens), (answer, answer_score, _), log_prob in zip(
            greedy, best, abstained.tolist(), strict=True
        ):
            if self._abstains(text) and not its_tokens:
                log_prob = float(np.logaddexp(log_prob, score))
            if not all(map(math.isfinite, (score, answer_score, log_prob))):
                raise InputError(
                    "The model's probabilities are not finite numbers, so weights of the base or "
                    "of the adapter are damaged or far too large; restore them, or train again "
                    "with a lower training.learning_rate."
                )
            if self._abstains(answer):
                answer = ""
            answers.append(
                GeneratedAnswer(text, score, answer, answer_score, log_prob - answer_score)
            )
        return answers

    def _abstains(self, text: str) -> bool:
        return is_abstention(text, self._abstention)

    def _begin(
        self, input_ids: list[Sequence[int]], forced: torch.Tensor
    ) -> tuple[Decoder, torch.Tensor]:
        """Encode inputs; give the float32 logits after the start token and each forced one."""
        device = self._model.device
        length = coarse_length(max(map(len, input_ids)))
        tokens = pad(input_ids, self._pad, length).to(device)
        attended = mask(input_ids, length).to(device)
        states = self._model.get_encoder()(
            input_ids=tokens, attention_mask=attended
        ).last_hidden_state
        room = max(self._max_new_tokens, forced.shape[1] + 1)
        decoder = Decoder(self._model, states, attended, room)
        start = torch.full_like(tokens[:, :1], self._start)
        logits = decoder(torch.cat([start, forced], dim=1)).float()
        decoder.rewind(1)
        return decoder, logits

    def _decode(
        self, decoder: Decoder, logits: torch.Tensor, chosen: torch.Tensor
    ) -> list[tuple[str, float, bool]]:
        """Greedy outputs that begin with the tokens chosen, whose logits are given.

        Of each its text, its log-probability, and whether its tokens are the abstention's. Rows
        that have ended leave the batch when half of it can go; a power of two stays, at least
        `MIN_ROWS`.
        """
        n_rows, end = len(logits), self._end
        tokens = torch.full((n_rows, self._max_new_tokens), self._pad, device=logits.device)
        scores = logits.new_zeros(n_rows)
        rows = torch.arange(n_rows, device=logits.device)
        going = torch.ones_like(rows, dtype=torch.bool)
        for step in range(self._max_new_tokens):
            chosen = chosen.masked_fill(~going, self._pad)
            score = logits.gather(1, chosen[:, None]).squeeze(1) - logits.logsumexp(-1)
            tokens[rows, step] = chosen
            scores[rows] += score.masked_fill(~going, 0.0)
            going = going & (chosen != end)
            remaining = int(going.sum())
            if remaining == 0 or step + 1 == self._max_new_tokens:
                break
            size = max(MIN_ROWS, 1 << (remaining - 1).bit_length())
            if size <= len(rows) // 2:
                kept = going.long().argsort(descending=True, stable=True)[:size]
                decoder.keep(kept)
                rows, chosen, going = rows[kept], chosen[kept], going[kept]
            logits = decoder(chosen[:, None])[:, 0].float()
            chosen = logits.argmax(-1)
        texts = self._tokenizer.batch_decode(tokens, skip_special_tokens=True)
        own = self._abstaining[: self._max_new_tokens]
        are_own = (tokens[:, : len(own)] == own).all(1)
        return list(zip(texts, scores.tolist(), are_own.tolist(), strict=True))


def is_abstention(text: str, abstention: str) -> bool:
    """Whether the text is empty or, but for case and outer white space, the abstention."""
    return text.strip().casefold() in {"", abstention.casefold()}
