"""Is what the phantom says about its fractures true? Label maps, intact twins, altered voxels.

A `Case` is one study rendered with its fractures and without. The checks look at arrays alone, so that tests can hand
them a broken case and see them fail.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from cspine_utils.anatomy import LABEL_IDS, LEVELS

from ..scene import ALTERED_HU
from ..truth import Rendered
from .report import Row
from .separation import FREE, MODELS, auroc, auroc_interval, auroc_row, cross_validated, within_group_ranks

TOUCHING = np.ones((3, 3, 3), dtype=bool)

#: A voxel that a fracture changed may lie this far from the recorded ones (mm).
NEAR_MM = 5.0

#: Blur and cortex reach this far beyond a bone (mm): outside its box plus this, twins are equal bit by bit.
BOX_MARGIN_MM = 8.0


#: Simple numbers of the HU inside a vertebra's mask are about the bone itself, so a model of them may know a little.
MASK_LIMIT = 0.65


@dataclass(frozen=True, eq=False)
class Case:
    """One study three times: broken and intact without noise, broken with noise; `levels` are the broken ones."""

    levels: tuple[str, ...]
    broken: Rendered
    intact: Rendered
    noisy: Rendered
    spacing_mm: tuple[float, float, float]


# ------------------------------------------------------------------------------------------------------------ labels


def contacts(labels: np.ndarray) -> int:
    """Ordered pairs of voxels that touch (26 neighbours) and carry different labels."""
    padded = np.pad(labels, 1)
    count = 0
    for shift in np.ndindex(3, 3, 3):
        other = padded[tuple(slice(s, s + n) for s, n in zip(shift, labels.shape, strict=True))]
        count += int(((labels > 0) & (other > 0) & (labels != other)).sum())
    return count


def label_faults(labels: np.ndarray) -> dict[str, float]:
    """What is wrong with one label map: missing levels, smallest share of a label in its largest piece, levels out of
    order, touching pairs of voxels, enclosed holes (voxels)."""
    present = [i for i in LABEL_IDS.values() if i <= len(LEVELS) and (labels == i).any()]
    share, heights, holes = 1.0, [], 0
    for label, box in zip(range(1, int(labels.max()) + 1), ndimage.find_objects(labels), strict=True):
        if box is None or label > len(LEVELS):
            continue
        own = np.pad(labels[box] == label, 1)
        parts, _ = ndimage.label(own, structure=TOUCHING)
        share = min(share, np.bincount(parts[own]).max() / own.sum())
        heights.append(ndimage.center_of_mass(own)[0] + box[0].start)
        holes += int((ndimage.binary_fill_holes(own, structure=TOUCHING) & ~own).sum())  # no way out, even aslant
    return {
        "missing levels": len(LEVELS) - len(present),
        "largest piece": float(share),
        "levels out of order": int((np.diff(heights) <= 0).sum()),
        "touching voxels": contacts(labels),
        "hole voxels": holes,
    }


def label_rows(maps: Iterable[np.ndarray]) -> list[Row]:
    """Label maps, fractured ones included: seven whole, separate pieces in order, without holes."""
    faults = [label_faults(labels) for labels in maps]
    n = len(faults)
    rows = [
        Row("labels", "largest piece of a label, smallest share", min(f["largest piece"] for f in faults), 0.99, 1.0, n)
    ]
    for name in ("missing levels", "levels out of order", "touching voxels", "hole voxels"):
        rows.append(Row("labels", f"{name}, sum", float(sum(f[name] for f in faults)), 0.0, 0.0, n))
    return rows


def label_features(labels: np.ndarray, level: str) -> dict[str, float]:
    """What can be told from the label map of one vertebra: size, extents, surface, pieces, and what a closing by one
    voxel adds (a slit along a fracture would be filled by it)."""
    box = ndimage.find_objects((labels == LABEL_IDS[level]).astype(np.uint8))
    own = np.pad(labels[box[0]] == LABEL_IDS[level], 3) if box else np.zeros((8, 8, 8), dtype=bool)
    surface = own & ~ndimage.binary_erosion(own)
    closed = ndimage.binary_closing(own, structure=TOUCHING) & ~own
    opened = own & ~ndimage.binary_opening(own)
    return {
        "volume": float(own.sum()),
        "extent d": float(own.shape[0]),
        "extent h": float(own.shape[1]),
        "extent w": float(own.shape[2]),
        "surface voxels": float(surface.sum()),
        "surface per volume": float(surface.sum() / max(1, own.sum()) ** (2 / 3)),
        "pieces (6 neighbours)": float(ndimage.label(own)[1]),
        "holes (6 neighbours)": float((ndimage.binary_fill_holes(own) & ~own).sum()),
        "filled by closing": float(closed.sum() / max(1, surface.sum())),
        "lost by opening": float(opened.sum() / max(1, surface.sum())),
    }


def filled_near(labels: np.ndarray, level: str, near: np.ndarray) -> float:
    """Voxels that a closing by one voxel adds to a label where `near` is True, per surface voxel there."""
    box = ndimage.find_objects((labels == LABEL_IDS[level]).astype(np.uint8))
    if not box:
        return 0.0
    own, near = np.pad(labels[box[0]] == LABEL_IDS[level], 3), np.pad(near[box[0]], 3)
    surface = own & ~ndimage.binary_erosion(own) & near
    filled = ndimage.binary_closing(own, structure=TOUCHING) & ~own & near
    return float(filled.sum() / max(1, surface.sum()))


def slit_rows(cases: Iterable[Case], *, exact: bool = True) -> list[Row]:
    """Does the label map of a broken vertebra differ from that of its intact twin?

    The AUROC of each feature between all broken vertebrae and their twins, so levels are matched and the number is
    nearly free of sampling error: it is judged itself if `exact`. The last feature looks where the break is known to
    be (within 4 mm of altered voxels): it sees a slit that the whole vertebra's numbers would hide.
    """
    broken, intact = [], []
    for case in cases:
        near = ndimage.distance_transform_edt(~case.broken.altered, sampling=case.spacing_mm) < 4.0
        for level in case.levels:
            for study, group in ((case.broken, broken), (case.intact, intact)):
                local = {"filled by closing at the break": filled_near(study.labels, level, near)}
                group.append(label_features(study.labels, level) | local)
    rows = []
    truth = np.r_[np.ones(len(broken)), np.zeros(len(intact))].astype(bool)
    for name in broken[0] if broken else ():
        a, b = (np.array([f[name] for f in group]) for group in (broken, intact))
        note = f"(broken > own twin in {np.mean(a > b):.0%}, < in {np.mean(a < b):.0%})"
        what = f"{name}: AUROC of broken against twin"
        rows.append(auroc_row("slit", what, np.r_[a, b], truth, note=note, exact=exact))
    return rows


def mask_hu(study: Rendered, level: str) -> dict[str, float]:
    """Simple numbers of the HU inside one vertebra's mask."""
    hu = study.hu[study.labels == LABEL_IDS[level]].astype(np.float32)
    if not hu.size:
        hu = np.zeros(1, dtype=np.float32)
    low, high = np.percentile(hu, (5, 95))
    below = float((hu < 100).sum())
    return {
        "HU mean": float(hu.mean()),
        "HU SD": float(hu.std()),
        "HU 5th percentile": float(low),
        "HU 95th percentile": float(high),
        "voxels below 100 HU": below,
    }


def label_shortcut_rows(cases: Iterable[Case], rng: np.random.Generator) -> list[Row]:
    """Can broken vertebrae be told from intact ones of *other* people by their label maps?

    Features are ranked within each level, because levels differ in size and in nothing that matters here. The last rows
    add simple numbers of the HU inside the mask, which may tell a little, being about the bone itself.
    """
    shapes, hus, truth, level_of = [], [], [], []
    for case in cases:
        for level in LEVELS:
            shapes.append(label_features(case.noisy.labels, level))
            hus.append(mask_hu(case.noisy, level))
            truth.append(level in case.levels)
            level_of.append(level)
    truth, level_of = np.array(truth, dtype=bool), np.array(level_of)

    def ranked(found: list[dict[str, float]]) -> dict[str, np.ndarray]:
        return {k: within_group_ranks(np.array([f[k] for f in found]), level_of) for k in (found[0] if found else ())}

    shape, hu = ranked(shapes), ranked(hus)
    rows = [auroc_row("label map", f"{name}, within level: AUROC of broken", v, truth) for name, v in shape.items()]
    for name, values in hu.items():
        value = auroc(values, truth)
        what = f"{name} in the mask, within level: AUROC of broken"
        rows.append(Row("label map", what, value, 1 - MASK_LIMIT, MASK_LIMIT, len(truth), judged=False))
    for what, features, limit in (("label map", shape, FREE[1]), ("label map and HU", shape | hu, MASK_LIMIT)):
        x = np.stack(list(features.values()), axis=1)
        for name, model in MODELS.items():
            score = cross_validated(model, x, truth, rng)
            low, high = auroc_interval(score, truth)
            title = f"{name} of {what}, cross-validated: AUROC"
            note = f"or met by 95 % {low:.3f} .. {high:.3f}"
            rows.append(
                Row("label map", title, auroc(score, truth), None, limit, len(truth), note, verdict=bool(low <= limit))
            )
    return rows


# ------------------------------------------------------------------------------------------------------------- twins


def changed(case: Case) -> np.ndarray:
    """Voxels whose HU differ between broken and intact by more than the threshold of the record, without noise."""
    return np.abs(case.broken.hu.astype(np.int32) - case.intact.hu) > ALTERED_HU


def near_altered(case: Case) -> tuple[int, int]:
    """Changed voxels, and how many of them lie within `NEAR_MM` of a recorded altered voxel."""
    moved = changed(case)
    if not case.broken.altered.any():
        return int(moved.sum()), 0
    distance = ndimage.distance_transform_edt(~case.broken.altered, sampling=case.spacing_mm)
    return int(moved.sum()), int((moved & (distance <= NEAR_MM)).sum())


def bone_boxes(case: Case) -> np.ndarray:
    """True inside the boxes of the broken bones (both twins' labels), plus `BOX_MARGIN_MM`."""
    inside = np.zeros(case.broken.labels.shape, dtype=bool)
    margin = [int(np.ceil(BOX_MARGIN_MM / mm)) for mm in case.spacing_mm]
    for level in case.levels:
        own = (case.broken.labels == LABEL_IDS[level]) | (case.intact.labels == LABEL_IDS[level])
        for box in ndimage.find_objects(own.astype(np.uint8)):
            part = zip(box, margin, inside.shape, strict=True)
            inside[tuple(slice(max(0, s.start - m), min(n, s.stop + m)) for s, m, n in part)] = True
    return inside


def twin_rows(cases: Iterable[Case]) -> list[Row]:
    """Twins differ at the recorded fracture alone, and every fracture can be seen."""
    moved = near = outside = unseen = vertebrae = studies = 0
    for case in cases:
        studies += 1
        a, b = near_altered(case)
        moved, near = moved + a, near + b
        far = ~bone_boxes(case)
        outside += int((case.broken.hu[far] != case.intact.hu[far]).sum())
        outside += int((case.broken.labels[far] != case.intact.labels[far]).sum())
        for truth in case.broken.fractures:
            vertebrae += 1
            unseen += not truth.altered_voxels
        unseen += len(set(case.levels) - {t.level for t in case.broken.fractures})
    share = near / moved if moved else float("nan")
    return [
        Row("twins", f"changed voxels within {NEAR_MM:g} mm of recorded ones, share", share, 0.95, 1.0, moved),
        Row("twins", "voxels changed outside the broken bones' boxes", float(outside), 0.0, 0.0, studies),
        Row("twins", "fractures that changed no voxel", float(unseen), 0.0, 0.0, vertebrae),
    ]


# ------------------------------------------------------------------------------------------------------------ oracle


def oracle_scores(case: Case) -> tuple[list[float], list[float]]:
    """Mean |HU - noise-free intact HU| over each fracture's recorded voxels: of the broken study with its noise, and
    of the intact study with other noise (the same field, moved by a few pixels, which leaves its strength as it is)."""
    reference = case.intact.hu.astype(np.float32)
    broken = np.abs(case.noisy.hu - reference)
    noise = np.roll(case.noisy.hu.astype(np.float32) - case.broken.hu, (6, -7), axis=(1, 2))
    positive, negative = [], []
    for level in case.levels:
        own = (case.broken.labels == LABEL_IDS[level]) | (case.intact.labels == LABEL_IDS[level])
        box = ndimage.find_objects(own.astype(np.uint8))
        if not box:
            continue
        part = tuple(slice(max(0, s.start - 4), s.stop + 4) for s in box[0])
        # Of a voxel near two bones the nearer one's label decides; far from this bone nothing is its own.
        mine = case.broken.altered[part] & (ndimage.distance_transform_edt(~own[part], sampling=case.spacing_mm) < 4.0)
        if mine.any():
            positive.append(float(broken[part][mine].mean()))
            negative.append(float(np.abs(noise[part][mine]).mean()))
    return positive, negative


def oracle_rows(cases: Iterable[Case]) -> list[Row]:
    """One who knows where to look and how it looked before must tell broken from intact almost always."""
    positive, negative = [], []
    for case in cases:
        a, b = oracle_scores(case)
        positive, negative = positive + a, negative + b
    scores = np.array(positive + negative)
    truth = np.r_[np.ones(len(positive)), np.zeros(len(negative))].astype(bool)
    value = auroc(scores, truth) if positive else float("nan")
    return [Row("oracle", "contrast at the recorded voxels: AUROC", value, 0.98, 1.0, len(scores))]
