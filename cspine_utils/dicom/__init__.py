"""A folder of DICOM files -> one Volume in HU, whatever order, orientation and compression they came in.

look_into(folder) -> FolderListing     what is in the folder, by headers alone
listing.choose() -> headers            the one axial CT series
measure(headers) -> SeriesGeometry     order, step, tilt, and what is wrong with them
read_series(folder) -> Volume          all of it, with the pixels
read_slice(path) -> HU                 one file by itself
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cspine_utils.errors import SeriesError
from cspine_utils.volume import Volume

from . import pixels
from .elements import NotDicom
from .folder import FolderListing, look_into
from .geometry import SeriesGeometry, measure, name_of, upright
from .headers import NoSlice, SliceHeader, read_headers

__all__ = ["FolderListing", "SeriesGeometry", "SliceHeader", "look_into", "measure", "read_series", "read_slice"]


def read_series(folder, *, containing: str | None = None, resample_uneven: bool = False) -> Volume:
    """Read one CT series from a folder.

    Parameters
    ----------
    folder : holds the files of the series; what else lies in it is left out and listed in `Volume.left_out`
    containing : name of a file of the wanted series, where the folder holds several axial ones
    resample_uneven : read slices of uneven steps by linear interpolation between neighbours onto an even grid
        (no gap may exceed 1.5 times the median); without it they are refused

    Returns
    -------
    Volume : int16 HU `(d, h, w)`, head -> feet, anterior -> posterior, right -> left (axial, coronal and sagittal
        series alike, oblique ones as near as whole axes can be); values beyond int16 saturate. A gantry tilt stays
        in the affine as a shear. Without `resample_uneven` nothing is interpolated.

    Raises
    ------
    SeriesError : no CT slices, several series, damaged or truncated files, uneven or missing slices, pixels that
        cannot be decoded; whatever bytes are in the folder, nothing else is raised
    """
    listing = look_into(folder)
    geometry = measure(listing.choose(containing))
    geometry.check(resample_uneven=resample_uneven)
    is_even = geometry.problem is None
    affine, shape = (geometry.affine, geometry.stored_shape) if is_even else geometry.even()
    turn, grid = upright(affine, shape)
    try:
        hu = np.empty(grid.shape, dtype=np.int16)
        slices = _in_stored_order(hu, turn)
        if is_even:
            pixels.read_into(geometry.headers, slices)
        else:
            stored = np.empty(geometry.stored_shape, dtype=np.int16)
            pixels.read_into(geometry.headers, stored)
            _interpolate(stored, geometry.gaps_mm, slices)
    except MemoryError as error:
        raise SeriesError(
            folder,
            found=f"{np.prod(grid.shape) * 2 / 2**30:.1f} GiB of voxels",
            expected="a volume that fits into memory",
            remedy="read it on a machine with more memory.",
        ) from error
    names = tuple(name_of(header) for header in geometry.headers)[:: int(turn[0, 1])]
    return Volume(
        hu=hu,
        affine=grid.affine,
        file_names=names if is_even else (),
        study_uid=geometry.headers[0].study_uid,
        left_out=dict(listing.left_out),
    )


def read_slice(path) -> np.ndarray:
    """HU of a file that holds a single slice, int16 `(rows, columns)` as stored: not turned, not ordered, not placed.

    Raises SeriesError for whatever else the file is.
    """
    path = Path(path)
    try:
        read = read_headers(path)
    except NotDicom:
        read = NoSlice("a file that is not DICOM", None)
    if isinstance(read, NoSlice) or len(read) != 1:
        raise SeriesError(
            path,
            found=read.reason if isinstance(read, NoSlice) else f"{len(read)} slices",
            expected="a CT slice",
            remedy="read the folder of a series with read_series.",
        )
    hu = np.empty((1, read[0].rows, read[0].columns), dtype=np.int16)
    pixels.read_into(read, hu)
    return hu[0]


def _in_stored_order(volume: np.ndarray, turn: np.ndarray) -> np.ndarray:
    """A view of a `(d, h, w)` array as (slice, row, column): what is written into it lands upright."""
    order = [int(axis) for axis in turn[:, 0]]
    return volume.transpose(order)[tuple(slice(None, None, int(flip)) for flip in turn[:, 1])]


def _interpolate(stored: np.ndarray, gaps_mm: np.ndarray, slices: np.ndarray) -> None:
    """Fill `slices` with the values halfway between, or wherever the even places fall between, stored slices."""
    there = np.concatenate([[0.0], np.cumsum(gaps_mm)])
    for target, place in zip(slices, np.linspace(0, there[-1], len(slices)), strict=True):
        after = int(np.clip(np.searchsorted(there, place), 1, len(there) - 1))
        share = (place - there[after - 1]) / gaps_mm[after - 1]
        target[:] = np.rint((1 - share) * stored[after - 1] + share * stored[after])
