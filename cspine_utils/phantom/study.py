"""One synthetic study: the plan that fixes everything about it before a voxel is computed.

Every stage of a study (levels, patient, scan, soft tissue, texture, look-alikes, each fracture, noise) has its own
random stream, derived from (seed, study index, stage). So a study can be made alone and in any order, and leaving the
fracture out changes nothing else: the intact twin.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

import numpy as np
import torch

from cspine_utils.anatomy import LEVELS
from cspine_utils.errors import ParameterError

from .fractures import DIFFICULTIES, FRACTURE_TYPES, draw_type
from .grid import Grid, Motion
from .mimics import KINDS_OF_MIMICS, draw_mimics
from .patient import BONES, Patient, Spine, build_spine, draw_patient
from .patterns import draw_levels
from .scanner import Scan, draw_scan
from .surroundings import Surroundings, draw_surroundings

PREVALENCES = ("rsna", "balanced")
MIN_SIZE = 48


class Stage(enum.IntEnum):
    """Names of the random streams of one study. Numbers are part of the cohort's identity: only ever append."""

    LEVELS = 1
    TYPES = 2
    PATIENT = 3
    SCAN = 4
    SOFT = 5
    TEXTURE = 6
    MIMICS = 7
    FRACTURE = 8
    NOISE = 9
    STORAGE = 10
    COHORT = 11
    SURROUNDINGS = 12
    MOTION = 13


def stream(seed: int, index: int, stage: Stage, *more: int) -> np.random.Generator:
    """The random stream of one stage of one study."""
    return np.random.default_rng(np.random.SeedSequence((seed, index, int(stage), *more)))


@dataclass(frozen=True, eq=False)
class StudyPlan:
    """Everything that is decided about a study before a voxel is computed.

    Attributes
    ----------
    seed, index : where its random streams come from
    uid : StudyInstanceUID
    size, difficulty : pixels across; one of `DIFFICULTIES`
    fractures : fracture type by level, e.g. `{"C5": "lamina"}`
    mimics : names of the look-alikes by level, drawn without a look at the fractures
    patient, surroundings, grid : the person, what surrounds the spine, the voxels
    scan : kernel, noise and streaks
    """

    seed: int
    index: int
    uid: str
    size: int
    difficulty: str
    fractures: dict[str, str]
    mimics: dict[str, tuple[str, ...]]
    patient: Patient
    surroundings: Surroundings
    grid: Grid
    scan: Scan

    def __post_init__(self):
        """A plan may be changed by `dataclasses.replace`; what cannot be drawn is refused, not left out."""
        if self.difficulty not in DIFFICULTIES:
            _refuse("difficulty", self.difficulty, "one of " + ", ".join(DIFFICULTIES))
        if self.size != self.grid.shape[2]:
            _refuse("size", self.size, f"{self.grid.shape[2]}, which the grid has", "draw a plan of another size")
        for level, kind in _items("fractures", self.fractures, 'a dict, e.g. {"C5": "lamina"}'):
            allowed = FRACTURE_TYPES.get(level) or _refuse("fractures", level, "levels out of C1 ... C7")
            if kind not in allowed:
                _refuse(f"fractures of {level}", kind, "one of " + ", ".join(allowed))
        for level, names in _items("mimics", self.mimics, 'a dict, e.g. {"C5": ("limbus",)}'):
            allowed = [kind.name for kind in KINDS_OF_MIMICS.values() if level in kind.levels]
            if not isinstance(names, tuple) or not set(names) <= set(allowed):
                _refuse(f"mimics of {level}", names, "a tuple of names out of " + (", ".join(allowed) or "nothing"))

    @property
    def levels(self) -> tuple[str, ...]:
        """The fractured levels, head to feet."""
        return tuple(level for level in LEVELS if level in self.fractures)

    @property
    def spine(self) -> Spine:
        """Sizes and poses of the vertebrae."""
        return build_spine(self.patient)

    def stream(self, stage: Stage, *more: int) -> np.random.Generator:
        """The random stream of one stage of this study."""
        return stream(self.seed, self.index, stage, *more)

    def facts(self) -> dict[str, object]:
        """What a reader may know of person and scan beside the image, as one row of a table."""
        p, s, motion = self.patient, self.surroundings, self.grid.motion
        return {
            "sex": p.sex,
            "age_years": round(p.age_years, 1),
            "stature_cm": round(p.stature_cm, 1),
            "cobb_deg": round(p.cobb_deg, 1),
            "kernel": self.scan.kernel,
            "noise_hu": round(self.scan.noise_hu, 2),
            "pixel_mm": self.grid.pixel_mm,
            "step_mm": self.grid.step_mm,
            "slices": self.grid.shape[0],
            "contrast_hu": round(s.contrast_hu or 0.0, 1),
            "collar": int(s.collar),
            "swelling_mm": round(s.swelling_mm, 2),
            "fillings": s.dental,
            "motion_mm": round(float(np.hypot(*motion.shift_mm)), 2) if motion else 0.0,
        }

    def landmarks(self) -> dict[str, dict[str, np.ndarray]]:
        """Centre (LPS mm, as scanned) and axes (3x3, columns to the left, back and head) of C1-T3."""
        return {
            name: {"centre": self.grid.scanned(pose.centre), "axes": pose.rotation}
            for name, pose in self.spine.poses.items()
        }


def study_uid(seed: int, index: int) -> str:
    """StudyInstanceUID of the form of the RSNA-2022 data: the root of a public toolkit and one number."""
    group = int(stream(seed, 0, Stage.COHORT, 1).integers(10_000, 100_000))
    return f"1.2.826.0.1.3680043.{group}{index:05d}"


def draw_plan(
    seed: int,
    index: int,
    *,
    size: int = 128,
    difficulty: str = "standard",
    prevalence: str = "rsna",
    levels: tuple[str, ...] | None = None,
) -> StudyPlan:
    """Decide everything about one study.

    Parameters
    ----------
    seed, index : integers >= 0; the same pair gives the same study
    size : pixels across (>= 48); the field of view stays 160-180 mm, so 128 means 1.25-1.4 mm pixels
    difficulty : "easy", "standard" or "hard" (gap, displacement, noise, look-alikes)
    prevalence : "rsna" or "balanced", see `patterns.draw_levels`
    levels : force these levels to be fractured; `()` forces an intact study; None draws them

    Raises
    ------
    ParameterError : an argument that cannot be
    """
    check_parameters(seed=seed, index=index, size=size, difficulty=difficulty, prevalence=prevalence, levels=levels)
    if levels is None:
        levels = draw_levels(stream(seed, index, Stage.LEVELS), prevalence)
    fractures = {level: draw_type(stream(seed, index, Stage.TYPES, LEVELS.index(level)), level) for level in levels}
    preset = DIFFICULTIES[difficulty]
    patient = draw_patient(stream(seed, index, Stage.PATIENT))
    mimics = {
        level: draw_mimics(stream(seed, index, Stage.MIMICS, i), level, patient, preset.mimics)
        for i, level in enumerate(LEVELS)
    }
    rng = stream(seed, index, Stage.SCAN)
    return StudyPlan(
        seed=int(seed),
        index=int(index),
        uid=study_uid(seed, index),
        size=int(size),
        difficulty=difficulty,
        fractures=fractures,
        mimics={level: names for level, names in mimics.items() if names},
        patient=patient,
        surroundings=draw_surroundings(stream(seed, index, Stage.SURROUNDINGS), patient),
        grid=_draw_grid(rng, seed, index, int(size), build_spine(patient)),
        scan=draw_scan(rng, preset.noise),
    )


def _refuse(name, found, expected, remedy="give one of what is expected"):
    raise ParameterError(name, found=repr(found), expected=expected, remedy=remedy)


def _items(name: str, value, expected: str):
    return value.items() if isinstance(value, dict) else _refuse(name, value, expected)


def check_device(device) -> None:
    """Raise `ParameterError` unless torch can render on this device: the CPU, or a GPU that it finds."""
    try:
        wanted = torch.device(device)
    except (RuntimeError, TypeError):  # not the name of any device
        wanted = None
    gpus = torch.cuda.device_count()
    if wanted is None or not (str(wanted) == "cpu" or (wanted.type == "cuda" and (wanted.index or 0) < gpus)):
        _refuse("device", device, "cpu, or cuda where torch finds a GPU", "leave it out to render on the CPU")


def check_parameters(*, seed, size, difficulty, prevalence, index=0, levels=None) -> None:
    """Raise `ParameterError` for the first argument of `draw_plan` that cannot be."""

    for name, value in (("seed", seed), ("index", index)):
        if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or value < 0:
            _refuse(name, value, "an integer >= 0")
    if not isinstance(size, (int, np.integer)) or isinstance(size, bool) or not MIN_SIZE <= size <= 1024:
        _refuse("size", size, f"an integer from {MIN_SIZE} to 1024 (pixels across)")
    if not isinstance(difficulty, str) or difficulty not in DIFFICULTIES:
        _refuse("difficulty", difficulty, "one of " + ", ".join(DIFFICULTIES))
    if not isinstance(prevalence, str) or prevalence not in PREVALENCES:
        _refuse("prevalence", prevalence, "one of " + ", ".join(PREVALENCES))
    if levels is not None and (
        not isinstance(levels, (tuple, list))
        or any(level not in LEVELS for level in levels)
        or len(set(levels)) != len(levels)
    ):
        _refuse("levels", levels, "a tuple of different levels out of C1 ... C7, or None", 'e.g. levels=("C5",)')


def _draw_grid(rng: np.random.Generator, seed: int, index: int, size: int, spine: Spine) -> Grid:
    """Field of view 160-180 mm around the neck, skull base to T2; rounded so that DICOM text is exact.

    The slice thickness is 0.8, 1, 1.25 or 1.5 times the slice step in turn, so every small cohort has studies in which
    the two differ (as many real ones do), whatever their labels.
    """
    pixel = round(float(rng.uniform(160.0, 178.0)) / size, 4)
    step = round(float(rng.choice((1.1, 1.25, 1.4))) * (128 / size) ** 0.5, 2)
    turn = int(stream(seed, 0, Stage.COHORT, 2).integers(4))
    thickness = round(step * (0.8, 1.0, 1.25, 1.5)[(turn + index) % 4], 3)
    bodies = np.array([spine.poses[name].centre for name in BONES])
    top = float(bodies[0, 2] + rng.uniform(19.0, 25.0))
    bottom = float(spine.poses["T2"].centre[2] - rng.uniform(-2.0, 16.0))
    middle = (bodies[:-1].min(axis=0) + bodies[:-1].max(axis=0)) / 2
    x = middle[0] + rng.normal(0.0, 2.5) - pixel * (size - 1) / 2
    y = middle[1] + 6.0 + rng.normal(0.0, 2.5) - pixel * (size - 1) / 2
    return Grid(
        (int((top - bottom) / step) + 1, size, size),
        (round(float(x), 2), round(float(y), 2), round(top, 2)),
        pixel,
        step,
        thickness,
        motion=_draw_motion(stream(seed, index, Stage.MOTION), bodies),
    )


def _draw_motion(rng: np.random.Generator, bodies: np.ndarray) -> Motion | None:
    """One patient in twenty moves by one to three millimetres during the scan (3-8 %: textbook value)."""
    height = float(rng.uniform(bodies[-2, 2], bodies[0, 2]))
    way, angle = rng.uniform(1.0, 3.0), rng.uniform(0.0, 2.0 * np.pi)
    moved = rng.random() < 0.05
    return Motion(height, (float(way * np.cos(angle)), float(way * np.sin(angle)))) if moved else None
