"""Devices, precision and several processes, by lightning-fabric; the loop stays ours.

fabric is imported when a training starts: it takes over a second, and a page that only predicts need not wait.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from cspine_utils.errors import ParameterError, TrainingError
from cspine_utils.objectives import Objective


class AsItIs:
    """A batch that fabric must not touch: with bf16-mixed it would round images to bfloat16 at the door.

    Eight bits hold neither the HU of the bone window nor a mask's label; autocast rounds where products are made.
    """

    def __init__(self, x: Tensor):
        self.x = x


class Answers(nn.Module):
    """Images -> logits of the objective, as one forward pass: what fabric wraps in autocast, and in DDP."""

    def __init__(self, model: nn.Module, objective: Objective):
        super().__init__()
        self.model, self.objective = model, objective

    def forward(self, images: AsItIs) -> Tensor:
        return self.objective.answer(self.model, images.x)


def fabric_for(model: nn.Module, precision: str, fabric=None):
    """The Fabric to train with: the caller's, or one for the device that the model is on.

    Under torchrun the latter joins torchrun's processes (DistributedDataParallel; gloo on CPUs, nccl on GPUs): were
    each process to train for itself, all would write into one folder.
    """
    from lightning_fabric import Fabric

    if fabric is not None:
        has = fabric.strategy.precision.precision
        if has != precision:
            raise ParameterError(
                "fit(precision)",
                found=f"{precision} beside a fabric with {has}",
                expected="one precision",
                remedy=f"pass precision={has!r} as well, or make the Fabric with precision={precision!r}",
            )
        return fabric
    device = next(model.parameters()).device
    if torch.distributed.is_available() and torch.distributed.is_torchelastic_launched():
        here = int(os.environ["LOCAL_WORLD_SIZE"])
        nodes, strategy = int(os.environ["WORLD_SIZE"]) // here, "ddp"
    else:
        here, nodes, strategy = 1 if device.type == "cpu" else [device.index or 0], 1, "auto"
    with _quiet():
        fabric = Fabric(accelerator=device.type, devices=here, num_nodes=nodes, strategy=strategy, precision=precision)
        fabric.launch()
    return fabric


@contextmanager
def _quiet() -> Iterator[None]:
    """Without fabric's announcements on stderr; its warnings stay."""
    logger = logging.getLogger("lightning_fabric")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)


def gather(fabric, part) -> list:
    """One Python object of every process, in the order of ranks, the same list in all of them."""
    if fabric.world_size == 1:
        return [part]
    parts = [None] * fabric.world_size
    torch.distributed.all_gather_object(parts, part)
    return parts


def check_alike(fabric, resumed_from: int | None, out) -> None:
    """Wait for all processes; raise TrainingError if they go on after different epochs: they would wait for each other
    for ever."""
    found = gather(fabric, resumed_from)
    if len(set(found)) > 1:
        told = ", ".join("from the start" if epoch is None else f"after epoch {epoch}" for epoch in found)
        raise TrainingError(
            out,
            found=f"processes that would go on differently: {told}",
            expected="one folder, which all processes read alike",
            remedy="give all of them one out, on a disk that shows each of them the same files.",
        )
