"""One file -> the slices in it, or why it holds none."""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

from pydicom.config import IGNORE
from pydicom.uid import UID

from cspine_utils import codecs
from cspine_utils.errors import SeriesError

from .elements import NATIVE_SYNTAXES, WANTED, Elements, NotDicom, damaged, unreadable
from .kinds import ENHANCED_CT, LOCALIZER, is_surely_another, sop_class, why_no_slice
from .thorough import read_by_pydicom
from .walk import StructError, Unusual, walk

#: No CT image is larger (2048 x 2048 is the largest matrix that scanners offer); a damaged header can say 60,000.
MAX_SIDE = 4096
#: Positions are within metres of the scanner's centre.
MAX_POSITION_MM = 1e5
#: Slopes are about 1 and intercepts about -1024; beyond these bounds a header is damaged.
MIN_SLOPE, MAX_RESCALE = 1e-4, 1e5

_TEXTS = {keyword for keyword, (_, _, vr) in WANTED.items() if vr in ("CS", "UI", "LO")}


class PixelFormat(NamedTuple):
    """How stored values become HU.

    allocated, stored, high : bits of the container, bits used, number of the highest bit used (from 0)
    signed : two's complement
    slope, intercept : HU = slope * stored value + intercept
    padding : (lowest, highest) stored value that marks pixels outside the scanned circle, or None
    inverted_display : MONOCHROME1: low values are shown white
    """

    allocated: int
    stored: int
    high: int
    signed: bool
    slope: float
    intercept: float
    padding: tuple[int, int] | None
    inverted_display: bool


class SliceHeader(NamedTuple):
    """What one slice says of itself. Lengths in mm, positions and directions in DICOM's LPS.

    path : its file; frame : number of the frame in a multi-frame file, from 0, or None
    study_uid, series_uid, transfer_syntax : UIDs
    rows, columns : pixels
    position_mm : (x, y, z) of the centre of the first pixel
    orientation : direction of a row (where the column index grows), then of a column: six numbers
    pixel_spacing_mm : between rows, between columns
    thickness_mm : SliceThickness, or None
    acquisition : AcquisitionNumber, or None
    pixels : how values are stored
    elements : where the pixels lie in the file; its values are not kept
    """

    path: Path
    frame: int | None
    study_uid: str
    series_uid: str
    transfer_syntax: UID
    rows: int
    columns: int
    position_mm: tuple[float, float, float]
    orientation: tuple[float, ...]
    pixel_spacing_mm: tuple[float, float]
    thickness_mm: float | None
    acquisition: int | None
    pixels: PixelFormat
    elements: Elements


class NoSlice(NamedTuple):
    """A DICOM file that is no CT slice: why, and the (study, series) that no CT slice may share with it."""

    reason: str
    series: tuple[str, str] | None


def read_headers(path: Path, spans: list | None = None) -> list[SliceHeader] | NoSlice:
    """The slices of one file, as a rule one, or why it is no CT slice.

    `spans` : see `walk.walk`

    Raises
    ------
    NotDicom : not a DICOM file, or one without anything of an image or a report
    SeriesError : a CT slice whose header is damaged or incomplete, or a file that cannot be opened
    """
    read = read_elements(path, spans)
    reason = why_no_slice(path, read)
    if reason:
        return NoSlice(reason, None if reason is LOCALIZER or is_surely_another(read) else _series(read.values))
    if sop_class(read) in ENHANCED_CT:
        from . import enhanced  # it needs this module

        return enhanced.read_headers(path, read)
    values = read.values
    if not {"ImagePositionPatient", "ImageOrientationPatient"} & set(values) and _has_pixels(read):
        if not _series(values)[1]:
            raise damaged(path, "neither a place in the patient nor a series")
        return NoSlice("an image without a place in the patient, such as a page of the protocol", _series(values))
    return [
        make_header(
            path,
            read,
            position=_numbers(path, values, "ImagePositionPatient", 3),
            orientation=_numbers(path, values, "ImageOrientationPatient", 6),
            spacing=_numbers(path, values, "PixelSpacing", 2),
            thickness=values.get("SliceThickness"),
            slope=values.get("RescaleSlope"),
            intercept=values.get("RescaleIntercept"),
        )
    ]


def _has_pixels(read: Elements) -> bool:
    """Whether the file goes on to the end of an image, so that its header is not cut off."""
    sizes = [read.values.get(name, ()) for name in ("Rows", "Columns", "BitsAllocated")]
    if not read.complete or not all(len(size) == 1 for size in sizes):
        return False
    return bool(read.fragments) or read.pixels_bytes >= math.prod(size[0] for size in sizes) // 8 > 0


def read_elements(path: Path, spans: list | None = None) -> Elements:
    """The elements of one file, the direct way where it can be gone. Raises NotDicom or SeriesError."""
    try:
        read = walk(path, spans)
    except (Unusual, StructError):
        if spans is not None:
            spans.clear()  # what was walked before it got unusual is not all that there is
        read = read_by_pydicom(path)
    except OSError as error:
        raise unreadable(path, error) from error
    if not {"SOPClassUID", "MediaStorageSOPClassUID", "Modality", "Rows"} & set(read.values):
        raise NotDicom
    for keyword in _TEXTS & set(read.values):
        if not isinstance(read.values[keyword], str):
            raise damaged(path, f"{keyword} that is no text")
    return read


def make_header(
    path: Path, read: Elements, *, position, orientation, spacing, thickness, slope, intercept, frame=None
) -> SliceHeader:
    """A checked `SliceHeader`; what differs between the frames of a multi-frame file is passed in."""
    values = read.values
    rows, columns = (_whole(path, values, name) for name in ("Rows", "Columns"))
    header = SliceHeader(
        path,
        frame,
        *_series(values),
        UID(values["TransferSyntaxUID"], IGNORE),
        rows,
        columns,
        position,
        _unit_vectors(path, orientation),
        spacing,
        thickness[0] if thickness and math.isfinite(thickness[0]) and thickness[0] > 0 else None,
        values["AcquisitionNumber"][0] if values.get("AcquisitionNumber") else None,
        _pixel_format(path, values, slope, intercept),
        read._replace(values={}, dataset=None),
    )
    _check(header, 1 if frame is None else int(values["NumberOfFrames"][0]))
    return header


def _series(values: dict) -> tuple[str, str]:
    return _uid(values.get("StudyInstanceUID", "")), _uid(values.get("SeriesInstanceUID", ""))


def _uid(text: str) -> str:
    """A UID, or "" for anything else that stands in its place: what is kept may be printed."""
    return text if text and len(text) <= 64 and not text.strip("0123456789.") else ""


def _numbers(path: Path, values: dict, keyword: str, count: int) -> tuple[float, ...]:
    """`count` finite numbers of a header, or a SeriesError that names the tag."""
    numbers = values.get(keyword)
    if numbers is None or len(numbers) != count or not all(map(math.isfinite, numbers)):
        if numbers is None:
            found = f"no {keyword}"
        elif len(numbers) != count:  # text in place of numbers is not repeated: it may be a name
            found = f"{keyword} with {len(numbers)} numbers"
        else:
            found = f"{keyword} = " + "\\".join(map(str, numbers))
        raise SeriesError(
            path,
            found=found,
            expected=f"{count} finite number(s)",
            remedy="the file is truncated or damaged: download it again, or leave it out.",
        )
    return numbers


def _whole(path: Path, values: dict, keyword: str) -> int:
    """One whole number of a header, or a SeriesError that names the tag."""
    return int(_numbers(path, values, keyword, 1)[0])


def _pixel_format(path: Path, values: dict, slope, intercept) -> PixelFormat:
    names = ("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation")
    allocated, stored, high, signed = (_whole(path, values, name) for name in names)
    if allocated not in (8, 16, 32) or not 1 <= stored <= high + 1 <= allocated or signed not in (0, 1):
        raise SeriesError(
            path,
            found=f"pixels of {stored} bits, the highest number {high}, in {allocated} (representation {signed})",
            expected="whole numbers that fit into 8, 16 or 32 bits",
            remedy="the header is damaged: download the file again, or leave it out.",
        )
    padding = None
    if "PixelPaddingValue" in values and allocated == 16:
        names = ("PixelPaddingValue", "PixelPaddingRangeLimit")  # the second, if it is there, makes it a range
        ends = [_whole(path, values, name) for name in names if name in values]
        if signed:  # a 16-bit pattern, whatever type the header gave it
            ends = [end - 0x10000 if end >= 0x8000 else end for end in ends]
        padding = min(ends), max(ends)
    return PixelFormat(
        allocated,
        stored,
        high,
        bool(signed),
        *(_one(path, name, numbers) for name, numbers in (("RescaleSlope", slope), ("RescaleIntercept", intercept))),
        padding,
        values.get("PhotometricInterpretation", "") == "MONOCHROME1",
    )


def _one(path: Path, keyword: str, numbers) -> float:
    """The one finite number of a rescale tag. Without it the values are no HU, so nothing is assumed."""
    (number,) = _numbers(path, {} if numbers is None else {keyword: numbers}, keyword, 1)
    if not MIN_SLOPE <= abs(number) <= MAX_RESCALE if keyword == "RescaleSlope" else abs(number) > MAX_RESCALE:
        raise SeriesError(
            path,
            found=f"{keyword} {number:g}",
            expected="the HU of one stored unit, as a rule 1" if keyword == "RescaleSlope" else "HU of stored value 0",
            remedy="the header is damaged: download the file again, or leave it out.",
        )
    return number


def _unit_vectors(path: Path, orientation) -> tuple[float, ...]:
    """The two directions, rid of what rounding did to their length. Raises SeriesError for what rounding cannot do."""
    row, column = orientation[:3], orientation[3:]
    lengths = math.hypot(*row), math.hypot(*column)
    across = sum(a * b for a, b in zip(row, column, strict=True))
    if max(abs(length - 1) for length in lengths) > 0.01 or abs(across) > 0.01:
        raise SeriesError(
            path,
            found=f"ImageOrientationPatient {[*orientation]}",
            expected="two directions of length 1 at right angles",
            remedy="leave this file or series out.",
        )
    return *(number / lengths[0] for number in row), *(number / lengths[1] for number in column)


def _check(header: SliceHeader, frames: int) -> None:
    problem, remedy = None, "leave this file or series out."
    if not 1 <= min(header.rows, header.columns) <= max(header.rows, header.columns) <= MAX_SIDE:
        problem = f"{header.rows} x {header.columns} pixels", f"from 1 to {MAX_SIDE} rows and columns"
    elif not 1e-3 < min(header.pixel_spacing_mm) <= max(header.pixel_spacing_mm) < 100:
        problem = f"PixelSpacing {header.pixel_spacing_mm}", "a positive spacing in mm"
    elif max(map(abs, header.position_mm)) > MAX_POSITION_MM:
        problem = f"ImagePositionPatient {[*header.position_mm]}", "a place within 100 m of the scanner"
    else:
        problem, remedy = _missing_pixels(header, frames)
    if problem:
        raise SeriesError(header.path, found=problem[0], expected=problem[1], remedy=remedy)


def _missing_pixels(header: SliceHeader, frames: int):
    """A file cut short betrays itself without a look at its pixels: too few bytes, or no end of the sequence."""
    read, syntax = header.elements, header.transfer_syntax
    cut = "the file is cut short: download it again."
    if syntax not in NATIVE_SYNTAXES and not codecs.can_decode(syntax):
        name = syntax.name if syntax.is_transfer_syntax else "no transfer syntax of the standard"
        return (
            (f"pixels in {name} ({_uid(syntax) or 'no UID'})", "uncompressed pixels, or a compression known here"),
            "a decoder for this transfer syntax is needed: convert the file to JPEG Lossless or uncompressed "
            "(for example with gdcmconv --raw), or add its decoder to cspine_utils/codecs.py.",
        )
    if syntax not in NATIVE_SYNTAXES:
        if read.complete and (read.fragments or not read.simple):
            return None, ""
        return ("a file that ends within its pixels", "the end mark of its compressed pixels"), cut
    count = header.rows * header.columns * header.pixels.allocated // 8 * frames
    if read.pixels_bytes >= count and read.complete:
        return None, ""
    size = f"at least the {count} bytes of its {header.rows} x {header.columns} pixels"
    found = f"{read.pixels_bytes} bytes of pixels" if read.complete else "a file that ends within its pixels"
    return (found, size), cut
