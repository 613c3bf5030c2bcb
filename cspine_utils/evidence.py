"""Where is it broken? A target for every token, beside the eight of the study.

One label for a neck of which a thousandth part matters teaches a small network nothing in a laptop's time. So each
token of a vertebra gets a target of its own: does its box hold voxels that were seen to be broken (altered voxels of a
synthetic neck, or bounding boxes as 235 of the 2,019 real studies have them)?

The voxels travel as a seventh channel of x, so that augmentation moves both; `objective(...).prepare` takes them off.
A marked voxel holds the label of the vertebra that is broken there, so that it stays its own when the mask is torn
(`mask_jitter`).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from cspine_utils.anatomy import TARGETS
from cspine_utils.errors import ParameterError, TrainingError
from cspine_utils.models.heads import as_boxes, owners
from cspine_utils.objectives import Objective, first_targets, smooth_labels
from cspine_utils.stacks import CHANNELS, labels_of


def objective(
    *, frame_patch: int, patch: int, least: int = 6, token_weight: float = 5.0, positive_weight: float = 5.0
) -> Objective:
    """Cross-entropy of the study's targets plus that of the tokens, for models with a method `evidence`.

    Parameters
    ----------
    frame_patch, patch : of the model's tokens
    least : a token is broken if it holds so many voxels that are marked as its vertebra's
    token_weight : of the tokens' cross-entropy; 0 trains with the study's labels alone, and any model will do
    positive_weight : of a broken token: few are

    Targets that are NaN are not told and count for nothing. After `prepare`, y is `(b, 8 + n)`.

    Raises ParameterError for `least` below 1 and for weights that cannot be.
    """
    if least < 1 or not 0 <= token_weight < float("inf") or not 0 < positive_weight < float("inf"):
        raise ParameterError(
            "least, token_weight, positive_weight",
            found=f"{least}, {token_weight}, {positive_weight}",
            expected="least from 1 up, token_weight from 0 up, positive_weight above 0",
            remedy="token_weight=0 trains with the study's labels alone.",
        )

    def prepare(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        if x.ndim != 5 or x.shape[2] != CHANNELS + 1:
            raise TrainingError(
                "evidence.objective",
                found=f"x of shape {tuple(x.shape)}",
                expected=f"(b, f, {CHANNELS + 1}, h, w), the last channel the marked voxels",
                remedy="use StackDataset(..., evidence=True) or crops.TwinCrops.",
            )
        if not token_weight:
            return x[:, :, :CHANNELS], y
        _, frames, _, height, width = x.shape
        if frames % frame_patch or height % patch or width % patch:
            raise TrainingError(
                "evidence.objective",
                found=f"frame_patch={frame_patch}, patch={patch} for {frames} frames of {height} x {width}",
                expected="sizes of tokens that divide them",
                remedy="pass those of the model.",
            )
        tokens = token_targets(x, frame_patch=frame_patch, patch=patch, least=least)
        return x[:, :, :CHANNELS], torch.cat([y, tokens], dim=1)

    def loss(logits: Tensor, y: Tensor) -> Tensor:
        image = cross_entropy(first_targets(logits), first_targets(y))
        if not token_weight:
            return image
        tokens = logits[:, len(TARGETS) :], y[:, len(TARGETS) :]
        return image + token_weight * cross_entropy(*tokens, positive_weight)

    return Objective(
        name=f"evidence (least {least}, weights {token_weight}, {positive_weight})",
        target=_target,
        logits_shape=lambda y: tuple(y.shape),
        loss=loss,
        remedy="use a model with head='mask' and the frame_patch and patch of the objective",
        prepare=prepare,
        answer=lambda model, x: model.evidence(x) if token_weight else model(x),
        image=first_targets,
        smooth=smooth_labels,
        report={"bce": lambda logits, y: cross_entropy(first_targets(logits), first_targets(y))},
    )


def token_targets(x: Tensor, *, frame_patch: int, patch: int, least: int) -> Tensor:
    """Targets of the tokens: x `(b, f, 7, h, w)` -> `(b, n)` of 0, 1 and NaN (nobody's token, or nothing is told).

    Whose a token is, is asked of the mask as the network sees it.
    """
    labels, marked = labels_of(x[:, :, CHANNELS - 1]), x[:, :, CHANNELS]
    own = owners(labels, frame_patch=frame_patch, patch=patch)  # (b, n)
    marks = as_boxes(marked, frame_patch=frame_patch, patch=patch)
    broken = (marks == own[..., None]).sum(dim=-1) >= least
    return torch.where((own == 0) | marks.isnan().any(dim=-1), torch.nan, broken.float())


def cross_entropy(logits: Tensor, y: Tensor, positive_weight: float = 1.0) -> Tensor:
    """Binary cross-entropy, mean over what is told; 0 where nothing is."""
    told = ~y.isnan()
    weight = torch.tensor(positive_weight, dtype=logits.dtype, device=logits.device)
    losses = F.binary_cross_entropy_with_logits(logits, y.nan_to_num(), pos_weight=weight, reduction="none")
    return (losses * told).sum() / told.sum().clamp_min(1)


def _target(y, index: int) -> Tensor:
    y = torch.as_tensor(y, dtype=torch.float32)
    if y.shape != (len(TARGETS),) or not (y.isnan() | ((y >= 0) & (y <= 1))).all():
        raise TrainingError(
            f"target of dataset[{index}]",
            found=f"shape {tuple(y.shape)}, values {y.flatten()[:8].tolist()}",
            expected=f"({len(TARGETS)},) numbers in [0, 1], or NaN for a target that is not told",
            remedy="let the dataset return one row of the label table in the order of anatomy.TARGETS",
        )
    return y
