"""A folder of DICOM slices -> one Volume in HU.

Order and step come from ImagePositionPatient along the slice normal, never from file names,
InstanceNumber or SliceThickness: 197 of the 2,019 real studies are stored feet -> head, ten have no
`1.dcm`, and the step often differs from the thickness. (DICOM PS3.3, C.7.6.2 Image Plane Module.)
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
from nibabel import orientations
from pydicom.uid import UID

from cspine_utils import codecs
from cspine_utils.errors import SeriesError
from cspine_utils.volume import AXIS_CODES, Volume, lps_to_ras

#: A gap between neighbouring slices may differ from the median gap by this share of it.
STEP_TOLERANCE = 0.1
#: A slice may lie this many mm off the line through the others (rounding in the headers is far smaller).
LINE_TOLERANCE_MM = 0.2
#: The slice normal may lean this far from the head-feet axis; a CT gantry tilts by up to about 30 degrees.
MAX_TILT_DEGREES = 40.0
#: The item that ends compressed pixels stands within this many bytes of the end of a whole file.
_TAIL = 4096
_SEQUENCE_END = bytes.fromhex("feffdde0")


@dataclass(frozen=True, eq=False)
class SliceHeader:
    """What one file says of its geometry. Lengths in mm, positions and directions in DICOM's LPS."""

    path: Path
    study_uid: str
    series_uid: str
    transfer_syntax: UID
    rows: int
    columns: int
    position_mm: np.ndarray  # (3,) centre of the first pixel
    row_direction: np.ndarray  # (3,) unit vector along a row: where the column index grows
    column_direction: np.ndarray  # (3,) unit vector along a column: where the row index grows
    pixel_spacing_mm: tuple[float, float]  # between rows, between columns
    thickness_mm: float | None

    @property
    def normal(self) -> np.ndarray:
        return np.cross(self.row_direction, self.column_direction)


@dataclass(frozen=True, eq=False)
class SeriesGeometry:
    """Where the slices of a series lie.

    headers : along the slice normal, in the order of `affine`'s first axis (not yet head -> feet)
    affine : 4x4, voxel (slice, row, column) -> RAS+ mm
    gaps_mm : distance along the normal between neighbours, (n - 1,)
    """

    headers: tuple[SliceHeader, ...]
    affine: np.ndarray
    gaps_mm: np.ndarray


def read_series(folder) -> Volume:
    """Read a folder that holds one axial CT series.

    Parameters
    ----------
    folder : every file in it that is not hidden must be a slice of the same series

    Returns
    -------
    Volume : int16 HU `(d, h, w)`, head -> feet, anterior -> posterior, right -> left; values beyond
        int16 saturate. A gantry tilt stays in the affine as a shear; nothing is interpolated.

    Raises
    ------
    SeriesError : no files, not DICOM, truncated, several series, uneven or missing slices,
        not axial, or pixels that cannot be decoded
    """
    geometry = series_geometry(read_headers(folder))
    first = geometry.headers[0]
    stored = np.empty((len(geometry.headers), first.rows, first.columns), dtype=np.int16)
    for target, header in zip(stored, geometry.headers, strict=True):
        target[:] = _read_hu(header)
    return _head_to_feet(stored, geometry)


def read_headers(folder) -> list[SliceHeader]:
    """Headers of every slice in the folder, sorted by file name; pixels are not read. Raises SeriesError."""
    folder = Path(folder)
    if not folder.is_dir():
        raise SeriesError(
            folder,
            found="a file" if folder.exists() else "no such folder",
            expected="a folder of DICOM slices",
            remedy="name the folder of one series, e.g. train_images/<StudyInstanceUID>.",
        )
    paths = sorted(p for p in folder.iterdir() if not p.name.startswith("."))
    strange = [p for p in paths if not p.is_file()]
    if strange:
        raise SeriesError(
            strange[0],
            found="a subfolder" if strange[0].is_dir() else "a link that leads nowhere",
            expected="nothing but the slices of one series",
            remedy="move it away, or its slices into this folder: what lies deeper is not read.",
        )
    if not paths:
        raise SeriesError(
            folder,
            found="no files",
            expected="the DICOM slices of one series",
            remedy="download the study again; an interrupted download leaves empty folders.",
        )
    return [_read_header(path) for path in paths]


def series_geometry(headers: list[SliceHeader]) -> SeriesGeometry:
    """Sort the slices along their normal and derive the affine; refuse what is not one even axial stack.

    Raises SeriesError that names the files and the numbers at fault.
    """
    folder = headers[0].path.parent
    _check_one_series(folder, headers)
    normal = headers[0].normal
    tilt = np.degrees(np.arccos(min(1.0, abs(normal[2]))))
    if tilt > MAX_TILT_DEGREES:
        raise SeriesError(
            folder,
            found=f"slices whose normal leans {tilt:.1f} degrees from the head-feet axis",
            expected=f"an axial series (at most {MAX_TILT_DEGREES:.0f} degrees)",
            remedy="choose the axial series of this study; localizers and reformats do not belong here.",
        )
    if len(headers) < 2:
        raise SeriesError(
            headers[0].path,
            found="a single slice",
            expected="at least two, since the step between slices comes from their positions",
            remedy="download the study again.",
        )
    along = np.array([header.position_mm @ normal for header in headers])
    order = np.argsort(along, kind="stable")
    ordered = tuple(headers[i] for i in order)
    gaps_mm = np.diff(along[order])
    _check_even(folder, ordered, gaps_mm)

    positions = np.stack([header.position_mm for header in ordered])
    step = (positions[-1] - positions[0]) / (len(ordered) - 1)
    _check_straight(ordered, positions, step, gaps_mm)
    affine_lps = np.eye(4)
    affine_lps[:3, 0] = step
    affine_lps[:3, 1] = ordered[0].column_direction * ordered[0].pixel_spacing_mm[0]
    affine_lps[:3, 2] = ordered[0].row_direction * ordered[0].pixel_spacing_mm[1]
    affine_lps[:3, 3] = positions[0]
    return SeriesGeometry(ordered, lps_to_ras(affine_lps), gaps_mm)


def _read_header(path: Path) -> SliceHeader:
    try:
        with open(path, "rb") as file:
            dataset = pydicom.dcmread(file, stop_before_pixels=True)
            pixels_at = file.tell()
            size = file.seek(0, os.SEEK_END)
            file.seek(max(pixels_at, size - _TAIL))
            tail = file.read()
        frames = int(dataset.get("NumberOfFrames") or 1)
        modality = str(dataset.get("Modality", "CT"))
        bits = int(_numbers(path, dataset, "BitsAllocated", 1)[0])
        orientation = _numbers(path, dataset, "ImageOrientationPatient", 6)
        header = SliceHeader(
            path=path,
            study_uid=str(dataset.get("StudyInstanceUID", "")),
            series_uid=str(dataset.get("SeriesInstanceUID", "")),
            transfer_syntax=dataset.file_meta.TransferSyntaxUID,
            rows=int(_numbers(path, dataset, "Rows", 1)[0]),
            columns=int(_numbers(path, dataset, "Columns", 1)[0]),
            position_mm=_numbers(path, dataset, "ImagePositionPatient", 3),
            row_direction=orientation[:3],
            column_direction=orientation[3:],
            pixel_spacing_mm=tuple(_numbers(path, dataset, "PixelSpacing", 2)),
            thickness_mm=float(dataset.SliceThickness) if dataset.get("SliceThickness") else None,
        )
    except SeriesError:
        raise
    except pydicom.errors.InvalidDicomError as error:
        raise SeriesError(
            path,
            found="a file that is not DICOM",
            expected="DICOM slices only",
            remedy="remove the file from the folder, or download it again if it should be a slice.",
        ) from error
    except Exception as error:  # whatever bytes are in the file: pydicom raises many kinds of errors on them
        raise SeriesError(
            path,
            found=f"a header that cannot be read ({type(error).__name__}: {' '.join(str(error).split())})",
            expected="a complete DICOM header",
            remedy="the file is truncated or damaged: download it again.",
        ) from error
    _check_header(header, modality, frames)
    _check_complete(header, bits, bytes_left=size - pixels_at, tail=tail)
    return header


def _check_header(header: SliceHeader, modality: str, frames: int) -> None:
    row, column = header.row_direction, header.column_direction
    problem = None
    if modality != "CT" or frames != 1:
        problem = (f"modality {modality} with {frames} frame(s)", "a CT file with a single frame")
    elif min(header.rows, header.columns) < 1 or min(header.pixel_spacing_mm) <= 0:
        problem = (
            f"{header.rows} x {header.columns} pixels of {header.pixel_spacing_mm} mm",
            "a positive number of pixels and a positive spacing",
        )
    elif abs(row @ row - 1) > 1e-3 or abs(column @ column - 1) > 1e-3 or abs(row @ column) > 1e-3:
        problem = (
            f"ImageOrientationPatient {[*row, *column]}",
            "two directions of length 1 at right angles",
        )
    if problem:
        raise SeriesError(header.path, found=problem[0], expected=problem[1], remedy="leave this file or series out.")


def _check_complete(header: SliceHeader, bits_a_pixel: int, bytes_left: int, tail: bytes) -> None:
    """A file cut short betrays itself without a look at its pixels: too few bytes, or no end of the sequence."""
    if header.transfer_syntax.is_encapsulated:
        needed, whole = "the end mark of its compressed pixels", _SEQUENCE_END in tail
    else:
        count = header.rows * header.columns * bits_a_pixel // 8
        needed = f"at least the {count} bytes of its {header.rows} x {header.columns} pixels"
        # Deflated files are smaller than their pixels; decoding tells.
        whole = bytes_left >= count or header.transfer_syntax.is_deflated
    if not whole:
        raise SeriesError(
            header.path,
            found=f"{bytes_left} bytes after the header",
            expected=needed,
            remedy="the file is cut short: download it again.",
        )


def _numbers(path: Path, dataset: pydicom.Dataset, keyword: str, count: int) -> np.ndarray:
    """`count` finite numbers of a header, or a SeriesError that names the tag."""
    value = dataset.get(keyword)
    try:
        numbers = np.atleast_1d(np.asarray(value, dtype=float))
    except (TypeError, ValueError):
        numbers = np.empty(0)
    if numbers.shape != (count,) or not np.isfinite(numbers).all():
        raise SeriesError(
            path,
            found=f"{keyword} = {value!r}" if keyword in dataset else f"no {keyword}",
            expected=f"{count} finite number(s)",
            remedy="the file is truncated or damaged: download it again, or leave it out.",
        )
    return numbers


def _check_one_series(folder: Path, headers: list[SliceHeader]) -> None:
    def kinds(values):
        return list(dict.fromkeys(values))

    series = kinds((h.study_uid, h.series_uid) for h in headers)
    if len(series) > 1:
        raise SeriesError(
            folder,
            found=f"{len(series)} series: "
            + ", ".join(f"{uid} of study {study}" for study, uid in series[:3])
            + (" ..." if len(series) > 3 else ""),
            expected="the slices of one series",
            remedy="put each series into a folder of its own.",
        )
    first = headers[0]
    for header in headers[1:]:
        for what, mine, other in (
            ("size", (header.rows, header.columns), (first.rows, first.columns)),
            ("PixelSpacing", header.pixel_spacing_mm, first.pixel_spacing_mm),
            ("row direction", tuple(header.row_direction), tuple(first.row_direction)),
            ("column direction", tuple(header.column_direction), tuple(first.column_direction)),
        ):
            if not np.allclose(mine, other, rtol=0, atol=1e-4):
                raise SeriesError(
                    header.path,
                    found=f"{what} {mine}",
                    expected=f"{other}, as in {first.path.name}",
                    remedy="slices of different geometry are different series: separate them.",
                )


def _check_even(folder: Path, ordered, gaps_mm: np.ndarray) -> None:
    step = float(np.median(gaps_mm))
    if step <= 0 or (gaps_mm < 0.01 * step).any():
        twin = int(np.argmin(gaps_mm))
        raise SeriesError(
            folder,
            found=f"{ordered[twin].path.name} and {ordered[twin + 1].path.name} at the same position",
            expected="one file a position",
            remedy="remove the repeated slice, or separate the two series.",
        )
    wrong = np.abs(gaps_mm - step) > STEP_TOLERANCE * step
    if not wrong.any():
        return
    at = int(np.argmax(np.abs(gaps_mm - step)))
    between = f"between {ordered[at].path.name} and {ordered[at + 1].path.name}"
    missing = int(round(gaps_mm[at] / step)) - 1
    looks_missing = missing >= 1 and abs(gaps_mm[at] - (missing + 1) * step) <= STEP_TOLERANCE * step
    raise SeriesError(
        folder,
        found=f"a gap of {gaps_mm[at]:.3f} mm {between}"
        + (f" ({missing} slice(s) missing)" if looks_missing else "")
        + f"; gaps range from {gaps_mm.min():.3f} to {gaps_mm.max():.3f} mm",
        expected=f"{step:.3f} mm between all neighbours, within {STEP_TOLERANCE:.0%}",
        remedy="download the missing slices." if looks_missing else "leave this study out, or resample it first.",
    )


def _check_straight(ordered, positions: np.ndarray, step: np.ndarray, gaps_mm: np.ndarray) -> None:
    """Positions must lie on one line: a drift across the slices is no grid that an affine can describe."""
    normal = ordered[0].normal
    travelled = np.concatenate([[0.0], np.cumsum(gaps_mm)])
    across = positions - positions[0] - travelled[:, None] * step / (step @ normal)
    off_mm = np.linalg.norm(across, axis=1)
    if off_mm.max() > LINE_TOLERANCE_MM:
        worst = ordered[int(np.argmax(off_mm))]
        raise SeriesError(
            worst.path,
            found=f"a slice {off_mm.max():.2f} mm off the line through the first and last slice",
            expected=f"at most {LINE_TOLERANCE_MM} mm",
            remedy="leave this study out: its slices do not form one grid.",
        )


def _read_hu(header: SliceHeader) -> np.ndarray:
    """Pixels of one file in HU, int16 `(rows, columns)`."""
    try:
        dataset = pydicom.dcmread(header.path)
        plugin = codecs.PLUGIN if codecs.is_available(header.transfer_syntax) else ""
        dataset.pixel_array_options(decoding_plugin=plugin)
        pixels = dataset.pixel_array
        slope, intercept = (_numbers(header.path, dataset, f"Rescale{k}", 1)[0] for k in ("Slope", "Intercept"))
    except SeriesError:
        raise
    except Exception as error:  # damaged pixels make every decoder fail in its own way
        raise SeriesError(
            header.path,
            found=f"pixels that cannot be decoded ({type(error).__name__}: {' '.join(str(error).split())})",
            expected=f"{header.rows} x {header.columns} pixels in {header.transfer_syntax.name}",
            remedy="the file is truncated or damaged: download it again.",
        ) from error
    if pixels.shape != (header.rows, header.columns):
        raise SeriesError(
            header.path,
            found=f"pixels of shape {pixels.shape}",
            expected=f"one grey value a pixel, {header.rows} x {header.columns}",
            remedy="colour images do not belong to a CT series: remove the file.",
        )
    if slope == 0:
        raise SeriesError(
            header.path,
            found="RescaleSlope 0",
            expected="the HU of one stored unit, as a rule 1",
            remedy="the header is damaged: download the file again, or leave it out.",
        )
    if slope == 1 and float(intercept).is_integer():
        hu = pixels.astype(np.int32) + int(intercept)
    else:
        hu = np.rint(pixels * slope + intercept)
    limits = np.iinfo(np.int16)
    return np.clip(hu, limits.min, limits.max).astype(np.int16)


def _head_to_feet(stored: np.ndarray, geometry: SeriesGeometry) -> Volume:
    """Reverse (and, for turned images, swap) axes until d runs to the feet, h to the back, w to the left."""
    turn = orientations.ornt_transform(
        orientations.io_orientation(geometry.affine), orientations.axcodes2ornt(AXIS_CODES)
    )
    names = [header.path.name for header in geometry.headers]
    slices_reversed = turn[0, 1] < 0
    return Volume(
        hu=np.ascontiguousarray(orientations.apply_orientation(stored, turn)),
        affine=geometry.affine @ orientations.inv_ornt_aff(turn, stored.shape),
        file_names=tuple(names[::-1] if slices_reversed else names),
        study_uid=geometry.headers[0].study_uid,
    )
