"""The bytes of a NIfTI file: what its header says, judged, and its values in slabs.

nibabel reads the header; the data are read here, because a label map of 600 MB should pass through a few MB of memory,
and because nothing may be allocated, skipped or waited for on the word of a damaged header.
"""

from __future__ import annotations

import contextlib
import gzip
import logging
import os
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np

from cspine_utils import placement
from cspine_utils.errors import MaskError

_A_LABEL_MAP = (
    "a NIfTI label map (.nii or .nii.gz)",
    "download it again, or export it as one .nii or .nii.gz; the study can be used without its label map.",
)
_SLAB_BYTES = 2**22
#: Extensions stand between header and data; a header that claims more of them than this is damaged.
_MAX_OFFSET = 2**26
_GZIP = b"\x1f\x8b"
_QUIET = logging.Logger("headers", level=logging.CRITICAL + 1)  # nibabel mends harmless slips and would print each


@dataclass(frozen=True, eq=False)
class StoredArray:
    """What a NIfTI header says: the array, its type and scaling, where it begins and how it lies."""

    shape: tuple[int, int, int]
    dtype: np.dtype
    scaling: tuple[float, float] | None  # (slope, intercept) if the stored numbers are not the values themselves
    offset: int
    affine: np.ndarray
    qform: np.ndarray | None  # the other affine, where the header has both

    @property
    def value_type(self) -> np.dtype:
        """The stored type; scaled 16-bit numbers are int32 where slope and intercept are whole, else float64."""
        if not self.scaling:
            return self.dtype.newbyteorder("=")
        is_whole = all(abs(number) < 2**14 and number == int(number) for number in self.scaling)
        return np.dtype(np.int32 if is_whole and self.dtype.kind in "ui" and self.dtype.itemsize <= 2 else np.float64)

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape, dtype=object)) * self.dtype.itemsize


def read_header(path: Path) -> StoredArray:
    """Read and judge a header. Raises MaskError for what no CT's label map can have."""
    with reading(path):
        with _open(path) as stream:
            block = stream.read(nib.Nifti2Header.sizeof_hdr)
        kinds = {nib.Nifti1Header.sizeof_hdr: nib.Nifti1Header, nib.Nifti2Header.sizeof_hdr: nib.Nifti2Header}
        kind = next((kinds[n] for n in kinds for end in ("little", "big") if block[:4] == n.to_bytes(4, end)), None)
        if kind is None:
            refuse(path, "a file that cannot be read (it does not begin as a NIfTI file does)", *_A_LABEL_MAP)
        header = kind(block[: kind.sizeof_hdr], check=False)
        header.check_fix(logger=_QUIET, error_level=40)
        if bytes(header["magic"])[:2] != b"n+":
            refuse(path, "a header whose data are in another file (.hdr and .img)", *_A_LABEL_MAP)
        shape = tuple(int(n) for n in header.get_data_shape())
        while len(shape) > 3 and shape[-1] == 1:
            shape = shape[:-1]
        if len(shape) != 3 or min(shape) < 1:
            refuse(
                path,
                f"an array of shape {shape}",
                "three axes",
                "export one label map a study, not a time series or one channel a label.",
            )
        dtype = header.get_data_dtype()
        if dtype.kind not in "uif" or dtype.itemsize > 8:
            refuse(
                path,
                f"values of type {header.get_value_label('datatype')}",
                "whole numbers",
                "export labels as integers.",
            )
        slope, intercept = header.get_slope_inter()
        offset = int(header["vox_offset"]) or header.single_vox_offset
        if not kind.sizeof_hdr <= offset <= _MAX_OFFSET:
            refuse(path, f"data that begin at byte {offset}", "data behind the header", *_A_LABEL_MAP[1:])
        affine, qform = _affines(path, header)
        scaling = None if slope is None or (slope, intercept) == (1, 0) else (slope, intercept)
        return StoredArray(shape, dtype, scaling, offset, affine, qform)


def slabs(path: Path, stored: StoredArray):
    """Yield (first index, slab) along the last axis: the values of a few planes, valid until the next is asked for.

    Numbers may be in the other byte order. A plain file is mapped, a compressed one passes through one buffer.
    """
    many = max(1, min(stored.shape[2], _SLAB_BYTES // (stored.nbytes // stored.shape[2])))
    slope, intercept = (stored.value_type.type(number) for number in stored.scaling or (1, 0))
    for first, planes in _planes(path, stored, many):
        yield first, planes.astype(stored.value_type) * slope + intercept if stored.scaling else planes


def _planes(path: Path, stored: StoredArray, many: int):
    with _open(path) as stream:
        if not isinstance(stream, gzip.GzipFile):
            _check_length(path, os.fstat(stream.fileno()).st_size - stored.offset, stored)
            whole = np.memmap(stream, stored.dtype, "r", stored.offset, stored.shape, order="F").view(np.ndarray)
            for first in range(0, stored.shape[2], many):
                yield first, whole[..., first : first + many]
            return
        stream.seek(stored.offset)
        buffer = np.empty((*stored.shape[:2], many), stored.dtype, order="F")
        for first in range(0, stored.shape[2], many):
            planes = buffer[..., : stored.shape[2] - first]
            target, filled = memoryview(planes.T.view(np.uint8).reshape(-1)), 0
            while filled < len(target):
                count = stream.readinto(target[filled:])
                if not count:
                    _check_length(path, stored.nbytes // stored.shape[2] * first + filled, stored)
                filled += count
            yield first, planes
        stream.read(2**20)  # at its end a compressed file is checked against the sum that it carries


def _affines(path: Path, header) -> tuple[np.ndarray, np.ndarray | None]:
    """The affine that holds (the sform where there is one, as nibabel has it), and the qform beside it."""
    sform, qform = (int(header[code]) for code in ("sform_code", "qform_code"))
    if not sform and not qform:
        refuse(
            path,
            "no affine (the codes of qform and sform are both 0)",
            "one that tells where the voxels lie",
            "export the label map again with its geometry; without one it cannot be placed, only guessed.",
        )
    affine = header.get_sform() if sform else header.get_qform()
    if not placement.is_invertible(affine):
        rows = " ".join(np.array2string(affine[:3], precision=3).split())
        refuse(
            path,
            f"an affine that gives voxels no place of their own ({rows})",
            "three axes of finite length that point three ways",
            "export the label map again with its geometry.",
        )
    beside = None
    if sform and qform:
        with contextlib.suppress(Exception):  # it is not used, so its faults are no reason to refuse
            beside = header.get_qform()
    return affine, beside if beside is not None and placement.is_invertible(beside) else None


def _check_length(path: Path, found: int, stored: StoredArray) -> None:
    if found < stored.nbytes:
        refuse(
            path,
            f"a file that cannot be read (it is cut short: {max(0, found)} bytes of data)",
            f"{stored.nbytes} bytes, as the header says",
            "download it again.",
        )


def _open(path: Path):
    if not path.is_file():  # a pipe would never end
        found = "no such file" if not path.exists() else "something that is no file"
        refuse(path, found if not path.is_symlink() else "a link that leads to no file", *_A_LABEL_MAP)
    with path.open("rb") as file:
        compressed = file.read(2) == _GZIP
    return gzip.open(path) if compressed else path.open("rb")


@contextlib.contextmanager
def reading(path: Path):
    """Whatever goes wrong inside, with whatever bytes, leaves as a MaskError that names the file."""
    try:
        yield
    except MaskError:
        raise
    except Exception as error:  # nibabel, zlib and the file system fail in many ways on damaged files
        if isinstance(error, nib.spatialimages.HeaderDataError):  # it quotes bytes of the file, which may be a name
            refuse(path, "a file that cannot be read (its header is damaged)", *_A_LABEL_MAP)
        said = " ".join(str(error).split()) or type(error).__name__
        refuse(path, f"a file that cannot be read ({said})", *_A_LABEL_MAP, error)


def refuse(path: Path, found: str, expected: str, remedy: str, cause: Exception | None = None):
    """Raise the MaskError of a file."""
    raise MaskError(path, found=found, expected=expected, remedy=remedy) from cause
