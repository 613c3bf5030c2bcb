"""A label file -> a mask on a Volume's own grid, placed by the affine alone.

The affines of the CT and of the label file say where every voxel lies in the patient. If both
describe the same grid, one is a reordering of the other's axes: that reordering is computed, checked
to a fraction of a voxel, and applied. Nothing is interpolated and no rule about slice numbers is used.
"""

from __future__ import annotations

from itertools import product
from pathlib import Path

import nibabel as nib
import numpy as np

from cspine_utils.errors import GridMismatch, MaskError
from cspine_utils.volume import Volume, axis_permutation, describe_grid, grid_map

#: Corners of the two grids may differ by this share of a voxel (header rounding is far smaller).
CORNER_TOLERANCE_VOXELS = 0.1


def read_mask(path, volume: Volume) -> np.ndarray:
    """Read a label map onto the grid of a CT volume.

    Parameters
    ----------
    path : NIfTI file, any of the 48 axis orders, integers or whole-numbered floats from 0 to 255
    volume : the CT that the labels describe

    Returns
    -------
    uint8 `(d, h, w)`, contiguous, voxel for voxel on `volume`'s grid

    Raises
    ------
    MaskError : not a NIfTI file, truncated, not 3-D, or values that are no labels
    GridMismatch : the two grids differ; the message gives both geometries
    """
    path = Path(path)
    image, labels = _load(path)
    order, reversed_axes = _placement(path, image, volume)
    placed = np.flip(labels.transpose(order), reversed_axes)
    return np.ascontiguousarray(placed)


def _load(path: Path):
    try:
        image = nib.load(path)
        stored = np.asanyarray(image.dataobj)
    except Exception as error:  # nibabel, zlib and the file system fail in many ways on damaged files
        raise MaskError(
            path,
            found="no such file"
            if not path.exists()
            else f"a file that cannot be read ({' '.join(str(error).split())})",
            expected="a NIfTI label map (.nii or .nii.gz)",
            remedy="download it again; the study can be used without its label map.",
        ) from error
    if stored.ndim != 3:
        raise MaskError(
            path,
            found=f"an array of shape {stored.shape}",
            expected="three axes",
            remedy="export one label map a study, not a time series or one channel a label.",
        )
    labels = _as_labels(path, stored)
    return image, labels


def _as_labels(path: Path, stored: np.ndarray) -> np.ndarray:
    if stored.dtype.kind not in "uif":
        raise MaskError(
            path,
            found=f"values of type {stored.dtype}",
            expected="whole numbers",
            remedy="export the label map with an integer type.",
        )
    lowest, highest = (stored.min(), stored.max()) if stored.size else (0, 0)
    if not (0 <= lowest and highest <= 255):  # written so that NaN fails too
        raise MaskError(
            path,
            found=f"values from {lowest} to {highest}",
            expected="labels from 0 to 255",
            remedy="check that this is the label map and not the CT itself.",
        )
    labels = stored.astype(np.uint8)
    if stored.dtype.kind == "f" and not np.array_equal(labels, stored):
        raise MaskError(
            path,
            found="values that are not whole numbers",
            expected="labels",
            remedy="resample label maps with nearest neighbour, never linearly.",
        )
    return labels


def _placement(path: Path, image, volume: Volume):
    """The reordering that takes the stored array onto the volume's grid. Raises GridMismatch."""
    mapping = grid_map(image.affine, volume.affine)
    permutation = axis_permutation(mapping)
    if permutation is not None and tuple(image.shape[a] for a in permutation[0]) == volume.shape:
        if _corner_error(mapping, permutation, image.shape) <= CORNER_TOLERANCE_VOXELS:
            return permutation
    raise GridMismatch(
        path,
        found=describe_grid(image.shape, image.affine),
        expected="the CT's own grid in any axis order: " + describe_grid(volume.shape, volume.affine),
        remedy="use the label map of this very study; if it was resampled, resample it back to the CT's grid "
        "with nearest neighbour.",
    )


def _corner_error(mapping: np.ndarray, permutation, stored_shape) -> float:
    """Largest distance, in voxels along one axis, between where the corners lie and where they should."""
    order, reversed_axes = permutation
    corners = np.array(list(product(*[(0, n - 1) for n in stored_shape])), dtype=float)
    expected = corners[:, order]
    for axis in reversed_axes:
        expected[:, axis] = stored_shape[order[axis]] - 1 - expected[:, axis]
    return float(np.abs(nib.affines.apply_affine(mapping, corners) - expected).max())
