"""The private parts of torch that training relies on are in the installed version."""

import torch
from torch.profiler import ProfilerActivity, profile

from flan_qa_pipeline.training.torch_private import multiply_all, peak_of_profile

MIB = 2**20


def test_a_profile_gives_the_peak_of_memory():
    cpu = [ProfilerActivity.CPU]
    with profile(activities=cpu, profile_memory=True, acc_events=True) as profiler:
        for _ in range(3):  # one after the other; the largest moment holds two tensors
            first = torch.empty(5 * MIB, dtype=torch.uint8)
            second = torch.empty(3 * MIB, dtype=torch.uint8)
            del first, second
    peak = peak_of_profile(profiler)
    assert 8 * MIB <= peak < 9 * MIB, (
        f"torch {torch.__version__}: profile().profiler.kineto_results gives a peak of {peak} "
        "bytes where tensors of 8 MiB were held"
    )


def test_all_tensors_are_multiplied_in_place():
    assert hasattr(torch, "_foreach_mul_"), f"torch {torch.__version__} has no _foreach_mul_"
    tensors = [torch.full((2, 3), 4.0), torch.ones(5)]
    multiply_all(tensors, 0.5)
    assert torch.equal(tensors[0], torch.full((2, 3), 2.0))
    assert torch.equal(tensors[1], torch.full((5,), 0.5))
