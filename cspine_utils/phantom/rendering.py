"""From a plan to a volume: a whole study, one vertebra alone, each with or without its fractures."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from numbers import Real

import numpy as np
import torch

from cspine_utils.anatomy import LEVELS
from cspine_utils.errors import ParameterError

from . import scanner
from .grid import Grid
from .scene import Scene
from .sdf import overlap
from .study import Stage, StudyPlan, check_device
from .truth import Rendered

#: Middle of the crop around a vertebra, mm behind the body's centre (C1: behind the dens): its arch lies there.
CROP_BACK_MM = 10.0

#: How far `render_neck` goes from the centres of C1-C7 along d, h, w, in mm: up and down until they end; to the front,
#: the back and either side so far that a square of 108 mm around them (`necks.NeckForm`) lies inside.
NECK_MM = ((24.0, 26.0), (42.0, 80.0), (58.0, 58.0))


def render(plan: StudyPlan, *, fractured: bool = True, noise: bool = True, device: str = "cpu") -> Rendered:
    """Compute the volume, labels and truth of a plan.

    Parameters
    ----------
    plan : from `draw_plan`
    fractured : False leaves the fractures out and nothing else: the exact intact twin
    noise : False leaves the noise out
    device : torch device. Random numbers are drawn on the CPU, so another device changes rounding errors alone.
    """
    return _pair(plan, plan.grid, noise, device, fractured)[0]


def render_pair(plan: StudyPlan, *, noise: bool = True, device: str = "cpu") -> tuple[Rendered, Rendered]:
    """The study and its intact twin, for little more than the price of one; they share their noise."""
    return _pair(plan, plan.grid, noise, device, True, twin=True)


def render_vertebra(
    plan: StudyPlan,
    level: str,
    *,
    fractured: bool = True,
    box_mm: tuple[float, float, float] = (48.0, 72.0, 88.0),
    noise: bool = True,
    device: str = "cpu",
) -> Rendered:
    """The neighbourhood of one vertebra alone: before noise equal to the same box of `render(plan)`.

    Parameters
    ----------
    level : "C1" ... "C7"; the box is centred a little behind the middle of its body
    box_mm : size along d, h, w in mm. Where the box leaves the scan it is filled with air and label 0.
    fractured, noise, device : as in `render`; the noise of a crop is drawn anew, with the same properties

    Returns
    -------
    Rendered : of the crop, with the crop's own affine. `fractures` lists every broken vertebra that reaches into the
        box, neighbours included; whether its break lies in the box is told by `altered` and `boxes`
    """
    return _crop(plan, level, box_mm, noise, device, fractured)[0]


def render_neck(
    plan: StudyPlan, *, fractured: bool = True, noise: bool = True, device: str = "cpu"
) -> Rendered:  # fmt: skip
    """The part of the scan that holds C1-C7, for half the price of all of it: before noise equal to that part of
    `render(plan)`; the noise is drawn anew, with the same properties."""
    return _neck(plan, noise, device, fractured)[0]


def render_neck_pair(plan: StudyPlan, *, noise: bool = True, device: str = "cpu") -> tuple[Rendered, Rendered]:
    """`render_neck` and its intact twin in one go; they share their noise."""
    return _neck(plan, noise, device, True, twin=True)


def _neck(plan: StudyPlan, noise: bool, device: str, fractured: bool, twin: bool = False):
    """Everything within `NECK_MM` of the centres of C1-C7, as far as it was scanned."""
    grid = plan.grid
    centres = np.array([grid.index(grid.scanned(plan.spine.poses[level].centre)) for level in LEVELS])
    reach = np.array(NECK_MM) / np.array(grid.spacing_mm)[:, None]  # (3, 2) voxels before and behind
    first, last = centres.min(axis=0) - reach[:, 0], centres.max(axis=0) + reach[:, 1]
    inside = tuple(
        slice(int(np.clip(np.floor(a), 0, n)), int(np.clip(np.ceil(b), 0, n)))
        for a, b, n in zip(first, last, grid.shape, strict=True)
    )
    return _pair(plan, grid.part(inside), noise, device, fractured, twin, salt=1 + len(LEVELS))


def render_vertebra_pair(
    plan: StudyPlan, level: str, *, box_mm=(48.0, 72.0, 88.0), noise: bool = True, device: str = "cpu"
) -> tuple[Rendered, Rendered]:
    """`render_vertebra` and its intact twin in one go; they share their noise."""
    return _crop(plan, level, box_mm, noise, device, True, twin=True)


def _crop(plan: StudyPlan, level: str, box_mm, noise: bool, device: str, fractured: bool, twin: bool = False):
    """Cut the box out of the study, compute what lies inside the scan, and fill up with air."""
    if level not in LEVELS:
        raise ParameterError("level", found=repr(level), expected="one of C1 ... C7", remedy="name one vertebra")
    numbers = isinstance(box_mm, (tuple, list)) and all(isinstance(length, Real) for length in box_mm)
    if not numbers or len(box_mm) != 3 or not all(2 <= length <= 400 for length in box_mm):
        raise ParameterError(
            "box_mm", found=repr(box_mm), expected="three lengths of 2-400 mm", remedy="e.g. (40, 60, 80)"
        )
    grid, pose = plan.grid, plan.spine.poses[level]
    middle = grid.index(grid.scanned(pose.to_patient([0.0, CROP_BACK_MM, 0.0])))
    shape = [max(1, round(length / mm)) for length, mm in zip(box_mm, grid.spacing_mm, strict=True)]
    first = [int(round(float(m) - n / 2)) for m, n in zip(middle, shape, strict=True)]
    inside = tuple(
        slice(int(np.clip(a, 0, n)), int(np.clip(a + size, 0, n)))
        for a, size, n in zip(first, shape, grid.shape, strict=True)
    )
    found = _pair(plan, grid.part(inside), noise, device, fractured, twin, salt=1 + LEVELS.index(level))
    pad = [(s.start - a, a + size - s.stop) for s, a, size in zip(inside, first, shape, strict=True)]
    return tuple(_padded(r, pad) for r in found)


def _padded(r: Rendered, pad) -> Rendered:
    before = np.array([p[0] for p in pad])
    affine = r.affine.copy()
    affine[:3, 3] -= affine[:3, :3] @ before
    boxes = tuple(
        replace(b, slice_index=int(b.slice_index + before[0]), x=float(b.x + before[2]), y=float(b.y + before[1]))
        for b in r.boxes
    )
    air = scanner.HU_RANGE[0] + 24
    return replace(
        r, hu=np.pad(r.hu, pad, constant_values=air), labels=np.pad(r.labels, pad), altered=np.pad(r.altered, pad),
        affine=affine, boxes=boxes,
    )  # fmt: skip


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


def _pair(plan: StudyPlan, wanted: Grid, noise: bool, device: str, fractured: bool, twin: bool = False, salt: int = 0):
    """Render the grid `wanted` (a part of the study's): one `Rendered`, or with `twin` the broken and the intact."""
    check_device(device)
    with _one_thread():
        wanted = replace(wanted, device=device)
        scene = Scene(plan, wanted, fractured)
        inner = overlap(scene, wanted)[0]
        added = 0.0
        if noise and plan.scan.noise_hu > 0:
            rng = plan.stream(Stage.NOISE, salt) if salt else plan.stream(Stage.NOISE)
            added = scanner.quantum_noise(wanted, scene.spine, plan.scan, rng)
        result = [scene.finish(inner, broken=True, noise=added)]
        if twin:
            result.append(scene.finish(inner, broken=False, noise=added))
        return tuple(result)
