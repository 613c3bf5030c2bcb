"""Fractures: which kinds occur where, and how a break is cut into the distance field of a vertebra.

A break is a list of `Cut`s. Inside a smooth window the bone is divided along a noisy plane; one piece is moved, and
the pieces are kept a gap apart; outside the window nothing changes, so that a plane through a lamina cannot also
split the facet behind it. Cortex is always computed from the *unbroken* surface: a fresh break has none. The same cut
with cortex on its faces is an old, healed or inborn cleft, and serves as a look-alike in intact bone.

Local frame and units as in `sdf`: x left, y back, z head, mm.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F

from .anatomy import Size
from .sdf import Field, noise, smoothstep

#: Outside its window a cut overlaps its two pieces by this much, so that no seam is left (mm).
_HEALED_MM = 6.0


@dataclass(frozen=True)
class Difficulty:
    """Ranges of the gap and of the displacement (mm), factor on the noise, share of vertebrae with a look-alike."""

    gap_mm: tuple[float, float]
    displacement_mm: tuple[float, float]
    noise: float
    mimics: float


#: Ordered by what matters most to a reader: gap, then step-off, then noise and look-alikes.
DIFFICULTIES = {
    "easy": Difficulty((1.2, 2.5), (1.0, 3.0), 0.7, 0.10),
    "standard": Difficulty((0.5, 1.6), (0.3, 2.2), 1.0, 0.25),
    "hard": Difficulty((0.3, 0.9), (0.0, 1.0), 1.5, 0.45),
}


@dataclass(frozen=True)
class Cut:
    """One break of a bone.

    Attributes
    ----------
    point, normal : the plane; the piece on the normal's side moves
    window, radii : centre and half-axes (mm) of the ellipsoid inside which the cut acts
    gap_mm : width left between the two faces
    shift : how far the piece is moved (mm); `turn` how it is turned about `point` (radians)
    whole : the shift bends everything inside the window (impaction) instead of one side
    rough_mm : amplitude of the unevenness of the plane
    sclerosis_hu : brighter band along the plane, of crushed trabeculae
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


@dataclass(frozen=True)
class Draw:
    """What every fracture type draws: gap, displacement, a side and a random stream for its own angles."""

    gap: float
    move: float
    side: int
    rng: np.random.Generator

    def jitter(self, sd: float) -> float:
        return float(np.clip(self.rng.normal(0.0, sd), -2 * sd, 2 * sd))


def _posterior_arch(s: Size, d: Draw) -> list[Cut]:
    """C1: one or both sides of the rear arch, near the groove of the vertebral artery, 25-60 deg off the midline."""
    cuts = []
    for side in (d.side, -d.side) if d.rng.random() < 0.5 else (d.side,):
        angle = np.deg2rad(d.rng.uniform(25, 55))
        p = (side * 20.0 * np.sin(angle), 5.5 + 19.0 * np.cos(angle), 2.0)
        tangent = (-side * np.cos(angle), np.sin(angle), d.jitter(0.25))
        shift = (0.0, -0.4 * d.move, -0.5 * d.move)
        cuts.append(Cut(p, tangent, p, (10.0, 10.0, 9.0), d.gap, shift, rough_mm=0.5))
    return cuts


def _jefferson(s: Size, d: Draw) -> list[Cut]:
    """C1 burst: front arch and both sides of the rear arch, the lateral masses driven apart."""
    front = (d.side * d.rng.uniform(2.0, 6.0), -10.0, 0.0)
    cuts = [
        Cut(
            front,
            (d.side, 0.3, d.jitter(0.2)),
            front,
            (9.0, 8.0, 10.0),
            d.gap,
            (d.side * 0.5 * d.move, 0.0, 0.0),
            rough_mm=0.5,
        )
    ]
    for side in (-1, 1):
        angle = np.deg2rad(d.rng.uniform(30, 55))
        p = (side * 20.0 * np.sin(angle), 5.5 + 19.0 * np.cos(angle), 2.0)
        cuts.append(
            Cut(
                p,
                (side * np.cos(angle), -np.sin(angle), d.jitter(0.2)),
                p,
                (9.0, 9.0, 9.0),
                d.gap,
                (side * 0.4 * d.move, 0.2 * d.move, 0.0),
                rough_mm=0.5,
            )
        )
    return cuts


def _dens(s: Size, d: Draw) -> list[Cut]:
    """C2, type II: across the waist of the dens; the dens slides backwards or forwards and tips."""
    z = s.height / 2 + d.rng.uniform(1.5, 4.0)
    p, way = (0.0, -0.5, z), d.side
    return [
        Cut(
            p,
            (d.jitter(0.10), d.jitter(0.18), 1.0),
            (0.0, -0.5, z + 6.0),
            (9.0, 9.5, 14.0),
            d.gap,
            (0.0, way * 0.8 * d.move, 0.15 * d.move),
            (way * d.rng.uniform(0.0, 0.06), 0.0, 0.0),
            rough_mm=0.8,
        )
    ]


def _hangman(s: Size, d: Draw) -> list[Cut]:
    """C2: both partes interarticulares; the arch stays behind while the body comes forward."""
    cuts = []
    for side in (-1, 1):
        p = (side * (s.canal_width / 2 + 3.5), s.depth / 2 + d.rng.uniform(-1.0, 2.5), -1.0)
        cuts.append(
            Cut(
                p,
                (side * 0.2, 1.0, 0.35 + d.jitter(0.15)),
                p,
                (9.0, 9.0, 13.0),
                d.gap,
                (0.0, 0.35 * d.move, -0.3 * d.move),
                rough_mm=0.8,
            )
        )
    return cuts


def _lamina(s: Size, d: Draw) -> list[Cut]:
    """Through one lamina, oblique, with a small step of its outer wall."""
    along = d.rng.uniform(0.35, 0.7)
    start = np.array([d.side * (s.canal_width / 2 + 4.0), s.depth / 2 + 8.0, -3.0])
    end = np.array([d.side * 1.2, s.depth / 2 + s.canal_depth + 1.6, -4.0])
    p = tuple(start + along * (end - start))
    way = (end - start) / np.linalg.norm(end - start)
    normal = (way[0] + d.jitter(0.25), way[1], d.jitter(0.25))
    step = (0.5 * d.move * d.side * way[1], 0.5 * d.move * abs(way[0]), -0.3 * d.move)
    return [Cut(p, normal, p, (8.0, 8.0, 11.0), d.gap, step, rough_mm=0.5)]


def _facet(s: Size, d: Draw) -> list[Cut]:
    """Through an articular pillar, nearly level, the tip of the upper facet breaking off upwards and forwards."""
    x, y = d.side * (s.canal_width / 2 + 5.6), s.depth / 2 + 5.0
    p = (x, y, d.rng.uniform(0.0, 4.0) - 1.0)
    return [
        Cut(
            p,
            (d.jitter(0.2), -0.25 + d.jitter(0.2), 1.0),
            (x, y, p[2] + 3.0),
            (8.5, 9.0, 10.0),
            d.gap,
            (0.0, -0.5 * d.move, 0.25 * d.move),
            (d.side * 0.03, 0.0, 0.0),
            rough_mm=0.7,
        )
    ]


def _transverse(s: Size, d: Draw) -> list[Cut]:
    """Through a transverse process; at C3-C6 the plane meets the hole of the vertebral artery."""
    p = (d.side * (s.width / 2 + d.rng.uniform(4.0, 6.5)), s.depth / 2 - 5.0, -1.0)
    normal, window = (d.side, d.jitter(0.25), d.jitter(0.25)), (p[0] + d.side * 5.0, p[1], p[2])
    shift = (d.side * 0.3 * d.move, 0.3 * d.move, -0.6 * d.move)
    return [Cut(p, normal, window, (10.0, 12.0, 9.0), d.gap, shift, rough_mm=0.5)]


def _spinous(s: Size, d: Draw) -> list[Cut]:
    """Clay-shoveler: across the spinous process, the tip drawn down and back."""
    along = d.rng.uniform(0.35, 0.6) * s.spinous
    z = -0.16 * s.height - 2.5 - along * s.spinous_fall
    p = (0.0, s.depth / 2 + s.canal_depth + along, z)
    far = (0.0, p[1] + 0.5 * s.spinous, z - 0.4 * s.spinous * s.spinous_fall)
    return [
        Cut(
            p,
            (d.jitter(0.1), 1.0, 0.25 + d.jitter(0.2)),
            far,
            (10.0, 0.5 * s.spinous + 9.0, 14.0),
            d.gap,
            (0.0, 0.2 * d.move, -0.8 * d.move),
            rough_mm=0.6,
        )
    ]


def _compression(s: Size, d: Draw) -> list[Cut]:
    """The front of the upper endplate pressed down by 12-35 % of the height, a dense line, a broken front edge."""
    loss = np.clip(0.12 + 0.08 * d.move + 0.03 * d.gap, 0.12, 0.35) * s.height
    top = (0.0, -s.depth / 2 - 1.0, s.height / 2 + 1.0)
    line = (0.0, -s.depth / 4, s.height / 2 - loss - 2.2)
    return [
        Cut(
            top,
            (0.0, 0.0, 1.0),
            top,
            (s.width * 0.62, s.depth * 0.62, s.height * 0.5),
            0.0,
            (0.0, 0.0, -loss),
            whole=True,
        ),
        Cut(
            line,
            (d.jitter(0.08), -0.30, 1.0),
            line,
            (s.width * 0.5, s.depth * 0.42, 6.0),
            0.5 * d.gap,
            (0.0, -0.4 * d.move, 0.0),
            rough_mm=0.8,
            sclerosis_hu=220.0,
        ),
    ]


def _teardrop(s: Size, d: Draw) -> list[Cut]:
    """The lower front corner of the body off as one triangular piece."""
    depth = d.rng.uniform(0.18, 0.36) * s.depth
    p = (0.0, -s.depth / 2 + depth, -s.height / 2 + 0.5)
    return [
        Cut(
            p,
            (d.jitter(0.12), -0.8, -0.65 + d.jitter(0.12)),
            (0.0, -s.depth / 2 + 1.0, -s.height / 2 + 2.0),
            (s.width * 0.56, s.depth * 0.55, s.height * 0.72),
            d.gap,
            (0.0, -0.6 * d.move, -0.3 * d.move),
            (d.rng.uniform(0.0, 0.08), 0.0, 0.0),
            rough_mm=0.6,
        )
    ]


_MAKERS: dict[str, Callable[[Size, Draw], list[Cut]]] = {
    "posterior_arch": _posterior_arch,
    "jefferson": _jefferson,
    "dens_ii": _dens,
    "hangman": _hangman,
    "lamina": _lamina,
    "facet": _facet,
    "transverse_process": _transverse,
    "spinous_process": _spinous,
    "compression": _compression,
    "teardrop": _teardrop,
}

_SUBAXIAL = {"lamina": 0.24, "facet": 0.24, "transverse_process": 0.18, "compression": 0.16, "teardrop": 0.18}

#: Share of each fracture type within a level. C1: single arch against burst after an atlas series; C2: dens about half
#: and hangman about a fifth (NEXUS, Ann Emerg Med 2001); C3-C7: textbook values in the sense that breaks of the
#: processes outnumber those of the body more and more towards C7 (Emerg Radiol 2021).
FRACTURE_TYPES: dict[str, dict[str, float]] = {
    "C1": {"posterior_arch": 0.5, "jefferson": 0.5},
    "C2": {"dens_ii": 0.5, "hangman": 0.25, "lamina": 0.1, "teardrop": 0.15},
    "C3": _SUBAXIAL,
    "C4": _SUBAXIAL,
    "C5": _SUBAXIAL,
    "C6": {
        "lamina": 0.24,
        "facet": 0.22,
        "transverse_process": 0.16,
        "spinous_process": 0.14,
        "compression": 0.12,
        "teardrop": 0.12,
    },
    "C7": {
        "lamina": 0.20,
        "facet": 0.17,
        "transverse_process": 0.27,
        "spinous_process": 0.22,
        "compression": 0.08,
        "teardrop": 0.06,
    },
}


def draw_type(rng: np.random.Generator, level: str) -> str:
    """A fracture type for this level, by the shares of `FRACTURE_TYPES`."""
    kinds = FRACTURE_TYPES[level]
    share = np.array(list(kinds.values()))
    return list(kinds)[int(rng.choice(len(share), p=share / share.sum()))]


def draw_cuts(rng: np.random.Generator, kind: str, size: Size, difficulty: Difficulty, widen: float = 1.0):
    """The cuts of one fracture with its gap and displacement: `(cuts, gap_mm, displacement_mm)`.

    `widen` enlarges both after draws that could not be seen.
    """
    gap = float(rng.uniform(*difficulty.gap_mm)) * widen
    move = float(rng.uniform(*difficulty.displacement_mm)) * widen
    side = int(rng.choice((-1, 1)))
    return [_opened(cut) for cut in _MAKERS[kind](size, Draw(gap, move, side, rng))], gap, move


def _opened(cut: Cut) -> Cut:
    """The same cut without any part of its shift that would close its gap again."""
    n, t = np.asarray(cut.normal, dtype=float), np.asarray(cut.shift, dtype=float)
    n /= np.linalg.norm(n)
    return cut if cut.whole or n @ t >= 0 else replace(cut, shift=tuple(t - (n @ t) * n))


def draw_cleft(rng: np.random.Generator, level: str, size: Size) -> list[Cut]:
    """A look-alike that is no fracture: a smooth cleft with cortex on both faces (unfused tip, split rear arch)."""
    draw = Draw(float(rng.uniform(0.8, 1.6)), 0.0, int(rng.choice((-1, 1))), rng)
    if level == "C1":
        p = (0.0, 25.5, 2.0)
        cuts = [Cut(p, (1.0, 0.0, 0.0), p, (7.0, 9.0, 9.0), draw.gap)]
    else:
        cuts = _MAKERS["spinous_process" if size.spinous > 18.0 else "transverse_process"](size, draw)
    return [replace(cut, corticated=True, rough_mm=0.15) for cut in cuts]


@dataclass
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
    extra_hu: torch.Tensor | None = None


def apply_cuts(field: Field, bone: Bone, cuts: list[Cut], rng: np.random.Generator, obstacle: torch.Tensor) -> Bone:
    """Break `bone` along `cuts`, one after the other.

    `obstacle` is a distance, same shape: moved pieces stay out of where it is negative (the neighbours' joint space).
    """
    for cut in cuts:
        bone = _apply(field, bone, cut, rng, obstacle)
    return bone


def _apply(field: Field, bone: Bone, cut: Cut, rng: np.random.Generator, obstacle: torch.Tensor) -> Bone:
    p = [axis - float(c) for axis, c in zip((field.x, field.y, field.z), cut.point, strict=True)]
    n = np.asarray(cut.normal, dtype=float)
    n /= np.linalg.norm(n)
    reach = sum(
        ((axis - float(c)) / float(r)) ** 2
        for axis, c, r in zip((field.x, field.y, field.z), cut.window, cut.radii, strict=True)
    )
    window = smoothstep((1.35 - torch.sqrt(reach)) / 0.35)
    spacing = (field.grid.step_mm, field.grid.pixel_mm, field.grid.pixel_mm)
    side = float(n[0]) * p[0] + float(n[1]) * p[1] + float(n[2]) * p[2]
    side = side + cut.rough_mm * noise(field.d.shape, spacing, 5.0, rng)

    t, r = cut.shift, cut.turn
    shift = [
        window * (t[0] + r[1] * p[2] - r[2] * p[1]),
        window * (t[1] + r[2] * p[0] - r[0] * p[2]),
        window * (t[2] + r[0] * p[1] - r[1] * p[0]),
    ]
    moving = window > 0
    there = torch.stack([bone.occupied, bone.surface, bone.whole])
    there = torch.where(moving, _pull(field, there, shift), there)
    far = torch.where(moving, obstacle, torch.full_like(obstacle, -9.0))  # negative = free
    if cut.whole:
        there = torch.maximum(there, far)
        return Bone(there[0], there[1], there[2], bone.extra_hu)

    side_there = side - sum(float(a) * s for a, s in zip(n, shift, strict=True))
    apart = -_HEALED_MM + window * (_HEALED_MM + cut.gap_mm / 2)
    # For the label the pieces overlap by as much as they were drawn apart: no slit may tell the answer.
    drawn_apart = max(0.0, float(n @ np.asarray(t))) + 8.0 * float(np.abs(r).sum()) + 0.8
    joined = -_HEALED_MM + window * max(0.0, _HEALED_MM - drawn_apart)
    occupied = torch.minimum(
        torch.maximum(bone.occupied, side + apart), torch.maximum(torch.maximum(there[0], far), apart - side_there)
    )
    stays = torch.maximum(bone.whole, side + joined)
    moved = torch.maximum(torch.maximum(there[2], far), joined - side_there)
    surface = torch.where(stays <= moved, bone.surface, there[1])
    extra = bone.extra_hu
    if cut.sclerosis_hu:
        band = cut.sclerosis_hu * window * smoothstep(1.0 - (side.abs() / 2.2))
        extra = band if extra is None else extra + band
    return Bone(occupied, occupied if cut.corticated else surface, torch.minimum(stays, moved), extra)


def _pull(field: Field, values: torch.Tensor, shift: list[torch.Tensor]) -> torch.Tensor:
    """Values `(c, d, h, w)` read where the material came from: at p - shift (local mm), trilinear."""
    turn = field.pose.rotation
    x, y, z = (sum(float(turn[row, col]) * shift[col] for col in range(3)) for row in range(3))
    d, h, w = field.d.shape
    grid = field.grid
    at_d = torch.arange(d, dtype=torch.float32)[:, None, None] + z / grid.step_mm
    at_h = torch.arange(h, dtype=torch.float32)[None, :, None] - y / grid.pixel_mm
    at_w = torch.arange(w, dtype=torch.float32)[None, None, :] - x / grid.pixel_mm
    points = torch.stack([2 * at / max(n - 1, 1) - 1 for at, n in ((at_w, w), (at_h, h), (at_d, d))], dim=-1)
    return F.grid_sample(values[None], points[None], mode="bilinear", padding_mode="border", align_corners=True)[0]
