"""Batched greedy decoding with the log-probability of each answer."""

from collections.abc import Sequence

import torch
from tqdm.auto import tqdm
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase


@torch.inference_mode()
def generate_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    input_ids: Sequence[Sequence[int]],
    *,
    batch_size: int,
    max_new_tokens: int,
    description: str = "Answer",
) -> list[tuple[str, float]]:
    """Decode every input greedily; return (text, log-probability) in the order of the inputs.

    Inputs are batched from the longest to the shortest, so that a batch has little padding and
    one that does not fit in memory fails first. The log-probability is that of the whole
    generated sequence, end token included, in nats.
    """
    config = GenerationConfig(
        do_sample=False,
        num_beams=1,
        max_new_tokens=max_new_tokens,
        decoder_start_token_id=model.config.decoder_start_token_id,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        return_dict_in_generate=True,
        output_logits=True,
    )
    order = sorted(range(len(input_ids)), key=lambda i: len(input_ids[i]), reverse=True)
    answers: list[tuple[str, float]] = [("", 0.0)] * len(order)
    with tqdm(total=len(order), desc=description, unit="window") as progress:
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            batch = tokenizer.pad(
                {"input_ids": [list(input_ids[i]) for i in rows]}, return_tensors="pt"
            ).to(model.device)
            output = model.generate(**batch, generation_config=config)
            texts = tokenizer.batch_decode(output.sequences, skip_special_tokens=True)
            scores = _log_probabilities(output, tokenizer.pad_token_id)
            for i, text, score in zip(rows, texts, scores, strict=True):
                answers[i] = (text, score)
            progress.update(len(rows))
    return answers


def _log_probabilities(output, pad_token_id: int) -> list[float]:
    tokens = output.sequences[:, 1:]
    total = torch.zeros(len(tokens), device=tokens.device)
    for step, logits in enumerate(output.logits):
        log_probs = torch.log_softmax(logits.float(), dim=-1)
        chosen = log_probs.gather(1, tokens[:, step : step + 1]).squeeze(1)
        total += chosen.masked_fill(tokens[:, step] == pad_token_id, 0.0)
    return total.tolist()
