"""Look-alikes: what intact necks show that can be taken for a fracture.

They are drawn without a look at the label, at equal rates in broken and intact vertebrae, so that none of them can
give the answer away. A kind is one function under the `mimic` decorator, which names the plane that shows it best, the
levels, the rate *per vertebra* (at difficulty "standard") and the ages at which it occurs. New kinds go to the end:
the order is part of what a seed draws.

Published, per person: accessory foramen 13-24 % (Turk J Med Sci 43(5); Hindawi ari/2015/391823); textbook values, per
person: posterior cleft of C1 4 %, os odontoideum 1 %, scar of the dens-body synchondrosis 10 %, ponticulus posticus
10-15 %, unfused apophysis 5 %, limbus 10 % and endplate pits 30 % (after 45 and 40 years), healed fracture 3 %. At C1
and C2 the rates here are these. At C3-C7 they are guesses, set higher, so that a small cohort shows every kind.
Local frame and units as in `sdf`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from .cuts import Cut
from .fractures import KINDS, Draw
from .patient import SUBAXIAL, Patient, Size
from .sdf import Field, Primitive, capsule
from .vertebrae import Layout, layout


@dataclass
class Change:
    """What look-alikes do to one vertebra.

    Attributes
    ----------
    cuts : clefts with corticated faces, or healed lines
    added, carved : primitives joined to the bone or taken out of it (the new surface gets cortex), with their fillet
    channels : lucent canals inside the bone, without cortex
    dense : (primitive, HU) of sclerosis
    """

    cuts: list[Cut] = field(default_factory=list)
    added: list[tuple[Primitive, float]] = field(default_factory=list)
    carved: list[tuple[Primitive, float]] = field(default_factory=list)
    channels: list[Primitive] = field(default_factory=list)
    dense: list[tuple[Primitive, float]] = field(default_factory=list)

    def reshape(self, bone: Field) -> None:
        """Add and carve, in place."""
        for primitive, k in self.added:
            bone.add(primitive, k)
        for primitive, k in self.carved:
            bone.carve(primitive, k)


@dataclass(frozen=True)
class Place:
    """What a look-alike is given: the vertebra, its size and parts, a side (+1 = left) and a random stream."""

    level: str
    size: Size
    at: Layout
    side: int
    rng: np.random.Generator

    def between(self, low: float, high: float) -> float:
        return float(self.rng.uniform(low, high))

    def on_side(self, point) -> tuple[float, float, float]:
        return self.side * point[0], point[1], point[2]


@dataclass(frozen=True)
class Mimic:
    """One kind of look-alike: levels, rate per vertebra at those levels and ages, what it does, the plane to see it."""

    name: str
    levels: tuple[str, ...]
    rate: float
    ages: tuple[float, float]
    make: Callable[[Place, Change], None]
    plane: str

    @property
    def text(self) -> str:
        """One sentence for readers."""
        return (self.make.__doc__ or "").strip().split("\n")[0]


KINDS_OF_MIMICS: dict[str, Mimic] = {}


def mimic(plane: str, levels: tuple[str, ...], rate: float, ages: tuple[float, float] = (0.0, 120.0)):
    """Enter a function into the catalogue under its own name."""

    def enter(make: Callable[[Place, Change], None]):
        KINDS_OF_MIMICS[make.__name__] = Mimic(make.__name__, levels, rate, ages, make, plane)
        return make

    return enter


@mimic("axial", ("C1", "C2", *SUBAXIAL), 0.25)
def vessel_channel(p: Place, change: Change) -> None:
    """A fine vessel canal through lamina or pillar: lucent like a fracture line, but round and smooth."""
    (x0, y0, z0), (x1, y1, z1) = p.at.lamina
    share = p.between(0.0, 0.5)
    middle = np.array([p.side * (x0 + share * (x1 - x0)), y0 + share * (y1 - y0), z0 + share * (z1 - z0)])
    way = np.array([p.side * 0.75, 0.65, p.rng.normal(0.0, 0.5)])
    way *= 6.0 / np.linalg.norm(way)
    change.channels.append(capsule(tuple(middle - way), tuple(middle + way), p.between(0.4, 0.8)))


@mimic("sagittal", ("C1", "C2", *SUBAXIAL), 0.50)
def marrow_pocket(p: Place, change: Change) -> None:
    """One to three dark, round spots in spongy bone: pockets of fatty marrow, small cysts, wide veins."""
    x, y, z = p.at.pillar
    for _ in range(int(p.rng.integers(1, 4))):
        in_body = p.level != "C1" and p.rng.random() < 0.6
        half = np.array(
            [0.25 * p.size.width, 0.25 * p.size.depth, 0.25 * p.size.height] if in_body else [3.0, 3.0, 4.0]
        )
        middle = np.array([0.0, 0.0, 0.0] if in_body else [p.rng.choice((-1, 1)) * x, y, z]) + p.rng.uniform(
            -half, half
        )
        end = middle + p.rng.normal(0.0, 1.2, 3)
        change.channels.append(capsule(tuple(middle), tuple(end), p.between(0.9, 2.1)))


@mimic("axial", ("C1",), 0.04)
def posterior_cleft(p: Place, change: Change) -> None:
    """The rear arch of C1 never closed in the midline: a gap between two rounded ends with cortex."""
    at = (0.0, p.at.arch_y + 2.0, 2.0)
    change.cuts.append(_corticated(Cut(at, (1.0, 0.0, 0.0), at, (7.0, 9.0, 9.0), p.between(1.0, 4.0))))


@mimic("sagittal", ("C2",), 0.01)
def os_odontoideum(p: Place, change: Change) -> None:
    """The upper half of the dens is a bone of its own, round and corticated, above a wide smooth gap."""
    z = p.size.height / 2 + p.between(3.0, 5.0)
    at = (0.0, -0.5, z)
    cut = Cut(at, (0.0, 0.1, 1.0), (0.0, -0.5, z + 6.0), (9.0, 9.5, 14.0), p.between(1.5, 3.0), (0.0, 0.0, 0.5))
    change.cuts.append(_corticated(cut))


@mimic("coronal", ("C2",), 0.10)
def synchondrosis_scar(p: Place, change: Change) -> None:
    """A thin dense line across the base of the dens, where it grew together with the body in childhood."""
    z = p.size.height / 2 - 1.0
    flat = capsule((-3.2, 0.0, z), (3.2, 0.0, z), 0.55, stretch=(1.0, 6.0, 1.0))
    change.dense.append((flat, p.between(150.0, 350.0)))


@mimic("sagittal", ("C6", "C7"), 0.05, (18.0, 35.0))
def unfused_apophysis(p: Place, change: Change) -> None:
    """The growth centre at the tip of the spinous process has not fused: a smooth gap with cortex on both sides."""
    root, tip = (np.array(q) for q in p.at.spinous)
    at = tuple(root + 0.75 * (tip - root))
    change.cuts.append(_corticated(Cut(at, (0.0, 1.0, -0.3), tuple(tip), (8.0, 9.0, 10.0), p.between(0.8, 1.6))))


@mimic("sagittal", SUBAXIAL, 0.10, (45.0, 120.0))
def limbus(p: Place, change: Change) -> None:
    """A rounded, corticated ossicle at the upper front corner of a body, from an old displaced disc."""
    s = p.size
    at = (0.0, -s.depth / 2 + 2.8, s.height / 2 - 0.4)
    window = (0.0, -s.depth / 2 + 0.5, s.height / 2 + 0.5)
    cut = Cut(at, (0.0, -0.7, 0.7), window, (s.width * 0.4, 5.5, 5.5), p.between(0.7, 1.4))
    change.cuts.append(_corticated(cut))


@mimic("sagittal", SUBAXIAL, 0.30, (45.0, 120.0))
def osteophyte(p: Place, change: Change) -> None:
    """A bony lip at the front edge of the endplate, growing with wear of the disc."""
    s, up = p.size, float(p.rng.choice((-1.0, 1.0)))
    z, y, long = up * (s.height / 2 - 0.4), -s.depth / 2 + 1.5, p.between(1.5, 4.0)
    for share, wide in ((0.3, 0.32), (0.7, 0.24), (1.0, 0.14)):  # a shelf that narrows towards its edge
        x, out = wide * s.width, (y - share * long, z + 0.5 * up * share * long)
        change.added.append((capsule((-x, *out), (x, *out), 1.7 - 0.7 * share), 2.0))


@mimic("sagittal", SUBAXIAL, 0.20, (40.0, 120.0))
def endplate_pit(p: Place, change: Change) -> None:
    """A pit of one or two millimetres in an endplate with a dense rim (Schmorl's node)."""
    s, up = p.size, float(p.rng.choice((-1.0, 1.0)))
    x, y = p.rng.uniform(-0.2, 0.2) * s.width, p.rng.uniform(-0.15, 0.25) * s.depth
    z, wide = up * (s.height / 2 + 0.6), p.between(1.6, 2.6)
    change.carved.append((capsule((x, y, z), (x, y, z - up * p.between(0.2, 0.8)), wide, stretch=(1.3, 1.0, 0.8)), 0.6))
    change.dense.append((capsule((x, y, z), (x, y, z - up), wide + 1.3, stretch=(1.3, 1.0, 0.8)), 180.0))


@mimic("axial", ("C2", *SUBAXIAL), 0.15, (50.0, 120.0))
def facet_hypertrophy(p: Place, change: Change) -> None:
    """A worn facet joint: the pillar has grown bulky and dense at its outer side."""
    x, y, z = p.at.pillar
    top = z + p.between(-0.3, 0.7) * p.at.pillar_half
    bulge = capsule(p.on_side((x + 5.0, y - 2.0, top)), p.on_side((x + 6.0, y + 3.5, top - 1.5)), p.between(1.8, 2.8))
    change.added.append((bulge, 2.0))
    change.dense.append((capsule(p.on_side((x, y, top)), p.on_side((x + 4.0, y, top)), 4.5), p.between(80.0, 200.0)))


@mimic("axial", ("C3", "C4", "C5", "C6"), 0.12)
def accessory_foramen(p: Place, change: Change) -> None:
    """A second, smaller hole behind the one of the vertebral artery."""
    x, y = p.side * (p.at.foramen[0] + 0.8), p.at.foramen[1] + p.size.foramen / 2 + 1.8
    change.carved.append((capsule((x, y, -12.0), (x, y, 12.0), p.between(0.7, 1.3)), 0.4))


@mimic("axial", ("C3", "C4", "C5", "C6"), 0.05)
def open_foramen(p: Place, change: Change) -> None:
    """The ring around the vertebral artery is not closed: a smooth gap in its front root."""
    x, y = p.at.foramen
    at = (p.side * (x + 0.3), y - p.size.foramen / 2 - 1.6, -1.6)
    change.cuts.append(_corticated(Cut(at, (p.side * 1.0, 0.0, 0.0), at, (5.0, 2.6, 5.0), p.between(1.6, 3.0))))


@mimic("sagittal", ("C1",), 0.12)
def ponticulus(p: Place, change: Change) -> None:
    """A bony bridge over the groove of the vertebral artery on C1."""
    x, y, z = p.at.pillar
    over = [(x - 0.5, y + 7.5, 6.5), (x - 0.5, y + 12.0, 8.0), (x - 1.5, y + 15.5, 4.0)]
    for a, b in zip(over, over[1:], strict=False):
        change.added.append((capsule(p.on_side(a), p.on_side(b), 1.0), 1.0))


@mimic("axial", SUBAXIAL, 0.03)
def healed_fracture(p: Place, change: Change) -> None:
    """An old fracture that has knit: a dense, smooth line and a small step, no gap."""
    kinds = [k for k in ("lamina", "pillar", "transverse_process") if p.level in KINDS[k].share]
    draw = Draw(p.level, p.size, p.at, 0.0, p.between(0.4, 1.2), p.side, p.rng)
    for cut in KINDS[kinds[int(p.rng.integers(len(kinds)))]].cuts(draw):
        change.cuts.append(replace(cut.opened(), gap_mm=-1.6, rough_mm=0.3, sclerosis_hu=280.0))


#: Name and one sentence for readers.
MIMICS: dict[str, str] = {name: kind.text for name, kind in KINDS_OF_MIMICS.items()}


def _corticated(cut: Cut) -> Cut:
    return replace(cut, corticated=True, rough_mm=0.15)


def draw_mimics(rng: np.random.Generator, level: str, patient: Patient, factor: float) -> tuple[str, ...]:
    """Names of the look-alikes of one vertebra; `factor` multiplies every rate (see `Difficulty.mimics`)."""
    drawn = rng.random(len(KINDS_OF_MIMICS))
    return tuple(
        kind.name
        for kind, u in zip(KINDS_OF_MIMICS.values(), drawn, strict=True)
        if level in kind.levels and kind.ages[0] <= patient.age_years <= kind.ages[1] and u < factor * kind.rate
    )


def changes(rng: np.random.Generator, name: str, size: Size, mimics: tuple[str, ...]) -> Change:
    """What the named look-alikes do to bone `name`; a basivertebral vein is always there from C3 down."""
    change, at = Change(), layout(name, size)
    if name not in ("C1", "C2"):
        back, z = size.depth / 2, float(rng.uniform(-0.8, 0.8))
        deep = back - size.depth * float(rng.uniform(0.25, 0.5))
        wide = float(rng.uniform(0.7, 1.6))
        change.channels.append(capsule((0.0, back, z), (0.0, deep, z), wide, 0.6 * wide))
    seeds = {kind: int(rng.integers(2**63)) for kind in KINDS_OF_MIMICS}  # one stream a kind: others do not shift it
    for kind in mimics:
        own = np.random.default_rng(seeds[kind])
        KINDS_OF_MIMICS[kind].make(Place(name, size, at, int(own.choice((-1, 1))), own), change)
    return change
