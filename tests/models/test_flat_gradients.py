"""One tensor that holds all gradients."""

import pytest
import torch

from flan_qa_pipeline.models.flat_gradients import FlatGradients


@pytest.fixture
def model():
    torch.manual_seed(0)
    frozen, trained = torch.nn.Linear(3, 4), torch.nn.Linear(4, 2)
    frozen.requires_grad_(False)
    return torch.nn.Sequential(frozen, trained)


def pass_both_ways(model):
    torch.manual_seed(1)
    model(torch.randn(5, 3)).square().sum().backward()


def test_passes_add_to_the_tensor_until_it_is_detached(model):
    gradients = FlatGradients(model)
    sums = []
    for passes in (1, 2, 1):
        gradients.attach()
        for _ in range(passes):
            pass_both_ways(model)
        sums.append(gradients.whole.clone())
        gradients.detach()
        assert all(weight.grad is None for weight in model.parameters())
    assert sums[0].norm() > 0
    torch.testing.assert_close(sums[1], 2 * sums[0])
    torch.testing.assert_close(sums[2], sums[0])


@pytest.mark.parametrize("share", [0.5, 2.0])
def test_clipping_is_torchs(model, share):
    pass_both_ways(model)
    expected = [weight.grad for weight in model[1].parameters()]
    largest = share * torch.nn.utils.get_total_norm(expected).item()
    model.zero_grad()
    gradients = FlatGradients(model)
    gradients.attach()
    pass_both_ways(model)
    norm = gradients.clip(largest)
    for weight, part in zip(model[1].parameters(), expected, strict=True):
        torch.testing.assert_close(weight.grad, part * min(1, share))
    assert norm.item() == pytest.approx(largest / share)
