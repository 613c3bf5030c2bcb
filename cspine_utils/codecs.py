"""Compressed pixels: one frame of a DICOM file -> an array, by imagecodecs.

imagecodecs is BSD-licensed and decodes every compression that CT files come in. Its libjpeg-turbo is the fastest free
decoder of JPEG Lossless that we tried. pydicom decodes uncompressed and RLE pixels itself and asks plugins for the
rest; this module is such a plugin too (see pydicom's guide to decoder plugins); importing it registers it, once.
"""

from __future__ import annotations

import logging

import imagecodecs
import numpy as np
from pydicom import uid
from pydicom.pixels import get_decoder

PLUGIN = "imagecodecs"
_DECODERS = {
    uid.JPEGBaseline8Bit: imagecodecs.jpeg8_decode,
    uid.JPEGExtended12Bit: imagecodecs.jpeg8_decode,
    # Not ljpeg_decode: slower, and a damaged stream can end the process in it (so it can in htj2k_decode, not used).
    uid.JPEGLossless: imagecodecs.jpeg8_decode,
    uid.JPEGLosslessSV1: imagecodecs.jpeg8_decode,
    uid.JPEGLSLossless: imagecodecs.jpegls_decode,
    uid.JPEGLSNearLossless: imagecodecs.jpegls_decode,
    uid.JPEG2000Lossless: imagecodecs.jpeg2k_decode,
    uid.JPEG2000: imagecodecs.jpeg2k_decode,
}
#: For pydicom, which asks for the packages that a decoder needs.
DECODER_DEPENDENCIES = {syntax: ("numpy", "imagecodecs") for syntax in _DECODERS}


def is_available(syntax: str) -> bool:
    """True where this plugin decodes the transfer syntax. (pydicom calls it.)"""
    return syntax in _DECODERS


def can_decode(syntax: str) -> bool:
    """True where `decode` takes the transfer syntax."""
    return syntax in _DECODERS or syntax == uid.RLELossless


def decode(syntax: str, stream: bytes, shape: tuple[int, ...], container: np.dtype) -> np.ndarray:
    """One compressed frame -> its pixels.

    Parameters
    ----------
    syntax : transfer syntax UID, one that `can_decode`
    stream : the compressed frame
    shape : (rows, columns), or (rows, columns, samples), as the header promises
    container : little-endian integer type that the header promises (BitsAllocated, PixelRepresentation)

    Raises
    ------
    ValueError, or the codec's own error, where the stream is damaged or holds another image. The size is read from
    the stream's own header first, so that a damaged one cannot ask for more memory than the file promises.
    """
    if syntax == uid.RLELossless:
        _check_rle(stream, container.itemsize * int(np.prod(shape[2:])))
        return np.frombuffer(imagecodecs.dicomrle_decode(stream, container), container)[: np.prod(shape)].reshape(shape)
    size = stream_size(stream)
    if size is not None and size != tuple(shape[:2]):
        raise ValueError(f"the compressed image has {size[0]} x {size[1]} pixels, the header says {shape}")
    frame = _DECODERS[uid.UID(syntax)](stream)
    if frame.shape != tuple(shape):
        raise ValueError(f"the compressed image is {frame.shape}, the header says {shape}")
    # A lossless stream carries bit patterns: go through the unsigned type of the stream's own width.
    if frame.dtype.itemsize == container.itemsize:
        return frame.view(container)
    return frame.astype(container)


def _check_rle(stream: bytes, segments: int) -> None:
    """The decoder believes the table at the beginning of a stream, wherever its offsets lead. (PS3.5, annex G)"""
    table = np.frombuffer(stream[:64], "<u4")
    offsets = table[1 : 1 + segments].astype(np.int64)
    if len(table) < 16 or table[0] != segments or offsets[0] != 64 or (np.diff(offsets) <= 0).any():
        raise ValueError(f"a table that does not begin {segments} segments one after the other")
    if offsets[-1] >= len(stream):
        raise ValueError("a segment beyond the end of the stream")


def stream_size(stream: bytes) -> tuple[int, int] | None:
    """(rows, columns) as a JPEG, JPEG-LS or JPEG 2000 stream itself says, None where no such header is found.

    JPEG family: the frame header SOF0 ... SOF15 or SOF55 (ISO/IEC 10918-1 B.2.2, 14495-1 C.2.2).
    JPEG 2000: the SIZ marker, image extent minus offset (ISO/IEC 15444-1 A.5.1).
    """
    at = stream.find(b"\xff\x51", 0, 256)
    if at >= 0 and stream[at - 2 : at] == b"\xff\x4f":
        x1, y1, x0, y0 = (int.from_bytes(stream[at + 6 + 4 * i : at + 10 + 4 * i], "big") for i in range(4))
        return y1 - y0, x1 - x0
    at = 2
    while stream[:2] == b"\xff\xd8" and at + 9 <= len(stream) and stream[at] == 0xFF:
        marker, length = stream[at + 1], int.from_bytes(stream[at + 2 : at + 4], "big")
        if (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)) or marker == 0xF7:
            return int.from_bytes(stream[at + 5 : at + 7], "big"), int.from_bytes(stream[at + 7 : at + 9], "big")
        at += 1 if marker == 0xFF else 2 + length
    return None


def _decode_frame(src: bytes, runner) -> bytearray:
    """What pydicom calls: one compressed frame -> its pixels, little endian, in the container of the header."""
    shape = (runner.rows, runner.columns) + ((runner.samples_per_pixel,) if runner.samples_per_pixel > 1 else ())
    container = np.dtype(f"<{'i' if runner.pixel_representation else 'u'}{runner.bits_allocated // 8}")
    return bytearray(decode(runner.transfer_syntax, src, shape, container).tobytes())


def register() -> None:
    """Offer imagecodecs to pydicom under the name `PLUGIN`; a second call changes nothing."""
    for syntax in _DECODERS:
        decoder = get_decoder(syntax)
        if PLUGIN not in decoder.available_plugins:
            decoder.add_plugin(PLUGIN, (__name__, "_decode_frame"))
    # On a damaged stream pydicom logs a traceback and then raises. The error says it all; a cohort run with
    # one bad file should show one sentence.
    logging.getLogger("pydicom.pixels.decoders.base").addFilter(_has_no_traceback)


def _has_no_traceback(record: logging.LogRecord) -> bool:
    return record.exc_info is None


register()
