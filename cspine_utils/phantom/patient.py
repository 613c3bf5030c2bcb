"""The person: sex, age, stature, posture, bone density, and the size and place of every vertebra.

Sizes are adult means in mm, set so that they measure right on the finished label map (see `morphometry`):
body widths after a 404-bone collection, depths and heights after series of 164 and 100 C3-C6 bones, canal after a CT
series of central India, C1 after two atlas series (Patel & Gupta; Rekha 2016), dens after Acharya 2021 and PMC3687901,
discs after a series of 1,000 adults on CT (PMC11225399). What those series do not give (pillars, laminae, thoracic
sizes, and every number about age) are textbook values.
The frames are those of `sdf`: local x to the left, y to the back, z to the head, origin at the body's centre
(C1: on the axis of the dens).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from .sdf import Pose, rotation

BONES = ("C1", "C2", "C3", "C4", "C5", "C6", "C7", "T1", "T2", "T3")

#: The levels that are built alike.
SUBAXIAL = BONES[2:7]

#: Discs between neighbours of `BONES`, named by the vertebra above: C2 (C2/3) to T2 (T2/3).
DISCS = BONES[1:-1]


@dataclass(frozen=True)
class Size:
    """One vertebra in mm: body width, depth, height; disc below it; canal depth and width; spinous and transverse
    process length; hole of the vertebral artery (diameter); spinous fall (mm per mm); slope of the facet joints
    against the horizontal (tangent)."""

    width: float
    depth: float
    height: float
    disc: float
    canal_depth: float
    canal_width: float
    spinous: float
    transverse: float
    foramen: float
    spinous_fall: float
    facet_slope: float


#: What is drawn. Rounded edges and hollow endplates make bones measure smaller and canals and discs larger than
#: drawn, so these numbers were set such that the *measured* means meet the published ones.
SIZES: dict[str, Size] = {
    "C1": Size(38.0, 11.0, 16.0, 0.0, 29.0, 27.0, 3.0, 36.0, 6.2, 0.0, 0.3),
    "C2": Size(21.5, 16.2, 20.0, 3.4, 13.2, 19.0, 12.5, 25.0, 3.8, 0.35, 0.9),
    "C3": Size(23.5, 16.2, 12.0, 3.0, 11.2, 18.6, 8.6, 25.5, 3.8, 0.40, 0.85),
    "C4": Size(24.3, 16.4, 11.6, 3.1, 11.3, 18.2, 8.8, 26.0, 3.8, 0.42, 0.9),
    "C5": Size(25.0, 16.7, 11.2, 3.2, 11.1, 19.0, 10.4, 27.0, 3.8, 0.45, 1.0),
    "C6": Size(26.2, 17.1, 11.7, 3.3, 11.2, 19.2, 14.0, 28.0, 3.8, 0.48, 1.2),
    "C7": Size(27.6, 18.0, 13.6, 3.6, 12.0, 19.4, 21.0, 33.0, 3.6, 0.50, 1.4),
    "T1": Size(29.0, 18.0, 15.4, 3.4, 13.0, 18.2, 24.0, 36.0, 0.0, 0.60, 1.7),
    "T2": Size(28.0, 18.4, 16.6, 3.2, 13.0, 15.8, 24.0, 34.0, 0.0, 0.80, 2.0),
    "T3": Size(27.0, 18.8, 17.2, 3.0, 13.0, 14.8, 23.0, 32.0, 0.0, 1.00, 2.2),
}

#: Spread between people and between the vertebrae of one person, relative to the size. Chosen so that the measured
#: spreads meet the published ones.
_SPREAD = {
    "width": (0.032, 0.036),
    "depth": (0.070, 0.060),
    "height": (0.040, 0.070),
    "disc": (0.26, 0.18),
    "canal_depth": (0.125, 0.060),
    "canal_width": (0.055, 0.035),
    "spinous": (0.16, 0.14),
    "foramen": (0.14, 0.16),
}


@dataclass(frozen=True, eq=False)
class Patient:
    """What differs between people; drawn once per study from its own random stream.

    Attributes
    ----------
    sex, age_years, stature_cm : "F" or "M"; 18-95; height of the person
    scale : size of the skeleton relative to the adult mean
    cobb_deg, slope_deg : C2-C7 lordosis (negative = kyphosis) and forward tilt of C7, lying on the table
    bend_deg, twist_deg, head_twist_deg : side bend and axial turn of the neck, extra turn of head and C1
    trabecular_hu, cortical_hu : bone density
    neck : width and depth of the neck relative to the mean
    factors : by name of a length in `Size`, a `(10,)` array of relative sizes, one a vertebra
    degeneration : wear of each of `DISCS`, 0 = none, 1 = bone on bone
    bifid : which of C2-C6 have a forked spinous tip
    """

    sex: str
    age_years: float
    stature_cm: float
    scale: float
    cobb_deg: float
    slope_deg: float
    bend_deg: float
    twist_deg: float
    head_twist_deg: float
    trabecular_hu: float
    cortical_hu: float
    neck: tuple[float, float]
    factors: dict[str, np.ndarray]
    degeneration: tuple[float, ...]
    bifid: tuple[bool, ...]


def _clipped(rng: np.random.Generator, mean: float, sd: float, low: float, high: float) -> float:
    return float(np.clip(rng.normal(mean, sd), low, high))


def draw_patient(rng: np.random.Generator) -> Patient:
    """Sample a person.

    Lordosis N(11, 9) deg (Guo 2018: a third of healthy adults are not lordotic); bifid tips after Cho 2012 (> 70 % at
    C2-C5, about a third at C6); men 5-8 % larger; trabecular bone 400 HU at 20 years, losing 3 HU a year; wear of the
    discs from 35 years on, most at C5/6 and its neighbours (PMC5958484); the rest are textbook values.
    """
    sex = "M" if rng.random() < 0.58 else "F"
    age = _clipped(rng, 54.0, 20.0, 18.0, 95.0)
    stature = _clipped(rng, 176.0 if sex == "M" else 163.0, 6.8, 148.0, 200.0)
    factors = {
        name: 1.0
        + np.clip(rng.normal(0.0, person), -2.5 * person, 2.5 * person)
        + np.clip(rng.normal(0.0, bone, len(BONES)), -2.5 * bone, 2.5 * bone)
        for name, (person, bone) in _SPREAD.items()
    }
    place = np.array([0.5, 0.7, 0.9, 1.2, 1.1, 0.5, 0.3, 0.3])  # C2/3 ... T2/3
    wear = np.clip((age - 35.0) / 60.0, 0.0, 1.0) * place * rng.gamma(2.0, 0.35, len(DISCS))
    return Patient(
        sex=sex,
        age_years=age,
        stature_cm=stature,
        scale=1.0 + 0.8 * (stature / 170.5 - 1.0),
        cobb_deg=_clipped(rng, 11.0, 9.0, -10.0, 30.0),
        slope_deg=_clipped(rng, 13.0, 5.0, 2.0, 23.0),
        bend_deg=_clipped(rng, 0.0, 1.8, -5.0, 5.0),
        twist_deg=_clipped(rng, 0.0, 2.5, -7.0, 7.0),
        head_twist_deg=_clipped(rng, 0.0, 4.0, -9.0, 9.0),
        trabecular_hu=_clipped(rng, 400.0 - 3.0 * (age - 20.0), 35.0, 130.0, 460.0),
        cortical_hu=_clipped(rng, 1380.0 - 2.5 * (age - 50.0), 80.0, 1100.0, 1600.0),
        neck=(_clipped(rng, 1.0, 0.07, 0.85, 1.2), _clipped(rng, 1.0, 0.07, 0.85, 1.2)),
        factors=factors,
        degeneration=tuple(float(w) for w in np.clip(wear, 0.0, 0.9)),
        bifid=tuple(bool(b) for b in rng.random(5) < (0.8, 0.8, 0.75, 0.75, 0.35)),
    )


@dataclass(frozen=True)
class Spine:
    """Sizes and poses of the ten bones, in patient frame (mm); `skull` is the pose of the head."""

    sizes: dict[str, Size]
    poses: dict[str, Pose]
    skull: Pose

    def canal(self, name: str) -> np.ndarray:
        """LPS centre of the spinal canal at the mid-height of a vertebra."""
        size = self.sizes[name]
        back = 6.0 if name == "C1" else size.depth / 2 + size.canal_depth / 2
        return self.poses[name].to_patient([0.0, back, 0.0])


def build_spine(patient: Patient) -> Spine:
    """Stack the vertebrae from C7 upwards and downwards along the drawn curve; C7's centre is the frame's origin."""
    sizes = {}
    for i, name in enumerate(BONES):
        s = SIZES[name]
        lengths = {field: getattr(s, field) * patient.scale * factor[i] for field, factor in patient.factors.items()}
        lengths["transverse"] = s.transverse * patient.scale * patient.factors["width"][i]
        if name in DISCS:
            lengths["disc"] *= 1.0 - 0.6 * patient.degeneration[DISCS.index(name)]
        sizes[name] = replace(s, **lengths)
    tilt = {"T1": patient.slope_deg + 2.0, "T2": patient.slope_deg + 3.0, "T3": patient.slope_deg + 4.0}
    for step, name in enumerate(BONES[6:0:-1]):  # C7 .. C2
        tilt[name] = patient.slope_deg - patient.cobb_deg * step / 5
    turn = {name: rotation(tilt[name], patient.bend_deg, patient.twist_deg) for name in tilt}
    centre = {"C7": np.zeros(3)}
    for below, above in zip(BONES[6:1:-1], BONES[5:0:-1], strict=True):
        centre[above] = centre[below] + _pitch(sizes, above, turn[above], below, turn[below])
    for above, below in zip(BONES[6:], BONES[7:], strict=False):
        centre[below] = centre[above] - _pitch(sizes, above, turn[above], below, turn[below])
    poses = {name: Pose(centre[name], turn[name]) for name in turn}
    head = rotation(tilt["C2"] * 0.5, patient.bend_deg, patient.twist_deg + patient.head_twist_deg)
    poses["C1"] = Pose(poses["C2"].to_patient([0.0, -1.0, patient.scale * 18.0]), head)
    skull = Pose(poses["C1"].centre, rotation(0.0, patient.bend_deg, patient.twist_deg + patient.head_twist_deg))
    return Spine(sizes, {name: poses[name] for name in BONES}, skull)


def _pitch(sizes, above, turn_above, below, turn_below) -> np.ndarray:
    disc = sizes[above].disc
    return turn_above[:, 2] * (sizes[above].height + disc) / 2 + turn_below[:, 2] * (sizes[below].height + disc) / 2
