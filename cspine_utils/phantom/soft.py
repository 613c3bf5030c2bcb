"""Everything but bone, put together: soft parts, ligaments, discs, spinal canal, throat, lungs, arteries, teeth, table.

What has no sharp edges comes from `layers`; what a bone window shows sharply is painted at full resolution, each part
in its own box. Frames as in `sdf`. Sizes of the cord after AJNR 11:369; the rest are textbook values.
"""

from __future__ import annotations

import numpy as np
import torch

from .grid import Grid, coverage, mix
from .hounsfield import (
    BLOOD_HU,
    CORD_HU,
    CSF_HU,
    DISC_HU,
    EPIDURAL_HU,
    FAT_HU,
    LIGAMENT_HU,
    LUNG_HU,
    MUSCLE_HU,
    PLAQUE_HU,
)
from .layers import ENVELOPE, SKIN_MM, soft_parts, wrap
from .neck import mastoid_air, teeth
from .patient import BONES, Patient, Spine
from .sdf import Field, Pose, block, capsule
from .surroundings import Surroundings, add_ball, add_metal, add_table, draw_surroundings, metal_positions
from .throat import sinuses, throat
from .tracks import KNOTS, Levels, Tube, paint, paint_tube, place, ring_distance
from .vertebrae import layout

__all__ = ["Surroundings", "draw_surroundings", "metal_positions", "soft_tissue"]

#: Spinal cord, depth and width in mm (AJNR 11:369 at C2, C4, C7; between them and above: textbook values).
CORD = {
    "S": (11.5, 14.5),
    "C1": (9.4, 12.6),
    "C2": (8.8, 12.4),
    "C3": (8.75, 13.2),
    "C4": (8.7, 14.0),
    "C5": (8.4, 13.6),
    "C6": (7.9, 12.6),
    "C7": (7.4, 11.4),
    "T1": (7.1, 9.8),
    "T2": (6.9, 8.9),
    "T3": (6.7, 8.5),
}

#: Subclavian artery and vein: radius and path in the frame of T1, mm.
SUBCLAVIAN = (
    (3.6, ((17.0, -26.0, -26.0), (30.0, -20.0, -4.0), (44.0, -17.0, 0.0), (64.0, -16.0, -12.0))),
    (4.6, ((20.0, -40.0, -32.0), (38.0, -38.0, -20.0), (64.0, -30.0, -18.0))),
)


def soft_tissue(
    grid: Grid, spine: Spine, patient: Patient, surroundings: Surroundings, rng: np.random.Generator
) -> torch.Tensor:
    """HU of everything but bone, float32 `(d, h, w)`; a part of a grid shows what the whole shows there."""
    seeds = rng.spawn(2)
    hu, skin = soft_parts(grid, spine, patient, surroundings, seeds[0])
    levels = Levels(grid, spine, patient)
    levels.swelling = surroundings.swelling(levels)
    wrap(hu, skin, levels, surroundings)
    del skin
    _ligaments(hu, levels)
    for upper, lower in zip(BONES[1:], BONES[2:], strict=False):
        _disc(hu, grid, spine, upper, lower)
    _canal(hu, levels)
    throat(hu, levels, surroundings, seeds[1].uniform(0.0, 6.28, 4))
    sinuses(hu, levels)
    _arteries(hu, levels, surroundings)
    _lungs(hu, levels)
    _calcium(hu, levels, surroundings)
    mastoid_air(hu, grid, spine, patient)
    teeth(hu, grid, spine, patient)
    add_metal(hu, levels, surroundings)
    back = np.array([row[2] for row in ENVELOPE.values()]) * patient.scale * patient.neck[1]
    add_table(hu, grid, levels, levels.centres[:, 1] + back + 1.6 * surroundings.fat_mm + SKIN_MM)
    return hu


def _ligaments(hu: torch.Tensor, levels: Levels) -> None:
    """Nuchal ligament in the midline behind the spinous processes, fat beside it."""
    sizes, scale = levels.spine.sizes, levels.patient.scale
    rows = {"S": (0.0, 54.0, 0.9, 16.0, 90.0, 0.0), "C1": (0.0, 46.0, 0.9, 14.0, 90.0, 0.0)}
    for name in BONES[1:]:
        s = sizes[name]
        tip = (s.depth / 2 + s.canal_depth + 0.8 * s.spinous) / scale
        back = ENVELOPE[name][2] - 3.0
        rows[name] = (0.0, (tip + back) / 2, 0.9, max((back - tip) / 2, 1.0) + 2.0, 90.0, 0.0)
    for placed in place(Tube(rows, LIGAMENT_HU, 0.6, paired=False), levels, 1):
        paint_tube(hu, levels, placed, LIGAMENT_HU, 0.6, FAT_HU)


def _canal(hu: torch.Tensor, levels: Levels) -> None:
    """Ligaments, epidural fat, CSF and cord along the canal, painted into `hu`."""
    spine, scale = levels.spine, levels.patient.scale
    places = np.array([spine.canal(name) for name in BONES])
    top = places[0] + levels.centres[0] - levels.centres[1] + [0.0, 2.0, 0.0]
    places = np.vstack([top, places])
    x0, y0 = levels.at(places[:, 0]), levels.at(places[:, 1])
    sizes = np.array([[spine.sizes[n].canal_depth, spine.sizes[n].canal_width] for n in BONES])
    sizes = np.vstack([[31.0 * scale, 28.0 * scale], sizes])
    sizes[1] *= 0.86  # behind the dens and its ligaments
    cord = scale * np.array(list(CORD.values()))
    sac = np.maximum(sizes - [2.6, 5.0], cord + 2.0)
    sac[0], sac[1] = cord[0] + 12.0, cord[1] + 7.0
    reach = levels.at(sizes.max(axis=1)) / 2 + 4.0 + 2.0 * levels.grid.voxel_mm
    layers = ((sizes + 4.0, LIGAMENT_HU), (sizes - 0.6, EPIDURAL_HU), (sac, CSF_HU), (cord, CORD_HU))
    columns = [(*(levels.column(v) for v in levels.at(table).T / 2), value) for table, value in layers]
    middle, (cx, cy) = np.stack([x0, y0]), (levels.column(x0), levels.column(y0))
    for part in levels.boxes(middle - reach, middle + reach):
        x, y = levels.at_part(part)
        dx, dy = x - cx[part[0]], y - cy[part[0]]
        for depth, width, value in columns:
            distance = ring_distance(dx, dy, width[part[0]], depth[part[0]])
            paint(hu, part, distance, value, levels.grid.voxel_mm)


def _disc(hu: torch.Tensor, grid: Grid, spine: Spine, upper: str, lower: str) -> None:
    """The disc between two bodies, a little thicker than the space so that the endplates cover its faces."""
    a, b, s = spine.poses[upper], spine.poses[lower], spine.sizes[lower]
    axis = a.rotation[:, 2] * (spine.sizes[upper].height + spine.sizes[upper].disc) / 2
    half = (s.width / 2 - 1.5, s.depth / 2 - 0.5, spine.sizes[upper].disc / 2 + 2.5)
    low, high = tuple(-h - 1 for h in half), tuple(h + 1 for h in half)
    disc = Field(grid, Pose(a.centre - axis, (a.rotation + b.rotation) / 2), low, high)
    if disc.d.numel() == 0:
        return
    disc.add(block((0.0, 0.0, 0.0), half, 2.4), 0.0)
    core = coverage(torch.sqrt((disc.x / half[0]) ** 2 + (disc.y / half[1]) ** 2) - 0.6, 0.3)
    hu[disc.slices] = mix(hu[disc.slices], DISC_HU + 10.0 - 14.0 * core, coverage(disc.d, grid.voxel_mm))


def _lungs(hu: torch.Tensor, levels: Levels) -> None:
    """Both lung apices inside a thin chest wall: a dome on a widening cylinder, medial to the first ribs."""
    scale = levels.patient.scale
    middle = levels.spine.poses["T2"].centre + np.array([0.0, -11.0, -22.0]) * scale
    first, last = levels.rows_between(middle[2] + 46.0, -np.inf)
    for side in (-1, 1):
        at = middle[0] + side * 37.0 * scale
        part = levels.box((at - 46.0, middle[1] - 56.0), (at + 46.0, middle[1] + 56.0), first, last)
        if last <= first or part is None:
            continue
        x, y = levels.at_part(part)
        z = levels.z[part[0]] - float(middle[2])
        grow = scale * (1.0 + ((-z).clamp(min=0.0) / 90.0))
        r = ((x - float(at)) / (24.0 * grow)) ** 2 + ((y - float(middle[1])) / (35.0 * grow)) ** 2
        distance = (torch.sqrt(r + (z.clamp(min=0.0) / (36.0 * scale)) ** 2) - 1.0) * 24.0
        paint(hu, part, distance - 2.2, MUSCLE_HU, levels.grid.voxel_mm)
        paint(hu, part, distance, LUNG_HU, levels.grid.voxel_mm)


def _arteries(hu: torch.Tensor, levels: Levels, surroundings: Surroundings) -> None:
    """Vertebral arteries through the transverse foramina and around C1 into the skull; subclavian vessels."""
    scale, spine, blood = levels.patient.scale, levels.spine, surroundings.blood(BLOOD_HU)
    holes = {name: layout(name, spine.sizes[name]).foramen for name in BONES[:6]}
    rows = {name: (x / scale, y / scale, 1.7, 1.8, 0.0, 0.0) for name, (x, y) in holes.items()}
    rows |= {"C7": (21.0, -5.0, 1.9, 2.0, 0.0, 0.0), "T1": (22.0, -12.0, 2.0, 2.1, 0.0, 0.0)}
    for side in (-1, 1):
        for placed in place(Tube(rows, blood, 0.7), levels, side):
            paint_tube(hu, levels, placed, blood, 0.7, FAT_HU)
        x, y = holes["C1"]
        loop = [(x, y, -4), (x, y, 9), (18 * scale, 16 * scale, 11), (9 * scale, 10 * scale, 19), (3, -4, 32)]
        _pipe(hu, levels, spine.poses["C1"], [(side * a, b, c) for a, b, c in loop], 1.8 * scale, blood)
        for radius, path in SUBCLAVIAN:
            points = [(side * a * scale, b * scale, c * scale) for a, b, c in path]
            _pipe(hu, levels, spine.poses["T1"], points, radius * scale, blood)


def _pipe(hu: torch.Tensor, levels: Levels, pose: Pose, points, radius_mm: float, value: float) -> None:
    """Paint a chain of rods through `points` (local mm of `pose`) into `hu`, in place."""
    for a, b in zip(points, points[1:], strict=False):
        rod = capsule(a, b, radius_mm)
        field = Field(levels.grid, pose, np.subtract(rod.low, 1.0), np.add(rod.high, 1.0))
        if field.d.numel():
            paint(hu, field.slices, field.evaluate(rod, ...), value, levels.grid.voxel_mm)


def _calcium(hu: torch.Tensor, levels: Levels, surroundings: Surroundings) -> None:
    """Plaques in the carotid bifurcations and, rarely, calcium in the tendon of the longus colli."""
    scale = levels.patient.scale
    for side, size in zip((-1, 1), surroundings.plaque, strict=True):
        if size > 0:
            middle = levels.centres[KNOTS.index("C4")] + [side * 29.0 * scale, -20.0 * scale, 3.0]
            add_ball(hu, levels, middle, size / 2, PLAQUE_HU)
            add_ball(hu, levels, middle + [-side * 2.0, 3.5, -2.5], size / 3, PLAQUE_HU)
    if surroundings.tendon_calcium:
        middle = (levels.centres[1] + levels.centres[2]) / 2 + [3.0, -12.5 * scale, 2.0]
        add_ball(hu, levels, middle, 2.2, 0.6 * PLAQUE_HU)
