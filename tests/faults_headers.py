"""Series with a damaged header: cut, flipped, missing, empty, absurd.

The damage is done to the last slice, where no gap between neighbours could give it away, unless the fault is one of the
whole series.
"""

from __future__ import annotations

import struct

import numpy as np
from faults import EITHER, READ, REFUSED, SANE
from faults_series import (
    SYNTAXES,
    Maker,
    find,
    insert,
    meta_end,
    numbers,
    odd,
    with_length,
    with_value,
    with_vr,
    without,
)

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
#: Twenty places to cut an uncompressed explicit file at.
PLACES = {
    "nothing left": lambda c: 0,
    "first byte": lambda c: 1,
    "in the preamble": lambda c: 100,
    "before DICM": lambda c: 128,
    "in DICM": lambda c: 130,
    "after DICM": lambda c: 132,
    "in the meta header": lambda c: 170,
    "before the end of the meta header": lambda c: meta_end(c) - 10,
    "after the meta header": meta_end,
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


def add_to(make: Maker, seeds: int) -> None:
    """Add these faults to the collection."""
    _intact(make)
    _cut(make)
    _flipped(make, seeds)
    _tags(make)
    _values(make)
    _lengths(make)


def _intact(make: Maker):
    for syntax in SYNTAXES:
        make.add(f"intact, {syntax}", lambda folder: None, READ, syntax=syntax)
        if syntax not in ("implicit", "deflated"):
            make.bytes(f"intact but for an idle VR, {syntax}", odd, READ, syntax=syntax)


def _cut(make: Maker):
    for name, place in PLACES.items():
        make.bytes(f"cut {name}", lambda content, place=place: content[: place(content)])
    for syntax in SYNTAXES[1:]:
        for share in np.linspace(0.01, 0.97, 20):
            make.bytes(f"cut {syntax} at {share:.0%}", lambda c, s=share: c[: int(s * len(c))], syntax=syntax)
        if syntax not in ("implicit", "deflated"):
            make.bytes(f"no PixelData, {syntax}", lambda c: without(c, "PixelData"), syntax=syntax)
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
    for vr in (b"LO", b"US", b"SH", b"XX"):
        for keyword in ("MediaStorageSOPClassUID", "TransferSyntaxUID"):
            make.bytes(f"VR {vr!r} of {keyword}", lambda c, k=keyword, v=vr: with_vr(c, k, v), EITHER, says="")
            name = f"VR {vr!r} of {keyword} and an odd one"
            make.bytes(name, lambda c, k=keyword, v=vr: odd(with_vr(c, k, v)), EITHER, says="")
        for keyword, tag, value in (
            ("SOPClassUID", 0x00080016, b"1.2.840.10008.5.1.4.1.1.2\0"),
            ("ImageType", 0x00080008, b"ORIGINAL\\PRIMARY\\AXIAL "),
            ("RescaleType", 0x00281054, b"HU"),
            ("PixelPaddingValue", 0x00280120, b"\x30\xf8"),
        ):
            element = struct.pack("<HH2sH", tag >> 16, tag & 0xFFFF, vr, len(value)) + value
            make.bytes(f"{keyword} with VR {vr!r}", lambda c, t=tag, e=element: insert(c, t, e), EITHER, says="")
    for vr in (b"OB", b"UN", b"SQ", b"US", b"\0\0", b"UT"):
        make.bytes(f"VR {vr!r} of PixelData", lambda c, v=vr: with_vr(c, "PixelData", v), EITHER, says="")


def _values(make: Maker):
    bad = {
        "ImagePositionPatient": (
            b"a\\b\\c", b"nan\\0\\0", b"0\\0\\inf", b"1\\2", b"1\\2\\3\\4", b"1e300\\0\\0", b"1,5\\2\\3",
        ),
        "ImageOrientationPatient": (
            b"1\\0\\0\\0\\0\\0", b"nan\\0\\0\\0\\1\\0", b"2\\0\\0\\0\\1\\0", b"1\\0\\0\\1\\0\\0",
        ),
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
        make.bytes(f"NumberOfFrames = {value[:12]!r}", lambda c, e=element: insert(c, 0x00280008, e), says="")


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
            make.bytes(f"private {vr.decode()} of length {length:#x}", lambda c, e=element: insert(c, 0x00091010, e))
    for depth in (50, 5000, 200000):
        opened = (b"\x09\0\x10\x10SQ\0\0" + b"\xff" * 4 + b"\xfe\xff\0\xe0" + b"\xff" * 4) * depth
        closed = (b"\xfe\xff\x0d\xe0" + bytes(4) + b"\xfe\xff\xdd\xe0" + bytes(4)) * depth
        make.bytes(f"sequences {depth} deep", lambda c, e=opened + closed: insert(c, 0x00091010, e), EITHER, says="")
        make.bytes(f"sequences {depth} deep, never closed", lambda c, e=opened: insert(c, 0x00091010, e), says="")
    nested = b""
    for _ in range(3000):
        item = b"\xfe\xff\0\xe0" + struct.pack("<I", len(nested)) + nested
        nested = b"\x09\0\x10\x10SQ\0\0" + struct.pack("<I", len(item)) + item
    make.bytes("sequences 3000 deep with lengths", lambda c: insert(c, 0x00091010, nested), EITHER, says="")
    many = b"".join(struct.pack("<HH", 0x0009, 0x1000 + n) + b"LO\x02\0ab" for n in range(50000))
    make.bytes("fifty thousand private elements", lambda c: insert(c, 0x00090999, many), EITHER)
