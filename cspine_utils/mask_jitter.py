"""Masks that are a little wrong: beside the bone, bent, and coarse.

Label maps drawn by hand, and far more so those of synthetic necks, end exactly where the bone ends. A network that has
only seen such masks learns to look for places where the two edges part, which is what a break does, and calls every
vertebra broken as soon as the mask comes from another network. So training tears the mask: the edges say little then,
and the network has to look at the bone.

Networks err in more ways than these: one that has learned too little was seen to leave out marrow and dark gaps of
breaks, which a torn mask keeps inside. What that costs is told by the controls "mask predicted" and "mask
predicted in haste" of `ladder.controls`.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from numbers import Real

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from cspine_utils.errors import ParameterError
from cspine_utils.stacks import CHANNELS


@dataclass(frozen=True)
class MaskJitter:
    """How far a mask may be wrong. Lengths are in voxels of the frames, of about 1 mm.

    Attributes
    ----------
    shift : the whole mask moves by up to so many along each axis
    warp : and every part of it by a distance of its own, normal with a standard deviation of up to so many
    knots : parts so many voxels apart move independently of each other
    coarse : it is seen on a grid of up to so many voxels a step, as of a network that works on coarser voxels
    clean : share of the masks that stay as they are

    Raises ParameterError for a strength that cannot be.
    """

    shift: float = 1.5
    warp: float = 0.7
    knots: int = 12
    coarse: int = 2
    clean: float = 0.2

    def __post_init__(self):
        limits = {"shift": (0, 100), "warp": (0, 100), "knots": (2, 1000), "coarse": (1, 100), "clean": (0, 1)}
        for name, (least, most) in limits.items():
            value = getattr(self, name)
            whole = isinstance(value, int) or name not in ("knots", "coarse")
            if not isinstance(value, Real) or isinstance(value, bool) or not whole or not least <= value <= most:
                raise ParameterError(
                    f"MaskJitter: {name}",
                    found=repr(value),
                    expected=f"a {'number' if name not in ('knots', 'coarse') else 'whole number'} {least} to {most}",
                    remedy="shift=0, warp=0, coarse=1 leave masks as they are.",
                )

    def __call__(self, labels: Tensor, seed: int) -> Tensor:
        """A torn copy of `(..., f, h, w)` labels, or of mask channels, all of them alike; no value is new, and what
        comes in from outside repeats the border. The same seed tears every mask of one shape in the same way."""
        places = self.places(labels.shape[-3:], seed)
        return labels if places is None else labels[(..., *(axis.to(labels.device) for axis in places))]

    def places(self, shape, seed: int) -> Tensor | None:
        """Which voxel of the mask each voxel shows: int64 `(3, f, h, w)`; None, each its own."""
        generator = torch.Generator().manual_seed(seed)
        draws = torch.rand(9, generator=generator, dtype=torch.float64).tolist()
        knots = [length // self.knots + 2 for length in shape]
        bends = torch.randn((1, 3, *knots), generator=generator)
        if draws[0] < self.clean:
            return None
        step = 1 + min(int(draws[1] * self.coarse), self.coarse - 1)
        warp = draws[2] * self.warp * F.interpolate(bends, tuple(shape), mode="trilinear", align_corners=True)[0]
        places = []
        for axis, length in enumerate(shape):
            start = int(draws[3 + axis] * step)
            cell = (torch.arange(length) + start).div(step, rounding_mode="floor") * step + step // 2 - start
            view = [-1 if i == axis else 1 for i in range(3)]
            shift = (2 * draws[6 + axis] - 1) * self.shift
            places.append(torch.round(cell.view(view) + warp[axis] + shift).long().clamp_(0, length - 1))
        return torch.stack(places)


class Torn(Dataset):
    """Samples with torn masks, each always in the same way: to choose and to judge by.

    Parameters
    ----------
    dataset : of (x, y), x `(f, 6 or more, h, w)` as networks get it; everything but the mask stays
    jitter, seed : sample i is torn by `seed` + i
    alike : so many samples in a row are torn alike: 2 for a crop and its twin
    """

    def __init__(self, dataset: Dataset, jitter: MaskJitter, *, seed: int = 0, alike: int = 1):
        self.dataset, self.jitter, self.seed, self.alike = dataset, jitter, seed, alike

    def __len__(self) -> int:
        return len(self.dataset)

    @property
    def fingerprint(self) -> str:
        """Equal means equal data."""
        facts = [self.dataset.fingerprint, repr(self.jitter), self.seed, self.alike]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]

    def __getitem__(self, index: int):
        x, y = self.dataset[index]
        return tear_mask(x, self.jitter, self.seed + index // self.alike), y


def tear_mask(study: Tensor, jitter: MaskJitter, seed: int) -> Tensor:
    """A copy of `(f, 6 or more, h, w)` with a mask as a network might have drawn it; slices and evidence stay."""
    out = study.clone()
    out[:, CHANNELS - 1] = jitter(study[:, CHANNELS - 1], seed)
    return out
