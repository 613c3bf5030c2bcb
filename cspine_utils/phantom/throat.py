"""Nose and sinuses, throat, larynx and windpipe, at full resolution. Textbook values in mm (prevertebral tissue 3-5 mm
at C2-C4, 12-18 mm at C6-C7)."""

from __future__ import annotations

import numpy as np
import torch

from .grid import coverage, mix
from .hounsfield import AIR_HU, CALCIUM_HU, CARTILAGE_HU, SINUS_WALL_HU, WALL_HU
from .patient import BONES
from .sdf import Field, block, smooth_max
from .surroundings import Surroundings, add_ball
from .tracks import KNOTS, Levels, Tube, paint, place, ring_distance

#: Airway: distance of its rear wall in front of the body's front, half depth, half width (mm), how flat its rear is
#: (mm from the middle). Nasopharynx, oropharynx, laryngeal inlet, glottis (C5), subglottic space (C6), trachea.
AIRWAY = {
    "S": (8.0, 7.0, 12.0, 6.0),
    "C1": (5.0, 6.0, 13.0, 5.0),
    "C2": (4.2, 6.0, 12.0, 5.0),
    "C3": (4.0, 6.5, 13.5, 5.5),
    "C4": (5.0, 7.0, 11.5, 6.5),
    "C5": (9.5, 9.0, 4.5, 8.0),
    "C6": (13.0, 9.0, 7.5, 8.0),
    "C7": (14.0, 8.5, 8.5, 5.5),
    "T1": (14.0, 8.5, 8.8, 5.0),
    "T2": (14.0, 8.5, 8.8, 5.0),
    "T3": (14.0, 8.5, 8.8, 5.0),
}

#: Nasal cavity, lower turbinate in it, maxillary sinus: middle and half size of rounded boxes in the frame of the
#: skull (mm), rounding, HU, thickness and HU of their walls.
SINUSES = (
    ((6.5, -63.0, 26.0), (5.2, 22.0, 15.0), 4.5, AIR_HU, 0.8, WALL_HU),
    ((9.5, -63.0, 17.0), (2.2, 16.0, 4.0), 2.0, WALL_HU, 0.0, WALL_HU),
    ((26.0, -59.0, 31.0), (10.0, 15.0, 18.0), 8.0, AIR_HU, 1.0, SINUS_WALL_HU),
)

#: Thickness of the soft tissue directly in front of the vertebral bodies, mm (behind throat and oesophagus).
PREVERTEBRAL = dict(zip(KNOTS, (8.0, 5.0, 4.2, 4.0, 5.0, 4.5, 3.0, 3.0, 3.0, 3.0, 3.0), strict=True))

#: Cartilages of the larynx: plates of the thyroid cartilage, see `tracks.Section`.
THYROID_CARTILAGE = Tube(
    {
        "C4": (13.5, -29, 1.1, 10, 62, 0.006),
        "C5": (10.5, -33.5, 1.3, 14, 60, 0.006),
        "C6": (13, -31, 1.0, 6, 65, 0.006),
    },
    CARTILAGE_HU,
    visceral=True,
)
EPIGLOTTIS = Tube(
    {
        "C3": (0, -20.0, 0.9, 8, 0, 0.03),
        "C4": (0, -24.0, 1.1, 7, 0, 0.03),
        "C5": (0, -30.0, 1.0, 3, 0, 0.0),
    },
    WALL_HU,
    paired=False,
    visceral=True,
)


def throat(hu: torch.Tensor, levels: Levels, surroundings: Surroundings, phase: np.ndarray) -> None:
    """Wall of throat and windpipe, cartilages, air, epiglottis."""
    scale, voxel = levels.patient.scale, levels.grid.voxel_mm
    front = np.array([13.0] + [13.0 if n == "C1" else levels.spine.sizes[n].depth / 2 for n in BONES])
    table = np.array(list(AIRWAY.values()))
    gap, deep, wide, flat = levels.at(table * scale).T
    cx, cy = levels.centre()
    cy = cy - levels.at(front) - gap - levels.swelling - deep
    tissue = levels.at(np.array(list(PREVERTEBRAL.values())) * scale) + levels.swelling
    behind = deep + gap + levels.swelling - tissue / 2
    columns = [levels.column(v) for v in (cx, cy, wide, deep, flat, behind, tissue / 2 + 0.8)]
    middle, rear = np.stack([cx, cy]), deep + gap + levels.swelling + 3.0
    for part in levels.boxes(middle - [[20.0 * scale], [16.0 * scale]], middle + [rear * 0 + 20.0 * scale, rear]):
        mx, my, rx, ry, flat_y, far, half = (c[part[0]] for c in columns)
        x, y = levels.at_part(part)
        dx, dy = x - mx, y - my
        air = torch.maximum(ring_distance(dx, dy, rx, ry), dy - flat_y)
        paint(hu, part, air - 2.2, WALL_HU, voxel)
        paint(hu, part, ring_distance(dx, dy - far, torch.full_like(half, 11.0 * scale), half), WALL_HU, voxel)
        _windpipe(hu, levels, part, air, dy, surroundings, phase)
        paint(hu, part, air, AIR_HU, voxel)
    for side in (-1, 1):
        for plate in place(THYROID_CARTILAGE, levels, side):
            value = _cartilage(levels, plate.part, surroundings, phase)
            paint(hu, plate.part, plate.distance(levels), value, voxel)
    for leaf in place(EPIGLOTTIS, levels, 1):
        paint(hu, leaf.part, leaf.distance(levels), EPIGLOTTIS.hu, voxel)
    if surroundings.oesophageal_air:
        place_of = levels.centres[8] + [3.0, -17.0 * scale, 3.0]
        add_ball(hu, levels, place_of, 2.0, AIR_HU)


def _cartilage(levels: Levels, part, surroundings: Surroundings, phase: np.ndarray) -> torch.Tensor:
    """HU of cartilage that is calcified in patches, `(d, h, w)` of `part`."""
    x, y = levels.at_part(part)
    z, f = levels.z[part[0]], [float(v) for v in phase]
    patches = torch.sin(0.35 * x + 0.31 * z + f[0]) + torch.sin(0.43 * y - 0.27 * z + f[1]) + torch.sin(0.5 * z + f[2])
    calcified = ((patches - 2.4 + 3.6 * surroundings.cartilage_calcium) / 1.4).clamp(0.0, 1.0)
    return CARTILAGE_HU + (CALCIUM_HU - CARTILAGE_HU) * calcified


def _windpipe(hu, levels: Levels, part, air, dy, surroundings: Surroundings, phase: np.ndarray) -> None:
    """Cricoid (a signet ring, tall behind) and the rings of the trachea around `air`, in place."""
    voxel, c6 = levels.grid.voxel_mm, float(levels.centres[7, 2]) + 17.0 * levels.patient.scale
    z, heights = levels.z[part[0]], levels.heights[part[0]]
    if heights[0] > c6 - 12.0 and heights[-1] < c6 + 12.0:
        rear = (dy / 9.0).clamp(-1.0, 1.0)
        ring = (air - 1.9).abs() - 1.1 - 0.6 * rear.clamp(min=0.0)
        tall = (z - c6 - 3.0 * rear).abs() - 4.0 - 3.0 * rear
        cricoid = smooth_max(ring, tall, 2.5)
        paint(hu, part, cricoid, _cartilage(levels, part, surroundings, phase), voxel)
    if heights[-1] < c6 - 8.0:
        below = ((c6 - 8.0 - z) / 2.0).clamp(0.0, 1.0)
        rings = (0.5 + 1.5 * torch.sin(z * (6.28 / 4.2) + float(phase[3]))).clamp(0.0, 1.0) * below
        wall = coverage(torch.maximum((air - 0.9).abs() - 0.6, dy - 3.0), voxel)
        hu[part] = mix(hu[part], 90.0 + 150.0 * surroundings.cartilage_calcium, wall * rings)


def sinuses(hu: torch.Tensor, levels: Levels) -> None:
    """Nasal cavity with its septum and lower turbinates, maxillary sinuses with their bony walls."""
    k, voxel = levels.patient.scale, levels.grid.voxel_mm
    for middle, half, rounding, value, wall_mm, wall_hu in SINUSES:
        for side in (-1, 1):
            box = block(k * np.array(middle) * [side, 1, 1], k * np.array(half), rounding * k)
            field = Field(levels.grid, levels.spine.skull, np.subtract(box.low, 3.0), np.add(box.high, 3.0))
            if field.d.numel():
                distance = field.evaluate(box, ...)
                paint(hu, field.slices, distance - wall_mm, wall_hu, voxel)
                paint(hu, field.slices, distance, value, voxel)
