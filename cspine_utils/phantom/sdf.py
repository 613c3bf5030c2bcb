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
import torch.nn.functional as F

#: Distances are exact only up to here; a constant beyond. Wider than any smoothing radius or clearance in use.
BAND_MM = 4.0

#: The eight corners of a box as a choice of low (False) or high (True) per axis.
_CORNERS = np.array(list(np.ndindex(2, 2, 2)), dtype=bool)


@dataclass(frozen=True)
class Grid:
    """The voxels of one study: `shape` (d, h, w), first voxel's centre in LPS mm, pixel size and slice step in mm."""

    shape: tuple[int, int, int]
    origin_lps: tuple[float, float, float]
    pixel_mm: float
    step_mm: float
    thickness_mm: float

    @property
    def affine(self) -> np.ndarray:
        """Voxel (d, h, w) -> RAS+ mm: d runs down, h runs back, w runs left."""
        x, y, z = self.origin_lps
        return np.array(
            [
                [0.0, 0.0, -self.pixel_mm, -x],
                [0.0, -self.pixel_mm, 0.0, -y],
                [-self.step_mm, 0.0, 0.0, z],
                [0.0, 0.0, 0.0, 1.0],
            ]
        )

    @property
    def voxel_mm(self) -> float:
        """Edge of the cube with the voxel's volume: the width of the partial-volume ramp."""
        return float((self.pixel_mm**2 * self.step_mm) ** (1 / 3))

    def index(self, lps: np.ndarray) -> np.ndarray:
        """LPS mm `(..., 3)` -> fractional voxel index `(..., 3)` in the order (d, h, w)."""
        x, y, z = np.moveaxis(np.asarray(lps, dtype=float), -1, 0)
        x0, y0, z0 = self.origin_lps
        return np.stack([(z0 - z) / self.step_mm, (y - y0) / self.pixel_mm, (x - x0) / self.pixel_mm], axis=-1)

    def axes(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """LPS coordinates along d (z), h (y) and w (x), float32, each 1-D."""
        (d, h, w), (x, y, z) = self.shape, self.origin_lps
        along = torch.arange
        return (
            z - self.step_mm * along(d, dtype=torch.float32),
            y + self.pixel_mm * along(h, dtype=torch.float32),
            x + self.pixel_mm * along(w, dtype=torch.float32),
        )


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


def smoothstep(t: torch.Tensor) -> torch.Tensor:
    """0 below 0, 1 above 1, smooth between."""
    t = t.clamp(0.0, 1.0)
    return t * t * (3.0 - 2.0 * t)


def coverage(distance: torch.Tensor, voxel_mm: float) -> torch.Tensor:
    """Share of a voxel that lies inside, from the signed distance of its centre: a linear partial-volume ramp."""
    return (0.5 - distance / voxel_mm).clamp(0.0, 1.0)


def noise(shape, spacing_mm, feature_mm: float, rng: np.random.Generator) -> torch.Tensor:
    """Smooth noise of unit amplitude whose features are about `feature_mm` wide, float32 of `shape`."""
    coarse = [max(2, int(n * mm / feature_mm) + 2) for n, mm in zip(shape, spacing_mm, strict=True)]
    values = torch.from_numpy(rng.standard_normal(coarse, dtype=np.float32))
    return F.interpolate(values[None, None], size=tuple(shape), mode="trilinear", align_corners=True)[0, 0]


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


class Field:
    """The distance field of one bone on the part of the grid that its local box covers.

    Attributes
    ----------
    slices : three slices, the part of the study's grid
    x, y, z : local coordinates in mm, float32 `(d, h, w)` of that part
    d : signed distance in mm, same shape; None of the grid is covered if its shape has a zero
    """

    def __init__(self, grid: Grid, pose: Pose, low, high):
        self.grid, self.pose = grid, pose
        self.slices = self._box(low, high, margin=0.0, within=None)
        z, y, x = (axis[part] for axis, part in zip(grid.axes(), self.slices, strict=True))
        z, y, x = z[:, None, None] - pose.centre[2], y[None, :, None] - pose.centre[1], x[None, None] - pose.centre[0]
        self.x, self.y, self.z = (
            (float(r[0]) * x + float(r[1]) * y + float(r[2]) * z).contiguous() for r in pose.rotation.T
        )
        self.d = torch.full(self.x.shape, BAND_MM)

    def _box(self, low, high, margin: float, within):
        low, high = np.asarray(low, dtype=float) - margin, np.asarray(high, dtype=float) + margin
        corners = np.where(_CORNERS, high, low)
        index = self.grid.index(self.pose.to_patient(corners))
        start, extent = (
            (0, self.grid.shape)
            if within is None
            else (np.array([s.start for s in within]), [s.stop - s.start for s in within])
        )
        first = np.clip(np.floor(index.min(axis=0)) - start, 0, extent)
        last = np.clip(np.ceil(index.max(axis=0)) + 1 - start, 0, extent)
        return tuple(slice(int(a), int(b)) for a, b in zip(first, last, strict=True))

    def part(self, primitive: Primitive):
        """The slices of this field that `primitive` can change, or None."""
        part = self._box(primitive.low, primitive.high, BAND_MM, self.slices)
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


def overlap(a: Field, b: Field):
    """The common voxels of two fields as slices of each, or None."""
    pairs = [(max(p.start, q.start), min(p.stop, q.stop)) for p, q in zip(a.slices, b.slices, strict=True)]
    if any(stop <= start for start, stop in pairs):
        return None
    return tuple(
        tuple(slice(lo - own.start, hi - own.start) for (lo, hi), own in zip(pairs, f.slices, strict=True))
        for f in (a, b)
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
