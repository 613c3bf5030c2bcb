"""The mechanism of every break: one plane, one smooth window, a gap and a motion.

Inside its window a `Cut` divides the bone along an uneven plane; one piece is moved, and the pieces are kept a gap
apart. Outside the window nothing changes, so that a plane through a lamina cannot also split the facet behind it.
Cortex is computed from the *unbroken* surface: a fresh break has none. The same cut with cortex on its faces is an
old, healed or inborn cleft, and serves as a look-alike in intact bone.

Local frame and units as in `sdf`: x left, y back, z head, mm.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F

from .grid import noise, smoothstep
from .sdf import Field, box_of

#: Outside its window a cut overlaps its two pieces by this much, so that no seam is left (mm).
_HEALED_MM = 6.0

#: A window fades out between 1 and this many radii.
_FADE = 1.35


@dataclass(frozen=True)
class Cut:
    """One break of a bone.

    Attributes
    ----------
    point, normal : the plane; the piece on the normal's side moves
    window, radii : centre and half-axes (mm) of the ellipsoid inside which the cut acts
    gap_mm : width left between the two faces; negative: they overlap (healed)
    shift : how far the piece is moved (mm); `turn` how it is turned about `point` (radians)
    whole : the shift bends everything inside the window (impaction) instead of one side
    rough_mm : amplitude of the unevenness of the plane
    sclerosis_hu : brighter band along the plane, of crushed trabeculae or callus
    corticated : the faces carry cortex (an old or inborn cleft)
    """

    point: tuple[float, float, float]
    normal: tuple[float, float, float]
    window: tuple[float, float, float]
    radii: tuple[float, float, float]
    gap_mm: float
    shift: tuple[float, float, float] = (0.0, 0.0, 0.0)
    turn: tuple[float, float, float] = (0.0, 0.0, 0.0)
    whole: bool = False
    rough_mm: float = 0.7
    sclerosis_hu: float = 0.0
    corticated: bool = False

    def opened(self) -> Cut:
        """The same cut without any part of its shift that would close its gap again."""
        n, t = np.asarray(self.normal, dtype=float), np.asarray(self.shift, dtype=float)
        n /= np.linalg.norm(n)
        return self if self.whole or n @ t >= 0 else replace(self, shift=tuple(t - (n @ t) * n))


@dataclass(frozen=True, eq=False)
class Bone:
    """A vertebra while it is being broken; all tensors `(d, h, w)` on the part of the grid of its field.

    Attributes
    ----------
    occupied : distance to the surface including fracture faces (decides where bone is)
    surface : distance to the unbroken surface of the piece that lies here (decides where cortex is)
    whole : distance to the pieces put together without a gap (decides the label, which must not tell the answer)
    extra_hu : added HU
    """

    occupied: torch.Tensor
    surface: torch.Tensor
    whole: torch.Tensor
    extra_hu: torch.Tensor


def unbroken(field: Field) -> Bone:
    """The bone of a field before any cut."""
    return Bone(field.d, field.d, field.d, torch.zeros_like(field.d))


def apply_cuts(field: Field, bone: Bone, cuts: list[Cut], rng: np.random.Generator, obstacle: torch.Tensor) -> Bone:
    """Break `bone` along `cuts`, one after the other.

    `obstacle` is a distance, same shape: moved pieces stay out of where it is negative (the neighbours' joint space).
    """
    for cut in cuts:
        bone = _apply(field, bone, cut, rng, obstacle)
    return bone


def _apply(field: Field, bone: Bone, cut: Cut, rng: np.random.Generator, obstacle: torch.Tensor) -> Bone:
    """One cut, computed in the box around its window alone: nothing else can change."""
    c, r = np.asarray(cut.window, dtype=float), _FADE * np.asarray(cut.radii, dtype=float)
    margin = 2.0 + float(np.abs(cut.shift).max())
    part = box_of(field.grid, field.pose, c - r, c + r, margin)
    if any(s.stop - s.start < 2 for s in part):
        return bone
    grid = field.grid.part(part)
    local = [axis[part] for axis in (field.x, field.y, field.z)]
    here = torch.stack([bone.occupied[part], bone.surface[part], bone.whole[part]])
    window = _window(local, cut)
    n = np.asarray(cut.normal, dtype=float)
    n /= np.linalg.norm(n)
    p = [axis - float(at) for axis, at in zip(local, cut.point, strict=True)]
    side = float(n[0]) * p[0] + float(n[1]) * p[1] + float(n[2]) * p[2]
    side = side + cut.rough_mm * noise(grid, 5.0, rng)
    shift = [window * component for component in _motion(p, cut)]
    moved = torch.where(window > 0, _pull(field, grid, here, shift), here)
    far = torch.where(window > 0, obstacle[part], torch.full_like(window, -9.0))  # negative = free
    if cut.whole:
        result = torch.maximum(moved, far)
    else:
        result = _divided(here, moved, far, window, side, shift, n, cut)
    extra = cut.sclerosis_hu * window * smoothstep(1.0 - side.abs() / 2.2)
    tensors = [t.clone() for t in (bone.occupied, bone.surface, bone.whole, bone.extra_hu)]
    for old, new in zip(tensors, (*result, bone.extra_hu[part] + extra), strict=True):
        old[part] = new
    return Bone(*tensors)


def _window(local: list[torch.Tensor], cut: Cut) -> torch.Tensor:
    """1 inside the cut's ellipsoid, 0 beyond `_FADE` radii."""
    reach = sum(((axis - float(c)) / float(r)) ** 2 for axis, c, r in zip(local, cut.window, cut.radii, strict=True))
    return smoothstep((_FADE - torch.sqrt(reach)) / (_FADE - 1.0))


def _motion(p: list[torch.Tensor], cut: Cut) -> list[torch.Tensor]:
    """Rigid motion (small angles) of the free piece, local mm, at places `p` relative to the cut's point."""
    t, r = cut.shift, cut.turn
    return [
        t[0] + r[1] * p[2] - r[2] * p[1],
        t[1] + r[2] * p[0] - r[0] * p[2],
        t[2] + r[0] * p[1] - r[1] * p[0],
    ]


def _divided(here, moved, far, window, side, shift, n, cut: Cut) -> list[torch.Tensor]:
    """Occupied, surface and whole distance after the bone has been cut in two and one piece moved."""
    side_there = side - sum(float(a) * s for a, s in zip(n, shift, strict=True))
    apart = -_HEALED_MM + window * (_HEALED_MM + cut.gap_mm / 2)
    # For the label the pieces overlap by as much as they were drawn apart: no slit may tell the answer.
    drawn_apart = max(0.0, float(n @ np.asarray(cut.shift))) + 8.0 * float(np.abs(cut.turn).sum()) + 0.8
    joined = -_HEALED_MM + window * max(0.0, _HEALED_MM - drawn_apart)
    occupied = torch.minimum(
        torch.maximum(here[0], side + apart), torch.maximum(torch.maximum(moved[0], far), apart - side_there)
    )
    stays = torch.maximum(here[2], side + joined)
    goes = torch.maximum(torch.maximum(moved[2], far), joined - side_there)
    surface = torch.where(stays <= goes, here[1], moved[1])
    return [occupied, occupied if cut.corticated else surface, torch.minimum(stays, goes)]


def _pull(field: Field, grid, values: torch.Tensor, shift: list[torch.Tensor]) -> torch.Tensor:
    """Values `(c, d, h, w)` read where the material came from: at p - shift (local mm), trilinear."""
    turn = field.pose.rotation
    x, y, z = (sum(float(turn[row, col]) * shift[col] for col in range(3)) for row in range(3))
    steps = (z / grid.step_mm, -y / grid.pixel_mm, -x / grid.pixel_mm)
    indices = torch.meshgrid(*(torch.arange(n, device=grid.device) for n in grid.shape), indexing="ij")
    points = [2 * (at + step) / max(n - 1, 1) - 1 for at, step, n in zip(indices, steps, grid.shape, strict=True)]
    places = torch.stack(points[::-1], dim=-1)
    return F.grid_sample(values[None], places[None], mode="bilinear", padding_mode="border", align_corners=True)[0]
