"""Soft parts as tubes along the spine: a tilted, bent ellipse in each axial slice, tabulated per vertebra.

Sections are given in mm relative to the centre of the vertebral body (x away from the midline, y to the back) for a
mean skeleton; `Levels` brings them to the heights of a grid. Nothing depends on the part of the study that is drawn.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.interpolate import CubicHermiteSpline

from .grid import Grid, coverage, mix
from .patient import BONES, Patient, Spine

#: Heights at which sections are tabulated: the skull base, then the vertebrae.
KNOTS = ("S", *BONES)

#: The skull base lies this far above the centre of C1 in a mean skeleton, mm.
SKULL_BASE_MM = 17.0

#: Tubes that end inside the field of view end round, over this length; longer ones are drawn in several stretches.
END_MM, STRETCH_VOXELS = 8.0, 30_000

#: A section: x, y of its middle, half thickness, half length (mm), direction of its length (degrees, from lateral = 0
#: towards the back = 90), and its bend: the middle line is displaced by bend * q * q mm at q mm from the middle.
Section = tuple[float, float, float, float, float, float]


@dataclass(frozen=True)
class Tube:
    """A soft part: sections by knot (gaps are joined linearly), HU, and how it is drawn.

    Attributes
    ----------
    sections : by name of a knot, see `Section`
    hu : Hounsfield units
    rim_mm : width of the fat plane around it, 0 = none
    paired : drawn on both sides, mirrored; else once, x being to the left
    visceral : hangs on the throat: moves forward where the prevertebral tissue is swollen
    """

    sections: dict[str, Section]
    hu: float
    rim_mm: float = 0.0
    paired: bool = True
    visceral: bool = False

    def rows(self) -> tuple[np.ndarray, np.ndarray]:
        """Numbers of the knots from the first to the last tabulated one, and their sections `(n, 6)`."""
        given = sorted(KNOTS.index(name) for name in self.sections)
        knots = np.arange(given[0], given[-1] + 1)
        values = np.array([self.sections[KNOTS[i]] for i in given], dtype=float)
        return knots, np.stack([np.interp(knots, given, column) for column in values.T], axis=1)


class Levels:
    """Interpolation between the knots at the slices of one grid, and the place of the body's middle there."""

    def __init__(self, grid: Grid, spine: Spine, patient: Patient):
        self.grid, self.spine, self.patient = grid, spine, patient
        self.x, self.y, z = grid.coordinates()
        self.z = z
        centres = np.array([spine.poses[name].centre for name in BONES])
        base = centres[0] + [0.0, 0.0, SKULL_BASE_MM * patient.scale]
        self.centres = np.vstack([base, centres])
        self.heights = grid.origin_lps[2] - grid.step_mm * (grid.start[0] + np.arange(grid.shape[0]))
        knots = self.centres[::-1, 2]  # a spline wants places that rise
        unit = np.eye(len(KNOTS))
        spline = CubicHermiteSpline(knots, unit, np.gradient(unit, knots, axis=0))
        self.weights = spline(np.clip(self.heights, knots[0], knots[-1]))[:, ::-1]
        turn = [patient.twist_deg + patient.head_twist_deg] * 2 + [patient.twist_deg] * (len(KNOTS) - 2)
        self.turn = np.deg2rad(turn)
        self.swelling = np.zeros(len(self.heights))

    def at(self, values) -> np.ndarray:
        """Values per knot `(11, ...)` -> per slice `(d, ...)`."""
        return combined(self.weights, np.asarray(values, dtype=float))

    def column(self, values: np.ndarray) -> torch.Tensor:
        """Values per slice `(d,)` as a float32 tensor `(d, 1, 1)` on the grid's device."""
        return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32)).to(self.grid.device)[:, None, None]

    def centre(self) -> tuple[np.ndarray, np.ndarray]:
        """x and y (LPS mm) of the middle of the vertebral bodies in each slice."""
        return self.at(self.centres[:, 0]), self.at(self.centres[:, 1])

    def box(self, low, high, first: int, last: int):
        """Slices (d, h, w) for a part of slices `first`-`last` whose x and y run from `low` to `high`; None if empty.

        `low` and `high`: pairs (x, y) in LPS mm of the patient.
        """
        shifts = [0.0, 0.0] if self.grid.motion is None else self.grid.motion.shift_mm
        slices = [slice(first, last)]
        for axis, k in ((1, 1), (2, 0)):
            a = low[k] + min(0.0, shifts[k]) - self.grid.origin_lps[k]
            b = high[k] + max(0.0, shifts[k]) - self.grid.origin_lps[k]
            start = int(np.floor(a / self.grid.pixel_mm)) - self.grid.start[axis]
            stop = int(np.ceil(b / self.grid.pixel_mm)) + 1 - self.grid.start[axis]
            slices.append(slice(max(0, start), min(self.grid.shape[axis], stop)))
        return None if any(s.stop <= s.start for s in slices) else tuple(slices)

    def boxes(self, low: np.ndarray, high: np.ndarray, first: int = 0) -> list:
        """Boxes that hold a part whose x and y run from `low` to `high` (2, n) in the n slices from `first` on.

        An oblique part is cut into stretches until their boxes are small.
        """
        last = first + low.shape[1]
        part = self.box(low.min(axis=1), high.max(axis=1), first, last)
        if part is None:
            return []
        if last - first < 12 or np.prod([s.stop - s.start for s in part]) <= STRETCH_VOXELS:
            return [part]
        cut = (last - first) // 2
        upper, lower = slice(None, cut), slice(cut, None)
        return self.boxes(low[:, upper], high[:, upper], first) + self.boxes(low[:, lower], high[:, lower], first + cut)

    def rows_between(self, top: float, bottom: float) -> tuple[int, int]:
        """First slice and the one after the last whose heights lie between `top` and `bottom` (LPS z, mm)."""
        found = np.flatnonzero((self.heights <= top) & (self.heights >= bottom))
        return (int(found[0]), int(found[-1]) + 1) if len(found) else (0, 0)

    def span(self, knots: np.ndarray) -> tuple[int, int]:
        """The slices between the first and last of these knots; the topmost and lowest knots reach on for ever."""
        top = np.inf if knots[0] == 0 else self.centres[knots[0], 2]
        bottom = -np.inf if knots[-1] == len(KNOTS) - 1 else self.centres[knots[-1], 2]
        return self.rows_between(top, bottom)

    def at_part(self, part) -> tuple[torch.Tensor, torch.Tensor]:
        """x and y coordinates of a part of the grid (they have a first axis of length 1 or d)."""
        x, y = self.x[:, :, part[2]], self.y[:, part[1]]
        return (x if len(x) == 1 else x[part[0]]), (y if len(y) == 1 else y[part[0]])


def combined(weights: np.ndarray, values: np.ndarray) -> np.ndarray:
    """`weights @ values`, but each row rounds in the same way however many rows there are (BLAS does not)."""
    return sum(w.reshape([-1] + [1] * (values.ndim - 1)) * v for w, v in zip(weights.T, values, strict=True))


@dataclass(frozen=True, eq=False)
class Placed:
    """A stretch of one side of a tube at the slices of a grid: `part` of the grid and, as `(d, 1, 1)` tensors, its
    middle, half axes, direction and bend."""

    part: tuple[slice, slice, slice]
    side: int
    columns: tuple[torch.Tensor, ...]

    def distance(self, levels: Levels, waves: Waves | None = None) -> torch.Tensor:
        """About the distance (mm) to its surface, negative inside, `(d, h, w)` of `part`: first order in the distance.

        Terms that change along rows and along columns are kept apart as long as possible: that is what makes it fast.
        """
        px, py, a, b, ex, ey, bend = self.columns
        x, y = levels.at_part(self.part)
        dx, dy = x - px, y - py
        wx, wy = (0.0, 0.0) if waves is None else waves.at_part(levels, self.part)
        q = (ex * dx + ey * wy) / b + (ey * dy + ex * wx) / b
        p = (ex * wy - ey * dx) * (self.side / a) + (ex * dy - ey * wx) * (self.side / a)
        past_the_end = q.abs().sub_(1.0).mul_(b)  # keeps the tips of thin sheets from smearing
        q.square_()
        p.addcmul_(q, -bend * b * b / a).square_()
        slope = (q / (b * b)).addcmul_(p, 1.0 / (a * a)).add_(1e-9).sqrt_()
        r = q.add_(p).sqrt_()
        return torch.maximum(torch.addcmul(-r, r, r).div_(slope), past_the_end)


class Waves:
    """Slow sideways waves of about a millimetre, which take the ruler-drawn look from the outlines of soft parts."""

    def __init__(self, levels: Levels, phase: np.ndarray, height_mm: float = 0.8):
        f = [float(v) for v in phase]
        x, y, z = levels.x - float(levels.centres[5, 0]), levels.y, levels.z
        self.x = height_mm * (torch.sin(y / 7.0 + z / 19.0 + f[0]) + torch.sin(y / 4.1 - z / 13.0 + f[1]))
        self.y = height_mm * (torch.sin(x / 7.7 + z / 17.0 + f[2]) + torch.sin(x / 4.3 - z / 14.0 + f[3]))

    def at_part(self, levels: Levels, part) -> tuple[torch.Tensor, torch.Tensor]:
        """Shift of x `(d, h, 1)` and of y `(d, 1, w)` in a part of the grid."""
        return self.x[part[0], part[1]], self.y[part[0], :, part[2]]


def stretched(values: np.ndarray, patient: Patient) -> np.ndarray:
    """Sections of a mean neck `(n, 6)` in the size of the patient: far from the spine the neck's own width counts."""
    out = values.copy()
    wide, deep = patient.neck
    out[:, 0] *= patient.scale * (1.0 + (wide - 1.0) * np.clip((np.abs(values[:, 0]) - 22.0) / 28.0, 0.0, 1.0))
    out[:, 1] *= patient.scale * (1.0 + (deep - 1.0) * np.clip((np.abs(values[:, 1]) - 20.0) / 30.0, 0.0, 1.0))
    out[:, 2] *= patient.scale * (1.0 + 0.6 * (deep - 1.0))
    out[:, 3] *= patient.scale * (1.0 + 0.6 * (wide - 1.0))
    out[:, 5] /= patient.scale
    return out


def place(tube: Tube, levels: Levels, side: int, change=(0.0, 0.0, 0.0, 0.0)) -> list[Placed]:
    """Bring one side of a tube to the slices of a grid: stretches with tight boxes, none where it cannot touch it.

    `change`: four numbers that make this side of this person: shift of x and y in mm, relative thickness and length.
    """
    knots, values = tube.rows()
    first, last = levels.span(knots)
    if last <= first:
        return []
    values = stretched(values, levels.patient)
    sign = side if tube.paired else 1
    px, py = sign * (values[:, 0] + change[0]), values[:, 1] + change[1]
    angle, turn = np.deg2rad(values[:, 4]), levels.turn[knots]
    ex, ey = sign * np.cos(angle), np.sin(angle)
    c, s = np.cos(turn), np.sin(turn)
    table = np.stack(
        [
            c * px - s * py + levels.centres[knots, 0],
            s * px + c * py + levels.centres[knots, 1],
            values[:, 2] * (1.0 + change[2]),
            values[:, 3] * (1.0 + change[3]),
            c * ex - s * ey,
            s * ex + c * ey,
            values[:, 5],
        ],
        axis=1,
    )
    full = np.vstack([np.repeat(table[:1], knots[0], 0), table, np.repeat(table[-1:], len(KNOTS) - 1 - knots[-1], 0)])
    found = combined(levels.weights[first:last], full).T
    if tube.visceral:
        found[1] -= levels.swelling[first:last]
    found[2:4] = np.maximum(found[2:4] * _rounded_ends(levels, knots, first, last), 0.3)
    found[4:6] /= np.hypot(found[4], found[5])
    margin = 1.5 * (tube.rim_mm + levels.grid.voxel_mm) + 0.5
    return _stretches(levels, found, first, last, sign, margin)


def _rounded_ends(levels: Levels, knots: np.ndarray, first: int, last: int) -> np.ndarray:
    """Factor of the half axes per slice: falls to 0 like a ball's outline within `END_MM` of an end of a tube."""
    z, factor = levels.heights[first:last], np.ones(last - first)
    if knots[0] > 0:
        factor *= np.clip((levels.centres[knots[0], 2] - z) / END_MM, 0.0, 1.0)
    if knots[-1] < len(KNOTS) - 1:
        factor *= np.clip((z - levels.centres[knots[-1], 2]) / END_MM, 0.0, 1.0)
    return np.sqrt(1.0 - (1.0 - factor) ** 2)


def _stretches(levels: Levels, found, first: int, last: int, sign: int, margin_mm: float) -> list[Placed]:
    """Cut an oblique tube into stretches until their boxes are small."""
    px, py, thick, long, ex, ey, bend = found
    sag = np.abs(bend) * long**2
    reach_x = np.abs(ex) * long + np.abs(ey) * (thick + sag) + margin_mm
    reach_y = np.abs(ey) * long + np.abs(ex) * (thick + sag) + margin_mm
    parts = levels.boxes(np.stack([px - reach_x, py - reach_y]), np.stack([px + reach_x, py + reach_y]), first)
    columns = torch.from_numpy(found.astype(np.float32)).to(levels.grid.device)[:, :, None, None]
    return [Placed(part, sign, tuple(columns[:, part[0].start - first : part[0].stop - first])) for part in parts]


def ring_distance(dx: torch.Tensor, dy: torch.Tensor, rx: torch.Tensor, ry: torch.Tensor) -> torch.Tensor:
    """About the distance (mm) to an ellipse in each slice."""
    return (torch.sqrt((dx / rx) ** 2 + (dy / ry) ** 2) - 1.0) * torch.minimum(rx, ry)


def paint(hu: torch.Tensor, part, distance: torch.Tensor, value, voxel_mm: float) -> None:
    """Set `hu[part]` to `value` (number or tensor) inside `distance`, in place, with a partial-volume ramp."""
    hu[part] = mix(hu[part], value, coverage(distance, voxel_mm))


def paint_tube(hu, levels: Levels, placed: Placed, value: float, rim_mm: float, rim_hu: float, waves=None) -> None:
    """Paint a tube with a rim of `rim_hu` around it into `hu`, in place."""
    voxel = levels.grid.voxel_mm
    ramp = placed.distance(levels, waves).mul_(-1.0 / voxel).add_(0.5)
    inside = ramp.clamp(0.0, 1.0).mul_(value - rim_hu).add_(rim_hu)
    around = ramp.add_(rim_mm / voxel).clamp_(0.0, 1.0)
    own = hu[placed.part]
    own += around.mul_(inside.sub_(own))


def enlarged(values: torch.Tensor, grid: Grid) -> torch.Tensor:
    """`sdf.enlarge` for big parts: every second voxel is copied, those between are means."""
    for axis in (2, 1, 0):
        n, odd = grid.shape[axis], grid.start[axis] % 2
        shape = list(values.shape)
        shape[axis] = n
        out = values.new_empty(shape)
        ways = [slice(None)] * 3
        ways[axis] = slice(odd, None, 2)
        count = len(range(odd, n, 2))
        out[tuple(ways)] = values.narrow(axis, odd, count)
        ways[axis] = slice(1 - odd, None, 2)
        count = len(range(1 - odd, n, 2))
        torch.add(values.narrow(axis, 0, count), values.narrow(axis, 1, count), out=(between := values.new_empty(0)))
        out[tuple(ways)] = between.mul_(0.5)
        values = out
    return values


def changes(rng: np.random.Generator, count: int, shift_mm: float, size: float) -> np.ndarray:
    """Small differences between people and sides `(count, 2 sides, 4)`: shifts in mm and relative sizes."""
    spread = np.array([shift_mm, shift_mm, size, size])
    return np.clip(rng.normal(0.0, 1.0, (count, 2, 4)), -2.0, 2.0) * spread
