"""The private part of accelerate that training relies on is in the installed version."""

from importlib.metadata import version

from accelerate import Accelerator
from torch import nn

from flan_qa_pipeline.training.accelerate_private import leave_unwrapped

ACCELERATE = f"accelerate {version('accelerate')}"


class Fixed(nn.Linear):
    n_moves = 0

    def to(self, *args, **kwargs):
        self.n_moves += 1
        return super().to(*args, **kwargs)


def test_an_accelerator_leaves_a_model_as_it_is():
    """Nothing is wrapped in a single process; that the model is not even moved shows the same."""
    ours, other = Fixed(1, 1), Fixed(1, 1)
    leave_unwrapped(ours)
    accelerator = Accelerator()
    for model in (ours, other):
        assert accelerator.prepare_model(model, device_placement=True) is model
    assert (ours.n_moves, other.n_moves) == (0, 1), (
        f"{ACCELERATE}: Accelerator.prepare_model does not heed model._is_accelerate_prepared, "
        "which leave_unwrapped sets"
    )
