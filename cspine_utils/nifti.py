"""A label file -> a mask on a Volume's own grid, placed by the affine alone; and the way back.

The affines of the CT and of the label file say where every voxel lies in the patient. If both
describe the same grid, one is a reordering of the other's axes: that reordering is computed, checked
to a fraction of a voxel, and applied. Nothing is interpolated and no rule about slice numbers is used.

The grid is judged before any data is read; the data come in slabs, and only the part of a slab that is not zero is
turned, which for a label map is a few percent of it.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel import orientations

from cspine_utils import placement
from cspine_utils.errors import GridMismatch, MaskError, ParameterError
from cspine_utils.nifti_file import StoredArray, read_header, reading, refuse, slabs
from cspine_utils.placement import check_placement as check_placement  # of the reader's tools, they belong here too
from cspine_utils.placement import flips_by_hu as flips_by_hu
from cspine_utils.placement import nonzero_box
from cspine_utils.volume import describe_grid, grid_map

#: A file on another grid is read whole in order to be resampled: up to the size of the largest real label map.
MAX_RESAMPLED_BYTES = 600 * 2**20


def read_mask(path, volume, *, resample: bool = False) -> np.ndarray:
    """Read a label map onto the grid of a CT volume.

    Parameters
    ----------
    path : NIfTI file, any of the 48 axis orders, integers or whole-numbered floats from 0 to 255
    volume : the CT that the labels describe, or its grid
    resample : take a label map on another grid too, by nearest neighbour; what it does not cover is 0. Only the
        header says where it lies: one that is mirrored or tells nothing is refused all the same, one of another
        study whose field overlaps is not noticed (`check_placement` may)

    Returns
    -------
    uint8 `(d, h, w)`, contiguous, voxel for voxel on `volume`'s grid

    Raises
    ------
    MaskError : not a NIfTI file, damaged, not 3-D, no affine, or values that are no labels
    GridMismatch : the two grids differ; the message says in what, and gives both geometries
    """
    return _read(path, volume, resample, _as_labels, np.uint8)


def read_aligned(path, grid, *, resample: bool = False) -> np.ndarray:
    """Read whatever numbers a NIfTI file stores onto a grid, by the affine alone.

    Parameters
    ----------
    path : NIfTI file, any of the 48 axis orders, integers or floats up to 64 bits
    grid : anything with `.shape` and `.affine`
    resample : take a file on another grid too, by nearest neighbour; what it does not cover is 0

    Returns
    -------
    `(d, h, w)`, contiguous, the stored type. Where the header scales the values: int32 for 16-bit numbers with whole
    slope and intercept (a CT with its -1024 in the header), float64 for all others

    Raises
    ------
    MaskError, GridMismatch : as in `read_mask`
    """
    return _read(path, grid, resample, lambda path, values: values, None)


@dataclass(frozen=True)
class MaskReport:
    """What a label file holds, for a survey of many.

    Attributes
    ----------
    shape : of the stored array; () if the header cannot be read
    codes : where its axes go, e.g. "LAS"; "" if that is not known
    labels : ids that occur, without 0; () if the file cannot be placed
    problem : why it cannot be used, or None
    """

    shape: tuple[int, ...]
    codes: str
    labels: tuple[int, ...]
    problem: MaskError | None


def describe_mask(path, grid) -> MaskReport:
    """Header, labels and fitness of a label file for the CT on `grid`; what is wrong is reported, not raised."""
    path, shape, codes = Path(path), (), ""
    try:
        stored = read_header(path)
        shape, codes = stored.shape, _codes(stored.affine)
        mask = read_mask(path, grid)
    except MaskError as error:
        return MaskReport(shape, codes, (), error)
    box = nonzero_box(mask)
    counts = np.bincount(mask[box].ravel(), minlength=1) if box else np.zeros(1)
    return MaskReport(shape, codes, tuple(int(label) for label in np.flatnonzero(counts) if label), None)


def write_mask(path, mask: np.ndarray, grid) -> None:
    """Write a label map as the real ones are stored: uint16, axes to Left, Anterior, Superior.

    qform and sform are both set. A sheared grid (gantry tilt) fits into the sform alone: the qform is then marked as
    unknown, and the header's description says so, because a reader that took it would be off by the whole shear.

    Parameters
    ----------
    path : `.nii`, or `.nii.gz` for a compressed file; written beside it and renamed when whole
    mask : labels 0 to 255 on `grid`
    grid : anything with `.shape` and `.affine`

    Raises
    ------
    MaskError : another shape than the grid's, values that are no labels, another suffix, or no room to write
    """
    path, mask = Path(path), np.asarray(mask)
    if mask.shape != tuple(grid.shape):
        refuse(path, f"labels of shape {mask.shape}", f"{tuple(grid.shape)}, the shape of the grid", "pass its own.")
    if not placement.is_invertible(np.asarray(grid.affine)):
        refuse(path, f"the affine {grid.affine}", "one that gives every voxel a place of its own", "pass the CT's.")
    labels = _as_labels(path, mask)
    turn = orientations.ornt_transform(orientations.io_orientation(grid.affine), orientations.axcodes2ornt("LAS"))
    array = orientations.apply_orientation(labels, turn).astype(np.uint16)
    image = nib.Nifti1Image(array, grid.affine @ orientations.inv_ornt_aff(turn, mask.shape))
    image.set_sform(image.affine, code=1)
    image.set_qform(image.affine, code=1)
    if not np.allclose(image.get_qform(), image.affine, atol=1e-3):
        image.set_qform(image.affine, code=0)
        image.header["descrip"] = "sheared grid: the sform tells it, no qform can"
    image.header.set_xyzt_units("mm")
    suffix = next((s for s in (".nii", ".nii.gz") if path.name.endswith(s)), None)
    if suffix is None:
        refuse(path, f"the name {path.name}", "a name that ends in .nii or .nii.gz", "choose one.")
    part = path.with_name(f".{path.name.removesuffix(suffix)}.part{suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        nib.save(image, part)
        os.replace(part, path)
    except OSError as error:
        refuse(
            path,
            f"a place that cannot be written ({error.strerror})",
            "room and permission",
            "choose another folder, or make room.",
            error,
        )
    finally:
        with contextlib.suppress(OSError):
            part.unlink()


def _read(path, grid, resample: bool, convert, dtype) -> np.ndarray:
    """The values of a file on a grid; `convert(path, values)` checks and changes those that are not zero."""
    if not hasattr(grid, "affine") or not hasattr(grid, "shape"):
        raise ParameterError(
            "volume",
            found=type(grid).__name__,
            expected="a Volume or a Grid: a shape with its affine",
            remedy="pass the path first, then what dicom.read_series returned, not its array.",
        )
    path = Path(path)
    with reading(path):
        stored = read_header(path)
        permutation = placement.match(stored.shape, stored.affine, grid)
        if permutation is not None:
            return _place(path, stored, permutation, convert, dtype)
        apart = placement.apart(stored.shape, stored.affine, grid)
        if not resample or apart or placement.untrustworthy(stored.shape, stored.affine, grid):
            raise _mismatch(path, stored, grid)
        if stored.nbytes > MAX_RESAMPLED_BYTES:
            refuse(
                path,
                f"{stored.nbytes / 1e9:.3g} GB on another grid ({describe_grid(stored.shape, stored.affine)})",
                f"at most {MAX_RESAMPLED_BYTES / 1e9:.2g} GB to be resampled",
                "bring it onto the CT's grid with the tool that made it.",
            )
        values = _place(path, stored, ((0, 1, 2), ()), convert, dtype)
        box = nonzero_box(values)
        placed = np.zeros(grid.shape, values.dtype)
        if box:
            _nearest(values, box, grid_map(grid.affine, stored.affine), placed)
            if not placed.any():
                raise _mismatch(path, stored, grid)
        return placed


def _place(path: Path, stored: StoredArray, permutation, convert, dtype) -> np.ndarray:
    order, reversed_axes = permutation
    placed = np.zeros([stored.shape[axis] for axis in order], dtype or stored.value_type)
    as_stored = np.flip(placed, reversed_axes).transpose(np.argsort(order))  # the same memory, indexed as the file is
    for first, slab in slabs(path, stored):
        box = nonzero_box(slab)
        if box:
            as_stored[..., first : first + slab.shape[2]][box] = convert(path, slab[box])
    return placed


def _nearest(values: np.ndarray, box, to_stored: np.ndarray, placed: np.ndarray) -> None:
    """Fill `placed` from the voxel of `values` that is nearest; only where the box of what is not zero can reach."""
    corners = np.array(list(product(*[(part.start - 0.5, part.stop - 0.5) for part in box])))
    reach = nib.affines.apply_affine(np.linalg.inv(to_stored), corners)
    start = np.clip(np.floor(reach.min(axis=0)), 0, placed.shape).astype(int)
    stop = np.clip(np.ceil(reach.max(axis=0)) + 1, 0, placed.shape).astype(int)
    h, w = np.ogrid[start[1] : stop[1], start[2] : stop[2]]
    linear, size = to_stored[:3, :3, None, None], np.array(values.shape)[:, None, None]
    in_plane = linear[:, 1] * h + linear[:, 2] * w + to_stored[:3, 3, None, None]
    for d in range(start[0], stop[0]):
        nearest = np.floor(in_plane + linear[:, 0] * d + 0.5).astype(np.int64)
        inside = ((nearest >= 0) & (nearest < size)).all(axis=0)
        placed[d, start[1] : stop[1], start[2] : stop[2]][inside] = values[tuple(nearest[:, inside])]


def _as_labels(path: Path, values: np.ndarray) -> np.ndarray:
    if values.dtype.kind not in "uifb":
        refuse(path, f"values of type {values.dtype}", "whole numbers", "pass labels.")
    if values.dtype == np.uint8 or not values.size:
        return values.astype(np.uint8)
    lowest, highest = values.min(), values.max()
    if not (0 <= lowest and highest <= 255):  # written so that NaN fails too
        refuse(
            path,
            f"values from {lowest} to {highest}",
            "labels from 0 to 255",
            "check that this is the label map and not the CT itself, and that its background is 0.",
        )
    labels = values.astype(np.uint8)
    if values.dtype.kind == "f" and not np.array_equal(labels, values):
        refuse(
            path,
            "values that are not whole numbers",
            "labels",
            "resample label maps with nearest neighbour, never linearly.",
        )
    return labels


def _mismatch(path: Path, stored: StoredArray, grid) -> GridMismatch:
    what, remedy = placement.diagnose(stored.shape, stored.affine, grid)
    if stored.qform is not None and placement.match(stored.shape, stored.qform, grid) is not None:
        what += " (the qform of the same header does lie on the CT, its sform does not)"
    return GridMismatch(
        path,
        found=f"{what}: {describe_grid(stored.shape, stored.affine)}",
        expected="the CT's own grid in any axis order: " + describe_grid(grid.shape, grid.affine),
        remedy=remedy,
    )


def _codes(affine: np.ndarray) -> str:
    return "".join(code or "?" for code in nib.aff2axcodes(affine))
