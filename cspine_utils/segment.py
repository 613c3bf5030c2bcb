"""Vertebra masks by a network: volumes to the network's grid, patches to learn from, labels back to the volume.

A segmenter (`models.segmentation`) works on a grid with one spacing along all axes, in the same orientation as every
`Volume`: d head -> feet, h front -> back, w the patient's right -> left. HU are interpolated to that grid; on the way
back the logits are, and the largest decides, so the mask's edges do not follow the coarse grid's steps.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cspine_utils.anatomy import CERVICAL_IDS
from cspine_utils.errors import MaskError, ModelError, ParameterError, TrainingError
from cspine_utils.models.segmentation import Segmenter
from cspine_utils.objectives import CLASSES
from cspine_utils.stacks import check_on_grid, scale_hu
from cspine_utils.volume import Volume

#: What is beyond the scan.
_AIR_HU = -1000
#: Axis that slices of a plane are cut from.
_AXIS = {"axial": 0, "sagittal": 2}


@dataclass(frozen=True, eq=False)
class Case:
    """One study on a segmenter's grid.

    Attributes
    ----------
    hu : float32 `(d, h, w)`, scaled as networks get it (`stacks.scale_hu`)
    labels : int64 `(d, h, w)`, 0-7
    """

    hu: Tensor
    labels: Tensor


def to_grid(volume: Volume, spacing_mm: float) -> Tensor:
    """A volume's HU, scaled for a network, on a grid of `spacing_mm`: float32 `(d, h, w)`.

    The grid covers the volume from edge to edge, so its true spacing differs by less than half a voxel over the whole.
    """
    shape = [max(1, round(n * s / spacing_mm)) for n, s in zip(volume.shape, volume.spacing_mm, strict=True)]
    hu = torch.from_numpy(scale_hu(volume.hu.astype(np.float32)))
    # Slice by slice with antialiasing, then between slices: a plain linear step from 0.4 mm to 2 mm skips cortex.
    plane = F.interpolate(hu[:, None], size=shape[1:], mode="bilinear", antialias=True)[:, 0]
    columns = plane.flatten(1).T[:, None, None]  # (h w, 1, 1, d)
    along = F.interpolate(columns, size=(1, shape[0]), mode="bilinear", antialias=True)
    return along[:, 0, 0].T.reshape(shape).contiguous()


def make_case(volume: Volume, mask: np.ndarray, spacing_mm: float) -> Case:
    """A volume and its mask (uint8 `(d, h, w)` on its grid) as something to learn from; labels above 7 become 0.

    Raises StackError for a mask of another shape.
    """
    check_on_grid(mask, volume)
    hu = to_grid(volume, spacing_mm)
    labels = torch.from_numpy(np.where(np.isin(mask, CERVICAL_IDS), mask, 0).astype(np.float32))
    nearest = F.interpolate(labels[None, None], size=tuple(hu.shape), mode="nearest-exact")[0, 0]
    return Case(hu, nearest.long())


class PatchDataset(torch.utils.data.Dataset):
    """Patches of some cases: x float32 `(neighbours, *patch)`, y int64 `patch`.

    Parameters
    ----------
    cases : studies on the segmenter's grid
    segmenter : says patch, plane and neighbours
    length : patches an epoch
    fixed : the same patches in every epoch, for validation. Otherwise they are drawn anew from torch's random numbers.

    Three patches of four show a cervical vertebra near their middle: most of a neck is something else.
    """

    def __init__(self, cases: Sequence[Case], segmenter: Segmenter, *, length: int, fixed: bool = False):
        self.cases, self.length, self.fixed = list(cases), length, fixed
        if not self.cases:
            remedy = "check which studies could be read."
            raise TrainingError("PatchDataset(cases)", found="no cases", expected="at least one", remedy=remedy)
        self.plane, self.neighbours, self.patch = segmenter.plane, segmenter.neighbours, segmenter.patch
        self.inside = [torch.nonzero(case.labels) for case in self.cases]

    def __len__(self) -> int:
        return self.length

    @property
    def fingerprint(self) -> str:
        """Changes with the cases and the way patches are cut."""
        digest = hashlib.sha256(repr((self.plane, self.neighbours, self.patch, self.length, self.fixed)).encode())
        for case in self.cases:
            digest.update(repr(tuple(case.hu.shape)).encode())
            digest.update(case.hu.numpy().tobytes() + case.labels.numpy().tobytes())
        return digest.hexdigest()[:16]

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if not 0 <= index < self.length:
            raise IndexError(index)  # what ends a for loop over a dataset
        generator = torch.Generator().manual_seed(index) if self.fixed else None
        draw = torch.rand(8, generator=generator, dtype=torch.float64).tolist()
        which = int(draw[0] * len(self.cases))
        case, inside = self.cases[which], self.inside[which]
        shape = case.hu.shape
        if draw[1] < 0.75 and len(inside):
            centre = inside[int(draw[2] * len(inside))].tolist()
        else:
            centre = [int(u * n) for u, n in zip(draw[2:5], shape, strict=True)]
        # Moved by up to a quarter of the patch, so that the vertebra is not always in the very middle.
        sides = self._sides()
        shift = [int((u - 0.5) * n / 2) if n > 1 else 0 for u, n in zip(draw[5:8], sides, strict=True)]
        start = [
            # Inside the volume, or around it where the patch is larger: which level a bone is can only be counted
            # from the skull, and when whole slices are labelled later the skull is in view.
            min(max(c + s - n // 2, min(0, size - n)), max(0, size - n))
            for c, s, n, size in zip(centre, shift, sides, shape, strict=True)
        ]
        hu = _cut(case.hu, start, sides, fill=float(scale_hu(np.float32(_AIR_HU))), halo=self._halo())
        labels = _cut(case.labels, start, sides, fill=0)
        return self._channels(hu), labels.squeeze(_AXIS[self.plane]) if self.plane else labels

    def _sides(self) -> tuple[int, int, int]:
        if self.plane is None:
            return self.patch
        sides = list(self.patch)
        sides.insert(_AXIS[self.plane], 1)
        return tuple(sides)

    def _halo(self) -> tuple[int, int, int]:
        beside = self.neighbours // 2
        return tuple(beside if self.plane and axis == _AXIS[self.plane] else 0 for axis in range(3))

    def _channels(self, hu: Tensor) -> Tensor:
        """Slices of the patch as channels; a volume gets one channel."""
        return hu[None] if self.plane is None else hu.movedim(_AXIS[self.plane], 0)


def _cut(array: Tensor, start, sides, *, fill, halo=(0, 0, 0)) -> Tensor:
    """A box of an array, padded where it reaches beyond: sides + 2 halo voxels from start - halo."""
    out = torch.full([n + 2 * h for n, h in zip(sides, halo, strict=True)], fill, dtype=array.dtype)
    source, target = [], []
    for begin, side, beside, size in zip(start, sides, halo, array.shape, strict=True):
        first, last = begin - beside, begin + side + beside
        low, high = max(first, 0), max(min(last, size), 0)
        if low >= high:
            return out
        source.append(slice(low, high))
        target.append(slice(low - first, high - first))
    out[tuple(target)] = array[tuple(source)]
    return out


def through_grid(volume: Volume, mask: np.ndarray, spacing_mm: float) -> np.ndarray:
    """The mask brought to a grid of `spacing_mm` and back: what a network without a mistake would reach there.

    uint8 `(d, h, w)`, labels 0-7; raises StackError for a mask of another shape.
    """
    labels = make_case(volume, mask, spacing_mm).labels
    return _labels_on(volume.shape, F.one_hot(labels, CLASSES).movedim(-1, 0).float())


def lay_over(other: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The mask of another neck, moved and stretched so that its C1-C7 fill the same box as those of `mask`.

    What one gets by knowing where the spine is, and nothing of this neck: the comparison that a segmenter must beat.

    Parameters
    ----------
    other, mask : uint8 `(d, h, w)`, each with at least one voxel of C1-C7

    Returns
    -------
    uint8 of the shape of `mask`, labels 0-7
    """
    boxes = [_cervical_box(labels) for labels in (other, mask)]
    source = other[boxes[0]]
    source = np.where(np.isin(source, CERVICAL_IDS), source, 0).astype(np.float32)
    shape = [axis.stop - axis.start for axis in boxes[1]]
    stretched = F.interpolate(torch.from_numpy(source)[None, None], size=shape, mode="nearest-exact")[0, 0]
    out = np.zeros(mask.shape, dtype=np.uint8)
    out[boxes[1]] = stretched.numpy()
    return out


def _cervical_box(mask: np.ndarray) -> tuple[slice, slice, slice]:
    inside = np.argwhere(np.isin(mask, CERVICAL_IDS))
    if len(inside) == 0:
        raise MaskError("mask", found="no label from C1 to C7", expected="some", remedy="choose another neck.")
    return tuple(slice(low, high + 1) for low, high in zip(inside.min(axis=0), inside.max(axis=0), strict=True))


@torch.no_grad()
def predict_mask(
    segmenter: Segmenter, volume: Volume, *, background_odds: float = 1.0, batch_size: int = 8
) -> np.ndarray:
    """The mask of a whole volume on its own grid: uint8 `(d, h, w)`, 0-7.

    A 2D segmenter sees every slice of its plane with its neighbours; a 3D one slides over the volume with a quarter
    of overlap (MONAI's sliding window, Gaussian weights). The model is run in eval mode and left as it was.

    Parameters
    ----------
    background_odds : a voxel is left out only where background is so many times as probable as the likeliest vertebra.
        1 takes the likeliest class; above 1 doubtful voxels are in the mask, for readers whom a hole costs more than a
        voxel too many; below 1 they are not

    Raises ModelError for what is no segmenter, ParameterError for odds that are not above 0.
    """
    if not 0 < background_odds < float("inf"):
        remedy = "take 1 for the likeliest class, more for a wider mask."
        raise ParameterError(
            "background_odds", found=repr(background_odds), expected="a finite number above 0", remedy=remedy
        )
    if not isinstance(segmenter, Segmenter):
        raise ModelError(
            "predict_mask(segmenter)",
            found=type(segmenter).__name__,
            expected="a model of models.create_segmenter",
            remedy="classifiers give no mask; see models.create_segmenter",
        )
    was_training = segmenter.training
    segmenter.eval()
    hu = to_grid(volume, segmenter.spacing_mm).to(next(segmenter.parameters()).device)
    try:
        logits = _slices(segmenter, hu, batch_size) if segmenter.plane else _window(segmenter, hu, batch_size)
    finally:
        segmenter.train(was_training)
    logits[0] -= math.log(background_odds)
    return _labels_on(volume.shape, logits.cpu())


def _slices(segmenter: Segmenter, hu: Tensor, batch_size: int) -> Tensor:
    """Logits `(8, d, h, w)` of a 2D segmenter, slice by slice along its plane's axis."""
    axis, beside, air = _AXIS[segmenter.plane], segmenter.neighbours // 2, float(scale_hu(np.float32(_AIR_HU)))
    slices = hu.movedim(axis, 0)  # (n, rows, columns)
    n, rows, columns = slices.shape
    down, right = (-size % segmenter.multiple for size in (rows, columns))
    padded = F.pad(slices, (0, right, 0, down, beside, beside), value=air)
    windows = padded.unfold(0, segmenter.neighbours, 1).movedim(-1, 1)  # (n, neighbours, rows, columns)
    answers = [segmenter(windows[i : i + batch_size])[..., :rows, :columns] for i in range(0, n, batch_size)]
    return torch.cat(answers).movedim(0, 1).movedim(1, 1 + axis)


def _window(segmenter: Segmenter, hu: Tensor, batch_size: int) -> Tensor:
    """Logits `(8, d, h, w)` of a 3D segmenter."""
    from monai.inferers import sliding_window_inference  # here: MONAI takes seconds to import

    return sliding_window_inference(
        hu[None, None],
        segmenter.patch,
        max(1, batch_size // 4),
        segmenter,
        overlap=0.25,
        mode="gaussian",
        padding_mode="constant",
        cval=float(scale_hu(np.float32(_AIR_HU))),
    )[0]


def _labels_on(shape: tuple[int, int, int], logits: Tensor) -> np.ndarray:
    """The class with the largest logit on a finer grid over the same extent, slice by slice to save memory."""
    depth, *plane = shape
    mask = np.empty(shape, dtype=np.uint8)
    for index in range(depth):
        position = min(max((index + 0.5) * logits.shape[1] / depth - 0.5, 0), logits.shape[1] - 1)
        below = int(position)
        above = min(below + 1, logits.shape[1] - 1)
        between = torch.lerp(logits[:, below], logits[:, above], position - below)
        fine = F.interpolate(between[None], size=plane, mode="bilinear", align_corners=False)[0]
        mask[index] = fine.argmax(dim=0).to(torch.uint8).numpy()
    return mask
