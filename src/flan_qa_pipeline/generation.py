"""Batched greedy decoding: answers, their log-probabilities, how near they are to abstaining."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from datasets import Dataset
from tqdm.auto import tqdm
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_outputs import BaseModelOutput

from flan_qa_pipeline.parameters import GenerationParameters, PromptParameters
from flan_qa_pipeline.windows import WindowAnswer, is_abstention, merge_windows


@dataclass(frozen=True)
class GeneratedAnswer:
    """What the model says to one input; log-probabilities are of whole sequences, in nats.

    `text` is the greedy output and `score` its log-probability, end token included. `answer` is
    the text itself or, where that abstains, the greedy output that begins otherwise than the
    abstention, and `answer_score` its log-probability. `no_answer_score` is the log-probability
    of the abstention minus that of `answer`.
    """

    text: str
    score: float
    answer: str
    answer_score: float
    no_answer_score: float


def answer_windows(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    windows: Dataset,
    prompt: PromptParameters,
    generation: GenerationParameters,
    description: str | None = None,
) -> dict[str, WindowAnswer]:
    """Answer tokenized windows (columns id, window, input_ids); merge them to one per question."""
    generated = generate_answers(
        model,
        tokenizer,
        windows["input_ids"],
        abstention=prompt.abstention,
        batch_size=generation.batch_size,
        max_new_tokens=generation.max_new_tokens,
        description=description,
    )
    return merge_windows(
        (
            WindowAnswer(id_, window=number, **asdict(said))
            for id_, number, said in zip(windows["id"], windows["window"], generated, strict=True)
        ),
        prompt.abstention,
    )


@torch.inference_mode()
def generate_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    input_ids: Sequence[Sequence[int]],
    *,
    abstention: str,
    batch_size: int,
    max_new_tokens: int,
    description: str | None = "Answer",
) -> list[GeneratedAnswer]:
    """Decode every input greedily; return the answers in the order of the inputs.

    Inputs are batched from the longest to the shortest, so that a batch has little padding and
    one that does not fit in memory fails first. Each input is encoded once: greedy decoding, the
    abstention's log-probability (one pass, teacher-forced) and the best answer of an input that
    is abstained on all start from the same encoder states. Without a `description` there is no bar.

    Several processes answer the batches in turn and each returns all answers. The batches are
    those of one process, so the answers are, too.
    """
    process = PartialState()
    greedy = GenerationConfig(
        do_sample=False,
        num_beams=1,
        max_new_tokens=max_new_tokens,
        decoder_start_token_id=model.config.decoder_start_token_id,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        return_dict_in_generate=True,
        output_logits=True,
    )
    abstention_ids = tokenizer(abstention)["input_ids"]
    answering = GenerationConfig(
        **greedy.to_diff_dict()
        | {"begin_suppress_tokens": [abstention_ids[0], tokenizer.eos_token_id]}
    )
    order = sorted(range(len(input_ids)), key=lambda i: len(input_ids[i]), reverse=True)
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    own = batches[process.process_index :: process.num_processes]
    answers: dict[int, GeneratedAnswer] = {}
    with tqdm(
        total=sum(map(len, own)),
        desc=description,
        unit="window",
        leave=False,
        disable=description is None or not process.is_main_process,
    ) as progress:
        for rows in own:
            batch = tokenizer.pad(
                {"input_ids": [list(input_ids[i]) for i in rows]}, return_tensors="pt"
            ).to(model.device)
            states = model.get_encoder()(**batch).last_hidden_state
            mask = batch["attention_mask"]
            said = _generate(model, tokenizer, states, mask, greedy)
            best = list(said)
            silent = [i for i, (text, _) in enumerate(said) if is_abstention(text, abstention)]
            if silent:
                others = _generate(model, tokenizer, states[silent], mask[silent], answering)
                for i, other in zip(silent, others, strict=True):
                    best[i] = other
            abstaining = _log_probability(model, states, mask, abstention_ids)
            for i, (text, score), (answer, answer_score), abstained in zip(
                rows, said, best, abstaining, strict=True
            ):
                answers[i] = GeneratedAnswer(
                    text, score, answer, answer_score, abstained - answer_score
                )
            progress.update(len(rows))
    gathered = dict(gather_object(list(answers.items())))
    return [gathered[i] for i in range(len(input_ids))]


def _generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    states: torch.Tensor,
    attention_mask: torch.Tensor,
    config: GenerationConfig,
) -> list[tuple[str, float]]:
    """Texts and log-probabilities, from encoder states (batch, length, d_model)."""
    output = model.generate(
        encoder_outputs=BaseModelOutput(last_hidden_state=states),
        attention_mask=attention_mask,
        generation_config=config,
    )
    tokens = output.sequences[:, 1:]
    total = torch.zeros(len(tokens), device=tokens.device)
    for step, logits in enumerate(output.logits):
        log_probs = torch.log_softmax(logits.float(), dim=-1)
        chosen = log_probs.gather(1, tokens[:, step : step + 1]).squeeze(1)
        total += chosen.masked_fill(tokens[:, step] == tokenizer.pad_token_id, 0.0)
    texts = tokenizer.batch_decode(output.sequences, skip_special_tokens=True)
    return list(zip(texts, total.tolist(), strict=True))


def _log_probability(
    model: PreTrainedModel,
    states: torch.Tensor,
    attention_mask: torch.Tensor,
    target_ids: list[int],
) -> list[float]:
    """Log-probability of one target sequence after each of the encoder states."""
    target = torch.tensor([target_ids], device=states.device).expand(len(states), -1)
    start = torch.full_like(target[:, :1], model.config.decoder_start_token_id)
    logits = model(
        encoder_outputs=BaseModelOutput(last_hidden_state=states),
        attention_mask=attention_mask,
        decoder_input_ids=torch.cat([start, target[:, :-1]], dim=1),
    ).logits
    log_probs = torch.log_softmax(logits.float(), dim=-1)
    return log_probs.gather(2, target.unsqueeze(2)).sum(dim=(1, 2)).tolist()
