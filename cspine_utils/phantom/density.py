"""From distance fields to Hounsfield units: cortex, trabeculae, vessel channels, blood in a gap.

Trabecular bone of the neck has 150-450 HU, densest at C2-C5 (QCT series), about a quarter denser in arches than in
bodies; cortex 1,100-1,600 HU before blur, 0.6-0.9 mm thick on bodies and 1.4 mm on arches (Panjabi 2001; arches:
textbook value), uneven by about a third. Trabecular texture is noise in two octaves, after the recipe of Abadi, Segars
and Samei (2018).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from .cuts import Bone, unbroken
from .grid import Grid, Noise, coverage, draw_noise, mix, smoothstep
from .mimics import Change
from .patient import BONES, Patient, Size
from .sdf import Field

#: Fresh blood between fracture faces and marrow in a vessel channel.
BLOOD_HU = 60.0

_DENSITY = dict(zip(BONES, (1.2, 1.1, 1.05, 1.05, 1.0, 0.92, 0.85, 0.8, 0.8, 0.8), strict=True))


@dataclass(frozen=True, eq=False)
class Grain:
    """Texture of trabecular bone over a whole study: relative density around 1."""

    fine: Noise
    coarse: Noise

    def on(self, grid: Grid) -> torch.Tensor:
        """The texture on a part of the study, float32 of the grid's shape."""
        return (1.0 + 0.20 * self.fine.on(grid) + 0.16 * self.coarse.on(grid)).clamp(min=0.2)


def draw_grain(grid: Grid, rng: np.random.Generator) -> Grain:
    """Draw the texture of the study that `grid` belongs to."""
    return Grain(*(draw_noise(grid, feature_mm, rng) for feature_mm in (2.2, 6.0)))


def bone_layer(
    field: Field, name: str, size: Size, patient: Patient, bone: Bone, background: torch.Tensor, grain: torch.Tensor,
    change: Change,
) -> torch.Tensor:  # fmt: skip
    """HU to add to `background` for one vertebra, float32 on the field's part of the grid.

    Adding rather than painting makes the layers of neighbours independent of each other, so that a broken vertebra
    differs from its intact twin in its own layer alone.
    """
    arch = smoothstep((field.y - size.depth / 2) / 4.0) if name != "C1" else torch.ones_like(field.y)
    density = patient.trabecular_hu * _DENSITY[name] * (1.0 + 0.25 * arch)
    return _layer(field, bone, density, patient.cortical_hu, 0.75 + 0.6 * arch, background, grain, change)


def plain_layer(field: Field, patient: Patient, background: torch.Tensor, grain: torch.Tensor) -> torch.Tensor:
    """The same for a bone without a label (skull, jaw, hyoid, rib)."""
    same = torch.ones_like(field.d)
    density = patient.trabecular_hu * same
    return _layer(field, unbroken(field), density, patient.cortical_hu, 1.5 * same, background, grain, Change())


def _layer(field: Field, bone: Bone, density, cortical_hu, shell_mm, background, grain, change: Change) -> torch.Tensor:
    """Only the voxels that bone can reach are computed: a vertebra fills a tenth of its box."""
    voxel = field.grid.voxel_mm
    near = torch.nonzero((torch.minimum(bone.whole, bone.occupied) < 0.5 * voxel).flatten()).flatten()

    def take(values):
        return values.flatten()[near]

    surface, grains = take(bone.surface), take(grain)
    filled, occupied = coverage(take(bone.whole), voxel), coverage(take(bone.occupied), voxel)
    filled = torch.maximum(filled, occupied)
    trabecular = coverage(surface + take(shell_mm) * (0.4 + 0.6 * grains), voxel)
    in_cortex = 1.0 - trabecular / coverage(surface, voxel).clamp(min=1e-3)
    hu = mix(take(density) * grains, float(cortical_hu), in_cortex.clamp(0.0, 1.0)) + take(bone.extra_hu)
    x, y, z = take(field.x), take(field.y), take(field.z)
    for primitive, more in change.dense:
        hu = hu + more * smoothstep(0.5 - primitive.distance(x, y, z))
    for channel in change.channels:
        hu = mix(hu, BLOOD_HU, coverage(channel.distance(x, y, z), voxel))
    out = torch.zeros_like(field.d)
    out.view(-1)[near] = occupied * hu + (filled - occupied) * BLOOD_HU - filled * take(background)
    return out
