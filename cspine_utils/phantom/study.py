"""One synthetic study: the plan that fixes everything about it, and the volume rendered from the plan.

Every stage of a study (levels, patient, scan, soft tissue, texture, look-alikes, each fracture, noise) has its own
random stream, derived from (seed, study index, stage). So a study can be made alone and in any order, and leaving the
fracture out changes nothing else: the intact twin.
"""

from __future__ import annotations

import contextlib
import enum
from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage

from cspine_utils.anatomy import LABEL_IDS, LEVELS
from cspine_utils.errors import ParameterError

from . import neck, scanner
from .anatomy import BONES, JOINT_MM, Patient, Spine, build_spine, build_vertebrae, draw_patient
from .fractures import DIFFICULTIES, Bone, apply_cuts, draw_cleft, draw_cuts, draw_type
from .patterns import draw_levels
from .sdf import BAND_MM, Field, Grid, overlap

#: A voxel counts as altered by a fracture if the blurred, noise-free volumes with and without it differ by more.
ALTERED_HU = 60.0

#: A fracture that alters less than this volume (and fewer than `MIN_ALTERED_VOXELS`) is drawn again.
MIN_ALTERED_MM3, MIN_ALTERED_VOXELS = 45.0, 8

#: Bounding boxes are this much wider than the altered voxels, in pixels per side.
BOX_PAD = 2

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
    patient, grid : the person and the voxels
    noise_hu : standard deviation of the noise above the shoulders
    """

    seed: int
    index: int
    uid: str
    size: int
    difficulty: str
    fractures: dict[str, str]
    patient: Patient
    grid: Grid
    noise_hu: float

    @property
    def levels(self) -> tuple[str, ...]:
        """The fractured levels, head to feet."""
        return tuple(level for level in LEVELS if level in self.fractures)


@dataclass(frozen=True)
class Box:
    """A rectangle around one fracture in one slice: `slice_index` counts head -> feet from 0; x, y, width, height in
    pixels, x along columns from the image's left (patient right), y along rows from the top (front)."""

    level: str
    slice_index: int
    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True)
class FractureTruth:
    """What was really drawn: gap and displacement in mm, number of altered voxels."""

    level: str
    type: str
    gap_mm: float
    displacement_mm: float
    altered_voxels: int


@dataclass(frozen=True, eq=False)
class Rendered:
    """A study in memory, on the axes of `cspine_utils.volume.Volume`.

    Attributes
    ----------
    hu : int16 `(d, h, w)`
    labels : uint8 `(d, h, w)`, 1-7 = C1-C7, 8-9 = T1-T2
    altered : bool `(d, h, w)`, voxels that a fracture changed by more than `ALTERED_HU` (before noise)
    affine : float64 4x4, voxel (d, h, w) -> RAS+ mm
    boxes : one `Box` per fracture and slice; empty for an intact study
    fractures : one `FractureTruth` per fractured level
    """

    hu: np.ndarray
    labels: np.ndarray
    altered: np.ndarray
    affine: np.ndarray
    boxes: tuple[Box, ...]
    fractures: tuple[FractureTruth, ...]


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
    patient = draw_patient(stream(seed, index, Stage.PATIENT))
    rng = stream(seed, index, Stage.SCAN)
    grid = _draw_grid(rng, seed, index, size, build_spine(patient))
    noise_hu = float(rng.uniform(18.0, 30.0)) * DIFFICULTIES[difficulty].noise
    return StudyPlan(seed, index, study_uid(seed, index), size, difficulty, fractures, patient, grid, noise_hu)


def check_parameters(*, seed, size, difficulty, prevalence, index=0, levels=None) -> None:
    """Raise `ParameterError` for the first argument of `draw_plan` that cannot be."""

    def refuse(name, found, expected, remedy="correct this argument"):
        raise ParameterError(name, found=repr(found), expected=expected, remedy=remedy)

    for name, value in (("seed", seed), ("index", index)):
        if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or value < 0:
            refuse(name, value, "an integer >= 0")
    if not isinstance(size, (int, np.integer)) or isinstance(size, bool) or not MIN_SIZE <= size <= 1024:
        refuse("size", size, f"an integer from {MIN_SIZE} to 1024 (pixels across)")
    if difficulty not in DIFFICULTIES:
        refuse("difficulty", difficulty, "one of " + ", ".join(DIFFICULTIES))
    if prevalence not in PREVALENCES:
        refuse("prevalence", prevalence, "one of " + ", ".join(PREVALENCES))
    if levels is not None and (
        isinstance(levels, str) or len(set(levels)) != len(tuple(levels)) or not set(levels) <= set(LEVELS)
    ):
        refuse("levels", levels, "a tuple of different levels out of C1 ... C7, or None", 'e.g. levels=("C5",)')


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
    bottom = float(bodies[-1, 2] - rng.uniform(2.0, 8.0))
    middle = (bodies.min(axis=0) + bodies.max(axis=0)) / 2
    x = middle[0] + rng.normal(0.0, 2.5) - pixel * (size - 1) / 2
    y = middle[1] + 6.0 + rng.normal(0.0, 2.5) - pixel * (size - 1) / 2
    return Grid(
        (int((top - bottom) / step) + 1, size, size),
        (round(float(x), 2), round(float(y), 2), round(top, 2)),
        pixel,
        step,
        thickness,
    )


@contextlib.contextmanager
def _one_thread():
    """Run torch on one thread: the bytes of a study must not depend on how many the machine has."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.no_grad():
            yield
    finally:
        torch.set_num_threads(before)


def render(plan: StudyPlan, *, fractured: bool = True) -> Rendered:
    """Compute the volume, labels and truth of a plan.

    Parameters
    ----------
    plan : from `draw_plan`
    fractured : False leaves the fractures out and nothing else: the exact intact twin

    Returns
    -------
    Rendered : see there for shapes and units
    """
    with _one_thread():
        return _render(plan, plan.levels if fractured else ())


def _render(plan: StudyPlan, levels: tuple[str, ...]) -> Rendered:
    grid, patient, difficulty = plan.grid, plan.patient, DIFFICULTIES[plan.difficulty]
    spine = build_spine(patient)
    fields = build_vertebrae(grid, spine, patient)
    hu = neck.soft_tissue(grid, spine, patient, stream(plan.seed, plan.index, Stage.SOFT))
    neck.brain(hu, grid, spine)
    grain = scanner.texture(grid, stream(plan.seed, plan.index, Stage.TEXTURE))
    for field in neck.build_other_bones(grid, spine, patient, fields):
        hu[field.slices] += scanner.plain_layer(field, patient, hu[field.slices], grain[field.slices])

    labels = np.zeros(grid.shape, dtype=np.uint8)
    altered = np.zeros(grid.shape, dtype=bool)
    layers, boxes, truths = {}, [], []
    for number, name in enumerate(BONES):
        field, size = fields[name], spine.sizes[name]
        rng = stream(plan.seed, plan.index, Stage.MIMICS, number)
        channels = scanner.vessel_channels(name, size, rng, difficulty.mimics)
        obstacle = _obstacle(fields, name)
        intact = Bone(field.d, field.d, field.d)
        if rng.random() < 0.15 * difficulty.mimics and name in ("C1", "C6", "C7"):
            intact = apply_cuts(field, intact, draw_cleft(rng, name, size), rng, obstacle)

        def layer(bone, field=field, name=name, size=size, channels=channels):
            return scanner.bone_layer(field, name, size, patient, bone, hu[field.slices], grain[field.slices], channels)

        bone, layers[name] = intact, layer(intact)
        if name in levels:
            bone, layers[name], mask, truth = _break(plan, name, field, size, intact, layers[name], layer, obstacle)
            altered[field.slices] |= mask
            truths.append(truth)
            boxes += _boxes(name, mask, field.slices)
        own = labels[field.slices]
        own[(bone.whole < 0).numpy() & (own == 0)] = LABEL_IDS[name]

    for name, values in layers.items():
        hu[fields[name].slices] += values
    hu = scanner.blur(hu + 1000.0, grid) - 1000.0  # beyond the edge lies air
    hu = scanner.add_noise(hu, grid, spine, plan.noise_hu, stream(plan.seed, plan.index, Stage.NOISE))
    _separate(labels)
    return Rendered(scanner.to_int16(hu), labels, altered, grid.affine, tuple(boxes), tuple(truths))


def _obstacle(fields: dict[str, Field], name: str) -> torch.Tensor:
    """Distance by which a point lies within the joint space of another vertebra (negative = free), for `name`'s box."""
    own = fields[name]
    blocked = torch.full_like(own.d, JOINT_MM - BAND_MM)
    for other, field in fields.items():
        if other != name and (common := overlap(own, field)) is not None:
            mine, theirs = common
            blocked[mine] = torch.maximum(blocked[mine], JOINT_MM - field.d[theirs])
    return blocked


def _break(plan, name, field, size, intact, intact_layer, layer, obstacle):
    """Draw fractures until one is visible and leaves the label in one piece: `(bone, layer, altered mask, truth)`.

    From the fourth draw on gap and displacement grow, so that this ends.
    """
    kind, difficulty = plan.fractures[name], DIFFICULTIES[plan.difficulty]
    floor = max(MIN_ALTERED_VOXELS, int(np.ceil(MIN_ALTERED_MM3 / plan.grid.voxel_mm**3)))
    pieces = _pieces(intact.whole)
    best = None
    for attempt in range(16):
        rng = stream(plan.seed, plan.index, Stage.FRACTURE, LEVELS.index(name), attempt)
        cuts, gap, move = draw_cuts(rng, kind, size, difficulty, 1.0 + 0.15 * max(0, attempt - 3))
        bone = apply_cuts(field, intact, cuts, rng, obstacle)
        values = layer(bone)
        mask = (scanner.blur(values - intact_layer, plan.grid).abs() > ALTERED_HU).numpy()
        found = int(mask.sum())
        result = bone, values, mask, FractureTruth(name, kind, round(gap, 3), round(move, 3), found)
        if found >= floor and _pieces(bone.whole) <= pieces:
            return result
        if best is None or found > best[3].altered_voxels:
            best = result
    return best


def _pieces(distance: torch.Tensor) -> int:
    """Number of 26-connected parts with more than a hundredth of the volume."""
    parts, count = ndimage.label((distance < 0).numpy(), structure=np.ones((3, 3, 3)))
    sizes = np.bincount(parts.ravel(), minlength=count + 1)[1:]
    return int((sizes > 0.01 * sizes.sum()).sum())


def _boxes(level: str, mask: np.ndarray, slices) -> list[Box]:
    """One box per slice that holds at least three altered voxels, or of the fullest slice if none does."""
    counts = mask.sum(axis=(1, 2))
    boxes = []
    for d in np.flatnonzero(counts >= min(3, counts.max())):
        rows, cols = (np.flatnonzero(mask[d].any(axis=axis)) for axis in (1, 0))
        y, x = rows[0] + slices[1].start - BOX_PAD, cols[0] + slices[2].start - BOX_PAD
        boxes.append(
            Box(
                level,
                int(d + slices[0].start),
                float(x),
                float(y),
                float(np.ptp(cols) + 1 + 2 * BOX_PAD),
                float(np.ptp(rows) + 1 + 2 * BOX_PAD),
            )
        )
    return boxes


def _separate(labels: np.ndarray) -> None:
    """In place: no voxel touches another label (26 neighbours), and every label is one connected piece.

    Where two labels touch, the upper vertebra gives way. Crumbs that the grid cuts off thin parts are dropped.
    """
    highest = labels.copy()
    for axis in range(3):
        source = highest.copy()
        low, high = [slice(None)] * 3, [slice(None)] * 3
        low[axis], high[axis] = slice(None, -1), slice(1, None)
        low, high = tuple(low), tuple(high)
        np.maximum(highest[low], source[high], out=highest[low])
        np.maximum(highest[high], source[low], out=highest[high])
    labels[highest > labels] = 0
    for label, box in enumerate(ndimage.find_objects(labels), start=1):
        if box is None:
            continue
        own = labels[box] == label
        parts, count = ndimage.label(own, structure=np.ones((3, 3, 3)))
        if count > 1:
            keep = np.bincount(parts.ravel())[1:].argmax() + 1
            labels[box][own & (parts != keep)] = 0
