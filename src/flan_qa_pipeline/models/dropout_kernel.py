"""Dropout inside Triton's kernels, which decide again in a backward pass what it keeps."""

import torch
import triton
import triton.language as tl


def draw_seed(near: torch.Tensor) -> torch.Tensor:
    """Draw a seed on a tensor's device, as a CUDA graph does again at every replay."""
    return torch.empty((), dtype=torch.int64, device=near.device).random_()


@triton.jit
def kept(seed, stream, number, least):
    """Return whether a number of a stream survives dropout.

    The choices of two streams do not coincide, shifted, if there are fewer than 13,000 streams. A
    number and its stream, mixed with the seed by MurmurHash3's finalizer
    (https://github.com/aappleby/smhasher), give it 32 random bits. It is dropped if the upper 31 of
    them are less than `least`.
    """
    key = ((seed >> 32) + stream).to(tl.uint32) * 0x9E3779B9
    bits = number.to(tl.uint32) * 0x9E3779B1 + key
    bits ^= seed.to(tl.uint32)
    bits = (bits ^ (bits >> 16)) * 0x85EBCA6B
    bits = (bits ^ (bits >> 13)) * 0xC2B2AE35
    bits ^= bits >> 16
    return (bits >> 1).to(tl.int32) >= least
