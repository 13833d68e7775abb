"""The size of batches to answer is chosen from the free memory."""

import logging

import pytest
import torch
from conftest import DEVICE, on_gpu
from torch.profiler import ProfilerActivity, profile
from transformers import T5Config, set_seed

from flan_qa_pipeline.answering import batch_tokens as module
from flan_qa_pipeline.answering.batch_tokens import (
    batches_at_once,
    bytes_per_token,
    resolve_batch_tokens,
)
from flan_qa_pipeline.answering.generation import generate_answers
from flan_qa_pipeline.models.device import MIB
from flan_qa_pipeline.models.t5 import QuantizableT5
from flan_qa_pipeline.training.torch_private import peak_of_profile

XL = {"d_model": 2048, "d_kv": 64, "d_ff": 5120, "num_layers": 24, "num_heads": 32}
GIB = 2**30


def model_of(attention="sdpa", device="meta", **shape):
    config = T5Config(
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
        decoder_start_token_id=0,
        **shape,
    )
    config._attn_implementation = attention
    set_seed(0)
    with torch.device(device):
        return QuantizableT5(config).eval()


def xl_on_gpu(monkeypatch, free):
    """XL without weights, which seems to be on a GPU with so many GiB free."""
    model = model_of(vocab_size=32128, **XL).bfloat16()
    monkeypatch.setattr(type(model), "device", torch.device("cuda"))
    monkeypatch.setattr(module, "free_memory", lambda device: int(free * GIB))
    return model


@pytest.mark.parametrize(
    ("free", "chosen", "at_once"),
    [(144, 262144, 2), (80, 262144, 1), (43, 131072, 1), (19, 65536, 1), (0, 1024, 1)],
)
def test_auto_fills_the_free_memory_of_a_gpu(monkeypatch, caplog, free, chosen, at_once):
    model = xl_on_gpu(monkeypatch, free)
    with caplog.at_level(logging.INFO, logger="flan_qa_pipeline"):
        assert resolve_batch_tokens("auto", model) == chosen
    [line] = caplog.messages
    assert line.startswith(f"generation.batch_tokens auto: {chosen} tokens, {at_once} batches ")
    assert line.endswith(f"of {int(0.85 * free * GIB / MIB)} usable MiB).")


def test_two_batches_are_answered_at_once_where_both_fit(monkeypatch):
    model = xl_on_gpu(monkeypatch, 43)
    assert batches_at_once(model, 65536) == 2
    assert batches_at_once(model, 131072) == 1
    monkeypatch.setattr(type(model), "device", torch.device("cpu"))
    assert batches_at_once(model, 1024) == 1


def test_a_sharded_model_answers_one_batch_in_half_of_the_memory(monkeypatch):
    model = xl_on_gpu(monkeypatch, 144)
    monkeypatch.setattr(module, "model_has_dtensor", lambda model: True)
    assert batches_at_once(model, 1024) == 1
    assert resolve_batch_tokens("auto", model) == 262144
    monkeypatch.setattr(module, "free_memory", lambda device: 80 * GIB)  # 68 GiB would do
    assert resolve_batch_tokens("auto", model) == 131072


def test_the_process_with_the_least_memory_decides(monkeypatch):
    model = xl_on_gpu(monkeypatch, 144)
    monkeypatch.setattr(module, "gather_json", lambda own: [own, own // 8])
    assert resolve_batch_tokens("auto", model) == 65536


def test_a_number_stays_and_a_cpu_has_one_of_its_own(monkeypatch):
    model = model_of(vocab_size=600, d_model=16, num_layers=1)
    monkeypatch.setattr(type(model), "device", torch.device("cpu"))
    assert resolve_batch_tokens(300, model) == 300
    assert resolve_batch_tokens("auto", model) == 8192


def peak_of(answer):
    if DEVICE.type == "cuda":
        answer()  # allocates the workspace of cuBLAS
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        answer()
        return torch.cuda.max_memory_allocated() - before
    cpu = [ProfilerActivity.CPU]
    with profile(activities=cpu, profile_memory=True, acc_events=True) as profiler:
        answer()
    return peak_of_profile(profiler)


@pytest.mark.parametrize("attention", ["eager", "sdpa", pytest.param("triton", marks=on_gpu)])
@pytest.mark.parametrize(
    ("length", "least", "shape"),
    [
        (512, 0.5, {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_heads": 4}),  # scores
        (64, 0.25, {"d_model": 64, "d_kv": 32, "d_ff": 64, "num_decoder_layers": 8}),  # keys
        (64, 0.5, {"d_model": 32, "d_kv": 4, "d_ff": 512, "num_heads": 1}),  # feed-forward
    ],
)
def test_a_batch_takes_what_was_calculated(tokenizer, attention, length, least, shape):
    model = model_of(attention, DEVICE, vocab_size=len(tokenizer), num_layers=2, **shape)
    tokens = 4096
    ids = [[5 + i % 90] * (length - 1) + [1] for i in range(tokens // length)]
    ids[-1] = ids[-1][-length // 2 :]  # padding needs a mask
    options = {"abstention": "no answer", "batch_tokens": tokens, "max_new_tokens": 4}
    options["description"] = None
    peak = peak_of(lambda: generate_answers(model, tokenizer, ids, **options))
    if attention == "triton":
        least /= 2  # it adds mask and bias inside, so the estimate for sdpa is generous
    assert least < peak / (tokens * bytes_per_token(model)) <= 1.1
