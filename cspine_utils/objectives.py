"""What a model is trained for: which targets are allowed, which logits belong to them, and the loss.

* `CLASSIFICATION`: y `(8,)` in [0, 1] in the order of `anatomy.TARGETS`; binary cross-entropy
* `SEGMENTATION`: y whole numbers 0-7 on a grid, 0 = no cervical vertebra; cross-entropy plus 1 - Dice
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from cspine_utils.anatomy import LEVELS, TARGETS
from cspine_utils.errors import TrainingError

#: Labels of a segmenter: background and the seven levels.
CLASSES = 1 + len(LEVELS)


@dataclass(frozen=True)
class Objective:
    """One way to be right.

    Attributes
    ----------
    name : goes into the settings of a run
    target : (y of dataset[i], i) -> y as a tensor, or TrainingError
    logits_shape : batch of targets -> the shape that the model's answer must have
    loss : (logits, targets of a batch) -> scalar, mean over the batch
    remedy : what to do if the model's answer has another shape
    """

    name: str
    target: Callable[[object, int], Tensor]
    logits_shape: Callable[[Tensor], tuple[int, ...]]
    loss: Callable[[Tensor, Tensor], Tensor]
    remedy: str


def dice_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """1 - soft Dice, mean over the levels that occur in the batch.

    Parameters
    ----------
    logits : `(b, 8, *grid)`
    labels : int64 `(b, *grid)`, 0-7

    A level that is nowhere in the batch has no Dice to reach; cross-entropy alone keeps the model from seeing it.
    With none at all the loss is 0. (Milletari et al. 2016, arXiv 1606.04797; there with squares below.)
    """
    p = torch.softmax(logits, dim=1).flatten(2)  # (b, 8, n)
    truth = F.one_hot(labels.flatten(1), CLASSES).transpose(1, 2).to(p.dtype)
    overlap, total = (p * truth).sum(dim=(0, 2)), (p + truth).sum(dim=(0, 2))
    present = truth.sum(dim=(0, 2)) > 0
    present[0] = False  # the background is nearly everything, and easy
    dice = 2 * overlap / total.clamp_min(torch.finfo(p.dtype).eps)
    return ((1 - dice) * present).sum() / present.sum().clamp_min(1)


def _segmentation_loss(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits, labels) + dice_loss(logits, labels)


def _classification_target(y, index: int) -> Tensor:
    y = torch.as_tensor(y, dtype=torch.float32)
    if y.shape != (len(TARGETS),) or not ((y >= 0) & (y <= 1)).all():
        raise TrainingError(
            f"target of dataset[{index}]",
            found=f"shape {tuple(y.shape)}, values {y.flatten()[:8].tolist()}",
            expected=f"({len(TARGETS)},) numbers in [0, 1]: {', '.join(TARGETS)}",
            remedy="let the dataset return one row of the label table in the order of anatomy.TARGETS",
        )
    return y


def _segmentation_target(y, index: int) -> Tensor:
    y = torch.as_tensor(y)
    if y.is_floating_point() or y.ndim not in (2, 3) or y.min() < 0 or y.max() >= CLASSES:
        raise TrainingError(
            f"target of dataset[{index}]",
            found=f"{str(y.dtype).removeprefix('torch.')} of shape {tuple(y.shape)}, {float(y.min()):g} to "
            f"{float(y.max()):g}",
            expected=f"whole numbers from 0 to {CLASSES - 1} on a grid of two or three axes",
            remedy="set thoracic labels (8 and more) to 0 before training",
        )
    return y.long()


CLASSIFICATION = Objective(
    name="classification",
    target=_classification_target,
    logits_shape=lambda y: tuple(y.shape),
    loss=F.binary_cross_entropy_with_logits,
    remedy=f"build the model with targets={len(TARGETS)}",
)
SEGMENTATION = Objective(
    name="segmentation",
    target=_segmentation_target,
    logits_shape=lambda y: (len(y), CLASSES, *y.shape[1:]),
    loss=_segmentation_loss,
    remedy="make the model with models.create_segmenter",
)
