"""Series whose pixels are damaged, or claim to be more than any machine can hold."""

from __future__ import annotations

import os
import struct
import zlib
from functools import partial
from pathlib import Path

import numpy as np
from faults import EITHER, REFUSED
from faults_series import LAST, Maker, meta_end, numbers, odd, renamed, with_length, with_value

ABSURD = 60000
#: Where a stream says how large its image is: a marker, bytes from there to the two numbers, their form. JPEG 2000
#: says it twice, for the image and for its only tile.
_OWN_SIZE = {
    "jpeg lossless": (b"\xff\xc3", (5,), ">HH"),
    "jpeg-ls": (b"\xff\xf7", (5,), ">HH"),
    "jpeg 2000": (b"\xff\x4f\xff\x51", (8, 24), ">II"),
}


def add_to(make: Maker) -> None:
    """Add these faults to the collection."""
    _sizes(make)
    _streams(make)


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
        make.bytes(f"{syntax} stream of 60000 x 60000 behind an odd VR", lambda c, own=own: odd(own(c)), syntax=syntax)
        make.bytes(f"{syntax} of 60000 x 60000, header too", lambda c, own=own: own(claim(c)), syntax=syntax, says=says)
        make.bytes(
            f"{syntax} of 60000 x 60000 in all slices", lambda c, own=own: own(claim(c)), syntax=syntax,
            says="60.?000", all_slices=True,
        )  # fmt: skip

    def bomb(content: bytes) -> bytes:
        """A deflated data set of about a megabyte that grows to gigabytes, all of it one private element."""
        packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
        plain = zlib.decompress(content[meta_end(content) :], -zlib.MAX_WBITS)
        head = packer.compress(plain[: plain.index(b"\x08\0\x60\0")]) + packer.flush(zlib.Z_FULL_FLUSH)
        head += packer.compress(b"\x09\0\x10\x10OB\0\0" + struct.pack("<I", 0xFFFFFFF0)) + packer.flush(
            zlib.Z_FULL_FLUSH
        )
        zeros = packer.compress(bytes(2**22)) + packer.flush(zlib.Z_FULL_FLUSH)
        return content[: meta_end(content)] + head + zeros * 256 + packer.flush(zlib.Z_FINISH)

    make.bytes("deflated bomb", bomb, syntax="deflated")
    for syntax, (marker, skips, form) in _OWN_SIZE.items():
        for rows, columns in ((12, 62), (25, 31), (24, 30), (0, 0), (65535, 1)):

            def other(content: bytes, marker=marker, skips=skips, form=form, rows=rows, columns=columns) -> bytes:
                size = struct.pack(form, *((columns, rows) if form == ">II" else (rows, columns)))
                for at in (content.index(marker) + skip for skip in skips):
                    content = content[:at] + size + content[at + len(size) :]
                return content

            make.bytes(f"{syntax} stream that claims {rows} x {columns}", other, syntax=syntax)


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
        make.bytes(f"uncompressed pixels called {syntax}", lambda c, s=syntax: renamed(c, s))
    # Each of these ends the process in a codec that believes what the stream says of itself.
    for syntax, name, marker, skip, value in (
        ("jpeg lossless", "no Huffman table", b"\xff\xc4", 1, b"\x80"),
        ("jpeg lossless", "no marker before its table", b"\xff\xc4", 0, b"\x7f"),
        ("jpeg lossless", "three components", b"\xff\xc3", 9, b"\x03"),
        ("jpeg 2000", "tiles without width", b"\xff\x4f\xff\x51", 24, bytes(4)),
    ):
        make.bytes(f"{syntax} with {name}", _at_marker(marker, skip, value), syntax=syntax)
    lost = _at_marker(b"\xff\xc4", 1, b"\x80")
    for name, other in (
        ("three components", _at_marker(b"\xff\xc3", 9, b"\3")),
        ("no predictor", _at_marker(b"\xff\xda", 7, b"\0")),
    ):
        change = partial(lambda c, other: lost(other(c)), other=other)
        make.bytes(f"jpeg lossless with a lost table and {name}", change, syntax="jpeg lossless")
    for offset in (0x3F036E, 0xFFFFFFFF, 0, 63):
        make.bytes(f"rle with a segment at {offset:#x}", _at_marker(_RLE, 8, struct.pack("<I", offset)), syntax="rle")
    for segments in (0, 1, 3, 15, 16, 0xFFFFFFFF):
        make.bytes(f"rle of {segments} segments", _at_marker(_RLE, 0, struct.pack("<I", segments)), syntax="rle")
    make.bytes("jpeg 2000 called jpeg lossless", lambda c: renamed(c, "jpeg lossless"), EITHER, syntax="jpeg 2000")
    make.bytes("jpeg lossless called rle", lambda c: renamed(c, "rle"), syntax="jpeg lossless")


#: The first bytes of every RLE stream of ours: two segments, the first right behind the header.
_RLE = struct.pack("<II", 2, 64)


def _at_marker(marker: bytes, skip: int, value: bytes):
    """Other bytes at some distance from a marker of the compressed stream."""

    def change(content: bytes) -> bytes:
        at = content.index(marker, content.rindex(struct.pack("<HH", 0x7FE0, 0x10))) + skip
        return content[:at] + value + content[at + len(value) :]

    return change


def _noise(content: bytes) -> bytes:
    at = content.rindex(struct.pack("<HH", 0x7FE0, 0x10)) + 28
    return content[:at] + np.random.default_rng(1).bytes(len(content) - at - 8) + content[-8:]
