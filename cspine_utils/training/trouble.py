"""What can go wrong in a batch, told so that one knows which batch it was and what to try."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from cspine_utils.anatomy import TARGETS
from cspine_utils.errors import TrainingError
from cspine_utils.objectives import Objective


def check_logits(logits: Tensor, x: Tensor, y: Tensor, where: str, objective: Objective) -> Tensor:
    """The model's logits, if they are finite numbers of the wanted shape."""
    wanted = objective.logits_shape(y)
    if tuple(logits.shape) != wanted:
        raise TrainingError(
            where,
            found=f"logits of shape {tuple(logits.shape)}",
            expected=f"{wanted}, as the targets have it",
            remedy=objective.remedy,
        )
    if not torch.isfinite(logits).all():
        raise _not_finite(where, x)
    return logits


def check_loss(loss: Tensor, x: Tensor, where: str) -> float:
    """The loss as a number, if it is finite. From finite logits only an objective's own arithmetic fails that."""
    value = float(loss.detach())
    if not math.isfinite(value):
        raise _not_finite(where, x)
    return value


def check_gradient(norm: Tensor, clip: float | None, where: str) -> float:
    """The gradient's norm as a number, if it is finite. Called before the optimizer moves: the weights are sound."""
    value = float(norm)
    if not math.isfinite(value):
        raise TrainingError(
            where,
            found=f"a gradient of norm {value}, though the loss is finite",
            expected="a finite gradient",
            remedy="lower the learning rate or warm it up (warmup_steps); "
            + ("set clip=1.0; " if clip is None else "clipping cannot mend what is already infinite; ")
            + "with bf16-mixed, try 32-true. The run's folder holds the weights of the last finished epoch",
        )
    return value


@contextmanager
def out_of_memory_told(where: str, batch_size: int) -> Iterator[None]:
    """Turn the ways in which torch and numpy say that memory is used up into one sentence."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        known = isinstance(error, torch.OutOfMemoryError | MemoryError)
        # On the CPU torch raises a plain RuntimeError: "DefaultCPUAllocator: not enough memory: you tried to ..."
        if not known and "not enough memory" not in str(error) and "can't allocate memory" not in str(error):
            raise
        raise TrainingError(
            where,
            found=f"no memory left ({' '.join(str(error).split())[:120]})",
            expected="room for a batch and what the model keeps of it until the gradient is known",
            remedy=(f"batch_size={batch_size // 2} with accumulate doubled; " if batch_size > 1 else "smaller stacks; ")
            + "checkpoint_activations=True where the model has it; precision='bf16-mixed'",
        ) from error


def missing_study(where: str, dataset: Dataset, index: int, error: Exception) -> TrainingError:
    """The error for a study that cannot be read in the middle of a run."""
    names = getattr(dataset, "studies", None)
    study = f"study {names[index]}, " if names is not None and index < len(names) else ""
    return TrainingError(
        where,
        found=f"no data for {study}dataset[{index}] ({error})",
        expected="every study of the dataset readable: a run that skips some is another run",
        remedy="prepare this study anew and start again, which goes on after the last finished epoch; "
        "or leave it out of the dataset and train in another folder",
    )


def empty_classes(y: np.ndarray, where: str) -> list[str]:
    """A sentence for every target that is the same in all studies.

    y : `(n, 8)` in the order of `anatomy.TARGETS`, NaN where it is not known; `where` names the dataset
    """
    notes = []
    for name, column in zip(TARGETS, y.T, strict=True):
        known = column[~np.isnan(column)]
        if len(np.unique(known)) < 2:
            kind = "that tells" if not len(known) else "with" if known[0] < 0.5 else "without"
            notes.append(
                f"{where}: none {kind} {name} among {len(y)}, so nothing can be learned about it; "
                "split by another seed, or add studies"
            )
    return notes


def _not_finite(where: str, x: Tensor) -> TrainingError:
    blame_input = not torch.isfinite(x).all()
    return TrainingError(
        where,
        found="a loss that is not finite, from " + ("NaN or infinity in the input" if blame_input else "finite input"),
        expected="a finite loss",
        remedy="look at these studies in the store and prepare them anew"
        if blame_input
        else "lower the learning rate or clip, and check the scale of the input",
    )
