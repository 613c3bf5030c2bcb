"""One bone of a label map, and rays through it: where they leave it or meet it, in mm and finer than a voxel.

A ray ends where the mask, joined linearly between voxel centres, passes one half.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

#: Distance of samples along a ray, mm. Between them the crossing is interpolated.
STEP_MM = 0.3


class Mask:
    """One bone of a label map, to be sampled anywhere.

    Parameters
    ----------
    labels : uint8 `(d, h, w)`
    affine : 4x4, voxel (d, h, w) -> RAS+ mm
    label : id of the bone
    centre, axes : LPS mm `(3,)` and 3x3 (columns = local axes), the frame of `at` and of rays
    """

    def __init__(self, labels: np.ndarray, affine: np.ndarray, label: int, centre, axes):
        self.centre, self.axes = np.asarray(centre, dtype=float), np.asarray(axes, dtype=float)
        own = labels == label
        found = ndimage.find_objects(own.astype(np.uint8))
        self.empty = not found
        box = found[0] if found else (slice(0, 1),) * 3
        first = np.array([s.start for s in box]) - 1  # a border of background, so that edges are interpolated, too
        self.values = np.pad(own[box], 1).astype(np.float32)
        inverse = np.linalg.inv(affine)
        self._turn = inverse[:3, :3] @ np.diag([-1.0, -1.0, 1.0])  # LPS -> voxel
        self._shift = inverse[:3, 3] - first

    def patient(self, local) -> np.ndarray:
        """Local mm `(..., 3)` -> LPS mm."""
        return np.asarray(local, dtype=float) @ self.axes.T + self.centre

    def sample(self, lps: np.ndarray) -> np.ndarray:
        """Share of bone at LPS points `(..., 3)`, 0-1, trilinear; 0 outside the bone's box."""
        index = np.moveaxis(lps @ self._turn.T + self._shift, -1, 0)
        return ndimage.map_coordinates(self.values, index, order=1, mode="constant", cval=0.0)

    def at(self, local) -> np.ndarray:
        """Share of bone at local points `(..., 3)`."""
        return self.sample(self.patient(local))

    def surface(self) -> np.ndarray:
        """Local coordinates `(n, 3)` of the voxels at the border of the bone."""
        inside = self.values > 0.5
        border = np.argwhere(inside & ~ndimage.binary_erosion(inside))
        lps = (border - self._shift) @ np.linalg.inv(self._turn).T
        return (lps - self.centre) @ self.axes

    def leaves(self, starts, direction, reach: float) -> np.ndarray:
        """Distance at which rays from `starts` `(n, 3)` (inside the bone) first leave it; NaN if they do not."""
        return self._first(starts, direction, reach, falling=True)

    def meets(self, starts, direction, reach: float) -> np.ndarray:
        """Distance at which rays from `starts` `(n, 3)` (outside the bone) first meet it; NaN if they do not."""
        return self._first(starts, direction, reach, falling=False)

    def _first(self, starts, direction, reach, *, falling) -> np.ndarray:
        starts, way = np.atleast_2d(np.asarray(starts, dtype=float)), np.asarray(direction, dtype=float)
        t = np.arange(0.0, reach + STEP_MM, STEP_MM)
        return crossing(self.at(starts[:, None] + t[:, None] * (way / np.linalg.norm(way))), t, falling=falling)


def crossing(values: np.ndarray, t: np.ndarray, *, falling: bool) -> np.ndarray:
    """Where each row of `values` `(n, k)`, given at `t` `(k,)`, first passes one half: `(n,)`.

    A row that begins on the wrong side, or never passes, gives NaN.
    """
    inside = (values >= 0.5) if falling else (values < 0.5)
    change = inside[:, :-1] & ~inside[:, 1:]
    first = change.argmax(axis=1)
    row = np.arange(len(values))
    a, b = values[row, first], values[row, first + 1]
    share = (a - 0.5) / np.where(a == b, 1.0, a - b)
    found = t[first] + share * (t[first + 1] - t[first])
    return np.where(change.any(axis=1) & inside[:, 0], found, np.nan)


def rays(x, y, z) -> np.ndarray:
    """All combinations of the given local coordinates as starting points `(n, 3)`."""
    return np.stack(np.meshgrid(np.atleast_1d(x), np.atleast_1d(y), np.atleast_1d(z), indexing="ij"), -1).reshape(-1, 3)


def median(values: np.ndarray) -> float:
    """Median of the rays that met something; NaN if fewer than half of them did."""
    good = np.isfinite(values)
    return float(np.median(values[good])) if 2 * good.sum() >= good.size and good.any() else float("nan")


def extent(mask: Mask, starts, axis: int, reach: float) -> float:
    """Length through the bone along a local axis, both ways from points inside it: the median over the rays."""
    way = np.eye(3)[axis]
    return median(mask.leaves(starts, way, reach) + mask.leaves(starts, -way, reach))
