"""One vertebra with and without the thing that a figure shows: a fracture, a look-alike, noise.

An example is `(with, without, plane)`: two `phantom.Rendered` that differ in that thing alone, and the plane that shows
it best.
"""

from __future__ import annotations

from dataclasses import replace

from cspine_utils import phantom
from cspine_utils.phantom.mimics import KINDS_OF_MIMICS

#: Kind of fracture -> level at which it is shown; others at the level that they make up the largest share of.
FRACTURE_SHOWN_AT = {
    "lamina": "C4",
    "facet": "C5",
    "pillar": "C6",
    "transverse_process": "C5",
    "spinous_process": "C7",
    "compression": "C6",
    "burst": "C5",
    "pedicle": "C4",
}

#: Look-alike -> level at which it is shown; others at the last level that can have them.
MIMIC_SHOWN_AT = {
    "vessel_channel": "C5",
    "marrow_pocket": "C5",
    "limbus": "C5",
    "osteophyte": "C6",
    "endplate_pit": "C4",
    "facet_hypertrophy": "C4",
    "accessory_foramen": "C5",
    "open_foramen": "C4",
    "healed_fracture": "C6",
}


def kernels(seed: int, *, size: int = 256, level: str = "C4") -> dict:
    """One vertebra scanned with each kernel of the phantom, with noise and without."""
    plan = phantom.draw_plan(seed, 0, size=size, levels=())
    dose = _bone_noise(plan)
    found = {}
    for name, kernel in phantom.KERNELS.items():
        same = replace(plan, scan=replace(plan.scan, kernel=name, noise_hu=dose * kernel.noise))
        found[name] = tuple(phantom.render_vertebra(same, level, noise=noise) for noise in (True, False))
    return found


def fractures(seed: int, *, size: int = 256, difficulty: str = "easy", kinds=None) -> dict:
    """Every kind of fracture of the phantom (or those named), title -> example."""
    pairs = {}
    for index, (name, kind) in enumerate(phantom.KINDS.items()):
        if kinds is None or name in kinds:
            level = FRACTURE_SHOWN_AT.get(name, max(kind.share, key=kind.share.get))
            plan = phantom.draw_plan(seed, index, size=size, difficulty=difficulty, levels=(level,))
            plan = replace(_bone_kernel(plan), fractures={level: name}, mimics={})
            pairs[f"{level}: {_words(name)}"] = (
                *phantom.render_vertebra_pair(plan, level, box_mm=_box_mm(level, kind.plane)),
                kind.plane,
            )
    return pairs


def mimics(seed: int, *, size: int = 256) -> dict:
    """Every look-alike of the phantom, title -> example."""
    pairs = {}
    for index, (name, kind) in enumerate(KINDS_OF_MIMICS.items()):
        level, plane = MIMIC_SHOWN_AT.get(name, kind.levels[-1]), kind.plane
        plan = _bone_kernel(phantom.draw_plan(seed, 100 + index, size=size, difficulty="easy", levels=()))
        both = (replace(plan, mimics=m) for m in ({level: (name,)}, {}))
        renderings = (phantom.render_vertebra(p, level, box_mm=_box_mm(level, plane)) for p in both)
        pairs[f"{level}: {_words(name)}"] = (*renderings, plane)
    return pairs


def _box_mm(level: str, plane: str) -> tuple[float, float, float]:
    """A box (d, h, w) around a vertebra that holds a picture 60 mm wide; C7's spinous process is long."""
    back = 104.0 if level == "C7" else 80.0
    return {"axial": (44.0, back, 84.0), "sagittal": (64.0, back, 56.0), "coronal": (64.0, 56.0, 84.0)}[plane]


def _bone_kernel(plan):
    """The same plan scanned with the bone kernel, so that examples differ in nothing but the bone."""
    grid = replace(plan.grid, motion=None)
    return replace(plan, scan=replace(plan.scan, kernel="bone", noise_hu=_bone_noise(plan)), grid=grid)


def _bone_noise(plan) -> float:
    """The noise (HU) that this plan's dose gives with the bone kernel."""
    return plan.scan.noise_hu / phantom.KERNELS[plan.scan.kernel].noise


def _words(name: str) -> str:
    """dens_ii -> dens II, posterior_arch -> posterior arch."""
    return " ".join(part.upper() if set(part) == {"i"} else part for part in name.split("_"))
