"""Batched greedy decoding: answers, their log-probabilities, and the odds of abstaining."""

import logging
import math
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import model_has_dtensor
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from peft import PeftModel
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from flan_qa_pipeline.answering.batch_tokens import batches_at_once
from flan_qa_pipeline.errors import InputError
from flan_qa_pipeline.models.adapter import base_of
from flan_qa_pipeline.models.batching import (
    MIN_ROWS,
    coarse_length,
    dealt,
    fill_up,
    length_batches,
    mask,
    pad,
)
from flan_qa_pipeline.models.decoder import Decoder
from flan_qa_pipeline.models.exchange import gather_tensors
from flan_qa_pipeline.models.sharding import whole_decoder

logger = logging.getLogger(__name__)

MAX_RETRIES = 32  # other first tokens tried where an output abstains in unexpected tokens
NOT_FINITE = (
    "The model's probabilities are not finite numbers, so weights of the base or of the adapter "
    "are damaged or far too large; restore them, or train again with a lower "
    "training.learning_rate."
)


class GeneratedAnswer(NamedTuple):
    """The model's answer to one input. Log-probabilities cover whole sequences, in nats.

    Attributes:
        text: the greedy output.
        log_prob: log-probability of `text`, end token included.
        answer: the best answer: `text` itself or, if `text` abstains, the greedy output that
            begins with another token than the abstention. "" if every output tried abstains.
        answer_log_prob: log-probability of `answer`.
        no_answer_log_odds: log-probability of the abstention minus `answer_log_prob`. If `text`
            abstains in other tokens, their probability counts, too.
    """

    text: str
    log_prob: float
    answer: str
    answer_log_prob: float
    no_answer_log_odds: float


def is_abstention(text: str, abstention: str) -> bool:
    """Return whether a text is empty or, ignoring case and outer white space, the abstention."""
    return text.strip().casefold() in {"", abstention.casefold()}


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
    """Decode every input greedily.

    Batches go from the longest inputs to the shortest. Each then has little padding, and a batch
    that does not fit in memory fails first; it is answered in halves. A GPU with enough memory
    answers two batches at a time: it computes one while the CPU launches or reads the other.

    The batches are dealt to several processes, and each returns all answers. The batches do not
    depend on the number of processes, so neither do the answers. The processes of a sharded model
    exchange weights at every step, so each of them answers every batch, none in halves.

    Args:
        input_ids: token ids of each input, of any lengths.
        abstention: the text by which the model says that the context holds no answer.
        batch_tokens: the most input tokens in a batch, padding included.
        max_new_tokens: the longest output, in tokens.
        description: the progress bar's label; None shows no bar.

    Returns:
        The answers, in the order of the inputs.

    Raises:
        InputError: the model's probabilities are not finite.
    """
    process, sharded = PartialState(), model_has_dtensor(model)
    batches = list(length_batches([len(ids) for ids in input_ids], batch_tokens))
    own = batches if sharded else dealt(batches, process.process_index, process.num_processes)
    answerer = _BatchAnswerer(model, tokenizer, abstention, max_new_tokens)
    answers: dict[int, GeneratedAnswer] = {}
    with (
        whole_decoder(model) if sharded else nullcontext(),
        tqdm(
            total=sum(map(len, own)),
            desc=description,
            unit="window",
            leave=False,
            disable=description is None or not process.is_main_process,
        ) as progress,
    ):
        filled = [answerer.fill_up([input_ids[i] for i in rows], len(batches[0])) for rows in own]
        at_once = batches_at_once(model, batch_tokens) if len(own) > 1 else 1
        with closing(answerer.answer_all(filled, at_once)) as found:
            for number, generated in found:
                rows = own[number]
                answers |= zip(rows, generated[: len(rows)], strict=True)
                progress.update(len(rows))
    if not sharded:
        answers = _gather(answers)
    _warn_of_missing_answers(answers)
    return [answers[i] for i in range(len(input_ids))]


def _gather(answers: dict[int, GeneratedAnswer]) -> dict[int, GeneratedAnswer]:
    """Return the answers of all processes by the numbers of their inputs."""
    if PartialState().num_processes == 1:
        return answers
    columns = list(zip(*answers.values(), strict=True)) or [()] * len(GeneratedAnswer._fields)
    texts, log_probs, best, best_log_probs, odds = columns
    numbers = torch.tensor([log_probs, best_log_probs, odds], dtype=torch.float64)
    gathered: dict[int, GeneratedAnswer] = {}
    parts = gather_tensors([texts, best], {"rows": torch.tensor(list(answers)), "numbers": numbers})
    for (texts, best), tensors in parts:
        log_probs, best_log_probs, odds = tensors["numbers"].tolist()
        found = map(GeneratedAnswer, texts, log_probs, best, best_log_probs, odds)
        gathered.update(zip(tensors["rows"].tolist(), found, strict=True))
    return gathered


def _warn_of_missing_answers(answers: dict[int, GeneratedAnswer]) -> None:
    if missing := sum(not answer.answer for answer in answers.values()):
        logger.warning(
            "%d of %d windows have no answer beside the abstention: the outputs that begin with "
            "%d other tokens abstain, too.",
            missing,
            len(answers),
            MAX_RETRIES,
        )


@cache
def _streams(device: torch.device, count: int) -> list[torch.cuda.Stream]:
    """Return streams that stay: torch keeps the memory that a stream has used for this stream."""
    return [torch.cuda.Stream(device) for _ in range(count)]


class _Output(NamedTuple):
    """A greedy output.

    Attributes:
        text: its text, without special tokens.
        log_prob: log-probability of the whole sequence, in nats.
        first_token: the id of its first token.
        is_canonical: whether its tokens are the encoded abstention.
    """

    text: str
    log_prob: float
    first_token: int
    is_canonical: bool


@dataclass(frozen=True)
class _ForcedPass:
    """What a batch's forced pass over the abstention's tokens shows.

    Attributes:
        decoder: the decoder of the batch, rewound to the start token.
        first_logits: (inputs, vocabulary), float32 logits of the first token.
        abstention_log_probs: log-probability of the abstention's tokens for each input.
        abstentions: the greedy output of each input if it is the abstention's tokens or empty;
            None if it begins otherwise.
    """

    decoder: Decoder
    first_logits: torch.Tensor
    abstention_log_probs: list[float]
    abstentions: list[_Output | None]


class _BatchAnswerer:
    """Decodes batches greedily, and finds the best other answer where the model abstains."""

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
        canonical = tokenizer(abstention)["input_ids"]
        self._canonical = torch.tensor(canonical, device=model.device)
        self._canonical_text = tokenizer.decode(canonical, skip_special_tokens=True)
        self._abstaining_tokens = [canonical[0], self._end]
        self._never_first = [canonical[0], *tokenizer.all_special_ids]

    def fill_up(self, rows: list[Any], batch_size: int) -> list[Any]:
        """Fill up a batch on a CPU, which keeps a kernel for every shape."""
        return fill_up(rows, batch_size) if self._model.device.type == "cpu" else rows

    def answer_all(
        self, batches: list[list[Sequence[int]]], at_once: int
    ) -> Generator[tuple[int, list[GeneratedAnswer]], None, None]:
        """Yield the number and the answers of each batch.

        A batch that does not fit beside another is answered alone in the end.

        Args:
            batches: token ids of the inputs of each batch.
            at_once: how many batches to answer side by side; each of them has a thread and a stream
                of the GPU.
        """
        device, alone = self._model.device, list(range(len(batches)))
        if at_once > 1:
            streams = _streams(device, at_once)
            for stream in streams:
                stream.wait_stream(torch.cuda.current_stream(device))
            free = iter(streams)
            with ThreadPoolExecutor(
                at_once, "answers", lambda: torch.cuda.set_stream(next(free))
            ) as threads:
                for number, answers in enumerate(threads.map(self._answer_beside, batches)):
                    if answers is not None:
                        alone.remove(number)
                        yield number, answers
        for number in alone:
            yield number, self.answer(batches[number])

    def _answer_beside(self, input_ids: list[Sequence[int]]) -> list[GeneratedAnswer] | None:
        """Answer one batch; return None if it does not fit in memory."""
        try:
            with torch.inference_mode():
                return self._answer(input_ids)
        except RuntimeError as error:
            if not should_reduce_batch_size(error):
                raise
        clear_device_cache(garbage_collection=True)
        return None

    def answer(self, input_ids: list[Sequence[int]]) -> list[GeneratedAnswer]:
        """Answer one batch; halve it if it does not fit in memory."""
        # A sharded model keeps tensors that it allocates here, and training may need them later.
        mode = torch.no_grad if model_has_dtensor(self._model) else torch.inference_mode
        try:
            with mode():
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
        """Detect abstentions in one forced pass, then decode every input.

        Abstained inputs get their best alternative answer.
        """
        forced = self._detect_abstentions(input_ids)
        banned = self._ban_abstentions(forced)
        decoded = self._decode(forced.decoder, forced.first_logits, banned)
        answers = self._retry_abstentions(input_ids, decoded, banned)
        greedy = [
            abstention or output
            for abstention, output in zip(forced.abstentions, decoded, strict=True)
        ]
        return [
            self._generated(*outputs)
            for outputs in zip(greedy, answers, forced.abstention_log_probs, strict=True)
        ]

    def _detect_abstentions(self, input_ids: list[Sequence[int]]) -> _ForcedPass:
        """Run the abstention's tokens through the decoder.

        If each of them is the most probable one, greedy decoding would produce the abstention.
        """
        canonical = self._canonical.expand(len(input_ids), -1)
        decoder, logits = self._begin(input_ids, canonical[:, :-1])
        log_probs = logits.log_softmax(-1)
        abstention_log_probs = log_probs.gather(2, canonical.unsqueeze(2)).sum((1, 2)).tolist()
        fits = canonical.shape[1] <= self._max_new_tokens
        abstains = (logits.argmax(-1) == canonical).all(1) & fits
        ends = logits[:, 0].argmax(-1) == self._end
        abstentions: list[_Output | None] = []
        for is_canonical, is_empty, log_prob, end_log_prob in zip(
            abstains.tolist(),
            ends.tolist(),
            abstention_log_probs,
            log_probs[:, 0, self._end].tolist(),
            strict=True,
        ):
            if is_canonical:
                first = self._abstaining_tokens[0]
                abstentions.append(_Output(self._canonical_text, log_prob, first, True))
            else:
                empty = _Output("", end_log_prob, self._end, False)
                abstentions.append(empty if is_empty else None)
        return _ForcedPass(decoder, logits[:, 0], abstention_log_probs, abstentions)

    def _ban_abstentions(self, forced: _ForcedPass) -> torch.Tensor:
        """Mask (inputs, vocabulary) the first tokens that abstain, where the greedy output does."""
        banned = torch.zeros_like(forced.first_logits, dtype=torch.bool)
        abstained = [abstention is not None for abstention in forced.abstentions]
        rows = torch.tensor(abstained, device=banned.device)
        banned[:, self._abstaining_tokens] = rows.unsqueeze(1)
        return banned

    def _retry_abstentions(
        self, input_ids: list[Sequence[int]], outputs: list[_Output], banned: torch.Tensor
    ) -> list[_Output]:
        """Decode inputs again whose output abstains in other tokens than the canonical ones.

        Each retry bans the first tokens of the outputs before it, `MAX_RETRIES` times at most.
        """
        outputs = list(outputs)
        for _ in range(MAX_RETRIES):
            abstained = [i for i, output in enumerate(outputs) if self._abstains(output.text)]
            if not abstained:
                break
            rows = self.fill_up(abstained, len(input_ids))[: len(input_ids)]
            banned[rows, [outputs[i].first_token for i in rows]] = True
            banned[:, self._never_first] = True
            decoder, logits = self._begin([input_ids[i] for i in rows])
            for i, output in zip(
                rows, self._decode(decoder, logits[:, 0], banned[rows]), strict=True
            ):
                outputs[i] = output
        return outputs

    def _generated(
        self, greedy: _Output, answer: _Output, abstention_log_prob: float
    ) -> GeneratedAnswer:
        """Compare the best answer with the abstention, in whatever tokens the model abstains."""
        if self._abstains(greedy.text) and not greedy.is_canonical:
            abstention_log_prob = float(np.logaddexp(abstention_log_prob, greedy.log_prob))
        log_probs = (greedy.log_prob, answer.log_prob, abstention_log_prob)
        if not all(map(math.isfinite, log_probs)):
            raise InputError(NOT_FINITE)
        return GeneratedAnswer(
            text=greedy.text,
            log_prob=greedy.log_prob,
            answer="" if self._abstains(answer.text) else answer.text,
            answer_log_prob=answer.log_prob,
            no_answer_log_odds=abstention_log_prob - answer.log_prob,
        )

    def _abstains(self, text: str) -> bool:
        return is_abstention(text, self._abstention)

    def _begin(
        self, input_ids: list[Sequence[int]], forced: torch.Tensor | None = None
    ) -> tuple[Decoder, torch.Tensor]:
        """Encode inputs and run the decoder over the start token and any forced tokens.

        Args:
            input_ids: token ids of each input.
            forced: (inputs, n) token ids.

        Returns:
            The decoder, rewound to the start token, and float32 logits (inputs, 1 + n, vocabulary).
        """
        device = self._model.device
        length = coarse_length(max(map(len, input_ids)))
        tokens = pad(input_ids, self._pad, length).to(device)
        attended = mask(input_ids, length).to(device)
        states = self._model.get_encoder()(
            input_ids=tokens, attention_mask=attended
        ).last_hidden_state
        start = torch.full_like(tokens[:, :1], self._start)
        given = start if forced is None else torch.cat([start, forced], dim=1)
        room = max(self._max_new_tokens, given.shape[1])
        decoder = Decoder(self._model, states, attended, room)
        logits = decoder(given).float()
        decoder.rewind(1)
        return decoder, logits

    def _decode(
        self, decoder: Decoder, logits: torch.Tensor, banned: torch.Tensor
    ) -> list[_Output]:
        """Decode greedily, without the banned first tokens.

        Rows that have ended leave the batch when half of it can go; a power of two stays, at least
        `MIN_ROWS`.

        Args:
            decoder: at the start token.
            logits: (inputs, vocabulary), of the first token.
            banned: (inputs, vocabulary), True for tokens that no output may begin with.
        """
        n_rows = len(logits)
        chosen = logits.masked_fill(banned, -torch.inf).argmax(-1)
        tokens = torch.full((n_rows, self._max_new_tokens), self._pad, device=logits.device)
        log_probs = logits.new_zeros(n_rows)
        rows = torch.arange(n_rows, device=logits.device)
        going = torch.ones_like(rows, dtype=torch.bool)
        for step in range(self._max_new_tokens):
            chosen = chosen.masked_fill(~going, self._pad)
            log_prob = logits.gather(1, chosen[:, None]).squeeze(1) - logits.logsumexp(-1)
            tokens[rows, step] = chosen
            log_probs[rows] += log_prob.masked_fill(~going, 0.0)
            going = going & (chosen != self._end)
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
        return self._outputs(tokens, log_probs)

    def _outputs(self, tokens: torch.Tensor, log_probs: torch.Tensor) -> list[_Output]:
        """Turn tokens (inputs, max_new_tokens) and log-probabilities (inputs) into outputs."""
        canonical = self._canonical[: self._max_new_tokens]
        columns = (
            self._tokenizer.batch_decode(tokens, skip_special_tokens=True),
            log_probs.tolist(),
            tokens[:, 0].tolist(),
            (tokens[:, : len(canonical)] == canonical).all(1).tolist(),
        )
        return [_Output(*fields) for fields in zip(*columns, strict=True)]
