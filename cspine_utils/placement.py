"""Do two voxel grids agree, and what is wrong where they do not.

A grid is anything with `.shape` (d, h, w) and `.affine` (voxel -> RAS+ mm). A header can be
judged before a byte of data is read; what a grid cannot tell, because it is symmetric, the bone under the labels tells.
"""

from __future__ import annotations

from itertools import permutations, product

import nibabel as nib
import numpy as np
import pandas as pd

from cspine_utils.anatomy import CERVICAL_IDS
from cspine_utils.errors import GridMismatch, MaskError
from cspine_utils.volume import Grid, Volume, axis_permutation, grid_map

#: Corners of the two grids may differ by this share of a voxel (header rounding is far smaller).
CORNER_TOLERANCE_VOXELS = 0.1
#: A flip may be this much brighter under the labels before the placement is called wrong. The mean of 10,000 voxels
#: of bone and marrow (standard deviation 300 HU) is known to 3 HU; on 74 phantom necks the right placement was 21 HU
#: and more above every flip, the narrowest a neck that is nearly its own mirror image.
FLIP_MARGIN_HU = 10.0
_WORDS = {"L": "the left", "R": "the right", "A": "the front", "P": "the back", "S": "the head", "I": "the feet"}
_OPPOSITE = dict(zip("LRAPSI", "RLPAIS", strict=True))
_OTHER_STUDY = "use the label map of this very study."
_OWN_GRID = (
    "use the label map as it was drawn on this CT; where there is no other, resample=True takes the nearest voxel."
)


def match(shape, affine: np.ndarray, grid):
    """How a stored array lies on a grid, if it does so voxel for voxel.

    Parameters
    ----------
    shape, affine : of the stored array; the affine takes its voxel indices to RAS+ mm
    grid : where it should lie

    Returns
    -------
    `(order, reversed_axes)` so that `np.flip(stored.transpose(order), reversed_axes)` lies on the grid,
    or None if the grids differ
    """
    mapping = grid_map(affine, grid.affine)
    permutation = axis_permutation(mapping)
    if permutation is None or tuple(shape[axis] for axis in permutation[0]) != tuple(grid.shape):
        return None
    return permutation if _corner_error(mapping, permutation, shape) <= CORNER_TOLERANCE_VOXELS else None


def _corner_error(mapping: np.ndarray, permutation, stored_shape) -> float:
    """Largest distance, in voxels along one axis, between where the corners lie and where they should."""
    order, reversed_axes = permutation
    corners = np.array(list(product(*[(0, n - 1) for n in stored_shape])), dtype=float)
    expected = corners[:, order]
    for axis in reversed_axes:
        expected[:, axis] = stored_shape[order[axis]] - 1 - expected[:, axis]
    return float(np.abs(nib.affines.apply_affine(mapping, corners) - expected).max())


def is_invertible(affine: np.ndarray) -> bool:
    """Whether an affine gives every voxel a place of its own: finite, no axis of length 0, no two axes parallel."""
    if affine.shape != (4, 4) or not np.isfinite(affine).all() or np.abs(affine).max() > 1e6:  # mm: a kilometre
        return False
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    return lengths.min() > 1e-6 and abs(np.linalg.det(affine[:3, :3] / lengths)) > 1e-3


def diagnose(shape, affine: np.ndarray, grid) -> tuple[str, str]:
    """Say why a stored array does not lie on a grid (`match` gave None).

    Returns
    -------
    (what, remedy) : in words, with the numbers; `what` begins with the kind of fault: a mirrored header, an affine
        without geometry, another study, or a list of turns, spacings, missing slices and shifts
    """
    wrong = untrustworthy(shape, affine, grid)
    if wrong:
        return wrong
    found = Grid(*_along(shape, affine, grid.affine))
    turned, spaced, counted = _turned(found, grid), _spaced(found, grid), _counted(found, grid)
    shifted = _middle_off(found, grid) if turned or spaced else _shifted(found, grid)
    kinds = [kind for kind in (turned, spaced, counted, shifted) if kind]
    what = "; ".join(fault for kind in kinds for fault in kind)
    if apart(shape, affine, grid):
        return "another study altogether: the two grids do not overlap", _OTHER_STUDY
    if len(kinds) >= 3:
        return f"another study altogether: {what}", _OTHER_STUDY
    return what or "corners that lie off the CT's by a little in several ways", _OWN_GRID


def untrustworthy(shape, affine: np.ndarray, grid) -> tuple[str, str] | None:
    """(what, remedy) where a header surely does not tell where its voxels lie, so that no resampling by it can help."""
    if np.allclose(affine, np.eye(4)):
        return "an affine that is the identity, so nothing is known of where the voxels lie", (
            "export the label map again from the tool that made it, together with its geometry."
        )
    return _mirror(shape, affine, grid)


def _mirror(shape, affine, grid):
    """The header fits once some of x, y, z are negated: of the whole affine, or of its directions alone."""
    for signs in ((-1, -1, 1), (-1, 1, 1), (1, -1, 1), (1, 1, -1), (-1, 1, -1), (1, -1, -1), (-1, -1, -1)):
        names = " and ".join(name for name, sign in zip("xyz", signs, strict=True) if sign < 0)
        turn = np.diag([*signs, 1.0])
        reason = "DICOM's LPS taken for NIfTI's RAS" if signs == (-1, -1, 1) else "one frame of axes taken for another"
        if match(shape, turn @ affine, grid) is not None:
            return f"a mirrored header: with {names} negated it lies on the CT exactly ({reason})", (
                f"multiply the header's affine by diag({', '.join(map(str, signs))}, 1) from the left, and correct "
                "the program that wrote it."
            )
        turned = turn @ affine
        turned[:3, 3] = affine[:3, 3]
        if match(shape, turned, grid) is not None:
            return (
                f"a mirrored header: the first voxel is at its place, but the axes run the other way along {names} "
                f"({reason}, in the directions alone)"
            ), f"negate the first three numbers of row {names} of the header's affine, and correct the program."
    return None


def _along(shape, affine, target_affine):
    """Shape and affine of the stored grid after its axes are ordered and turned along the target's, as well as may be.

    The pairing of axes that encloses the smallest angles is taken; grids that are turned, stretched and shifted against
    each other can then be compared axis by axis.
    """
    cosines = _directions(target_affine).T @ _directions(affine)
    order = max(permutations(range(3)), key=lambda p: sum(abs(cosines[axis, p[axis]]) for axis in range(3)))
    turn = np.zeros((4, 4))  # takes an index of the turned array to an index of the stored one
    turn[3, 3] = 1
    for axis, stored in enumerate(order):
        forwards = cosines[axis, stored] >= 0
        turn[stored, axis] = 1 if forwards else -1
        turn[stored, 3] = 0 if forwards else shape[stored] - 1
    return tuple(shape[stored] for stored in order), affine @ turn


def _directions(affine) -> np.ndarray:
    return affine[:3, :3] / _spacing(affine)


def _spacing(affine) -> np.ndarray:
    return np.linalg.norm(affine[:3, :3], axis=0)


def _turned(found: Grid, grid) -> list[str]:
    """A turn of all axes, or one axis that leans alone (a gantry tilt that is in one of the two headers only)."""
    ours, theirs = _directions(grid.affine), _directions(found.affine)
    degrees = np.degrees(np.arccos(np.clip((ours * theirs).sum(axis=0), -1, 1)))
    crooked = [axis for axis in range(3) if degrees[axis] > _allowed_degrees(grid, axis)]
    if not crooked:
        return []
    if len(crooked) == 1:
        axis = crooked[0]
        return [
            f"sheared: {'dhw'[axis]} leans {degrees[axis]:.2f} degrees from the CT's while the other axes agree "
            "(a gantry tilt that only one of the two headers has?)"
        ]
    turn = theirs @ np.linalg.inv(ours)
    return [f"rotated by {np.degrees(np.arccos(np.clip((np.trace(turn) - 1) / 2, -1, 1))):.2f} degrees"]


def _allowed_degrees(grid, axis: int) -> float:
    """The angle at which the far end of an axis is off by what corners may differ."""
    length = max(1, grid.shape[axis] - 1) * _spacing(grid.affine)[axis]
    return float(np.degrees(np.arctan(CORNER_TOLERANCE_VOXELS * _spacing(grid.affine).min() / length)))


def _spaced(found: Grid, grid) -> list[str]:
    """Axes whose steps differ by enough to be a tenth of a voxel off at the far end."""
    ours, theirs = _spacing(grid.affine), _spacing(found.affine)
    differ = [a for a in range(3) if abs(theirs[a] / ours[a] - 1) * max(1, grid.shape[a] - 1) > CORNER_TOLERANCE_VOXELS]
    if not differ:
        return []
    steps = ", ".join(f"{theirs[a]:.4g} mm along {'dhw'[a]} where the CT has {ours[a]:.4g}" for a in differ)
    extents = [found.shape[a] * theirs[a] / (grid.shape[a] * ours[a]) for a in range(3)]
    same_field = found.shape != tuple(grid.shape) and all(
        abs(extent - 1) * n <= 1 for extent, n in zip(extents, grid.shape, strict=True)
    )
    resampled = "; the same field of view, so it was resampled" if same_field else ""
    return [f"another spacing: {steps}{resampled}"]


def _counted(found: Grid, grid) -> list[str]:
    """How many slices, rows or columns are missing or too many; at which end, where all else agrees."""
    faults = []
    for axis, (name, unit) in enumerate(zip("dhw", ("slice", "row", "column"), strict=True)):
        n, expected = found.shape[axis], grid.shape[axis]
        if n == expected:
            continue
        ends = []
        if not _turned(found, grid) and not _spaced(found, grid):
            before = round(_first(found, grid)[axis])
            for count, side in zip((before, expected - n - before), _sides(grid, axis), strict=True):
                if count:
                    ends.append(f"{abs(count)} {'missing' if count > 0 else 'too many'} at {side}")
        amount = abs(n - expected)
        faults.append(
            f"{amount} {unit}{'s' if amount > 1 else ''} {'short' if n < expected else 'too many'} along {name}: "
            f"{n} where the CT has {expected}" + (f" ({', '.join(ends)})" if ends else "")
        )
    return faults


def _shifted(found: Grid, grid) -> list[str]:
    """Shift along each axis between grids of one spacing; whole slices that `_counted` has named are left out."""
    faults = []
    for axis, off in enumerate(_first(found, grid)):
        if found.shape[axis] != grid.shape[axis]:
            off -= round(off)
        if abs(off) > CORNER_TOLERANCE_VOXELS:
            way_mm = abs(off) * _spacing(grid.affine)[axis]
            side = _sides(grid, axis)[int(off > 0)]
            voxels = "voxel" if abs(off) <= 1 else "voxels"
            faults.append(f"shifted by {abs(off):.2f} {voxels} along {'dhw'[axis]} ({way_mm:.2f} mm towards {side})")
    return faults


def _middle_off(found: Grid, grid) -> list[str]:
    """Distance between the middles of two grids, where it is more than a voxel."""
    middle = grid_map(found.affine, grid.affine) @ [*((np.array(found.shape) - 1) / 2), 1]
    step = _spacing(grid.affine)
    off_mm = float(np.linalg.norm((middle[:3] - (np.array(grid.shape) - 1) / 2) * step))
    return [f"its middle lies {off_mm:.1f} mm from the CT's"] if off_mm > step.max() else []


def _first(found: Grid, grid) -> np.ndarray:
    """Where the stored array begins, in voxels of the CT."""
    return grid_map(found.affine, grid.affine)[:3, 3]


def _sides(grid, axis: int) -> tuple[str, str]:
    """In words, where an axis of the CT begins and where it ends."""
    code = nib.aff2axcodes(grid.affine)[axis]
    return _WORDS[_OPPOSITE[code]], _WORDS[code]


def apart(shape, affine, grid) -> bool:
    """Whether the stored grid lies outside the CT: their boxes have nothing in common along some axis of the CT."""
    corners = np.array(list(product(*[(-0.5, n - 0.5) for n in shape])))
    there = nib.affines.apply_affine(grid_map(affine, grid.affine), corners)
    return bool((there.max(axis=0) < -0.5).any() or (there.min(axis=0) > np.array(grid.shape) - 0.5).any())


def nonzero_box(array: np.ndarray):
    """Slices around all that is not zero (NaN included), or None."""
    bits = array.view(
        f"u{array.itemsize}"
    )  # the maximum of unsigned numbers is the quickest way to see one that is not 0
    lines = bits.max(axis=0)
    rows, planes = (np.flatnonzero(lines.any(axis=axis)) for axis in (1, 0))
    if not len(rows):
        return None
    box = slice(rows[0], rows[-1] + 1), slice(planes[0], planes[-1] + 1)
    first = np.flatnonzero(bits[:, *box].max(axis=(1, 2)))
    return slice(first[0], first[-1] + 1), *box


def flips_by_hu(volume: Volume, mask: np.ndarray, labels=CERVICAL_IDS) -> pd.Series:
    """Mean HU under the labels, for the mask as it is and for its seven flips.

    Bone is bright, so the right placement has the highest mean. Names of the flips: "as placed", "flipped d",
    "flipped d and h", ... Raises MaskError if the mask has another shape or none of the labels.
    """
    inside = nonzero_box(mask) if mask.shape == volume.shape else None
    part = None if inside is None else np.isin(mask[inside], list(labels))
    if part is None or not part.any():
        raise MaskError(
            f"the label map of {volume.study_uid or 'this volume'}",
            found=f"labels of shape {mask.shape}, {np.count_nonzero(mask)} voxels not 0",
            expected=f"shape {volume.shape} and some of the labels {list(labels)}",
            remedy="place the label map with nifti.read_mask first; name the labels that it has.",
        )
    means = {}
    for flips in product((False, True), repeat=3):
        axes = tuple(axis for axis in range(3) if flips[axis])
        name = "flipped " + " and ".join("dhw"[axis] for axis in axes) if axes else "as placed"
        means[name] = float(np.flip(volume.hu, axes)[inside][part].mean())  # turns the CT, not the mask: the same pairs
    return pd.Series(means, name="mean HU")


def check_placement(volume: Volume, mask: np.ndarray, labels=CERVICAL_IDS) -> None:
    """Refuse a mask that fits bone better after a flip: what a grid cannot tell if it is symmetric about the origin.

    A header with x and y negated lands exactly on the CT's grid if that grid is centred on x = y = 0; nothing but the
    picture tells then. Raises GridMismatch if a flip is brighter by more than `FLIP_MARGIN_HU`.
    """
    means = flips_by_hu(volume, mask, labels)
    best = means.idxmax()
    if means[best] > means["as placed"] + FLIP_MARGIN_HU:
        raise GridMismatch(
            f"the label map of {volume.study_uid or 'this volume'}",
            found=f"{means['as placed']:.0f} HU under the labels as placed, but {means[best]:.0f} HU {best}",
            expected="bone, which no flip makes brighter",
            remedy="do not use it: its header is mirrored (w: x, h: y, d: z negated) or it belongs to another study.",
        )
