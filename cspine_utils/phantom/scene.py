"""One box of a study before and after the scanner: bones with and without their fractures, soft tissue, labels.

Soft tissue and every bone are functions of a voxel's own place, so a box of a study can be computed alone. Only a
fracture looks at its neighbourhood: it needs the whole vertebra that it is in. A scene therefore computes the smallest
box that holds the wanted one and every broken vertebra that reaches into it.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from scipy import ndimage

from cspine_utils.anatomy import LABEL_IDS, LEVELS

from . import neck, scanner, soft
from .cuts import Bone, apply_cuts, unbroken
from .density import bone_layer, draw_grain, plain_layer
from .fractures import DIFFICULTIES, draw_cuts
from .grid import Grid
from .mimics import changes
from .patient import BONES
from .sdf import BAND_MM, box_of, overlap
from .study import Stage, StudyPlan
from .surroundings import metal_positions
from .truth import Box, FractureTruth, Rendered
from .vertebrae import JOINT_MM, build_vertebrae, reach

#: A voxel counts as altered by a fracture if the blurred, noise-free volumes with and without it differ by more.
ALTERED_HU = 60.0

#: A fracture that alters less than this volume (and fewer than `MIN_ALTERED_VOXELS`) is drawn again.
MIN_ALTERED_MM3, MIN_ALTERED_VOXELS = 45.0, 8

#: Bounding boxes are this much wider than the altered voxels, in pixels per side.
BOX_PAD = 2

#: Detached parts of a label smaller than this are crumbs that the grid cuts off thin processes.
CRUMB_MM3 = 60.0


class Scene:
    """Everything in a box before the scanner: soft tissue, other bones, and a layer of HU for each vertebra.

    Attributes
    ----------
    grid : the box that is computed: the wanted one, the blur's reach, and broken vertebrae as a whole
    layers, bones : by name, HU to add and distances; `intact_layers`, `intact_bones` the same without fractures
    altered : by name of a broken vertebra, the voxels of its field that its fracture changed; `truths` in words
    """

    def __init__(self, plan: StudyPlan, wanted: Grid, fractured: bool):
        self.plan, self.spine = plan, plan.spine
        levels = plan.levels if fractured else ()
        self.grid = grid = work_grid(plan, wanted, levels)
        self.sizes = self.spine.sizes
        self.change = {n: changes(plan.stream(Stage.MIMICS, i, 1), n, self.sizes[n], plan.mimics.get(n, ()))
                       for i, n in enumerate(BONES)}  # fmt: skip
        self.fields = build_vertebrae(grid, self.spine, plan.patient, lambda n, f: self.change[n].reshape(f))
        self.grain = draw_grain(grid, plan.stream(Stage.TEXTURE))
        self.hu = soft.soft_tissue(grid, self.spine, plan.patient, plan.surroundings, plan.stream(Stage.SOFT))
        for field in neck.build_other_bones(grid, self.spine, plan.patient, self.fields):
            if (common := overlap(grid, field)) is None:
                continue
            part, own = common
            self.hu[part] += plain_layer(field, plan.patient, self.hu[part], self.grain.on(field.grid))[own]
        metal = metal_positions(self.spine, plan.patient, plan.surroundings)
        scanner.add_streaks(self.hu, grid, metal, plan.scan.streak_hu, plan.stream(Stage.SCAN, 1))
        self.altered: dict[str, torch.Tensor] = {}
        self.truths: list[FractureTruth] = []
        self.bones: dict[str, Bone] = {}
        self.intact_bones: dict[str, Bone] = {}
        self.layers: dict[str, torch.Tensor] = {}
        self.intact_layers: dict[str, torch.Tensor] = {}
        for name in self.fields:
            self._compose(name, name in levels)

    def _compose(self, name: str, broken: bool) -> None:
        field, size, plan = self.fields[name], self.sizes[name], self.plan
        part = overlap(self.grid, field)[0]
        background, texture = self.hu[part], self.grain.on(field.grid)

        def layer(bone: Bone) -> torch.Tensor:
            return bone_layer(field, name, size, plan.patient, bone, background, texture, self.change[name])

        bone = unbroken(field)
        cuts = self.change[name].cuts
        obstacle = self._obstacle(name) if broken or cuts else None
        if cuts:
            bone = apply_cuts(field, bone, cuts, plan.stream(Stage.MIMICS, BONES.index(name), 2), obstacle)
        self.bones[name] = self.intact_bones[name] = bone
        self.layers[name] = self.intact_layers[name] = layer(bone)
        if broken:
            self.bones[name], self.layers[name], self.altered[name], truth = self._break(name, bone, layer, obstacle)
            self.truths.append(truth)

    def _obstacle(self, name: str) -> torch.Tensor:
        """Distance by which a point lies within the joint space of another vertebra (negative = free)."""
        own = self.fields[name]
        blocked = torch.full_like(own.d, JOINT_MM - BAND_MM)
        for other, field in self.fields.items():
            if other != name and (common := overlap(own, field)) is not None:
                mine, theirs = common
                blocked[mine] = torch.maximum(blocked[mine], JOINT_MM - field.d[theirs])
        return blocked

    def _break(self, name: str, intact: Bone, layer, obstacle: torch.Tensor):
        """Draw fractures until one is visible and leaves the label in one piece: `(bone, layer, mask, truth)`.

        From the fourth draw on gap and displacement grow, so that this ends.
        """
        plan, field = self.plan, self.fields[name]
        kind, difficulty = plan.fractures[name], DIFFICULTIES[plan.difficulty]
        floor = max(MIN_ALTERED_VOXELS, int(np.ceil(MIN_ALTERED_MM3 / plan.grid.voxel_mm**3)))
        pieces, best = _pieces(intact.whole), None
        for attempt in range(16):
            rng = plan.stream(Stage.FRACTURE, LEVELS.index(name), attempt)
            widen = 1.0 + 0.15 * max(0, attempt - 3)
            cuts, gap, move, pattern = draw_cuts(rng, kind, name, self.sizes[name], difficulty, widen)
            bone = apply_cuts(field, intact, cuts, rng, obstacle)
            values = layer(bone)
            change = scanner.blur(values - self.intact_layers[name], plan.grid, plan.scan.kernel)
            mask = change.abs() > ALTERED_HU
            found = int(mask.sum())
            result = bone, values, mask, FractureTruth(name, kind, round(gap, 3), round(move, 3), found, pattern)
            if found >= floor and _pieces(bone.whole) <= pieces:
                return result
            if best is None or found > best[3].altered_voxels:
                best = result
        return best

    def finish(self, inner, *, broken: bool, noise) -> Rendered:
        """Blur, noise and labels of the box `inner` (slices of this scene's grid)."""
        plan, grid = self.plan, self.grid.part(inner)
        layers = self.layers if broken else self.intact_layers
        hu = self.hu.clone()
        for name, values in layers.items():
            hu[overlap(self.grid, self.fields[name])[0]] += values
        margin = scanner.blur_reach(plan.grid, plan.scan.kernel)
        near = tuple(
            slice(max(0, s.start - m), min(n, s.stop + m)) for s, m, n in zip(inner, margin, hu.shape, strict=True)
        )
        blurred = scanner.blur(hu[near] + 1000.0, plan.grid, plan.scan.kernel) - 1000.0  # beyond the edge lies air
        kept = tuple(slice(s.start - b.start, s.stop - b.start) for s, b in zip(inner, near, strict=True))
        labels = self._labels(self.bones if broken else self.intact_bones)[inner]
        altered, boxes = np.zeros(grid.shape, dtype=bool), []
        for name, mask in self.altered.items() if broken else ():
            if (common := overlap(grid, self.fields[name])) is None:
                continue
            part, own = common
            mine = mask[own].cpu().numpy()
            altered[part] |= mine
            boxes += boxes_around(name, mine, part)
        truths = tuple(self.truths) if broken else ()
        return Rendered(scanner.to_int16(blurred[kept] + noise), labels, altered, grid.affine, tuple(boxes), truths)

    def _labels(self, bones: dict[str, Bone]) -> np.ndarray:
        labels = np.zeros(self.grid.shape, dtype=np.uint8)
        for name, bone in bones.items():
            own = labels[overlap(self.grid, self.fields[name])[0]]
            own[(bone.whole < 0).cpu().numpy() & (own == 0)] = LABEL_IDS[name]
        separate(labels, self.grid.voxel_mm)
        return labels


def boxes_around(level: str, altered: np.ndarray, part) -> list[Box]:
    """One box per slice that holds at least three altered voxels of one level, or of its fullest slice.

    `altered` is bool `(d, h, w)` of the box `part` (three slices) of the volume that the boxes refer to.
    """
    counts = altered.sum(axis=(1, 2))
    boxes = []
    for d in np.flatnonzero((counts >= min(3, counts.max())) & (counts > 0)):
        rows, cols = (np.flatnonzero(altered[d].any(axis=axis)) for axis in (1, 0))
        y, x = rows[0] + part[1].start - BOX_PAD, cols[0] + part[2].start - BOX_PAD
        size = np.ptp(cols) + 1 + 2 * BOX_PAD, np.ptp(rows) + 1 + 2 * BOX_PAD
        boxes.append(Box(level, int(d + part[0].start), float(x), float(y), float(size[0]), float(size[1])))
    return boxes


def work_grid(plan: StudyPlan, wanted: Grid, levels: tuple[str, ...]) -> Grid:
    """The smallest box of the study that holds `wanted`, the blur's reach, and each broken vertebra that meets it."""
    study = replace(plan.grid, device=wanted.device)
    margin = np.array(scanner.blur_reach(study, plan.scan.kernel)) + 1
    first = np.maximum(np.array(wanted.start) - margin, 0)
    stop = np.minimum(np.add(wanted.start, wanted.shape) + margin, study.shape)
    spine, low, high = plan.spine, first.copy(), stop.copy()
    for name in levels:
        box = box_of(study, spine.poses[name], *reach(name, spine.sizes[name]))
        begin, end = np.array([s.start for s in box]), np.array([s.stop for s in box])
        if (np.maximum(begin, first) < np.minimum(end, stop)).all():
            low, high = np.minimum(low, begin), np.maximum(high, end)
    return study.part(tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True)))


def _pieces(distance: torch.Tensor) -> int:
    """Number of 26-connected parts with more than a hundredth of the volume."""
    parts, count = ndimage.label((distance < 0).cpu().numpy(), structure=np.ones((3, 3, 3)))
    sizes = np.bincount(parts.ravel(), minlength=count + 1)[1:]
    return int((sizes > 0.01 * sizes.sum()).sum())


def separate(labels: np.ndarray, voxel_mm: float) -> None:
    """In place: no voxel touches another label (26 neighbours), and crumbs are dropped.

    Where two labels touch, the upper vertebra gives way.
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
            volume = np.bincount(parts.ravel()) * voxel_mm**3
            volume[0] = np.inf
            labels[box][own & (volume < CRUMB_MM3)[parts]] = 0
