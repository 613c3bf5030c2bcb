"""Soft parts without sharp edges, from deep to superficial: muscles, glands, vessels, fat, brain, skin, collar.

Everything starts as fat; each part is painted over its predecessors with a thin rim of fat, at half resolution in fine
studies. Skin, air and collar follow at full resolution, from the distance to the skin.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from .grid import Grid, coverage, mix, noise, smoothstep
from .hounsfield import AIR_HU, BRAIN_HU, COLLAR_HU, FAT_HU, FOAM_HU, MUSCLE_HU, PLATYSMA_HU, SKIN_HU
from .muscles import BULK, MUSCLES, STERNOCLEIDOMASTOID
from .neck import VAULT_MM, vault
from .organs import EXTERNAL_JUGULAR, ORGANS, VESSELS
from .patient import Patient, Spine
from .sdf import Field
from .surroundings import COLLAR_MM, Surroundings, collar_rows
from .tracks import Levels, Section, Waves, changes, enlarged, paint_tube, place

SKIN_MM = 1.8

#: How much squarer than an ellipse the neck's outline is.
SQUARENESS = 0.35

#: Trapezius: thickness in the midline and how far it reaches to the side (mm).
TRAPEZIUS = {
    "S": (1.5, 16.0),
    "C1": (2.2, 19.0),
    "C2": (2.6, 21.0),
    "C3": (3.0, 24.0),
    "C4": (3.6, 28.0),
    "C5": (4.4, 35.0),
    "C6": (5.5, 46.0),
    "C7": (7.5, 62.0),
    "T1": (9.5, 84.0),
    "T2": (10.5, 110.0),
    "T3": (10.0, 120.0),
}

#: Envelope of the muscles: half width, front and back edge behind the body's centre, height of the widest place (mm).
ENVELOPE = {
    "S": (67.0, -98.0, 73.0, -6.0),
    "C1": (66.0, -100.0, 59.5, -8.0),
    "C2": (62.0, -98.0, 54.0, -12.0),
    "C3": (57.0, -84.0, 51.0, -8.0),
    "C4": (53.0, -57.0, 50.0, -4.0),
    "C5": (51.5, -49.0, 51.0, 0.0),
    "C6": (54.0, -49.5, 54.0, 5.0),
    "C7": (66.0, -50.0, 58.0, 8.0),
    "T1": (94.0, -52.0, 63.0, 8.0),
    "T2": (130.0, -57.0, 66.0, 6.0),
    "T3": (150.0, -68.0, 68.0, 4.0),
}


def coarse_grid(grid: Grid) -> Grid:
    """The grid for muscles: half resolution unless the study is coarse already (its voxels are few then)."""
    return grid.half() if grid.pixel_mm < 0.9 else grid


def soft_parts(
    grid: Grid, spine: Spine, patient: Patient, surroundings: Surroundings, rng: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """HU of muscles, glands, vessels, fat and brain, and the distance to the skin in mm; both float32 `(d, h, w)`.

    Outside the skin the HU are those of fat: skin and air are painted at full resolution, with `wrap`.
    """
    coarse = coarse_grid(grid)
    levels = Levels(coarse, spine, patient)
    levels.swelling = surroundings.swelling(levels)
    waves = Waves(levels, rng.uniform(0.0, 6.28, 4))
    grain = noise(coarse, 6.0, rng)
    hu = torch.full(coarse.shape, FAT_HU, device=coarse.device)
    for tube, value, change in _tubes(patient, surroundings, rng):
        for side, own in zip((-1, 1) if tube.paired else (1,), change, strict=False):
            for placed in place(tube, levels, side, own):
                paint_tube(hu, levels, placed, value, tube.rim_mm, FAT_HU, waves)
    skin = torch.empty_like(hu)
    for rows in chunks(hu):
        few = coarse.part((rows, slice(0, coarse.shape[1]), slice(0, coarse.shape[2])))
        skin[rows] = _under_the_skin(hu[rows], Levels(few, spine, patient), surroundings)
    hu.add_(grain, alpha=1.8)
    _brain(hu, coarse, spine, patient)
    return (hu, skin) if coarse is grid else (enlarged(hu, grid), enlarged(skin, grid))


def _tubes(patient: Patient, surroundings: Surroundings, rng: np.random.Generator):
    """All tubes from deep to superficial with their HU and the small differences `(2 sides, 4)` of this person."""
    bulk = BULK[patient.sex]
    tubes = [(replace(tube, sections=_bulky(tube.sections, bulk)), tube.hu) for tube in MUSCLES.values()]
    tubes += [(tube, tube.hu) for tube in ORGANS.values()]
    tubes += [(tube, surroundings.blood(tube.hu)) for tube in VESSELS.values()]
    over, vein = STERNOCLEIDOMASTOID, EXTERNAL_JUGULAR
    tubes += [(replace(over, sections=_bulky(over.sections, bulk)), over.hu), (vein, surroundings.blood(vein.hu))]
    return [(*pair, change) for pair, change in zip(tubes, changes(rng, len(tubes), 0.6, 0.05), strict=True)]


def chunks(hu: torch.Tensor) -> list[slice]:
    """Slices of a volume, a few at a time, so that what is done to them stays in the processor's cache."""
    count = max(1, 200_000 // max(1, hu[0].numel()))
    return [slice(start, min(start + count, len(hu))) for start in range(0, len(hu), count)]


def blend(hu: torch.Tensor, value, distance: torch.Tensor, offset_mm: float, voxel_mm: float) -> None:
    """Set `hu` to `value` where `distance` exceeds `offset_mm`, in place, with a partial-volume ramp."""
    share = distance.mul(1.0 / voxel_mm).add_(0.5 - offset_mm / voxel_mm).clamp_(0.0, 1.0)
    hu.addcmul_(share, value - hu)


def wrap(hu: torch.Tensor, skin: torch.Tensor, levels: Levels, surroundings: Surroundings) -> None:
    """Paint skin, the air around it and a collar into `hu`, in place; `skin` as from `soft_parts`."""
    voxel, worn = levels.grid.voxel_mm, collar_rows(levels, surroundings)
    for rows in chunks(hu):
        own, distance, here = hu[rows], skin[rows], worn[rows]
        blend(own, SKIN_HU, distance, -SKIN_MM, voxel)
        blend(own, AIR_HU + here * (FOAM_HU - AIR_HU), distance, 0.0, voxel)
        if surroundings.collar:
            blend(own, AIR_HU + here * (COLLAR_HU - AIR_HU), distance, surroundings.collar_gap_mm, voxel)
            blend(own, AIR_HU, distance, surroundings.collar_gap_mm + COLLAR_MM, voxel)


def envelope(levels: Levels) -> tuple[torch.Tensor, torch.Tensor]:
    """Distance in mm to the envelope of the muscles `(d, h, w)`, and how far back a voxel lies (0 front, 1 back)."""
    patient, grid = levels.patient, levels.grid
    table = np.array(list(ENVELOPE.values())) * patient.scale
    half, front, back, widest = levels.at(table).T
    cx, cy = levels.centre()
    middle = levels.column(cy + widest)
    forward = levels.column((widest - front) * patient.neck[1])
    behind = levels.column((back - widest) * patient.neck[1])
    dx, dy = levels.x - levels.column(cx), levels.y - middle
    u = dx / levels.column(half * patient.neck[0])
    v = torch.where(dy < 0, dy / forward, dy / behind)
    u, v2 = u * u, v * v
    total = (u + v2).clamp_(min=1e-3)
    r = (total - SQUARENESS * (u * v2).div_(total)).sqrt_()
    distance = (1.0 - 1.0 / r) * torch.sqrt(dx * dx + dy * dy)
    return distance.expand(grid.shape).contiguous(), smoothstep(0.5 + v / 1.6)


def _under_the_skin(hu: torch.Tensor, levels: Levels, surroundings: Surroundings) -> torch.Tensor:
    """Paint trapezius, subcutaneous fat and the platysma in it into `hu`, in place; returns distance to the skin."""
    voxel = levels.grid.voxel_mm
    deep, back = envelope(levels)
    _trapezius(hu, levels, deep)
    blend(hu, FAT_HU, deep, 0.0, voxel)
    fat = surroundings.fat_mm * (0.75 + 0.6 * back)
    skin = deep - fat - SKIN_MM
    sheet = coverage((deep - 0.5 * fat).abs_() - 0.45, voxel).mul_(smoothstep((0.5 - back) / 0.2))
    hu.addcmul_(sheet, PLATYSMA_HU - hu, value=0.6)
    return skin


def _trapezius(hu: torch.Tensor, levels: Levels, deep: torch.Tensor) -> None:
    """The trapezius lies directly under the envelope behind; `deep`: distance to the envelope."""
    scale = levels.patient.scale
    thick, reach = levels.at(np.array(list(TRAPEZIUS.values()))).T * scale
    cx, cy = levels.centre()
    middle = cy + 12.0 * scale
    half = reach * levels.patient.neck[0]
    part = levels.box(((cx - half).min(), middle.min()), ((cx + half).max(), 1e3), 0, len(cx))
    if part is None:
        return
    x, y = levels.at_part(part)
    share = 1.0 - ((x - levels.column(cx)).abs() / levels.column(half)) ** 2
    layer = levels.column(thick) * share.clamp(min=0.0).sqrt()
    inner = coverage(-deep[part] - layer, levels.grid.voxel_mm)
    there = ((y - levels.column(middle)) / 8.0).clamp(0.0, 1.0) * layer.clamp(max=1.0)
    rim = coverage(-deep[part] - layer - 1.0, levels.grid.voxel_mm)
    hu[part] = mix(mix(hu[part], FAT_HU, there * rim), MUSCLE_HU + 2.0, there * inner)


def _bulky(sections: dict[str, Section], bulk: float) -> dict[str, Section]:
    """Sections of a muscle that is thicker by the factor `bulk` and a little longer."""
    return {k: (x, y, bulk * a, (0.6 + 0.4 * bulk) * b, way, bend) for k, (x, y, a, b, way, bend) in sections.items()}


def _brain(hu: torch.Tensor, grid: Grid, spine: Spine, patient: Patient) -> None:
    """Fill the skull with brain as far as the middle of its shell, in place."""
    k = patient.scale
    field = Field(grid, spine.skull, (-74.0 * k, -45.0 * k, 6.0 * k), (74.0 * k, 100.0 * k, 60.0 * k))
    if field.d.numel():
        inside = coverage(vault(field.x, field.y, field.z, k) + VAULT_MM / 2, grid.voxel_mm)
        hu[field.slices] = mix(hu[field.slices], BRAIN_HU, inside)
