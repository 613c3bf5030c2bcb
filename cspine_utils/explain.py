"""Where did the model look? Attention back to voxels, and whether that is where the fracture is.

Three maps of one target's answer, all of them `(b, f, h, w)` on the frames of the study tensor, constant within a
token's box and 0 where no token was read:

* `rollout`: attention multiplied through the blocks (Abnar & Zuidema 2020, arXiv 2005.00928). It tells what the answer
  could have come from, not whether it spoke for or against a fracture, and is much the same for all targets.
* `gradient_attention`: attention weighted by how much more of it would raise the target's logit (Chefer et al. 2021,
  arXiv 2103.15679, the rule for self-attention; its forerunner is arXiv 2012.09838).
* `token_evidence`: with the head "mask", what each token itself says.

`point` and `pointing_game` judge any such map by the voxels that the phantom altered (Zhang et al. 2018,
arXiv 1608.00507): does its maximum within a vertebra lie on the fracture, more often than chance and than a guess?
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from einops import rearrange, repeat
from scipy.ndimage import distance_transform_edt
from scipy.stats import binomtest
from torch import Tensor

from cspine_utils.anatomy import CERVICAL_IDS, LEVELS, TARGETS
from cspine_utils.errors import ParameterError
from cspine_utils.models.heads import Read
from cspine_utils.models.vit3d import ViT3D


def rollout(model: ViT3D, x: Tensor, target: str) -> Tensor:
    """Share of each voxel's token in what `target` hears: `(b, f, h, w)`, float32.

    In each block a token is half itself (the path around) and half what attention brings, the mean of the heads; the
    product over the blocks tells how much of each token arrives in each. What the head listens to weighs the arrivals.

    Parameters
    ----------
    model : in evaluation mode, so that nothing is dropped
    x : study tensors `(b, f, c, h, w)`
    target : a name of `anatomy.TARGETS`

    Raises
    ------
    ParameterError : unknown target, or a model in training mode
    """
    index = _target(model, target)
    with model.whole_attention() as kept, torch.no_grad():
        read = model.encode(x)
    itself = torch.eye(read.tokens.shape[1], dtype=x.dtype, device=x.device)
    arrived = itself
    for weights in kept:
        arrived = (0.5 * weights.mean(dim=1) + 0.5 * itself) @ arrived
    with torch.no_grad():
        return _to_voxels(model, x, read, _heard(model, read, index, arrived))


def gradient_attention(model: ViT3D, x: Tensor, target: str) -> Tensor:
    """How much each token raised the logit of `target` through attention: `(b, f, h, w)`, float32, not negative.

    Relevance starts as the identity, R = 1, and every block adds A R with A the mean over heads of the positive part of
    weights times d logit / d weights. Parameters and errors as in `rollout`.
    """
    index = _target(model, target)
    with model.whole_attention() as kept, torch.enable_grad():
        read = model.encode(x.detach().requires_grad_())  # so that a model with frozen weights has gradients, too
        logit = model.head(read)[:, index].sum()  # studies do not mix, so each keeps its own gradient
        gradients = torch.autograd.grad(logit, kept)
    relevance = torch.eye(read.tokens.shape[1], dtype=x.dtype, device=x.device)
    for weights, gradient in zip(kept, gradients, strict=True):
        helped = (weights * gradient).clamp_min(0).mean(dim=1).detach()
        relevance = relevance + helped @ relevance
    with torch.no_grad():
        return _to_voxels(model, x, read, _heard(model, read, index, relevance))


def token_evidence(model: ViT3D, x: Tensor) -> Tensor:
    """Probability of a fracture that each token says of itself: `(b, f, h, w)`, float32; head "mask" alone."""
    with torch.no_grad():
        return _boxes(model, x, model.evidence(x)[:, len(TARGETS) :].sigmoid())


def _target(model: ViT3D, target: str) -> int:
    known = TARGETS[: model.outputs]
    if target not in known:
        expected = "one of " + ", ".join(known)
        raise ParameterError("explain(target)", found=repr(target), expected=expected, remedy="choose one of these")
    if model.training:
        found, expected = "a model in training mode", "one that drops nothing"
        raise ParameterError("explain(model)", found=found, expected=expected, remedy="call model.eval()")
    return TARGETS.index(target)


def _heard(model: ViT3D, read: Read, index: int, arrived: Tensor) -> Tensor:
    """What the head hears of each token that was read: `(b, m)`."""
    shares = model.head.listens(read)[:, index : index + 1]
    return (shares @ arrived)[:, 0]


def _to_voxels(model: ViT3D, x: Tensor, read: Read, values: Tensor) -> Tensor:
    """Values of the tokens that were read, `(b, m)`, at their places on the study's frames, `(b, f, h, w)`."""
    values = values[:, model.head.extra :].float()
    if read.place is not None:
        values = values if read.keep is None else torch.where(read.keep, values, 0.0)
        everywhere = values.new_zeros(len(values), int(np.prod(model.grid_of(x))))
        values = everywhere.scatter(1, read.place, values)
    return _boxes(model, x, values)


def _boxes(model: ViT3D, x: Tensor, values: Tensor) -> Tensor:
    """Every voxel gets the value of its token: `(b, n)` -> `(b, f, h, w)`."""
    frames, rows, _ = model.grid_of(x)
    values = rearrange(values, "b (f h w) -> b f h w", f=frames, h=rows)
    sides = {"pf": model.config["frame_patch"], "ph": model.config["patch"], "pw": model.config["patch"]}
    return repeat(values, "b f h w -> b (f pf) (h ph) (w pw)", **sides)


@dataclass(frozen=True)
class Pointing:
    """One map judged on one fractured vertebra.

    Attributes
    ----------
    level : name of the vertebra
    voxel : `(f, h, w)` where the map points to
    distance_mm : from there to the nearest altered voxel
    hit : whether that is within the tolerance
    centre_hit : whether the middle of the vertebra would have been a hit
    chance : share of the vertebra's voxels that would have been hits
    """

    level: str
    voxel: tuple[int, int, int]
    distance_mm: float
    hit: bool
    centre_hit: bool
    chance: float


def point(
    values, altered, labels, level: str, *, spacing_mm, tolerance_mm: float, generator: torch.Generator
) -> Pointing:
    """Does the maximum of a map within a vertebra lie on its fracture?

    Parameters
    ----------
    values : numbers `(f, h, w)`, e.g. one study of `rollout`
    altered : bool `(f, h, w)`, voxels that fractures changed; those nearest to another vertebra do not count
    labels : whole numbers `(f, h, w)`, 1-7 = C1-C7
    level : name of the fractured vertebra
    spacing_mm : from voxel to voxel along f, h and w
    tolerance_mm : a hit may lie so far from an altered voxel. A map that is constant within a token cannot point finer.
    generator : draws among voxels that share the maximum, so that a map without a preference hits as often as chance

    Raises
    ------
    ParameterError : arrays of different shapes, unknown level, a level without voxels or without altered voxels, or
        values that are not finite
    """
    arrays = (a.detach().cpu() if isinstance(a, Tensor) else a for a in (values, altered, labels))
    values, altered, labels = (np.asarray(array) for array in arrays)
    inside, broken = _vertebra(values, altered, labels, level)
    distance = distance_transform_edt(~broken, sampling=spacing_mm)
    places = np.argwhere(inside)
    strength, away = values[inside], distance[inside]
    best = np.flatnonzero(strength == strength.max())
    chosen = best[int(torch.randint(len(best), (1,), generator=generator))]
    middle = np.argmin((((places - places.mean(axis=0)) * np.asarray(spacing_mm)) ** 2).sum(axis=1))
    return Pointing(
        level=level,
        voxel=tuple(int(i) for i in places[chosen]),
        distance_mm=float(away[chosen]),
        hit=bool(away[chosen] <= tolerance_mm),
        centre_hit=bool(away[middle] <= tolerance_mm),
        chance=float((away <= tolerance_mm).mean()),
    )


def _vertebra(values, altered, labels, level: str) -> tuple[np.ndarray, np.ndarray]:
    """Voxels of the vertebra, and the altered voxels that belong to it, whatever their label; or ParameterError."""

    def refuse(argument: str, found: str, expected: str, remedy: str):
        return ParameterError(f"explain.point({argument})", found=found, expected=expected, remedy=remedy)

    if level not in LEVELS:
        raise refuse("level", repr(level), "one of " + ", ".join(LEVELS), "name one vertebra")
    if not values.shape == altered.shape == labels.shape or values.ndim != 3:
        shapes = f"{values.shape}, altered {altered.shape}, labels {labels.shape}"
        raise refuse("values", shapes, "one shape (f, h, w)", "bring all three to the frames of the stack")
    label = CERVICAL_IDS[LEVELS.index(level)]
    inside = labels == label
    if not inside.any():
        raise refuse("labels", f"no voxel of {level}", "a vertebra to point in", "leave this level out")
    if not np.isfinite(values[inside]).all():
        raise refuse("values", "numbers that are not finite", "finite numbers", "look for NaN in the model's weights")
    nearest = distance_transform_edt(labels == 0, return_distances=False, return_indices=True)
    broken = altered.astype(bool) & (labels[tuple(nearest)] == label)
    if not broken.any():
        raise refuse("altered", f"no altered voxel at {level}", "a fracture", "ask for fractured levels alone")
    return inside, broken


def pointing_game(pointings, confidence: float = 0.95) -> pd.DataFrame:
    """Hit rates over vertebrae: of the map, of the middle of the vertebra, and of chance.

    Parameters
    ----------
    pointings : one `Pointing` a vertebra; vertebrae of one neck are taken as independent
    confidence : of the interval (Wilson's, for shares)

    Returns
    -------
    DataFrame, rows "map", "centre of the vertebra", "chance"; columns hits, vertebrae, rate, low, high (chance is known
    of each vertebra, not drawn, and has no interval)
    """
    pointings = list(pointings)
    if not pointings:
        raise ParameterError(
            "explain.pointing_game(pointings)",
            found="none",
            expected="one a vertebra",
            remedy="call explain.point first",
        )
    count, rows = len(pointings), {}
    for name, hits in (
        ("map", sum(p.hit for p in pointings)),
        ("centre of the vertebra", sum(p.centre_hit for p in pointings)),
    ):
        interval = binomtest(hits, count).proportion_ci(confidence, method="wilson")
        rows[name] = [hits, count, hits / count, interval.low, interval.high]
    chance = float(np.mean([p.chance for p in pointings]))
    rows["chance"] = [chance * count, count, chance, np.nan, np.nan]
    return pd.DataFrame.from_dict(rows, orient="index", columns=["hits", "vertebrae", "rate", "low", "high"])
