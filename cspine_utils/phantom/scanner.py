"""From distance fields to Hounsfield units: bone density, partial volume, blur and noise of a bone-kernel CT.

Bone is cortex over trabeculae. Trabecular bone of the neck has 150-450 HU, densest at C2-C5 (QCT series), about a
quarter denser in arches than in bodies; cortex 1,150-1,500 HU before blur, 0.6-0.9 mm thick on bodies and 1.4 mm on
arches (Panjabi 2001; arches: textbook value). Noise of 20-45 HU rises from C6 down, where the shoulders lie in the
beam (AJNR 39:385). Blur: 0.9 mm full width at half maximum in the slice (textbook value for a bone kernel), a box
of the slice thickness across it.
"""

from __future__ import annotations

import numpy as np
import torch

from .anatomy import Patient, Size, Spine
from .fractures import Bone
from .sdf import Field, Grid, Primitive, capsule, coverage, noise, smoothstep

#: Fresh blood between fracture faces and marrow in a vessel channel.
BLOOD_HU = 60.0

#: Range that 12 unsigned bits hold with an intercept of -1024. All storage forms are clipped to it, so that the form
#: of a file tells nothing about its content.
HU_RANGE = (-1024, 3071)

_DENSITY = {"C1": 1.2, "C2": 1.1, "C3": 1.05, "C4": 1.05, "C5": 1.0, "C6": 0.92, "C7": 0.85, "T1": 0.8, "T2": 0.8}


def texture(grid: Grid, rng: np.random.Generator) -> torch.Tensor:
    """Relative density of trabecular bone around 1, float32 `(d, h, w)`: power-law-like noise in two octaves."""
    spacing = (grid.step_mm, grid.pixel_mm, grid.pixel_mm)
    fine, coarse = (noise(grid.shape, spacing, feature, rng) for feature in (2.2, 6.0))
    return (1.0 + 0.20 * fine + 0.16 * coarse).clamp(min=0.2)


def vessel_channels(name: str, size: Size, rng: np.random.Generator, rate: float) -> list[Primitive]:
    """Lucent vessel canals of an intact vertebra: look-alikes of a fracture line, equally often in broken bone.

    A basivertebral channel is always there from C3 down; a fine one through lamina or pillar with probability `rate`.
    """
    channels = []
    if name not in ("C1", "C2"):
        back = size.depth / 2
        deep = back - size.depth * rng.uniform(0.25, 0.5)
        z = rng.uniform(-0.8, 0.8)
        channels.append(capsule((0.0, back, z), (0.0, deep, z), 1.1, 0.7))
    side, lean, thick = rng.choice((-1, 1)), rng.normal(0.0, 0.4, 2), rng.uniform(0.4, 0.8)
    if rng.random() < rate:
        back = 20.0 if name == "C1" else size.depth / 2 + 6.0
        x = side * (13.0 if name == "C1" else size.canal_width / 2 + 3.0)
        channels.append(
            capsule((x - side * 5, back - 4, -2 - 4 * lean[0]), (x + side * 5, back + 5, -2 + 4 * lean[1]), thick)
        )
    return channels


def bone_layer(
    field: Field,
    name: str,
    size: Size,
    patient: Patient,
    bone: Bone,
    background: torch.Tensor,
    grain: torch.Tensor,
    channels: list[Primitive],
) -> torch.Tensor:
    """HU to add to `background` for one vertebra, float32 on the field's part of the grid.

    Adding rather than painting makes the layers of neighbours independent of each other, so that a broken vertebra
    differs from its intact twin in its own layer alone.
    """
    voxel = field.grid.voxel_mm
    arch = smoothstep((field.y - size.depth / 2) / 4.0) if name != "C1" else torch.ones(())
    shell = (0.75 + 0.6 * arch) * (0.4 + 0.6 * grain)
    density = patient.trabecular_hu * _DENSITY[name] * (1.0 + 0.25 * arch)
    return _layer(bone, density, patient.cortical_hu, shell, voxel, background, grain, field, channels)


def plain_layer(field: Field, patient: Patient, background: torch.Tensor, grain: torch.Tensor) -> torch.Tensor:
    """The same for a bone without a label (skull, jaw, hyoid, rib)."""
    bone = Bone(field.d, field.d, field.d)
    return _layer(
        bone,
        torch.tensor(patient.trabecular_hu),
        patient.cortical_hu,
        1.5 * torch.ones(()),
        field.grid.voxel_mm,
        background,
        grain,
        field,
        [],
    )


def _layer(bone: Bone, density, cortical_hu, shell, voxel, background, grain, field, channels) -> torch.Tensor:
    filled, occupied = coverage(bone.whole, voxel), coverage(bone.occupied, voxel)
    filled = torch.maximum(filled, occupied)
    trabecular = coverage(bone.surface + shell, voxel)
    in_cortex = 1.0 - trabecular / coverage(bone.surface, voxel).clamp(min=1e-3)
    hu = torch.lerp(density * grain, torch.tensor(float(cortical_hu)), in_cortex.clamp(0.0, 1.0))
    if bone.extra_hu is not None:
        hu = hu + bone.extra_hu
    for channel in channels:
        if (part := field.part(channel)) is not None:
            inside = coverage(field.evaluate(channel, part), voxel)
            hu[part] = torch.lerp(hu[part], torch.tensor(BLOOD_HU), inside)
    return occupied * hu + (filled - occupied) * BLOOD_HU - filled * background


def blur(values: torch.Tensor, grid: Grid) -> torch.Tensor:
    """The scanner's point spread: Gaussian in the slice, slice thickness across. Linear; zero beyond the edge."""
    in_slice = 0.38 / grid.pixel_mm
    across = grid.thickness_mm / grid.step_mm / np.sqrt(12.0)
    for axis, sigma in ((0, across), (1, in_slice), (2, in_slice)):
        values = _convolve(values, _gaussian(sigma), axis)
    return values


def _gaussian(sigma: float) -> list[float]:
    """Half of a normalised kernel: weights at distance 0, 1, ... voxels, each the Gaussian's integral over a voxel."""
    reach = int(np.ceil(3 * sigma - 0.5))
    weights = np.exp(-0.5 * (np.arange(reach + 1) / max(sigma, 1e-6)) ** 2)
    return list(weights / (weights[0] + 2 * weights[1:].sum()))


def _convolve(values: torch.Tensor, half: list[float], axis: int) -> torch.Tensor:
    out = values * float(half[0])
    n = values.shape[axis]
    for k, weight in enumerate(half[1:], start=1):
        if k < n:
            out.narrow(axis, k, n - k).add_(values.narrow(axis, 0, n - k), alpha=float(weight))
            out.narrow(axis, 0, n - k).add_(values.narrow(axis, k, n - k), alpha=float(weight))
    return out


def add_noise(hu: torch.Tensor, grid: Grid, spine: Spine, level_hu: float, rng: np.random.Generator) -> torch.Tensor:
    """Quantum noise of standard deviation `level_hu` above C5, up to 2.2 times that with streaks at the shoulders."""
    z = grid.axes()[0][:, None, None]
    start = float(spine.poses["C6"].centre[2])
    shoulder = smoothstep((start - z) / 40.0)
    white = torch.from_numpy(rng.standard_normal(grid.shape, dtype=np.float32))
    for axis in (1, 2):  # a sharp kernel amplifies fine grain
        white = _convolve(white, [1.0, -0.14], axis)
    white /= 1.0 + 2 * 0.14**2
    d, h, w = grid.shape
    rows = torch.from_numpy(rng.standard_normal((d, h, 3), dtype=np.float32))
    ramp = torch.linspace(0.0, 2.0, w)
    streak = sum(rows[:, :, i : i + 1] * (1.0 - (ramp - i).abs()).clamp(min=0.0) for i in range(3))
    return hu + level_hu * ((1.0 + 1.2 * shoulder) * white + 0.8 * shoulder * streak)


def to_int16(hu: torch.Tensor) -> np.ndarray:
    """Round and clip to `HU_RANGE`."""
    return hu.clamp(*HU_RANGE).round().to(torch.int16).numpy()
