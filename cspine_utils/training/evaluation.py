"""A dataset seen through a model that does not learn: losses, labels, logits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from cspine_utils.errors import ParameterError, TrainingError
from cspine_utils.objectives import CLASSIFICATION, Objective
from cspine_utils.training import trouble
from cspine_utils.training.batches import batches


@dataclass(frozen=True, eq=False)
class Seen:
    """A dataset through a model.

    Attributes
    ----------
    loss : the objective's loss, mean over the studies
    report : the objective's further losses, in the same way
    y, logits : float64 `(n, 8)` in the dataset's order, or None where the objective has no such part
    """

    loss: float
    report: dict[str, float]
    y: np.ndarray | None
    logits: np.ndarray | None


def predict(
    model: nn.Module, dataset: Dataset, batch_size: int = 2, objective: Objective = CLASSIFICATION
) -> tuple[np.ndarray, np.ndarray]:
    """Labels and probabilities of every study, in the dataset's order: `(y, p)`, each float64 `(n, 8)`.

    The model is run in eval mode, on its device and in its own precision, and left in the mode it was in.

    Raises ParameterError for an objective that does not answer `anatomy.TARGETS`; otherwise as `fit`.
    """
    if objective.image is None:
        raise ParameterError(
            "predict(objective)",
            found=objective.name,
            expected="an objective with the eight targets of anatomy.TARGETS",
            remedy="for masks use segment.predict_mask",
        )
    seen = look(model, dataset, batch_size, objective)
    return seen.y, torch.sigmoid(torch.from_numpy(seen.logits)).numpy()


def mean_loss(model: nn.Module, dataset: Dataset, batch_size: int = 2, objective: Objective = CLASSIFICATION) -> float:
    """The objective's loss in eval mode, mean over the dataset; for classification binary cross-entropy, in nats."""
    return look(model, dataset, batch_size, objective).loss


@torch.no_grad()
def look(
    model: nn.Module,
    dataset: Dataset,
    batch_size: int,
    objective: Objective,
    *,
    answers: Callable[[Tensor], Tensor] | None = None,
    rank: int = 0,
    world: int = 1,
    gather: Callable[[object], list] = lambda part: [part],
) -> Seen:
    """Run the model over a dataset in eval mode.

    answers : x -> logits in place of `objective.answer(model, x)`, for another precision
    rank, world, gather : which process this is, of how many, and how the parts of all come together
    """
    count(dataset, "predict(dataset)")
    device = next(model.parameters()).device
    answers = answers or (lambda x: objective.answer(model, x))
    was_training = model.training
    model.eval()
    sums, items, y_parts, logits_parts = np.zeros(1 + len(objective.report)), [], [], []
    for batch in batches(
        dataset, range(len(dataset)), batch_size, objective, device, during="evaluation", rank=rank, world=world
    ):
        if not batch.count:
            continue
        with trouble.out_of_memory_told(batch.where, batch_size):
            logits = trouble.check_logits(answers(batch.x), batch.x, batch.y, batch.where, objective)
        logits, y = logits.double().cpu(), (batch.y.double() if batch.y.is_floating_point() else batch.y).cpu()
        losses = [loss(logits, y) for loss in (objective.loss, *objective.report.values())]
        sums += batch.count * np.array([trouble.check_loss(loss, batch.x, batch.where) for loss in losses])
        items += batch.items
        if objective.image is not None:
            y_parts.append(objective.image(y).numpy())
            logits_parts.append(objective.image(logits).numpy())
    model.train(was_training)
    # Sums, not means, are added over processes: with an uneven last batch a mean of means would weigh studies unevenly.
    parts = gather((sums, items, y_parts, logits_parts))
    loss, *report = sum(part[0] for part in parts) / len(dataset)
    back = np.argsort([item for part in parts for item in part[1]])
    y, logits = (
        None if objective.image is None else np.concatenate([array for part in parts for array in part[k]])[back]
        for k in (2, 3)
    )
    return Seen(float(loss), dict(zip(objective.report, map(float, report), strict=True)), y, logits)


def count(dataset: Dataset, name: str) -> int:
    """The number of studies, or TrainingError where there is none."""
    if len(dataset) == 0:
        raise TrainingError(
            name, found="no studies", expected="at least one", remedy="check the split: is a fold empty?"
        )
    return len(dataset)
