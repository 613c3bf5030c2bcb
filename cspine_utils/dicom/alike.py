"""Many headers at once: the files of a series say nearly the same.

From one file to the next little changes but ImagePositionPatient and values that nobody here reads (the number of
the slice, its UID, times). So the first file is walked, and of the following ones it is asked whether all other bytes
before the pixels are the same: a mask and one comparison of large integers. Where they are, everything but the
position is known. Where they are not, the file is read like the first. A test compares the results of both ways.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import NamedTuple

from .elements import DEFLATED, NATIVE_SYNTAXES
from .headers import MAX_POSITION_MM, NoSlice, SliceHeader, read_headers
from .walk import FIRST_READ, StructError, Unusual, walk_fragments

#: The lengths of a position and of a slice number change within a series, and so does the place of all that follows.
_REMEMBERED = 32


class _Layout(NamedTuple):
    """A header that was read: its bytes with the free ones cleared, and what came of it.

    `last` are the twelve bytes before the pixels, a quick look at whether lengths are the same at all.
    """

    end: int
    last: bytes
    mask: int
    bits: int
    position: slice
    result: SliceHeader


class HeaderReader:
    """Reads the headers of the files of a folder, one after the other."""

    def __init__(self):
        self._layouts: list[_Layout] = []

    def read(self, path: Path) -> list[SliceHeader] | NoSlice:
        """As `headers.read_headers(path)`, which says what is returned and raised."""
        known = self._alike(path)
        if known is not None:
            return known
        spans: list = []
        result = read_headers(path, spans)
        self._remember(path, spans, result)
        return result

    def _remember(self, path: Path, spans: list, result) -> None:
        if isinstance(result, NoSlice):  # few files, and the verdict may rest on their pixels
            return
        result = result[0]
        if not result.elements.simple or result.frame is not None or result.transfer_syntax == DEFLATED:
            return
        places = [slice(start, end) for start, end, keyword in spans if keyword == "ImagePositionPatient"]
        end = result.elements.pixels_at
        if end > FIRST_READ or len(places) != 1:
            return
        mask = bytearray(b"\0" * 128 + b"\xff" * (end - 128))
        for start, stop, keyword in spans:
            if keyword is None or keyword == "ImagePositionPatient":
                mask[start:stop] = bytes(min(stop, end) - start)
        bits = int.from_bytes(mask, "little")
        try:
            with open(path, "rb") as file:
                data = file.read(end)
        except OSError:
            return
        whole = int.from_bytes(data, "little") & bits
        last = b"" if 0 in mask[end - 12 :] else data[end - 12 :]
        self._layouts.insert(0, _Layout(end, last, bits, whole, places[0], result))
        del self._layouts[_REMEMBERED:]

    def _alike(self, path: Path) -> list[SliceHeader] | None:
        """What the file holds, where its header is like a known one; otherwise None."""
        if not self._layouts:
            return None
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except OSError:
            return None
        try:
            data = os.read(descriptor, FIRST_READ)
            for place, layout in enumerate(self._layouts):
                if data[layout.end - len(layout.last) : layout.end] != layout.last:
                    continue
                if int.from_bytes(data[: layout.end], "little") & layout.mask == layout.bits:
                    if place:
                        self._layouts.insert(0, self._layouts.pop(place))
                    return _result(path, descriptor, data, layout)
        except (OSError, ValueError, Unusual, StructError):
            pass
        finally:
            os.close(descriptor)
        return None


def _result(path: Path, descriptor: int, data: bytes, layout: _Layout):
    result = layout.result
    position = tuple(map(float, data[layout.position].strip(b" \0").split(b"\\")))
    if len(position) != 3 or not all(map(math.isfinite, position)) or max(map(abs, position)) > MAX_POSITION_MM:
        return None
    size, read = os.fstat(descriptor).st_size, result.elements
    if result.transfer_syntax in NATIVE_SYNTAXES:
        if read.pixels_at + read.pixels_bytes > size:
            return None
    else:
        fragments, complete = walk_fragments(descriptor, read.pixels_at, size)
        if not complete:
            return None
        read = read._replace(fragments=fragments, pixels_bytes=sum(length for _, length in fragments))
    return [SliceHeader(path, *result[1:7], position, *result[8:-1], read)]
