"""Batches of the same lengths in all processes of a step."""

import torch
from torch.distributed import ReduceOp

from flan_qa_pipeline.models.batching import lengthen


class CommonLengths:
    """Pads the batches of a step to the longest lengths of all processes.

    All processes then capture the graph of a new shape in the same step. Otherwise they would wait
    for one another's captures. The processes wait for the longest batch in any case.

    The lengths travel between the CPUs, since a GPU would have to be waited for.
    """

    def __init__(self, pad_token_id: int):
        self._pad_token_id = pad_token_id
        self._group = torch.distributed.new_group(backend="gloo")

    def __call__(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return the batch, as `collate` makes it, in the common lengths."""
        lengths = torch.tensor([batch["input_ids"].shape[1], batch["labels"].shape[1]])
        torch.distributed.all_reduce(lengths, ReduceOp.MAX, group=self._group)
        return lengthen(batch, self._pad_token_id, *lengths.tolist())
