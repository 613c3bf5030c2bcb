"""The few data elements of a DICOM file that a CT reader needs, and where its pixels lie.

A survey reads 711,601 headers, so the common file (little endian, with a file meta header) is walked directly, in
`walk`. Whatever looks unusual is left to pydicom, which knows all of the standard, in `thorough`; a test compares the
two on every file at hand. (DICOM PS3.5 section 7, PS3.10 section 7.)
"""

from __future__ import annotations

from pathlib import Path
from struct import unpack_from
from typing import NamedTuple

import pydicom

from cspine_utils.errors import SeriesError

#: Nothing is read of a compressed header or image beyond this; 4096 x 4096 pixels of 16 bits take half of it.
MAX_INFLATED_BYTES = 64 * 2**20

DEFLATED = "1.2.840.10008.1.2.1.99"
IMPLICIT = "1.2.840.10008.1.2"
EXPLICIT = "1.2.840.10008.1.2.1"
BIG_ENDIAN = "1.2.840.10008.1.2.2"
NATIVE_SYNTAXES = {IMPLICIT, EXPLICIT, DEFLATED, BIG_ENDIAN}

# keyword: (group, element, VR). The VR is the standard's: text of numbers DS and IS, binary US, names CS and UI.
WANTED = {
    "MediaStorageSOPClassUID": (0x0002, 0x0002, "UI"),
    "TransferSyntaxUID": (0x0002, 0x0010, "UI"),
    "ImageType": (0x0008, 0x0008, "CS"),
    "SOPClassUID": (0x0008, 0x0016, "UI"),
    "Modality": (0x0008, 0x0060, "CS"),
    "SliceThickness": (0x0018, 0x0050, "DS"),
    "StudyInstanceUID": (0x0020, 0x000D, "UI"),
    "SeriesInstanceUID": (0x0020, 0x000E, "UI"),
    "AcquisitionNumber": (0x0020, 0x0012, "IS"),
    "ImagePositionPatient": (0x0020, 0x0032, "DS"),
    "ImageOrientationPatient": (0x0020, 0x0037, "DS"),
    "SamplesPerPixel": (0x0028, 0x0002, "US"),
    "PhotometricInterpretation": (0x0028, 0x0004, "CS"),
    "NumberOfFrames": (0x0028, 0x0008, "IS"),
    "Rows": (0x0028, 0x0010, "US"),
    "Columns": (0x0028, 0x0011, "US"),
    "PixelSpacing": (0x0028, 0x0030, "DS"),
    "BitsAllocated": (0x0028, 0x0100, "US"),
    "BitsStored": (0x0028, 0x0101, "US"),
    "HighBit": (0x0028, 0x0102, "US"),
    "PixelRepresentation": (0x0028, 0x0103, "US"),
    "PixelPaddingValue": (0x0028, 0x0120, "US"),  # or SS, as PixelRepresentation says: read as its bit pattern
    "PixelPaddingRangeLimit": (0x0028, 0x0121, "US"),
    "RescaleIntercept": (0x0028, 0x1052, "DS"),
    "RescaleSlope": (0x0028, 0x1053, "DS"),
    "RescaleType": (0x0028, 0x1054, "LO"),
}
ALSO = {("SS", "US"), ("US or SS", "US")}


class Elements(NamedTuple):
    """What one file says.

    values : keyword -> tuple of numbers (DS, IS, US), or text (CS, UI, LO); only what is there and can be understood
    pixels_at, pixels_bytes : place of uncompressed pixels in the file (in the inflated data set of a deflated one)
    fragments : ((offset, bytes), ...) of compressed pixels, or of the whole data set of a deflated file
    simple : False where pydicom read it; then its pixels have to be read by pydicom, too
    complete : False where the file ends before its pixels do
    dataset : the pydicom data set, where pydicom read it
    """

    values: dict
    pixels_at: int | None
    pixels_bytes: int
    fragments: tuple[tuple[int, int], ...]
    simple: bool
    complete: bool
    dataset: pydicom.Dataset | None = None


class NotDicom(Exception):
    """The file is no DICOM file at all."""


def unreadable(path: Path, error: OSError) -> SeriesError:
    return SeriesError(
        path,
        found=f"a file that cannot be opened ({error.strerror or type(error).__name__})",
        expected="a readable file",
        remedy="check its permissions and the disk, or leave it out.",
    )


def damaged(path: Path, why: str) -> SeriesError:
    return SeriesError(
        path,
        found=f"a header that cannot be read ({why})",
        expected="a complete DICOM header",
        remedy="the file is truncated or damaged: download it again.",
    )


def decoded(raw: dict[str, bytes]) -> dict:
    """Raw little-endian values -> numbers and text. () stands for a value that is there and makes no sense."""
    values = {}
    for keyword, data in raw.items():
        vr = WANTED[keyword][2]
        if vr == "US":
            value = unpack_from(f"<{len(data) // 2}H", data)
        elif vr in ("DS", "IS"):
            data = data.strip(b" \0")
            try:
                value = tuple(map(float, data.split(b"\\")))
                value = value if vr == "DS" else tuple(map(int, value))
            except (ValueError, OverflowError):
                value = ()
        else:
            value = text(data)
        if data:
            values[keyword] = value
    return values


def text(data: bytes) -> str:
    return data.decode("ascii", "replace").strip(" \0")
