"""Faulty series for `faults.run`, each made from a good one by a change of its bytes or of its folder.

The damage is done to the last slice, where no gap between neighbours could give it away, unless the fault is one of the
whole series. Bytes are changed by hand: pydicom refuses to write most of this.
"""

from __future__ import annotations

import os
import shutil
import struct
import zlib
from functools import partial
from pathlib import Path
from typing import NamedTuple

import imagecodecs
import numpy as np
import pydicom
from conftest import patient_volume, write_series
from faults import EITHER, READ, REFUSED, SANE, Fault
from pydicom import uid
from pydicom.datadict import tag_for_keyword
from pydicom.encaps import encapsulate

SHAPE = (5, 24, 31)
LAST, MIDDLE = "5.dcm", "3.dcm"
ABSURD = 60000

#: Tags without which an image is no slice of a series, or its pixels mean nothing.
NEEDED = (
    "Rows", "Columns", "BitsAllocated", "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing",
    "RescaleSlope", "RescaleIntercept", "PixelData",
)  # fmt: skip
#: Tags that a reader may do without, as long as it reads the right values.
HELPFUL = (
    "SamplesPerPixel", "PhotometricInterpretation", "BitsStored", "HighBit", "PixelRepresentation",
    "StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "Modality",
)  # fmt: skip
#: Tags that nothing depends on.
IDLE = ("InstanceNumber", "SliceThickness")
LONG = (b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV")


# ------------------------------------------------------------------------------------------ the good series


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
#: Where a stream says how large its image is: a marker, bytes from there to the two numbers, their form. JPEG 2000
#: says it twice, for the image and for its only tile.
_OWN_SIZE = {
    "jpeg lossless": (b"\xff\xc3", (5,), ">HH"),
    "jpeg-ls": (b"\xff\xf7", (5,), ">HH"),
    "jpeg 2000": (b"\xff\x4f\xff\x51", (8, 24), ">II"),
}


# ---------------------------------------------------------------------------------------- elements of a file


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


def before_pixels(content: bytes, inserted: bytes) -> bytes:
    at = find(content, "PixelData").start
    return content[:at] + inserted + content[at:]


def numbers(*values) -> bytes:
    return struct.pack(f"<{len(values)}H", *values)


def _meta_end(content: bytes) -> int:
    return 144 + struct.unpack_from("<I", content, 140)[0]


#: Twenty places to cut an uncompressed explicit file at.
PLACES = {
    "nothing left": lambda c: 0,
    "first byte": lambda c: 1,
    "in the preamble": lambda c: 100,
    "before DICM": lambda c: 128,
    "in DICM": lambda c: 130,
    "after DICM": lambda c: 132,
    "in the meta header": lambda c: 170,
    "before the end of the meta header": lambda c: _meta_end(c) - 10,
    "after the meta header": _meta_end,
    "in a tag": lambda c: find(c, "ImagePositionPatient").start + 2,
    "in a VR": lambda c: find(c, "ImagePositionPatient").start + 5,
    "in a length": lambda c: find(c, "ImagePositionPatient").start + 7,
    "in a value": lambda c: find(c, "ImagePositionPatient").value + 5,
    "between elements": lambda c: find(c, "ImagePositionPatient").end,
    "in the last text": lambda c: find(c, "RescaleSlope").value + 1,
    "before the pixels": lambda c: find(c, "PixelData").start,
    "in the length of the pixels": lambda c: find(c, "PixelData").value - 2,
    "before the first pixel": lambda c: find(c, "PixelData").value,
    "in the middle of the pixels": lambda c: (find(c, "PixelData").value + len(c)) // 2,
    "last byte": lambda c: len(c) - 1,
}


# ------------------------------------------------------------------------------------------------ the corpus


def _odd(content: bytes) -> bytes:
    """A harmless oddity, which may send a reader on a slower way."""
    return with_vr(content, "SliceThickness", b"LO")


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


def corpus(folder: Path, seeds: int):
    """(faults, good) of series; building the first of them writes the good series into `folder`."""
    make = Maker(folder / "templates")
    for part in (_intact, _cut, _flipped, _tags, _values, _lengths, _sizes, _mixed, _folders, _streams):
        if part is _flipped:
            part(make, seeds)
        else:
            part(make)
    volume = patient_volume(SHAPE, seed=5)
    names = np.array([f"{n + 1}.dcm" for n in range(SHAPE[0])])
    return make.faults, {"series": {"hu": volume.hu, "affine": volume.affine, "names": names}}


def _intact(make: Maker):
    for syntax in SYNTAXES:
        make.add(f"intact, {syntax}", lambda folder: None, READ, syntax=syntax)
        if syntax not in ("implicit", "deflated"):
            make.bytes(f"intact but for an idle VR, {syntax}", _odd, READ, syntax=syntax)


def _cut(make: Maker):
    for name, place in PLACES.items():
        make.bytes(f"cut {name}", lambda content, place=place: content[: place(content)])
    for syntax in SYNTAXES[1:]:
        for share in np.linspace(0.01, 0.97, 20):
            make.bytes(f"cut {syntax} at {share:.0%}", lambda c, s=share: c[: int(s * len(c))], syntax=syntax)
        expected = REFUSED if syntax == "implicit" else EITHER  # else it belongs to no pixel
        make.bytes(f"cut {syntax} last byte", lambda content: content[:-1], expected, syntax=syntax)
    make.bytes("zeros from the middle on", lambda c: c[: len(c) // 2] + b"\0" * (len(c) - len(c) // 2), SANE)
    make.bytes("zeros only", lambda c: bytes(len(c)))


def _flipped(make: Maker, seeds: int):
    def flip(content: bytes, seed: int, region) -> bytes:
        generator = np.random.default_rng(seed)
        changed = np.frombuffer(content, np.uint8).copy()
        first, last = region(content)
        for at in generator.integers(first, last, generator.integers(1, 5)):
            changed[at] ^= 1 << generator.integers(8) if seed % 2 else generator.integers(1, 256)
        return changed.tobytes()

    def header(content):
        return 128, find_pixels(content) + 12

    def everywhere(content):
        return 0, len(content)

    def find_pixels(content):
        return content.rindex(struct.pack("<HH", 0x7FE0, 0x10))

    for seed in range(seeds):
        for syntax in ("explicit", "implicit", "jpeg lossless", "rle", "jpeg 2000"):
            make.bytes(
                f"flipped header {syntax} {seed}", lambda c, s=seed: flip(c, s, header), SANE, syntax=syntax, says=""
            )
        for syntax in ("rle", "jpeg lossless", "jpeg-ls", "jpeg 2000"):
            make.bytes(
                f"flipped stream {syntax} {seed}",
                lambda c, s=seed: flip(c, s, lambda c: (find_pixels(c), len(c))),
                SANE, syntax=syntax, says="",
            )  # fmt: skip
        make.bytes(
            f"flipped deflated {seed}", lambda c, s=seed: flip(c, s, everywhere), SANE, syntax="deflated", says=""
        )
        make.bytes(
            f"flipped header in all slices {seed}", lambda c, s=seed: flip(c, s, lambda c: (340, header(c)[1])), SANE,
            says="", all_slices=True,
        )  # fmt: skip


def _tags(make: Maker):
    for keyword in NEEDED:
        make.bytes(f"no {keyword}", lambda c, k=keyword: without(c, k))
        make.bytes(f"no {keyword} in all slices", lambda c, k=keyword: without(c, k), all_slices=True)
        make.bytes(f"empty {keyword}", lambda c, k=keyword: with_value(c, k, b""))
    for keyword in HELPFUL:
        expected = SANE if keyword in ("StudyInstanceUID", "SeriesInstanceUID") else EITHER
        make.bytes(f"no {keyword}", lambda c, k=keyword: without(c, k), expected, says="")
        make.bytes(f"no {keyword} in all slices", lambda c, k=keyword: without(c, k), EITHER, all_slices=True)
        make.bytes(f"empty {keyword}", lambda c, k=keyword: with_value(c, k, b""), expected, says="")
    for keyword in IDLE:
        make.bytes(f"no {keyword}", lambda c, k=keyword: without(c, k), READ)
        make.bytes(f"empty {keyword}", lambda c, k=keyword: with_value(c, k, b""), READ)
        make.bytes(f"text in {keyword}", lambda c, k=keyword: with_value(c, k, b"thin"), EITHER)
    make.bytes("no TransferSyntaxUID", lambda c: without(c, "TransferSyntaxUID"), EITHER)
    make.bytes("empty TransferSyntaxUID", lambda c: with_value(c, "TransferSyntaxUID", b""), EITHER)
    for value in (b"1.2.3.4.5", b"1.2.840.10008.1.2.4.100", b"not an identifier", b"1.2.840.10008.1.2.2"):
        make.bytes(f"TransferSyntaxUID {value.decode()}", lambda c, v=value: with_value(c, "TransferSyntaxUID", v))
    for vr in (b"UN", b"SQ", b"OB", b"XX", b"\0\0", b"US", b"FD", b"LO", b"UT"):
        for keyword in NEEDED[:-1] + HELPFUL:
            expected = SANE if keyword.endswith("UID") else EITHER
            make.bytes(f"VR {vr!r} of {keyword}", lambda c, k=keyword, v=vr: with_vr(c, k, v), expected, says="")
    for vr in (b"OB", b"UN", b"SQ", b"US", b"\0\0", b"UT"):
        make.bytes(f"VR {vr!r} of PixelData", lambda c, v=vr: with_vr(c, "PixelData", v), EITHER, says="")


def _values(make: Maker):
    bad = {
        "ImagePositionPatient": (b"a\\b\\c", b"nan\\0\\0", b"0\\0\\inf", b"1\\2", b"1\\2\\3\\4", b"1e300\\0\\0", b"1,5\\2\\3"),
        "ImageOrientationPatient": (b"1\\0\\0\\0\\0\\0", b"nan\\0\\0\\0\\1\\0", b"2\\0\\0\\0\\1\\0", b"1\\0\\0\\1\\0\\0"),
        "PixelSpacing": (b"0\\0", b"-1\\1", b"nan\\1", b"1e999\\1", b"1e-320\\1", b"wide", b"0.5"),
        "RescaleSlope": (b"0", b"nan", b"inf", b"-inf", b"1e308", b"steep", b"1\\2"),
        "RescaleIntercept": (b"nan", b"inf", b"1e999", b"low", b"--5"),
        "Rows": (b"many", numbers(0), numbers(65535), numbers(24, 24)),
        "Columns": (numbers(0), numbers(65535)),
        "BitsAllocated": (numbers(0), numbers(8), numbers(12), numbers(64), numbers(65535)),
        "BitsStored": (numbers(0), numbers(17), numbers(65535)),
        "PixelRepresentation": (numbers(7),),
        "SamplesPerPixel": (numbers(0), numbers(3), numbers(65535)),
        "PhotometricInterpretation": (b"RGB", b"PALETTE COLOR", b"NONSENSE"),
        "Modality": (b"MR",),
    }  # fmt: skip
    for keyword, values in bad.items():
        for value in values:
            make.bytes(f"{keyword} = {value!r}", lambda c, k=keyword, v=value: with_value(c, k, v), says="")
    for keyword in ("PixelSpacing", "RescaleSlope", "RescaleIntercept", "ImageOrientationPatient"):
        for value in (bad[keyword][0], bad[keyword][1], b"\xff\xfe\x00\x01", b"9" * 5000):
            name = f"{keyword} = {value[:12]!r} in all slices"
            make.bytes(name, lambda c, k=keyword, v=value: with_value(c, k, v), all_slices=True)
    for value in (b"1e-300\\1e-300", b"1e300\\1e300"):
        make.bytes(
            f"PixelSpacing = {value!r} in all", lambda c, v=value: with_value(c, "PixelSpacing", v), all_slices=True
        )
    for value in (b"2147483647", b"-1", b"4", b"many", b"1e99", b"1\\2", b"9" * 400):
        element = b"\x28\0\x08\0IS" + struct.pack("<H", len(value) + len(value) % 2) + value + b" " * (len(value) % 2)
        make.bytes(f"NumberOfFrames = {value[:12]!r}", lambda c, e=element: _insert(c, 0x00280008, e), says="")


def _insert(content: bytes, tag: int, element: bytes) -> bytes:
    at = next(e.start for e in elements(content) if e.tag > tag and e.tag >> 16 > 2)
    return content[:at] + element + content[at:]


def _lengths(make: Maker):
    for length in (0xFFFFFFFF, 0xFFFFFFFE, 0x80000000, 0x7FFFFFFF, 0, 1):
        expected = EITHER if length > 1 else REFUSED  # every pixel is there
        make.bytes(f"PixelData of length {length:#x}", lambda c, n=length: with_length(c, "PixelData", n), expected)
    for keyword in ("ImagePositionPatient", "StudyInstanceUID", "Modality"):
        for length in (0xFFFF, 0xFFFE, 1):
            make.bytes(f"{keyword} of length {length:#x}", lambda c, k=keyword, n=length: with_length(c, k, n), says="")
    make.bytes("meta header of length 0xffffffff", lambda c: c[:140] + b"\xff" * 4 + c[144:], EITHER)
    for vr in (b"OB", b"UN", b"SQ", b"UT"):
        for length in (0xFFFFFFFF, 0xFFFFFFF0, 0x7FFFFFF0):
            element = b"\x09\0\x10\x10" + vr + b"\0\0" + struct.pack("<I", length)
            make.bytes(f"private {vr.decode()} of length {length:#x}", lambda c, e=element: _insert(c, 0x00091010, e))
    for depth in (50, 5000, 200000):
        opened = (b"\x09\0\x10\x10SQ\0\0" + b"\xff" * 4 + b"\xfe\xff\0\xe0" + b"\xff" * 4) * depth
        closed = (b"\xfe\xff\x0d\xe0" + bytes(4) + b"\xfe\xff\xdd\xe0" + bytes(4)) * depth
        make.bytes(f"sequences {depth} deep", lambda c, e=opened + closed: _insert(c, 0x00091010, e), EITHER, says="")
        make.bytes(f"sequences {depth} deep, never closed", lambda c, e=opened: _insert(c, 0x00091010, e), says="")
    nested = b""
    for _ in range(3000):
        nested = b"\x09\0\x10\x10SQ\0\0" + struct.pack("<I", len(nested) + 8) + b"\xfe\xff\0\xe0" + struct.pack("<I", len(nested)) + nested  # fmt: skip
    make.bytes("sequences 3000 deep with lengths", lambda c: _insert(c, 0x00091010, nested), EITHER, says="")
    many = b"".join(struct.pack("<HH", 0x0009, 0x1000 + n) + b"LO\x02\0ab" for n in range(50000))
    make.bytes("fifty thousand private elements", lambda c: _insert(c, 0x00090999, many), EITHER)


def _sizes(make: Maker):
    def claim(content: bytes) -> bytes:
        return with_value(with_value(content, "Rows", numbers(ABSURD)), "Columns", numbers(ABSURD))

    says = f"{LAST}|60.?000"
    make.bytes("claims 60000 x 60000", claim)
    make.bytes("claims 60000 x 60000 in all slices", claim, says="60.?000", all_slices=True)

    def sparse(folder: Path) -> None:  # a file as long as it claims to be, though nothing of it is on the disk
        for path in folder.iterdir():
            path.write_bytes(with_length(claim(path.read_bytes()), "PixelData", 2 * ABSURD**2 & 0xFFFFFFFE))
            os.truncate(path, 2 * ABSURD**2 + 4096)

    make.add("7 GB of pixels in every file", sparse, says="60.?000", damaged="*")
    for syntax in ("rle", "jpeg lossless", "jpeg-ls", "jpeg 2000"):
        make.bytes(f"{syntax} in a header of 60000 x 60000", claim, syntax=syntax, says=says)
    for syntax, (marker, skips, form) in _OWN_SIZE.items():

        def own(content: bytes, marker=marker, skips=skips, form=form) -> bytes:
            size = struct.pack(form, ABSURD, ABSURD)
            for at in (content.index(marker) + skip for skip in skips):
                content = content[:at] + size + content[at + len(size) :]
            return content

        make.bytes(f"{syntax} stream that claims 60000 x 60000", own, syntax=syntax, says=f"{LAST}.*60.?000")
        make.bytes(f"{syntax} stream of 60000 x 60000 behind an odd VR", lambda c, own=own: _odd(own(c)), syntax=syntax)
        make.bytes(f"{syntax} of 60000 x 60000, header too", lambda c, own=own: own(claim(c)), syntax=syntax, says=says)
        make.bytes(
            f"{syntax} of 60000 x 60000 in all slices", lambda c, own=own: own(claim(c)), syntax=syntax,
            says="60.?000", all_slices=True,
        )  # fmt: skip

    def bomb(content: bytes) -> bytes:
        """A deflated data set of about a megabyte that grows to gigabytes, all of it one private element."""
        packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
        plain = zlib.decompress(content[_meta_end(content) :], -zlib.MAX_WBITS)
        head = packer.compress(plain[: plain.index(b"\x08\0\x60\0")]) + packer.flush(zlib.Z_FULL_FLUSH)
        head += packer.compress(b"\x09\0\x10\x10OB\0\0" + struct.pack("<I", 0xFFFFFFF0)) + packer.flush(
            zlib.Z_FULL_FLUSH
        )
        zeros = packer.compress(bytes(2**22)) + packer.flush(zlib.Z_FULL_FLUSH)
        return content[: _meta_end(content)] + head + zeros * 256 + packer.flush(zlib.Z_FINISH)

    make.bytes("deflated bomb", bomb, syntax="deflated")
    for syntax in ("jpeg lossless", "jpeg-ls", "jpeg 2000"):
        marker, skips, form = _OWN_SIZE[syntax]
        for rows, columns in ((12, 62), (25, 31), (24, 30), (0, 0), (65535, 1)):

            def other(content: bytes, marker=marker, skips=skips, form=form, rows=rows, columns=columns) -> bytes:
                size = struct.pack(form, *((columns, rows) if form == ">II" else (rows, columns)))
                for at in (content.index(marker) + skip for skip in skips):
                    content = content[:at] + size + content[at + len(size) :]
                return content

            make.bytes(f"{syntax} stream that claims {rows} x {columns}", other, syntax=syntax)


def _mixed(make: Maker):
    def twin(folder: Path) -> None:
        shutil.copy(folder / LAST, folder / "99.dcm")

    def two_series(folder: Path) -> None:
        volume = patient_volume(SHAPE, seed=6)
        write_series(folder, volume, first_number=101, series_uid="1.2.826.0.1.3680043.1.2", signed=False)

    def size(content: bytes) -> bytes:
        return with_value(with_value(content, "Rows", numbers(12)), "PixelData", content[-12 * 31 * 2 :])

    make.add("the same slice twice", twin, says="5.dcm.*99.dcm|99.dcm.*5.dcm", damaged="99.dcm")
    make.add("two series", two_series, says="2 series|two .*series")
    make.bytes("a slice of another size", size, says="")
    turned = b"1\\0\\0\\0\\0.866025404\\0.5"
    make.add(
        "a slice of another orientation", _in_the_middle(lambda c: with_value(c, "ImageOrientationPatient", turned))
    )
    make.add("a slice of another spacing", _in_the_middle(lambda c: with_value(c, "PixelSpacing", b"0.9\\0.9")))
    make.add("a slice of another series", _in_the_middle(lambda c: with_value(c, "SeriesInstanceUID", b"1.2.9")))
    make.add("a slice of another study", _in_the_middle(lambda c: with_value(c, "StudyInstanceUID", b"1.2.9")))
    make.add("a missing slice", lambda folder: (folder / MIDDLE).unlink(), says="missing")
    make.add("one slice only", lambda folder: [p.unlink() for p in folder.iterdir() if p.name != LAST] and None)


def _in_the_middle(change):
    def damage(folder: Path) -> None:
        path = folder / MIDDLE
        path.write_bytes(change(path.read_bytes()))

    return damage


def _folders(make: Maker):
    def put(name: str, act):
        return lambda folder: act(folder / name) and None

    make.add("empty folder", lambda folder: [path.unlink() for path in folder.iterdir()] and None)
    make.add("no such folder", lambda folder: folder.with_name("absent"), says="no such folder")
    make.add("a file in place of the folder", lambda folder: folder / LAST, says="a file")
    make.add("a FIFO in place of the folder", _fifo_for_folder)
    make.add("a folder that is a link to itself", _loop_for_folder)
    make.add(
        "text named .dcm", put("9.dcm", lambda p: p.write_text("Meeting notes, not DICOM.")), EITHER, damaged="9.dcm"
    )
    make.add("a link to itself", put("9.dcm", lambda p: p.symlink_to(p)), EITHER, damaged="9.dcm")
    make.add("a link to nowhere", put("9.dcm", lambda p: p.symlink_to("nowhere")), EITHER, damaged="9.dcm")
    make.add("a FIFO", put("9.dcm", os.mkfifo), EITHER, damaged="9.dcm")
    make.add("a link to endless zeros", put("9.dcm", lambda p: p.symlink_to("/dev/zero")), EITHER, damaged="9.dcm")
    make.add("a folder named 9.dcm", put("9.dcm", os.mkdir), EITHER, damaged="9.dcm")
    make.add("a folder in place of a slice", lambda f: (f / MIDDLE).unlink() or (f / MIDDLE).mkdir(), says="")
    make.add("a file nobody may read", lambda f: (f / LAST).chmod(0), says=LAST, as_nobody=True)
    make.add("a folder nobody may list", lambda f: f.chmod(0o711), as_nobody=True)
    make.add("a folder nobody may enter", lambda f: f.chmod(0), as_nobody=True)
    make.add("a folder nobody may reach", _unreachable, as_nobody=True)
    for text in ("a folder with spaces", "Übung Ω 日本", "two\nlines", "quote\"s and 'such' %s {x}", "-rf", "a" * 200):
        make.add(f"folder named {text[:30]!r}", lambda folder: None, READ, to=text)
        make.add(
            f"file named {text[:30]!r}", lambda f, t=text: (f / LAST).rename(f / f"{t}.dcm") and None, SANE, damaged=""
        )
    make.add("file name that is no text", _not_text, SANE, damaged="")


def _fifo_for_folder(folder: Path) -> Path:
    os.mkfifo(folder.with_name("pipe"))
    return folder.with_name("pipe")


def _loop_for_folder(folder: Path) -> Path:
    loop = folder.with_name("loop")
    loop.symlink_to(loop)
    return loop


def _unreachable(folder: Path) -> Path:
    closed = folder.with_name("closed")
    closed.mkdir()
    shutil.copytree(folder, closed / "series")
    closed.chmod(0)
    return closed / "series"


def _not_text(folder: Path) -> None:
    try:
        os.rename(folder / LAST, os.path.join(os.fsencode(folder), b"\xff\xfe.dcm"))
    except OSError:  # macOS knows no such names
        pass


def _streams(make: Maker):
    def item(content: bytes, which: int, length: int) -> bytes:
        """Another length of an item of the compressed pixels: 0 is the table of offsets, 1 the stream."""
        at = content.rindex(struct.pack("<HH", 0x7FE0, 0x10)) + 12
        for _ in range(which):
            at += 8 + struct.unpack_from("<I", content, at + 4)[0]
        return content[: at + 4] + struct.pack("<I", length) + content[at + 8 :]

    for syntax in ("rle", "jpeg lossless", "jpeg 2000"):
        for which, name in enumerate(("table of offsets", "stream")):
            for length in (0xFFFFFFFF, 0xFFFFFFFE, 0x7FFFFFFE, 0x10):
                make.bytes(
                    f"{syntax}: {name} of length {length:#x}",
                    lambda c, w=which, n=length: item(c, w, n), EITHER if which == 0 or length > 16 else REFUSED,
                    syntax=syntax,
                )  # fmt: skip
        make.bytes(f"{syntax} replaced by noise", lambda c: _noise(c), syntax=syntax)
    for syntax in ("rle", "jpeg lossless", "jpeg-ls", "jpeg 2000"):
        make.bytes(f"uncompressed pixels called {syntax}", lambda c, s=syntax: _renamed(c, s))
    make.bytes("jpeg 2000 called jpeg lossless", lambda c: _renamed(c, "jpeg lossless"), EITHER, syntax="jpeg 2000")
    make.bytes("jpeg lossless called rle", lambda c: _renamed(c, "rle"), syntax="jpeg lossless")


def _noise(content: bytes) -> bytes:
    at = content.rindex(struct.pack("<HH", 0x7FE0, 0x10)) + 28
    return content[:at] + np.random.default_rng(1).bytes(len(content) - at - 8) + content[-8:]


def _renamed(content: bytes, syntax: str) -> bytes:
    """The meta header says another transfer syntax; the length of the meta header is made to fit."""
    changed = with_value(content, "TransferSyntaxUID", str(ENCODERS[syntax][0]).encode())
    longer = len(changed) - len(content)
    return changed[:140] + struct.pack("<I", _meta_end(content) - 144 + longer) + changed[144:]
