"""Batches of studies: in which order, whose share, with a name for error messages."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from cspine_utils.errors import CSpineError, TrainingError
from cspine_utils.objectives import Objective
from cspine_utils.training import trouble


@dataclass(frozen=True, eq=False)
class Batch:
    """What one process sees in one forward pass.

    Attributes
    ----------
    where : its place in the run, for errors
    items : dataset indices of its studies
    x, y : `(b, f, c, h, w)` and `(b, 8)`, or what the objective makes of them; on the device
    count : studies that count: b, or 0 for a process for which the pass has none left and which sees one for company
    step_studies : studies of the whole optimizer step, over all passes and processes
    ends_step : the optimizer moves after this pass
    """

    where: str
    items: list[int]
    x: Tensor
    y: Tensor
    count: int
    step_studies: int
    ends_step: bool


def batches(
    dataset: Dataset,
    order: list[int],
    batch_size: int,
    objective: Objective,
    device: torch.device,
    *,
    during: str,
    accumulate: int = 1,
    rank: int = 0,
    world: int = 1,
    augment: Callable[[Tensor, torch.Generator], Tensor] | None = None,
    generator: torch.Generator | None = None,
) -> Iterator[Batch]:
    """The studies in the given order, `batch_size` a pass over all processes, this process's share of each.

    No DataLoader: a memory-mapped study is read far faster than a model steps over it, worker processes would make
    a dataset's random numbers depend on how many there are, and here an error can name the studies of its batch.
    """
    passes = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    for number, pass_items in enumerate(passes):
        first = number - number % accumulate
        items = list(pass_items[rank::world])
        count = len(items)
        items = items or list(pass_items[:1])  # every process must take part in every pass, or the others wait for ever
        where = f"{during}, batch {number + 1} of {len(passes)} (dataset items {items})"
        with trouble.out_of_memory_told(where, batch_size):
            pairs = [_read(dataset, i, where) for i in items]
            x = torch.stack([torch.as_tensor(x, dtype=torch.float32) for x, _ in pairs]).to(device)
            y = torch.stack([objective.target(y, i) for i, (_, y) in zip(items, pairs, strict=True)]).to(device)
            if augment is not None:
                x = augment(x, generator)
            x, y = objective.prepare(x, y)
        yield Batch(
            where,
            items,
            x,
            y,
            count,
            step_studies=sum(map(len, passes[first : first + accumulate])),
            ends_step=number % accumulate == accumulate - 1 or number == len(passes) - 1,
        )


def epoch_order(train: Dataset, order: Callable | None, seed: int) -> list[int]:
    """The order of one epoch: the caller's, else the dataset's own, else random from torch's global generator."""
    order = order or getattr(train, "epoch_order", None)
    if order is None:
        return torch.randperm(len(train)).tolist()
    found = [int(i) for i in order(torch.Generator().manual_seed(seed))]
    if len(found) != len(train) or not all(0 <= i < len(train) for i in found):
        raise TrainingError(
            "order of an epoch",
            found=f"{len(found)} indices" + (f" from {min(found)} to {max(found)}" if found else ""),
            expected=f"{len(train)} indices from 0 to {len(train) - 1} (an index may come twice)",
            remedy="let epoch_order(generator), or fit's order, return a list of such indices",
        )
    return found


def stream_seed(base: int, epoch: int, stream: int, rank: int = 0) -> int:
    """A seed for one use of random numbers in one epoch, unrelated to those of other uses, epochs and processes."""
    return int(np.random.SeedSequence([base, epoch, stream, rank]).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _read(dataset: Dataset, index: int, where: str):
    try:
        return dataset[index]
    except (CSpineError, OSError) as error:
        raise trouble.missing_study(where, dataset, index, error) from error
