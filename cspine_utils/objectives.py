"""What a model is trained for: which targets are allowed, which logits belong to them, and the loss.

* `CLASSIFICATION`: y `(8,)` in [0, 1] in the order of `anatomy.TARGETS`; binary cross-entropy
* `SEGMENTATION`: y whole numbers 0-7 on a grid, 0 = no cervical vertebra; cross-entropy plus 1 - Dice
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cspine_utils.anatomy import LEVELS, TARGETS
from cspine_utils.errors import TrainingError

#: Labels of a segmenter: background and the seven levels.
CLASSES = 1 + len(LEVELS)


def unchanged(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """A batch as it came from the dataset."""
    return x, y


def forward(model: nn.Module, x: Tensor) -> Tensor:
    """What the model says by itself."""
    return model(x)


def first_targets(values: Tensor) -> Tensor:
    """`(b, 8 or more)` -> `(b, 8)`: the part in the order of `anatomy.TARGETS`."""
    return values[:, : len(TARGETS)]


def smooth_labels(y: Tensor, share: float) -> Tensor:
    """Draw the first eight columns towards 1/2: 0 becomes share/2, 1 becomes 1 - share/2. Other columns stay.

    (Szegedy et al. 2016, arXiv 1512.00567, for two classes.)
    """
    y = y.clone()
    y[:, : len(TARGETS)] = first_targets(y) * (1 - share) + share / 2
    return y


@dataclass(frozen=True, eq=False)
class Objective:
    """One way to be right.

    The steps of a batch: `target` of each study, stacked; augmentation (training only); `prepare`; `answer`;
    `logits_shape`; `loss`.

    Attributes
    ----------
    name : goes into the settings of a run
    target : (y of dataset[i], i) -> y as a tensor, or TrainingError
    logits_shape : batch of targets -> the shape that the model's answer must have
    loss : (logits, targets of a batch) -> scalar, mean over the studies of the batch
    remedy : what to do if the model's answer has another shape
    prepare : (x, y) -> (x, y) of a batch, on its device. For targets that travel with the image, so that augmentation
        moves both, and are taken off here. y may then hold NaN for "unknown", if `loss` leaves it out.
    answer : (model, x) -> logits; may call any method of the model
    image : targets or logits `(b, ...)` -> their columns `(b, 8)` in the order of `anatomy.TARGETS`, which `predict`
        gives and a run's `measure` judges; None where there are none
    smooth : (targets, share) -> targets with label smoothing; None where it has no meaning
    report : name -> (logits, targets) -> scalar, mean over the batch: further losses of the validation studies
    """

    name: str
    target: Callable[[object, int], Tensor]
    logits_shape: Callable[[Tensor], tuple[int, ...]]
    loss: Callable[[Tensor, Tensor], Tensor]
    remedy: str
    prepare: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] = unchanged
    answer: Callable[[nn.Module, Tensor], Tensor] = forward
    image: Callable[[Tensor], Tensor] | None = None
    smooth: Callable[[Tensor, float], Tensor] | None = None
    report: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = field(default_factory=dict)


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
            remedy="let the dataset return one row of the label table in the order of anatomy.TARGETS; "
            "crops are told of one level each: pass objective=evidence.objective(...)",
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
    image=first_targets,
    smooth=smooth_labels,
)
SEGMENTATION = Objective(
    name="segmentation",
    target=_segmentation_target,
    logits_shape=lambda y: (len(y), CLASSES, *y.shape[1:]),
    loss=_segmentation_loss,
    remedy="make the model with models.create_segmenter",
)
