"""The direct way through a DICOM header: tag, type, length, next. Anything unusual is not for here."""

from __future__ import annotations

import os
import zlib
from pathlib import Path
from struct import error as StructError
from struct import unpack_from

from cspine_utils.errors import SeriesError

from .elements import (
    ALSO,
    BIG_ENDIAN,
    DEFLATED,
    IMPLICIT,
    MAX_INFLATED_BYTES,
    NATIVE_SYNTAXES,
    WANTED,
    Elements,
    damaged,
    decoded,
    text,
)

# As four little-endian bytes read at once: the group in the low half.
_BY_KEY = {group | element << 16: (keyword, vr) for keyword, (group, element, vr) in WANTED.items()}
_PIXEL_DATA = 0x7FE0 | 0x0010 << 16
_ITEM, _ITEM_END, _SEQUENCE_END = (0xFFFE | element << 16 for element in (0xE000, 0xE00D, 0xE0DD))
_UNDEFINED = 0xFFFFFFFF
_SHORT_VRS = frozenset(b"AE AS AT CS DA DS DT FD FL IS LO LT PN SH SL SS ST TM UI UL US".split())
_LONG_VRS = frozenset(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())
#: Bytes read of each file at first: more than most headers have.
FIRST_READ = 8192
_MAX_DEPTH = 32
_MAX_FRAGMENTS = 10_000


class Unusual(Exception):
    """Something that the walk below does not know; pydicom decides."""


def walk(path: Path, spans: list | None = None) -> Elements:
    """The direct way. Raises what pydicom has to look at as `Unusual` or `struct.error`.

    `spans`, if given, receives (start, end, keyword or None) of every value in the file before the pixels; the
    inside of sequences of undefined length is not among them, nor anything of a deflated file.
    """
    spans = [] if spans is None else spans
    descriptor = os.open(path, os.O_RDONLY)
    try:
        size = os.fstat(descriptor).st_size
        data = os.read(descriptor, FIRST_READ)
        if data[128:132] != b"DICM":
            raise Unusual
        raw, at = _walk_meta(data, spans)
        syntax = text(raw.get("TransferSyntaxUID", b""))
        fragments = ()
        if syntax == DEFLATED:
            fragments = ((at, size - at),)
            rest = os.pread(descriptor, min(size, MAX_INFLATED_BYTES), at)
            data, at, size = inflate(path, rest), 0, None
        elif syntax == BIG_ENDIAN or not syntax.startswith("1.2.840.10008.1.2"):
            raise Unusual
        try:
            pixels_at, pixels_bytes = _walk_data_set(path, descriptor, data, at, size, syntax != IMPLICIT, raw, spans)
        except (Unusual, StructError):
            if size is None:  # pydicom would inflate without a limit
                raise damaged(path, "in a deflated data set") from None
            raise
        size = len(data) if size is None else size
        complete = True
        if pixels_at is not None and syntax not in NATIVE_SYNTAXES:
            if pixels_bytes != _UNDEFINED:
                raise Unusual
            fragments, complete = walk_fragments(descriptor, pixels_at, size)
            pixels_bytes = sum(length for _, length in fragments)
        elif pixels_at is not None:
            if pixels_bytes == _UNDEFINED:
                raise Unusual
            complete = pixels_at + pixels_bytes <= size
    finally:
        os.close(descriptor)
    return Elements(decoded(raw), pixels_at, pixels_bytes, fragments, True, complete)


def _explicit(data: bytes, at: int) -> tuple[int, bytes, int, int]:
    """Key, type and length of the element that begins at `at`, and where its value begins."""
    key, vr, length = unpack_from("<I2sH", data, at)
    if vr in _SHORT_VRS:
        return key, vr, length, at + 8
    if vr in _LONG_VRS:
        return key, vr, *unpack_from("<I", data, at + 8), at + 12
    raise Unusual


def _walk_meta(data: bytes, spans: list) -> tuple[dict, int]:
    """The file meta header, always explicit little endian; returns its raw values and where it ends."""
    raw, at = {}, 132
    while data[at : at + 2] == b"\x02\x00":
        key, _, length, at = _explicit(data, at)
        keyword = _BY_KEY.get(key, (None,))[0]
        if keyword:
            raw[keyword] = data[at : at + length]
        spans.append((at, at + length, keyword))
        at += length
    if at >= len(data):
        raise Unusual
    return raw, at


def _walk_data_set(path, descriptor, data: bytes, at: int, size: int | None, explicit: bool, raw: dict, spans: list):
    """Collect raw values up to the pixels; returns (offset, length) of the pixels, or (None, 0) without any."""
    end = len(data)
    while True:
        if at + 12 > end and size is not None and end < size:  # more of the file is needed
            data = os.pread(descriptor, min(size, 2 * at + FIRST_READ), 0)
            end = len(data)
        if at == end:
            return None, 0
        if explicit:
            key, vr, length, at = _explicit(data, at)
        else:
            key, length = unpack_from("<II", data, at)
            vr = None
            at += 8
        if key == _PIXEL_DATA:
            return at, length
        wanted = _BY_KEY.get(key)
        if length == _UNDEFINED:
            if wanted or size is None or not (explicit is False or vr in (b"SQ", b"UN")):
                raise Unusual
            at = _skip_sequence(descriptor, at, size, explicit and vr == b"SQ")
        else:
            if at + length > (end if size is None else size):
                raise Unusual
            if wanted:
                if wanted[0] in raw:
                    raise damaged(path, f"{wanted[0]} twice")
                if vr is not None and vr.decode() != wanted[1] and (vr.decode(), wanted[1]) not in ALSO:
                    raise Unusual
                if at + length > end:
                    data = os.pread(descriptor, min(size, at + length + FIRST_READ), 0)
                    end = len(data)
                raw[wanted[0]] = data[at : at + length]
            spans.append((at, at + length, wanted and wanted[0]))
            at += length


def _skip_sequence(descriptor, at: int, size: int, explicit: bool, depth: int = 0) -> int:
    """Where a sequence of undefined length that starts at `at` ends."""
    if depth > _MAX_DEPTH:
        raise Unusual
    while True:
        key, length = unpack_from("<II", os.pread(descriptor, 8, at))
        at += 8
        if key == _SEQUENCE_END:
            return at
        if key != _ITEM:
            raise Unusual
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
                raise Unusual
            if length == _UNDEFINED:
                at = _skip_sequence(descriptor, at, size, explicit and vr == b"SQ", depth + 1)
            else:
                at += length
            if at > size:
                raise Unusual


def walk_fragments(descriptor: int, at: int, size: int) -> tuple[tuple[tuple[int, int], ...], bool]:
    """Places of the compressed fragments, and whether the mark that ends them is there. (PS3.5, annex A.4)"""
    found = []
    while at + 8 <= size and len(found) <= _MAX_FRAGMENTS:
        key, length = unpack_from("<II", os.pread(descriptor, 8, at))
        at += 8
        if key == _SEQUENCE_END:
            return tuple(found[1:]), bool(found[1:])  # the first item is the offset table
        if key != _ITEM:
            raise Unusual
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
