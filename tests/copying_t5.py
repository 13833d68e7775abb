"""A T5 v1.1 whose weights are set, not trained, to copy phrases of its input.

An encoder's state holds a token and the token before it. The decoder attends to the place whose
token before is the decoder's last token, and gives the token that stands there. An answer begins
with a long word or a number; which one depends on random embeddings. It ends before a
function word or a punctuation mark.
"""

import re

import torch
from torch import nn
from transformers import T5ForConditionalGeneration, T5Tokenizer

from flan_qa_pipeline.pretraining.random_t5 import build_t5, silence_projections

WIDTH = 64  # of an embedding; a state holds two
NORM, FLAG = 11.0, 4.0
BEGINNING = re.compile(r"▁(\d|\w{6})")
ENDINGS = [*".,;:?", "▁of", "▁the", "▁and", "▁in", "▁to", "▁a", "▁was", "▁is"]
PREVIOUS = 1  # T5's bucket of relative positions for the token before
SHARPNESS, CONFIDENCE = 0.3, 0.2


@torch.no_grad()
def build_copying_t5(tokenizer: T5Tokenizer) -> T5ForConditionalGeneration:
    model = build_t5(
        dropout=0.0,
        vocab_size=len(tokenizer),
        d_model=2 * WIDTH,
        d_kv=WIDTH,
        d_ff=WIDTH,
        num_layers=1,
        num_decoder_layers=1,
        num_heads=1,
    )
    silence_projections(model)
    first, second = torch.eye(2 * WIDTH).chunk(2)
    pieces = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    tokens = torch.zeros(len(pieces), WIDTH)
    tokens[:, 2:] = nn.functional.normalize(torch.randn(len(pieces), WIDTH - 2)) * NORM
    tokens[[bool(BEGINNING.match(piece)) for piece in pieces], 0] = FLAG
    tokens[tokenizer.pad_token_id, 1] = FLAG
    model.shared.weight.copy_(tokens @ first)

    encoder = model.encoder.block[0].layer[0].SelfAttention
    encoder.q.weight.zero_()
    encoder.relative_attention_bias.weight.zero_()[PREVIOUS] = 30
    encoder.v.weight.copy_(first)
    encoder.o.weight.copy_(second.T)

    decoder = model.decoder.block[0].layer[1].EncDecAttention
    decoder.q.weight.copy_(SHARPNESS * first)
    decoder.k.weight.copy_(second)
    decoder.q.weight[0], decoder.k.weight[0] = first[1], first[0]
    decoder.v.weight.copy_(first)
    decoder.o.weight.copy_(second.T)

    ending = tokens[tokenizer.convert_tokens_to_ids(ENDINGS)].sum(0) @ second
    preferred = torch.linspace(1, 1.5, len(pieces))[:, None]  # of two tokens after the same one
    model.lm_head.weight.copy_(CONFIDENCE * preferred * tokens @ second)
    model.lm_head.weight[tokenizer.eos_token_id] = CONFIDENCE * (2 * ending - NORM * first[1])
    return model
