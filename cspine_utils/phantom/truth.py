"""What a rendered study consists of: volume, labels, and the truth about its fractures."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Box:
    """A rectangle around one fracture in one slice: `slice_index` counts head -> feet from 0; x, y, width, height in
    pixels, x along columns from the image's left (patient right), y along rows from the top (front)."""

    level: str
    slice_index: int
    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True)
class FractureTruth:
    """What was really drawn: gap and displacement in mm, number of altered voxels, pattern (complete, incomplete,
    comminuted)."""

    level: str
    type: str
    gap_mm: float
    displacement_mm: float
    altered_voxels: int
    pattern: str


@dataclass(frozen=True, eq=False)
class Rendered:
    """A study in memory, on the axes of `cspine_utils.volume.Volume`.

    Attributes
    ----------
    hu : int16 `(d, h, w)`
    labels : uint8 `(d, h, w)`, 1-7 = C1-C7, 8-10 = T1-T3
    altered : bool `(d, h, w)`, voxels that a fracture changed by more than `ALTERED_HU` (before noise)
    affine : float64 4x4, voxel (d, h, w) -> RAS+ mm
    boxes : for each fracture one `Box` per slice with at least three altered voxels; empty for an intact study
    fractures : one `FractureTruth` per fractured level
    """

    hu: np.ndarray
    labels: np.ndarray
    altered: np.ndarray
    affine: np.ndarray
    boxes: tuple[Box, ...]
    fractures: tuple[FractureTruth, ...]
