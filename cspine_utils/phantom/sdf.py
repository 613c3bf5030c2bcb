"""Signed distance fields of rounded primitives on a part of a voxel grid.

Frames
------
* Patient frame: DICOM's LPS millimetres (x to the left, y to the back, z to the head).
* Local frame of a bone: the same directions before its own rotation, origin at its `Pose.centre`.
* Distances are negative inside, in mm, and never grow faster than 1 mm per mm (a stretched primitive is scaled
  down rather than up), so that half a difference of two fields is a safe measure of clearance.

Every primitive is evaluated only in its own box plus `BAND_MM`; farther away a field holds the constant `BAND_MM`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from .grid import Grid

#: Distances are exact only up to here; a constant beyond. Wider than any smoothing radius or clearance in use.
BAND_MM = 4.0

#: The eight corners of a box as a choice of low (False) or high (True) per axis.
_CORNERS = np.array(list(np.ndindex(2, 2, 2)), dtype=bool)


@dataclass(frozen=True)
class Pose:
    """Place of a bone: `centre` in LPS mm, `rotation` 3x3 whose columns are the local axes in the patient frame."""

    centre: np.ndarray
    rotation: np.ndarray

    def to_patient(self, local) -> np.ndarray:
        """Local mm `(..., 3)` -> LPS mm."""
        return np.asarray(local, dtype=float) @ self.rotation.T + self.centre


def rotation(tilt_deg: float, bend_deg: float = 0.0, twist_deg: float = 0.0) -> np.ndarray:
    """Flexion (head end forward), side bend (head end to the left) and axial twist as one 3x3 matrix."""
    t, b, a = np.deg2rad([tilt_deg, bend_deg, twist_deg])
    flex = np.array([[1, 0, 0], [0, np.cos(t), -np.sin(t)], [0, np.sin(t), np.cos(t)]])
    side = np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
    axial = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    return axial @ side @ flex


@dataclass(frozen=True)
class Primitive:
    """A distance function of local (x, y, z) tensors and the local box that holds its surface."""

    distance: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
    low: tuple[float, float, float]
    high: tuple[float, float, float]


def smooth_min(a: torch.Tensor, b: torch.Tensor, k: float) -> torch.Tensor:
    """Union with a fillet of about `k` mm (polynomial smooth minimum); `k=0` is the sharp union."""
    if k <= 0:
        return torch.minimum(a, b)
    blend = torch.clamp(k - (a - b).abs(), min=0.0) / k
    return torch.minimum(a, b) - blend * blend * (k / 4)


def smooth_max(a: torch.Tensor, b: torch.Tensor, k: float) -> torch.Tensor:
    """Intersection with a rounded edge of about `k` mm."""
    return -smooth_min(-a, -b, k)


def capsule(a, b, ra: float, rb: float | None = None, stretch=(1.0, 1.0, 1.0)) -> Primitive:
    """A rod from `a` to `b` (mm) whose radius runs from `ra` to `rb`; `stretch` makes its section an ellipse."""
    rb = ra if rb is None else rb
    s = np.asarray(stretch, dtype=float)
    a, b = np.asarray(a, dtype=float) / s, np.asarray(b, dtype=float) / s
    ab = b - a
    length2 = max(float(ab @ ab), 1e-9)
    reach = max(ra, rb)

    def distance(x, y, z):
        px, py, pz = x / s[0] - a[0], y / s[1] - a[1], z / s[2] - a[2]
        t = ((px * ab[0] + py * ab[1] + pz * ab[2]) / length2).clamp(0.0, 1.0)
        d2 = (px - t * ab[0]) ** 2 + (py - t * ab[1]) ** 2 + (pz - t * ab[2]) ** 2
        return (torch.sqrt(d2) - (ra + (rb - ra) * t)) * float(s.min())

    return Primitive(distance, tuple((np.minimum(a, b) - reach) * s), tuple((np.maximum(a, b) + reach) * s))


def plate(a, b, half_height: float, radius: float, shingle: float = 0.0) -> Primitive:
    """A wall that stands on the segment `a`-`b`: thickness 2 `radius`, height 2 `half_height` (mm).

    `shingle` (mm per mm) leans it: the lower edge lies farther back, as laminae overlap like roof tiles.
    """
    a, b = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    ab = b[:2] - a[:2]
    length2 = max(float(ab @ ab), 1e-9)
    lean = 1.0 / float(np.hypot(1.0, shingle))

    def distance(x, y, z):
        yy = y + shingle * (z - a[2])
        px, py = x - a[0], yy - a[1]
        t = ((px * ab[0] + py * ab[1]) / length2).clamp(0.0, 1.0)
        flat = torch.sqrt((px - t * ab[0]) ** 2 + (py - t * ab[1]) ** 2)
        tall = (z - (a[2] + (b[2] - a[2]) * t)).abs() - (half_height - radius)
        out = torch.sqrt(flat**2 + tall.clamp(min=0.0) ** 2)
        return (out - radius) * lean

    grow = np.array([radius, radius + shingle * half_height, half_height])
    return Primitive(distance, tuple(np.minimum(a, b) - grow), tuple(np.maximum(a, b) + grow))


def lump(centre, half, power: float = 4.0, slope_x: float = 0.0, slope_y: float = 0.0, waist: float = 0.0) -> Primitive:
    """A superellipsoid: 2 is an ellipsoid, 4 a box with very round edges; half-axes in mm.

    `slope_x` and `slope_y` (mm per mm) let it fall along |x| and y; `waist` (mm) draws it in at mid-height.
    The field is scaled to unit slope at its surface, so that cortex is equally thick all around.
    """
    c, h = np.asarray(centre, dtype=float), np.asarray(half, dtype=float)
    lean = 1.0 / float(np.sqrt(1.0 + slope_x**2 + slope_y**2))

    def distance(x, y, z):
        fall = slope_y * (y - c[1]) + slope_x * (x.abs() - abs(c[0]))
        q = [(x - c[0]).abs(), (y - c[1]).abs(), (z + fall - c[2]).abs()]
        if waist:
            pinch = waist * (1.0 - (q[2] / h[2]) ** 2).clamp(min=0.0)
            q = [q[0] + pinch, q[1] + 0.5 * pinch, q[2]]
        ratio = [(axis / float(n)).clamp(min=1e-3) for axis, n in zip(q, h, strict=True)]
        size = sum(r**power for r in ratio)
        steep = torch.sqrt(sum((r ** (power - 1.0) / float(n)) ** 2 for r, n in zip(ratio, h, strict=True)))
        k = size ** (1.0 / power)
        return (k - 1.0) * k ** (power - 1.0) / steep * (0.5 + 0.5 * lean)

    grow = h + [0.0, 0.0, abs(slope_x) * h[0] + abs(slope_y) * h[1]]
    return Primitive(distance, tuple(c - grow), tuple(c + grow))


def block(centre, half, radius: float, slope_x: float = 0.0, slope_y: float = 0.0, skew: float = 0.0) -> Primitive:
    """A rounded box; `slope_x` and `slope_y` (mm per mm) shear its top and bottom as z falls along |x| and y.

    `slope_x` acts on the distance from the mid-plane of the body (|x|), so both sides mirror each other.
    `skew` (mm per mm) moves it outwards towards the back.
    """
    c, h = np.asarray(centre, dtype=float), np.asarray(half, dtype=float)
    lean = 1.0 / float(np.sqrt(1.0 + slope_x**2 + slope_y**2))
    skew = float(np.copysign(skew, skew * c[0])) if skew else 0.0
    aslant = 1.0 / float(np.hypot(1.0, skew))

    def distance(x, y, z):
        fall = slope_y * (y - c[1]) + slope_x * (x.abs() - abs(c[0]))
        qx, qy = ((x - c[0] - skew * (y - c[1])).abs() - (h[0] - radius)) * aslant, (y - c[1]).abs() - (h[1] - radius)
        qz = ((z + fall - c[2]).abs() - (h[2] - radius)) * lean
        out = torch.sqrt(qx.clamp(min=0.0) ** 2 + qy.clamp(min=0.0) ** 2 + qz.clamp(min=0.0) ** 2)
        return (out + torch.maximum(qx, torch.maximum(qy, qz)).clamp(max=0.0) - radius) * (0.5 + 0.5 * lean)

    grow = h + [abs(skew) * h[1], 0.0, abs(slope_x) * h[0] + abs(slope_y) * h[1]]
    return Primitive(distance, tuple(c - grow), tuple(c + grow))


def box_of(grid: Grid, pose: Pose, low, high, margin_mm: float = 0.0) -> tuple[slice, slice, slice]:
    """The voxels of `grid` that a box of local coordinates `low`-`high` (mm) can cover; a slice is empty if none."""
    low, high = np.asarray(low, dtype=float) - margin_mm, np.asarray(high, dtype=float) + margin_mm
    corners = pose.to_patient(np.where(_CORNERS, high, low))
    if grid.motion is not None:
        corners = np.concatenate([corners, corners + [*grid.motion.shift_mm, 0.0]])
    index = grid.index(corners)
    first = np.clip(np.floor(index.min(axis=0)), 0, grid.shape)
    last = np.clip(np.ceil(index.max(axis=0)) + 1, 0, grid.shape)
    return tuple(slice(int(a), max(int(a), int(b))) for a, b in zip(first, last, strict=True))


class Field:
    """The distance field of one bone on the part of the grid that its local box covers.

    Attributes
    ----------
    slices : three slices, the part of the given grid
    grid : that part as a grid
    x, y, z : local coordinates in mm, float32 `(d, h, w)` of that part
    d : signed distance in mm, same shape; None of the grid is covered if its shape has a zero
    """

    def __init__(self, grid: Grid, pose: Pose, low, high):
        self.pose = pose
        self.slices = box_of(grid, pose, low, high)
        self.grid = grid.part(self.slices)
        x, y, z = self.grid.coordinates()
        x, y, z = x - float(pose.centre[0]), y - float(pose.centre[1]), z - float(pose.centre[2])
        self.x, self.y, self.z = (
            (float(r[0]) * x + float(r[1]) * y + float(r[2]) * z).contiguous() for r in pose.rotation.T
        )
        self.d = torch.full_like(self.x, BAND_MM)

    def part(self, primitive: Primitive):
        """The slices of this field that `primitive` can change, or None."""
        part = box_of(self.grid, self.pose, primitive.low, primitive.high, BAND_MM)
        return None if any(s.stop <= s.start for s in part) else part

    def evaluate(self, primitive: Primitive, part) -> torch.Tensor:
        return primitive.distance(self.x[part], self.y[part], self.z[part])

    def add(self, primitive: Primitive, k: float = 1.5) -> None:
        """Unite with `primitive`, fillet `k` mm."""
        if (part := self.part(primitive)) is not None:
            self.d[part] = smooth_min(self.d[part], self.evaluate(primitive, part), k)

    def carve(self, primitive: Primitive, k: float = 1.0) -> None:
        """Take `primitive` away, rounding the new edge over `k` mm."""
        if (part := self.part(primitive)) is not None:
            self.d[part] = smooth_max(self.d[part], -self.evaluate(primitive, part), k)


def overlap(a, b):
    """The common voxels of two fields or grids of one study, as slices of each; None if there are none."""
    one, other = (item if isinstance(item, Grid) else item.grid for item in (a, b))
    first = np.maximum(one.start, other.start)
    stop = np.minimum(np.add(one.start, one.shape), np.add(other.start, other.shape))
    if (stop <= first).any():
        return None
    return tuple(
        tuple(slice(int(lo - own), int(hi - own)) for lo, hi, own in zip(first, stop, grid.start, strict=True))
        for grid in (one, other)
    )


def clear(a: Field, b: Field, gap_mm: float) -> None:
    """Carve both fields so that at least `gap_mm` stays between them, shared half and half.

    This makes every joint space (facet, uncovertebral, atlanto-axial) without a plane per joint.
    """
    if (common := overlap(a, b)) is None:
        return
    in_a, in_b = common
    half = (a.d[in_a] - b.d[in_b]) / 2
    a.d[in_a], b.d[in_b] = torch.maximum(a.d[in_a], half + gap_mm / 2), torch.maximum(b.d[in_b], gap_mm / 2 - half)
