"""The catalogue of fractures: which kinds occur where, and how each lies in its vertebra.

A kind is one function under the `fracture` decorator. It gets a `Draw` (sizes, places of the parts, gap, displacement,
side, random stream) and returns the `Cut`s; the decorator names its share within each level. Nothing else has to
change for a new kind: its docstring's first line is shown to readers. New kinds go to the end of the file: the order
is part of what a seed draws (and any new share changes which kinds old seeds draw).

Shares. C1: single arch against burst after an atlas series (operativeneurosurgery.com). C2: dens a third of all (NEXUS,
Ann Emerg Med 2001) to a half; here a half, hangman a fifth (textbook values). C3-C7: textbook values in the sense that
breaks of the processes outnumber those of the body more and more towards C7 (Emerg Radiol 2021). They need not add up
to 1.
Local frame and units as in `sdf`: x left, y back, z head, mm.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from cspine_utils.anatomy import LEVELS

from .cuts import Cut
from .patient import Size
from .vertebrae import Layout, layout


@dataclass(frozen=True)
class Difficulty:
    """Ranges of the gap and of the displacement (mm), factor on the noise, factor on the rates of look-alikes."""

    gap_mm: tuple[float, float]
    displacement_mm: tuple[float, float]
    noise: float
    mimics: float


#: Ordered by what matters most to a reader: gap, then step-off, then noise and look-alikes.
DIFFICULTIES = {
    "easy": Difficulty((1.2, 2.5), (1.0, 3.0), 0.7, 0.4),
    "standard": Difficulty((0.5, 1.6), (0.3, 2.2), 1.0, 1.0),
    "hard": Difficulty((0.3, 0.9), (0.0, 1.0), 1.5, 1.8),
}

#: How a break can depart from one clean line, with its probability.
PATTERNS = {"complete": 0.6, "incomplete": 0.2, "comminuted": 0.2}


@dataclass(frozen=True)
class Draw:
    """What every kind is given: gap and displacement (mm), the side (+1 = left), sizes and places, a random stream."""

    level: str
    size: Size
    at: Layout
    gap: float
    move: float
    side: int
    rng: np.random.Generator

    def jitter(self, sd: float) -> float:
        """A normal number cut off at two standard deviations."""
        return float(np.clip(self.rng.normal(0.0, sd), -2 * sd, 2 * sd))

    def between(self, low: float, high: float) -> float:
        return float(self.rng.uniform(low, high))


@dataclass(frozen=True)
class Kind:
    """One kind of fracture: its share by level, its cuts, the plane that shows it best, patterns it may take."""

    name: str
    share: dict[str, float]
    cuts: Callable[[Draw], list[Cut]]
    plane: str
    patterns: tuple[str, ...]

    @property
    def text(self) -> str:
        """One sentence for readers."""
        return (self.cuts.__doc__ or "").strip().split("\n")[0]


KINDS: dict[str, Kind] = {}


def fracture(plane: str, patterns: tuple[str, ...] = ("complete",), **share: float):
    """Enter a function into the catalogue under its own name."""

    def enter(cuts: Callable[[Draw], list[Cut]]):
        name = cuts.__name__
        KINDS[name] = Kind(name, share, cuts, plane, patterns)
        return cuts

    return enter


def _on_rear_arch(d: Draw, side: int, angle_deg: float) -> tuple[float, float, float]:
    """A point on C1's rear arch, `angle_deg` off the midline."""
    a = np.deg2rad(angle_deg)
    wide, deep = d.at.pillar[0] * 0.98, d.at.arch_y + 1.4 - 5.0
    return (side * wide * float(np.sin(a)), 5.0 + deep * float(np.cos(a)), 2.0)


@fracture("axial", ("complete", "incomplete", "comminuted"), C1=0.30)
def posterior_arch(d: Draw) -> list[Cut]:
    """One or both sides of the rear arch of C1, near the groove of the vertebral artery."""
    cuts = []
    for side in (d.side, -d.side) if d.rng.random() < 0.5 else (d.side,):
        angle = d.between(25, 57)
        p, a = _on_rear_arch(d, side, angle), np.deg2rad(angle)
        normal = (-side * np.cos(a), np.sin(a), d.jitter(0.25))
        cuts.append(Cut(p, normal, p, (9.0, 9.0, 9.0), d.gap, (0.0, -0.4 * d.move, -0.5 * d.move), rough_mm=0.5))
    return cuts


@fracture("axial", ("complete", "comminuted"), C1=0.12)
def anterior_arch(d: Draw) -> list[Cut]:
    """A vertical line through the front arch of C1."""
    p = (d.side * d.between(2.0, 9.0), -9.6, 0.0)
    normal = (d.side, 0.25, d.jitter(0.2))
    return [Cut(p, normal, p, (7.5, 8.0, 10.0), d.gap, (d.side * 0.3 * d.move, -0.4 * d.move, 0.0), rough_mm=0.5)]


@fracture("axial", C1=0.38)
def jefferson(d: Draw) -> list[Cut]:
    """Burst of C1: front arch and both sides of the rear arch break, the lateral masses are driven apart."""
    front = (d.side * d.between(2.0, 6.0), -9.8, 0.0)
    apart = (d.side * 0.5 * d.move, 0.0, 0.0)
    cuts = [Cut(front, (d.side, 0.3, d.jitter(0.2)), front, (8.0, 8.0, 10.0), d.gap, apart, rough_mm=0.5)]
    for side in (-1, 1):
        angle = d.between(30, 55)
        p, a = _on_rear_arch(d, side, angle), np.deg2rad(angle)
        normal = (side * np.cos(a), -np.sin(a), d.jitter(0.2))
        shift = (side * 0.4 * d.move, 0.2 * d.move, 0.0)
        cuts.append(Cut(p, normal, p, (8.0, 8.0, 9.0), d.gap, shift, rough_mm=0.5))
    return cuts


@fracture("coronal", ("complete", "incomplete", "comminuted"), C1=0.20)
def lateral_mass(d: Draw) -> list[Cut]:
    """A split through one lateral mass of C1, from the upper to the lower facet."""
    x, y, z = d.at.pillar
    p = (d.side * (x + d.between(-1.5, 1.5)), y, z)
    normal = (d.side, d.jitter(0.3), d.jitter(0.15))
    return [Cut(p, normal, p, (9.0, 12.0, 11.0), d.gap, (d.side * 0.6 * d.move, 0.0, -0.3 * d.move))]


def _across_dens(d: Draw, z: float, window_z: float, radii, tilt: float = 0.0) -> list[Cut]:
    """A level break of the dens at height `z`; the upper piece slides backwards or forwards and tips."""
    p, way = (0.0, -0.5, z), d.side
    shift = (0.0, way * 0.8 * d.move, 0.15 * d.move)
    normal = (d.jitter(0.10), tilt + d.jitter(0.18), 1.0)
    return [
        Cut(p, normal, (0.0, -0.5, window_z), radii, d.gap, shift, (way * d.between(0.0, 0.06), 0.0, 0.0), rough_mm=0.8)
    ]


@fracture("sagittal", C2=0.04)
def dens_i(d: Draw) -> list[Cut]:
    """Type I: the tip of the dens is torn off obliquely."""
    z = d.size.height / 2 + d.between(11.0, 13.0)
    return _across_dens(d, z, z + 4.0, (8.0, 8.0, 8.0), tilt=0.35)


@fracture("sagittal", ("complete", "incomplete", "comminuted"), C2=0.30)
def dens_ii(d: Draw) -> list[Cut]:
    """Type II: across the waist of the dens, which slides forwards or backwards."""
    z = d.size.height / 2 + d.between(2.0, 4.5)
    return _across_dens(d, z, z + 6.0, (9.0, 9.5, 14.0))


@fracture("coronal", ("complete", "comminuted"), C2=0.17)
def dens_iii(d: Draw) -> list[Cut]:
    """Type III: the break runs through the body of C2 below the dens."""
    z = d.size.height / 2 - d.between(3.0, 6.0)
    return _across_dens(d, z, z + 8.0, (11.0, 10.0, 16.0))


@fracture("axial", C2=0.20)
def hangman(d: Draw) -> list[Cut]:
    """Both sides of the arch of C2 between body and lower facet; the body comes forward."""
    cuts = []
    for side in (-1, 1):
        p = (side * (d.size.canal_width / 2 + 3.5), d.size.depth / 2 + d.between(1.5, 4.0), -2.0)
        shift = (0.0, 0.35 * d.move, -0.3 * d.move)
        cuts.append(Cut(p, (side * 0.2, 1.0, 0.35 + d.jitter(0.15)), p, (8.5, 6.5, 12.0), d.gap, shift, rough_mm=0.8))
    return cuts


@fracture(
    "axial", ("complete", "incomplete", "comminuted"), C2=0.09, C3=0.22, C4=0.22, C5=0.22, C6=0.22, C7=0.19
)  # fmt: skip
def lamina(d: Draw) -> list[Cut]:
    """An oblique line through one lamina with a small step of its walls."""
    start, end = (np.array([d.side * q[0], q[1], q[2]]) for q in d.at.lamina)
    p = tuple(start + d.between(0.3, 0.7) * (end - start))
    way = (end - start) / np.linalg.norm(end - start)
    normal = (way[0] + d.jitter(0.25), way[1], d.jitter(0.25))
    step = (0.5 * d.move * d.side * way[1], 0.5 * d.move * abs(way[0]), -0.3 * d.move)
    return [Cut(p, normal, p, (7.5, 7.5, 11.0), d.gap, step, rough_mm=0.5)]


@fracture("sagittal", ("complete", "comminuted"), C3=0.14, C4=0.14, C5=0.14, C6=0.13, C7=0.11)
def facet(d: Draw) -> list[Cut]:
    """The tip of an upper articular facet breaks off and moves forwards."""
    x, y, z = d.at.pillar
    p = (d.side * x, y - 1.0, z + d.at.pillar_half * d.between(0.25, 0.55))
    normal = (d.jitter(0.2), d.size.facet_slope * 0.5 + d.jitter(0.2), 1.0)
    shift = (0.0, -0.5 * d.move, 0.25 * d.move)
    return [Cut(p, normal, (p[0], y, p[2] + 3.0), (8.5, 9.0, 8.5), d.gap, shift, (d.side * 0.03, 0.0, 0.0))]


@fracture("sagittal", ("complete", "incomplete", "comminuted"), C3=0.10, C4=0.10, C5=0.10, C6=0.10, C7=0.08)
def pillar(d: Draw) -> list[Cut]:
    """Across an articular pillar at mid-height, which is squeezed between its neighbours."""
    x, y, z = d.at.pillar
    p = (d.side * x, y, z + d.between(-1.5, 1.0))
    normal = (d.jitter(0.25), -0.30 + d.jitter(0.25), 1.0)
    shift = (d.side * 0.4 * d.move, 0.3 * d.move, 0.0)
    return [Cut(p, normal, p, (8.5, 8.5, 7.0), d.gap, shift, rough_mm=0.8)]


@fracture("axial", ("complete",), C2=0.08, C3=0.16, C4=0.16, C5=0.16, C6=0.15, C7=0.27)
def transverse_process(d: Draw) -> list[Cut]:
    """Through a transverse process; at C3-C6 the line meets the hole of the vertebral artery."""
    (x, y), tip = d.at.foramen, d.at.transverse
    if d.level == "C7":  # a long process behind a small hole: beyond the pillar
        edge = d.at.pillar[0] + 7.0
        p = (d.side * (edge + d.between(0.25, 0.6) * (tip[0] - edge)), tip[1], tip[2])
        window, radii = p, (7.0, 8.0, 8.0)
    else:  # in front of the pillar, through the roots and the bar around the hole
        p = (d.side * (x + d.between(-0.5, 2.0)), y - 0.5, -2.0)
        window, radii = (p[0] + d.side * 4.0, p[1], p[2]), (8.5, 4.6, 8.0)
    shift = (d.side * 0.3 * d.move, 0.3 * d.move, -0.6 * d.move)
    return [Cut(p, (d.side, d.jitter(0.25), d.jitter(0.25)), window, radii, d.gap, shift, rough_mm=0.5)]


@fracture("sagittal", ("complete", "comminuted"), C6=0.14, C7=0.22)
def spinous_process(d: Draw) -> list[Cut]:
    """Clay-shoveller's fracture: across the spinous process, the tip drawn down."""
    root, tip = (np.array(q) for q in d.at.spinous)
    p = tuple(root + d.between(0.3, 0.6) * (tip - root))
    length = float(np.linalg.norm(tip - root))
    far = tuple(np.asarray(p) + 0.5 * (tip - root))
    normal = (d.jitter(0.1), 1.0, 0.25 + d.jitter(0.2))
    shift = (0.0, 0.2 * d.move, -0.8 * d.move)
    return [Cut(p, normal, far, (10.0, 0.5 * length + 8.0, 13.0), d.gap, shift, rough_mm=0.6)]


def _pressed(s: Size, loss: float) -> Cut:
    """The front of the upper endplate pressed down by `loss` mm."""
    top = (0.0, -s.depth / 2 - 1.0, s.height / 2 + 1.0)
    radii = (s.width * 0.62, s.depth * 0.62, s.height * 0.5)
    return Cut(top, (0.0, 0.0, 1.0), top, radii, 0.0, (0.0, 0.0, -loss), whole=True)


@fracture("sagittal", ("complete",), C3=0.09, C4=0.09, C5=0.09, C6=0.08, C7=0.06)
def compression(d: Draw) -> list[Cut]:
    """The front of the upper endplate is pressed down by 12-35 % of the height, with a dense line and a broken edge."""
    s = d.size
    loss = float(np.clip(0.12 + 0.08 * d.move + 0.03 * d.gap, 0.12, 0.35)) * s.height
    line = (0.0, -s.depth / 4, s.height / 2 - loss - 2.0)
    shift = (0.0, -0.4 * d.move, 0.0)
    edge = Cut(
        line, (d.jitter(0.08), -0.30, 1.0), line, (s.width * 0.5, s.depth * 0.42, 5.5), 0.6 * d.gap, shift,
        rough_mm=0.8, sclerosis_hu=220.0,
    )  # fmt: skip
    return [_pressed(s, loss), edge]


@fracture("axial", ("complete",), C3=0.05, C4=0.06, C5=0.06, C6=0.05, C7=0.03)
def burst(d: Draw) -> list[Cut]:
    """The body gives way in all directions: split in the midline, pressed down, a rear piece pushed into the canal."""
    s = d.size
    middle = (d.jitter(1.5), 0.0, 0.0)
    split = Cut(
        middle, (1.0, d.jitter(0.25), 0.0), middle, (8.0, s.depth * 0.62, s.height * 0.75), d.gap,
        (0.35 * d.move, 0.0, 0.0),
    )  # fmt: skip
    rear = (0.0, s.depth / 2 - s.depth * 0.28, s.height * 0.15)
    window = (0.0, s.depth / 2 - 1.0, s.height * 0.25)
    into_canal = Cut(
        rear, (d.jitter(0.2), 1.0, 0.35), window, (s.width * 0.34, s.depth * 0.38, s.height * 0.5), d.gap,
        (0.0, min(0.2 * s.canal_depth, 0.8 * d.move), 0.0), sclerosis_hu=120.0,
    )  # fmt: skip
    return [_pressed(s, 0.10 * s.height + 0.5 * d.move), split, into_canal]


@fracture("sagittal", ("complete", "comminuted"), C2=0.12, C3=0.14, C4=0.13, C5=0.15, C6=0.10, C7=0.06)
def teardrop(d: Draw) -> list[Cut]:
    """The lower front corner of the body is off as one triangular piece."""
    s = d.size
    p = (0.0, -s.depth / 2 + d.between(0.2, 0.36) * s.depth, -s.height / 2 + 0.5)
    window = (0.0, -s.depth / 2 + 1.0, -s.height / 2 + 2.0)
    normal, shift = (d.jitter(0.12), -0.8, -0.65 + d.jitter(0.12)), (0.0, -0.6 * d.move, -0.3 * d.move)
    radii = (s.width * 0.56, s.depth * 0.52, s.height * 0.70)
    return [Cut(p, normal, window, radii, d.gap, shift, (d.between(0.0, 0.08), 0.0, 0.0), rough_mm=0.6)]


@fracture("axial", ("complete", "incomplete"), C3=0.07, C4=0.07, C5=0.07, C6=0.07, C7=0.06)
def pedicle(d: Draw) -> list[Cut]:
    """Through one pedicle, between body and pillar."""
    x, y, z = d.at.pedicle
    p = (d.side * (x + d.between(-0.5, 1.0)), y + 0.5, z)
    normal = (d.side * 0.75, 0.65 + d.jitter(0.2), d.jitter(0.25))
    shift = (d.side * 0.4 * d.move, 0.4 * d.move, -0.2 * d.move)
    return [Cut(p, normal, p, (6.0, 6.0, 8.5), d.gap, shift, rough_mm=0.5)]


@fracture("coronal", ("complete",), C3=0.04, C4=0.05, C5=0.05, C6=0.05, C7=0.03)
def uncinate_process(d: Draw) -> list[Cut]:
    """The lip at the side of an upper endplate is sheared off outwards."""
    s = d.size
    p = (d.side * (s.width / 2 - 2.0), d.between(-1.0, 2.0), s.height / 2 + d.between(0.0, 1.2))
    normal = (d.side * (0.6 + d.jitter(0.15)), d.jitter(0.15), 0.8)
    shift = (d.side * 0.5 * d.move, 0.0, 0.1 * d.move)
    return [Cut(p, normal, (p[0], p[1], p[2] + 1.5), (5.5, 8.0, 5.5), d.gap, shift, rough_mm=0.4)]


#: Share of each kind within a level, adding up to 1.
FRACTURE_TYPES: dict[str, dict[str, float]] = {
    level: {
        name: kind.share[level] / sum(k.share.get(level, 0.0) for k in KINDS.values())
        for name, kind in KINDS.items()
        if level in kind.share
    }
    for level in LEVELS
}


def draw_type(rng: np.random.Generator, level: str) -> str:
    """A kind of fracture for this level, by the shares of `FRACTURE_TYPES`."""
    kinds = FRACTURE_TYPES[level]
    return list(kinds)[int(rng.choice(len(kinds), p=list(kinds.values())))]


def draw_cuts(
    rng: np.random.Generator, kind: str, level: str, size: Size, difficulty: Difficulty, widen: float = 1.0
) -> tuple[list[Cut], float, float, str]:
    """The cuts of one fracture with its gap (mm), displacement (mm) and pattern.

    `widen` enlarges gap and displacement after draws that could not be seen.
    """
    gap = float(rng.uniform(*difficulty.gap_mm)) * widen
    move = float(rng.uniform(*difficulty.displacement_mm)) * widen
    side = int(rng.choice((-1, 1)))
    allowed = KINDS[kind].patterns
    weight = np.array([PATTERNS[p] for p in allowed])
    pattern = allowed[int(rng.choice(len(allowed), p=weight / weight.sum()))]
    cuts = [cut.opened() for cut in KINDS[kind].cuts(Draw(level, size, layout(level, size), gap, move, side, rng))]
    if pattern == "incomplete":
        cuts[0] = _incomplete(cuts[0], rng)
        move = 0.0 if len(cuts) == 1 else move
    elif pattern == "comminuted":
        cuts.append(_branch(cuts[0], rng))
    return cuts, gap, move, pattern


def _incomplete(cut: Cut, rng: np.random.Generator) -> Cut:
    """The same break ending inside the bone: its window moved along the plane to one side, nothing displaced."""
    along = np.cross(cut.normal, rng.normal(size=3))
    along *= 0.45 * np.asarray(cut.radii) / np.linalg.norm(along)
    radii = tuple(0.75 * r for r in cut.radii)
    return replace(cut, window=tuple(np.asarray(cut.window) + along), radii=radii, shift=(0.0,) * 3, turn=(0.0,) * 3)


def _branch(cut: Cut, rng: np.random.Generator) -> Cut:
    """A second, smaller line that leaves the first one steeply: one more fragment."""
    n = np.asarray(cut.normal, dtype=float) / np.linalg.norm(cut.normal)
    across = np.cross(n, rng.normal(size=3))
    across = across / np.linalg.norm(across) + 0.35 * n
    radii = tuple(0.7 * r for r in cut.radii)
    shift = tuple(0.5 * cut.gap_mm * across)
    return replace(
        cut, normal=tuple(across), window=cut.point, radii=radii, gap_mm=0.8 * cut.gap_mm, shift=shift, turn=(0.0,) * 3
    )
