"""Good series in all forms, the bytes of their files, and a collector of the faults that are made from them.

Bytes are changed by hand: pydicom refuses to write most of what a damaged file can hold.
"""

from __future__ import annotations

import shutil
import struct
from functools import partial
from pathlib import Path
from typing import NamedTuple

import imagecodecs
import numpy as np
import pydicom
from conftest import patient_volume, write_series
from faults import READ, REFUSED, Fault
from pydicom import uid
from pydicom.datadict import tag_for_keyword
from pydicom.encaps import encapsulate

SHAPE = (5, 24, 31)
LAST, MIDDLE = "5.dcm", "3.dcm"
LONG = (b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV")


def write_good(folder: Path, syntax: str) -> None:
    """The same five slices in one transfer syntax: 12 bits, unsigned, HU = stored - 1024."""
    volume = patient_volume(SHAPE, seed=5)
    for path in write_series(folder, volume, signed=False, explicit=syntax != "implicit"):
        if syntax in ("explicit", "implicit"):
            continue
        dataset = pydicom.dcmread(path)
        name, encode = ENCODERS[syntax]
        if encode:
            dataset.PixelData = encapsulate([bytes(encode(dataset.pixel_array))])
            dataset["PixelData"].VR = "OB"
            dataset["PixelData"].is_undefined_length = True
        dataset.file_meta.TransferSyntaxUID = name
        dataset.save_as(path)


def _rle(pixels: np.ndarray) -> bytes:
    from pydicom.pixels.encoders.base import EncodeRunner
    from pydicom.pixels.encoders.native import _encode_frame

    runner = EncodeRunner(uid.RLELossless)
    runner.set_options(
        rows=pixels.shape[0], columns=pixels.shape[1], samples_per_pixel=1, bits_allocated=16, bits_stored=12,
        number_of_frames=1, photometric_interpretation="MONOCHROME2", pixel_representation=0,
    )  # fmt: skip
    return bytes(_encode_frame(pixels.tobytes(), runner))


ENCODERS = {
    "deflated": (uid.DeflatedExplicitVRLittleEndian, None),
    "rle": (uid.RLELossless, _rle),
    "jpeg lossless": (uid.JPEGLossless, partial(imagecodecs.ljpeg_encode, bitspersample=12)),
    "jpeg-ls": (uid.JPEGLSLossless, imagecodecs.jpegls_encode),
    "jpeg 2000": (uid.JPEG2000Lossless, partial(imagecodecs.jpeg2k_encode, codecformat="j2k", level=0)),
}
SYNTAXES = ("explicit", "implicit", *ENCODERS)


class Element(NamedTuple):
    """Where an element of the data set stands in the file's bytes."""

    tag: int
    start: int
    value: int
    end: int


def elements(content: bytes) -> list[Element]:
    """The elements of an uncompressed file of ours, after its meta header (which is always explicit)."""
    found, at = [], 132
    implicit = str(uid.ImplicitVRLittleEndian).encode() + b"\0" in content[:400]
    while at < len(content):
        group, element = struct.unpack_from("<HH", content, at)
        if implicit and group > 2:
            value, length = at + 8, struct.unpack_from("<I", content, at + 4)[0]
        elif content[at + 4 : at + 6] in LONG:
            value, length = at + 12, struct.unpack_from("<I", content, at + 8)[0]
        else:
            value, length = at + 8, struct.unpack_from("<H", content, at + 6)[0]
        if length == 0xFFFFFFFF:  # compressed pixels, to the end
            length = len(content) - value
        found.append(Element(group << 16 | element, at, value, value + length))
        at = value + length
    return found


def find(content: bytes, keyword: str) -> Element:
    return next(e for e in elements(content) if e.tag == tag_for_keyword(keyword))


def without(content: bytes, keyword: str) -> bytes:
    element = find(content, keyword)
    return content[: element.start] + content[element.end :]


def with_value(content: bytes, keyword: str, value: bytes) -> bytes:
    """Another value in explicit form, padded to an even length."""
    element = find(content, keyword)
    value += b" " * (len(value) % 2)
    size = struct.pack("<I" if element.value - element.start == 12 else "<H", len(value))
    return content[: element.value - len(size)] + size + value + content[element.end :]


def with_vr(content: bytes, keyword: str, vr: bytes) -> bytes:
    """Another VR, everything else as it was (a long form then takes the length from the value's bytes)."""
    at = find(content, keyword).start + 4
    return content[:at] + vr + content[at + 2 :]


def with_length(content: bytes, keyword: str, length: int) -> bytes:
    element = find(content, keyword)
    size = struct.pack("<I", length) if element.value - element.start == 12 else struct.pack("<H", length & 0xFFFF)
    return content[: element.value - len(size)] + size + content[element.value :]


def numbers(*values) -> bytes:
    return struct.pack(f"<{len(values)}H", *values)


def meta_end(content: bytes) -> int:
    return 144 + struct.unpack_from("<I", content, 140)[0]


def odd(content: bytes) -> bytes:
    """A harmless oddity, which may send a reader on a slower way."""
    return with_vr(content, "SliceThickness", b"LO")


def insert(content: bytes, tag: int, element: bytes) -> bytes:
    at = next(e.start for e in elements(content) if e.tag > tag and e.tag >> 16 > 2)
    return content[:at] + element + content[at:]


def renamed(content: bytes, syntax: str) -> bytes:
    """The meta header says another transfer syntax; the length of the meta header is made to fit."""
    changed = with_value(content, "TransferSyntaxUID", str(ENCODERS[syntax][0]).encode())
    longer = len(changed) - len(content)
    return changed[:140] + struct.pack("<I", meta_end(content) - 144 + longer) + changed[144:]


class Maker:
    """Collects faults of series; each starts from a copy of the good series in some syntax."""

    def __init__(self, templates: Path):
        self.templates, self.faults = templates, []

    def _template(self, syntax: str) -> Path:
        """Made when the first fault is built: who only wants the names of the faults need not wait for it."""
        folder = self.templates / syntax
        if not folder.is_dir():
            write_good(folder, syntax)
        return folder

    def add(self, name, damage, expected=REFUSED, *, syntax="explicit", says="", damaged=LAST, as_nobody=False, to=""):
        """`damage(folder)` changes the copied series; `to` renames its folder, "" leaves it `series`."""

        def build(home: Path) -> Path:
            folder = home / (to or "series")
            shutil.copytree(self._template(syntax), folder)
            return damage(folder) or folder

        self.faults.append(
            Fault(name, "series", build, expected, says, "series", "" if expected == READ else damaged, as_nobody)
        )

    def bytes(self, name, change, expected=REFUSED, *, all_slices=False, **options):
        """`change(content)` gives the new bytes of the last slice, or of all slices."""

        def damage(folder: Path) -> None:
            for path in sorted(folder.iterdir()) if all_slices else [folder / LAST]:
                path.write_bytes(change(path.read_bytes()))

        says = options.pop("says", "" if all_slices else LAST)
        self.add(name, damage, expected, says=says, damaged="*" if all_slices else LAST, **options)


def good() -> dict:
    """What the good series holds."""
    volume = patient_volume(SHAPE, seed=5)
    return {"hu": volume.hu, "affine": volume.affine, "names": np.array([f"{n + 1}.dcm" for n in range(SHAPE[0])])}
