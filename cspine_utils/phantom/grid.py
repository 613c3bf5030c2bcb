"""The voxels of a study and of its parts, and the smooth functions that live on them.

Patient frame: DICOM's LPS millimetres (x to the left, y to the back, z to the head). Arrays are `(d, h, w)`: d runs
down, h back, w left. Everything here depends on a voxel's own place alone, so a part shows what the whole shows there.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch


def smoothstep(t: torch.Tensor) -> torch.Tensor:
    """0 below 0, 1 above 1, smooth between."""
    t = t.clamp(0.0, 1.0)
    return t * t * (3.0 - 2.0 * t)


def coverage(distance: torch.Tensor, voxel_mm: float) -> torch.Tensor:
    """Share of a voxel that lies inside, from the signed distance of its centre: a linear partial-volume ramp."""
    return (0.5 - distance / voxel_mm).clamp(0.0, 1.0)


def mix(a: torch.Tensor, b, share: torch.Tensor) -> torch.Tensor:
    """`a` where `share` is 0, `b` (tensor or number) where it is 1."""
    return a + share * (b - a)


@dataclass(frozen=True)
class Motion:
    """The patient moved while the table was at `height_mm` (LPS z): lower parts are displaced by `shift_mm` (x, y)."""

    height_mm: float
    shift_mm: tuple[float, float]

    def offset(self, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Displacement (x, y) in mm at heights `z`; the jump takes 2 mm of table travel."""
        moved = smoothstep((self.height_mm - z) / 2.0 + 0.5)
        return moved * self.shift_mm[0], moved * self.shift_mm[1]


@dataclass(frozen=True)
class Grid:
    """The voxels of one study, or a box cut out of them.

    Everything that is drawn on a grid is a function of each voxel's own place, so that a part of a study, computed
    alone, equals the same box of the whole.

    Attributes
    ----------
    shape : `(d, h, w)` of this part
    origin_lps : centre of voxel (0, 0, 0) of the *study*, LPS mm
    pixel_mm, step_mm, thickness_mm : pixel size, distance and thickness of slices
    start : voxel of the study at which this part begins
    study_shape : shape of the whole study; None if this is the whole
    motion : a jump of the patient during the scan, or None
    device : torch device on which tensors are made
    """

    shape: tuple[int, int, int]
    origin_lps: tuple[float, float, float]
    pixel_mm: float
    step_mm: float
    thickness_mm: float
    start: tuple[int, int, int] = (0, 0, 0)
    study_shape: tuple[int, int, int] | None = None
    motion: Motion | None = None
    device: str = "cpu"

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Voxel size along d, h, w in mm."""
        return self.step_mm, self.pixel_mm, self.pixel_mm

    @property
    def affine(self) -> np.ndarray:
        """Voxel (d, h, w) of this part -> RAS+ mm: d runs down, h runs back, w runs left."""
        x, y, z = np.array(self.origin_lps) + np.array(self.start)[::-1] * [self.pixel_mm, self.pixel_mm, -self.step_mm]
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

    def part(self, slices) -> Grid:
        """The box `slices` (three slices of this part, with start and stop) as a grid of its own."""
        return replace(
            self,
            shape=tuple(s.stop - s.start for s in slices),
            start=tuple(a + s.start for a, s in zip(self.start, slices, strict=True)),
            study_shape=self.study_shape or self.shape,
        )

    def whole(self) -> Grid:
        """The study's grid that this is a part of."""
        return (
            self
            if self.study_shape is None
            else replace(self, shape=self.study_shape, start=(0, 0, 0), study_shape=None)
        )

    def half(self) -> Grid:
        """Every second voxel of the study, as far as this part needs them to be joined linearly (see `enlarge`)."""
        start = tuple(a // 2 for a in self.start)
        stop = tuple((a + n - 1) // 2 + 2 for a, n in zip(self.start, self.shape, strict=True))
        study = tuple((n - 1) // 2 + 2 for n in self.study_shape or self.shape)
        shape = tuple(b - a for a, b in zip(start, stop, strict=True))
        return replace(
            self, shape=shape, start=start, study_shape=study, pixel_mm=2 * self.pixel_mm, step_mm=2 * self.step_mm
        )

    def index(self, lps: np.ndarray) -> np.ndarray:
        """LPS mm `(..., 3)` -> fractional voxel index of this part `(..., 3)` in the order (d, h, w)."""
        x, y, z = np.moveaxis(np.asarray(lps, dtype=float), -1, 0)
        x0, y0, z0 = self.origin_lps
        found = np.stack([(z0 - z) / self.step_mm, (y - y0) / self.pixel_mm, (x - x0) / self.pixel_mm], axis=-1)
        return found - np.array(self.start)

    def coordinates(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """LPS coordinates x `(d, 1, w)`, y `(d, h, 1)`, z `(d, 1, 1)` in mm, float32, as if the patient had not moved.

        Without motion x and y have a first axis of length 1.
        """
        origin = self.origin_lps[::-1]
        steps = (-self.step_mm, self.pixel_mm, self.pixel_mm)
        z, y, x = (
            torch.from_numpy((o + s * (a + np.arange(n))).astype(np.float32)).to(self.device)
            for o, s, a, n in zip(origin, steps, self.start, self.shape, strict=True)
        )
        z, y, x = z[:, None, None], y[None, :, None], x[None, None]
        if self.motion is not None:
            dx, dy = self.motion.offset(z)
            x, y = x - dx, y - dy
        return x, y, z

    def scanned(self, lps: np.ndarray) -> np.ndarray:
        """Where points of the patient (LPS mm, `(..., 3)`) lie in the scan: moved if the patient moved before."""
        lps = np.array(lps, dtype=float)
        if self.motion is not None:
            dx, dy = self.motion.offset(torch.from_numpy(lps[..., 2]))
            lps[..., 0] += dx.numpy()
            lps[..., 1] += dy.numpy()
        return lps


@dataclass(frozen=True, eq=False)
class Noise:
    """Smooth noise of about unit amplitude whose features are about `feature_mm` wide, over a whole study.

    `lattice` holds random values `feature_mm` apart, joined linearly: a part shows what the whole shows there.
    """

    lattice: torch.Tensor
    feature_mm: float

    def on(self, grid: Grid) -> torch.Tensor:
        """The noise on a part of the study, float32 of the grid's shape."""
        at = [
            (first + np.arange(n)) * (mm / self.feature_mm)
            for first, n, mm in zip(grid.start, grid.shape, grid.spacing_mm, strict=True)
        ]
        return _between(self.lattice, at)


def draw_noise(grid: Grid, feature_mm: float, rng: np.random.Generator) -> Noise:
    """Draw the noise of the study that `grid` belongs to."""
    study = grid.study_shape or grid.shape
    shape = [int(n * mm / feature_mm) + 2 for n, mm in zip(study, grid.spacing_mm, strict=True)]
    return Noise(torch.from_numpy(rng.standard_normal(shape, dtype=np.float32)).to(grid.device), feature_mm)


def noise(grid: Grid, feature_mm: float, rng: np.random.Generator) -> torch.Tensor:
    """Draw noise and show it on `grid`, see `Noise`."""
    return draw_noise(grid, feature_mm, rng).on(grid)


def _between(values: torch.Tensor, at: list[np.ndarray]) -> torch.Tensor:
    """Values of a lattice at fractional indices per axis, joined linearly: each depends on its own place alone."""
    for axis in (2, 1, 0):  # the last axis while the lattice is still small: it is the slow one to index
        place = at[axis]
        low = torch.from_numpy(place.astype(np.int64)).to(values.device)
        share = torch.from_numpy((place % 1.0).astype(np.float32)).to(values.device)
        share = share.reshape([-1 if a == axis else 1 for a in range(3)])
        values = mix(values.index_select(axis, low), values.index_select(axis, low + 1), share)
    return values


def enlarge(values: torch.Tensor, grid: Grid) -> torch.Tensor:
    """Bring values that were computed on `grid.half()` to `grid`."""
    coarse = grid.half()
    at = [(a + np.arange(n)) / 2 - c for a, n, c in zip(grid.start, grid.shape, coarse.start, strict=True)]
    return _between(values, at)
