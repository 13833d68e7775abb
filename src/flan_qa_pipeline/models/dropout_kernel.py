"""Dropout inside Triton's kernels: a backward pass decides again which elements it keeps."""

import triton
import triton.language as tl


@triton.jit
def kept(seed, stream, index, least):
    """Return whether dropout keeps an element.

    Each stream, such as an attention head, has its own sequence of elements. With fewer than 13,000
    streams, no sequence is a shifted copy of another.

    MurmurHash3's finalizer (https://github.com/aappleby/smhasher) mixes the element's index and
    stream with the seed into 32 bits. The element is dropped if the upper 31 are below `least`.
    """
    key = ((seed >> 32) + stream).to(tl.uint32) * 0x9E3779B9
    bits = index.to(tl.uint32) * 0x9E3779B1 + key
    bits ^= seed.to(tl.uint32)
    bits = (bits ^ (bits >> 16)) * 0x85EBCA6B
    bits = (bits ^ (bits >> 13)) * 0xC2B2AE35
    bits ^= bits >> 16
    return (bits >> 1).to(tl.int32) >= least
