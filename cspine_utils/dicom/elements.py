"""The few data elements of a DICOM file that a CT reader needs, and where its pixels lie.

A survey reads 711,601 headers, so the common file (little endian, with a file meta header) is walked here directly:
tag, type, length, next. Whatever looks unusual is left to pydicom, which knows all of the standard; a test compares
the two on every file at hand. (DICOM PS3.5 section 7, PS3.10 section 7.)
"""

from __future__ import annotations

import io
import math
import os
import warnings
import zlib
from pathlib import Path
from struct import error as StructError
from struct import unpack_from
from typing import NamedTuple

import pydicom

from cspine_utils.errors import SeriesError

#: Nothing is read of a compressed header or image beyond this; 4096 x 4096 pixels of 16 bits take half of it.
MAX_INFLATED_BYTES = 64 * 2**20

DEFLATED = "1.2.840.10008.1.2.1.99"
IMPLICIT = "1.2.840.10008.1.2"
NATIVE_SYNTAXES = {IMPLICIT, "1.2.840.10008.1.2.1", DEFLATED, "1.2.840.10008.1.2.2"}
_BIG_ENDIAN = "1.2.840.10008.1.2.2"

# keyword: (group, element, VR). The VR is the standard's: text of numbers DS and IS, binary US, names CS and UI.
_WANTED = {
    "MediaStorageSOPClassUID": (0x0002, 0x0002, "UI"),
    "TransferSyntaxUID": (0x0002, 0x0010, "UI"),
    "ImageType": (0x0008, 0x0008, "CS"),
    "SOPClassUID": (0x0008, 0x0016, "UI"),
    "Modality": (0x0008, 0x0060, "CS"),
    "SliceThickness": (0x0018, 0x0050, "DS"),
    "StudyInstanceUID": (0x0020, 0x000D, "UI"),
    "SeriesInstanceUID": (0x0020, 0x000E, "UI"),
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
_ALSO = {("SS", "US"), ("US or SS", "US")}
# As four little-endian bytes read at once: the group in the low half.
_BY_KEY = {group | element << 16: (keyword, vr) for keyword, (group, element, vr) in _WANTED.items()}
_PIXEL_DATA = 0x7FE0 | 0x0010 << 16
_ITEM, _ITEM_END, _SEQUENCE_END = (0xFFFE | element << 16 for element in (0xE000, 0xE00D, 0xE0DD))
_UNDEFINED = 0xFFFFFFFF
_SHORT_VRS = frozenset(b"AE AS AT CS DA DS DT FD FL IS LO LT PN SH SL SS ST TM UI UL US".split())
_LONG_VRS = frozenset(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())
_FIRST_READ = 8192
_MAX_DEPTH = 32
_MAX_FRAGMENTS = 10_000
#: Where pydicom read the header, the mark that ends compressed pixels is looked for in this many bytes at the end.
_TAIL = 4096
_SEQUENCE_END_BYTES = bytes.fromhex("feffdde0")


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


class _Unusual(Exception):
    """Something that the walk below does not know; pydicom decides."""


def read_elements(path: Path) -> Elements:
    """Read the elements of one file; pixels are not read.

    Raises
    ------
    NotDicom : the bytes are something else
    SeriesError : a DICOM file whose header is damaged, or a file that cannot be opened
    """
    try:
        return walk(path)
    except (_Unusual, StructError):
        return read_by_pydicom(path)
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: OSError) -> SeriesError:
    return SeriesError(
        path,
        found=f"a file that cannot be opened ({error.strerror or type(error).__name__})",
        expected="a readable file",
        remedy="check its permissions and the disk, or leave it out.",
    )


def _damaged(path: Path, why: str) -> SeriesError:
    return SeriesError(
        path,
        found=f"a header that cannot be read ({why})",
        expected="a complete DICOM header",
        remedy="the file is truncated or damaged: download it again.",
    )


def walk(path: Path) -> Elements:
    """The direct way. Raises what pydicom has to look at as `_Unusual` or `struct.error`."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        size = os.fstat(descriptor).st_size
        data = os.read(descriptor, _FIRST_READ)
        if data[128:132] != b"DICM":
            raise _Unusual
        raw, at = _walk_meta(data)
        syntax = _text(raw.get("TransferSyntaxUID", b""))
        fragments = ()
        if syntax == DEFLATED:
            fragments = ((at, size - at),)
            rest = os.pread(descriptor, min(size, MAX_INFLATED_BYTES), at)
            data, at, size = inflate(path, rest), 0, None
        elif syntax == _BIG_ENDIAN or not syntax.startswith("1.2.840.10008.1.2"):
            raise _Unusual
        try:
            pixels_at, pixels_bytes = _walk_data_set(descriptor, data, at, size, syntax != IMPLICIT, raw)
        except (_Unusual, StructError):
            if size is None:  # pydicom would inflate without a limit
                raise _damaged(path, "in a deflated data set") from None
            raise
        size = len(data) if size is None else size
        complete = True
        if pixels_at is not None and syntax not in NATIVE_SYNTAXES:
            if pixels_bytes != _UNDEFINED:
                raise _Unusual
            fragments, complete = _walk_fragments(descriptor, pixels_at, size)
            pixels_bytes = sum(length for _, length in fragments)
        elif pixels_at is not None:
            if pixels_bytes == _UNDEFINED:
                raise _Unusual
            complete = pixels_at + pixels_bytes <= size
    finally:
        os.close(descriptor)
    return Elements(_decoded(raw), pixels_at, pixels_bytes, fragments, True, complete)


def _walk_meta(data: bytes) -> tuple[dict, int]:
    """The file meta header, always explicit little endian; returns its raw values and where it ends."""
    raw, at = {}, 132
    while data[at : at + 2] == b"\x02\x00":
        key, vr, length = unpack_from("<I2sH", data, at)
        at += 8
        if vr in _LONG_VRS:
            (length,) = unpack_from("<I", data, at)
            at += 4
        elif vr not in _SHORT_VRS:
            raise _Unusual
        if key in _BY_KEY:
            raw[_BY_KEY[key][0]] = data[at : at + length]
        at += length
    if at >= len(data):
        raise _Unusual
    return raw, at


def _walk_data_set(descriptor, data: bytes, at: int, size: int | None, explicit: bool, raw: dict):
    """Collect raw values up to the pixels; returns (offset, length) of the pixels, or (None, 0) without any."""
    end = len(data)
    while True:
        if at + 12 > end and size is not None and end < size:  # more of the file is needed
            data = os.pread(descriptor, min(size, 2 * at + _FIRST_READ), 0)
            end = len(data)
        if at == end:
            return None, 0
        if explicit:
            key, vr, length = unpack_from("<I2sH", data, at)
            at += 8
            if vr in _LONG_VRS:
                (length,) = unpack_from("<I", data, at)
                at += 4
            elif vr not in _SHORT_VRS:
                raise _Unusual
        else:
            key, length = unpack_from("<II", data, at)
            vr = None
            at += 8
        if key == _PIXEL_DATA:
            return at, length
        wanted = _BY_KEY.get(key)
        if length == _UNDEFINED:
            if wanted or size is None or not (explicit is False or vr in (b"SQ", b"UN")):
                raise _Unusual
            at = _skip_sequence(descriptor, at, size, explicit and vr == b"SQ")
        else:
            if at + length > (end if size is None else size):
                raise _Unusual
            if wanted:
                if vr is not None and vr.decode() != wanted[1] and (vr.decode(), wanted[1]) not in _ALSO:
                    raise _Unusual
                if at + length > end:
                    data = os.pread(descriptor, min(size, at + length + _FIRST_READ), 0)
                    end = len(data)
                raw[wanted[0]] = data[at : at + length]
            at += length


def _skip_sequence(descriptor, at: int, size: int, explicit: bool, depth: int = 0) -> int:
    """Where a sequence of undefined length that starts at `at` ends."""
    if depth > _MAX_DEPTH:
        raise _Unusual
    while True:
        key, length = unpack_from("<II", os.pread(descriptor, 8, at))
        at += 8
        if key == _SEQUENCE_END:
            return at
        if key != _ITEM:
            raise _Unusual
        if length != _UNDEFINED:
            at += length
            continue
        while True:  # the elements of an item of undefined length
            head = os.pread(descriptor, 12, at)
            key, vr, length = unpack_from("<I2sH", head)
            at += 8
            if key == _ITEM_END:
                break
            if not explicit:
                (length,) = unpack_from("<I", head, 4)
            elif vr in _LONG_VRS:
                (length,) = unpack_from("<I", head, 8)
                at += 4
            elif vr not in _SHORT_VRS:
                raise _Unusual
            if length == _UNDEFINED:
                at = _skip_sequence(descriptor, at, size, explicit and vr == b"SQ", depth + 1)
            else:
                at += length
            if at > size:
                raise _Unusual


def _walk_fragments(descriptor, at: int, size: int) -> tuple[tuple[tuple[int, int], ...], bool]:
    """Places of the compressed fragments, and whether the mark that ends them is there. (PS3.5, annex A.4)"""
    found = []
    while at + 8 <= size and len(found) <= _MAX_FRAGMENTS:
        key, length = unpack_from("<II", os.pread(descriptor, 8, at))
        at += 8
        if key == _SEQUENCE_END:
            return tuple(found[1:]), bool(found[1:])  # the first item is the offset table
        if key != _ITEM:
            raise _Unusual
        found.append((at, length))
        at += length
    return tuple(found[1:]), False


def inflate(path: Path, data: bytes) -> bytes:
    """The data set of a file in Deflated Explicit VR Little Endian. Raises SeriesError."""
    try:
        decompressor = zlib.decompressobj(-zlib.MAX_WBITS)
        inflated = decompressor.decompress(data, MAX_INFLATED_BYTES)
    except zlib.error as error:
        raise SeriesError(
            path,
            found=f"a deflated data set that cannot be inflated ({error})",
            expected="a whole one",
            remedy="the file is truncated or damaged: download it again.",
        ) from error
    if not decompressor.eof:
        too_large = len(inflated) >= MAX_INFLATED_BYTES
        raise SeriesError(
            path,
            found="a deflated data set of more than 64 MiB" if too_large else "a deflated data set that is cut short",
            expected="one slice",
            remedy="leave this file out." if too_large else "download it again.",
        )
    return inflated


class _Within(io.BufferedReader):
    """A file that is never asked for more than it has: a damaged length would reserve gigabytes."""

    def read(self, size=-1):
        left = max(0, os.fstat(self.fileno()).st_size - self.tell())
        return super().read(left if size is None or size < 0 else min(size, left))


def open_within(path: Path) -> io.BufferedReader:
    """Open a file for pydicom."""
    return _Within(io.FileIO(path))


def read_by_pydicom(path: Path) -> Elements:
    """The thorough way. Raises NotDicom or SeriesError."""
    try:
        with open_within(path) as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they quote values of the header, which may be a person's name
            start = file.read(132)
            if start[128:] != b"DICM" and not _may_be_bare(start):
                raise NotDicom
            file.seek(0)
            dataset = pydicom.dcmread(file, stop_before_pixels=True, force=True)
            pixels_at = file.tell()
            size = file.seek(0, os.SEEK_END)
            file.seek(max(pixels_at, size - _TAIL))
            ended = _SEQUENCE_END_BYTES in file.read()
            values = {keyword: value for keyword in _WANTED if (value := _from_dataset(dataset, keyword)) is not None}
            values.setdefault("TransferSyntaxUID", _syntax_of(dataset))
            if not {"SOPClassUID", "MediaStorageSOPClassUID", "Modality", "Rows"} & set(values):
                raise NotDicom  # read by force, and nothing of an image or a report in it
    except NotDicom:
        raise
    except OSError as error:
        raise _unreadable(path, error) from error
    except Exception as error:  # whatever bytes are in the file: pydicom raises many kinds of errors on them
        raise _damaged(path, type(error).__name__) from error
    complete = ended or values["TransferSyntaxUID"] in NATIVE_SYNTAXES
    return Elements(values, None, size - pixels_at, (), False, complete, dataset)


def _may_be_bare(start: bytes) -> bool:
    """A data set without preamble starts with group 0008 (or 0002), in either byte order."""
    return start[:2] in (b"\x08\x00", b"\x02\x00", b"\x00\x08")


def _syntax_of(dataset: pydicom.Dataset) -> str:
    """For files without a file meta header: what pydicom found out by looking."""
    implicit, little = dataset.original_encoding
    return IMPLICIT if implicit else "1.2.840.10008.1.2.1" if little else _BIG_ENDIAN


def _from_dataset(dataset: pydicom.Dataset, keyword: str):
    """The value of one element in the form of `_decoded`; None where it is missing or empty."""
    source = dataset.file_meta if keyword in ("MediaStorageSOPClassUID", "TransferSyntaxUID") else dataset
    vr = _WANTED[keyword][2]
    try:
        element = source.get(pydicom.datadict.tag_for_keyword(keyword))
        if element is None or (element.VR != vr and (element.VR, vr) not in _ALSO):
            return None if element is None else ()
        value = element.value
        several = isinstance(value, pydicom.multival.MultiValue | list | tuple)
        if value is None or (value == "" and not several) or (several and not len(value)):
            return None
        if vr in ("CS", "UI", "LO"):
            return ("\\".join(map(str, value)) if several else str(value)).strip(" \0")
        numbers = tuple(float(v) for v in value) if several else (float(value),)
    except (TypeError, ValueError, OverflowError):
        return ()
    if vr == "DS":
        return numbers
    whole = tuple(int(v) for v in numbers if math.isfinite(v))
    return tuple(v & 0xFFFF for v in whole) if vr == "US" else whole


def _decoded(raw: dict[str, bytes]) -> dict:
    """Raw little-endian values -> numbers and text. () stands for a value that is there and makes no sense."""
    values = {}
    for keyword, data in raw.items():
        vr = _WANTED[keyword][2]
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
            value = _text(data)
        if data:
            values[keyword] = value
    return values


def _text(data: bytes) -> str:
    return data.decode("ascii", "replace").strip(" \0")
