"""Compressed pixel data: imagecodecs as a decoder of pydicom.

pydicom decodes uncompressed and RLE pixels itself and asks plugins for the rest. This module is such
a plugin (see pydicom's guide to decoder plugins); importing it registers it, once. imagecodecs is
BSD-licensed and was the fastest of the free decoders for JPEG Lossless that we tried.
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
    uid.JPEGLossless: imagecodecs.ljpeg_decode,
    uid.JPEGLosslessSV1: imagecodecs.ljpeg_decode,
    uid.JPEGLSLossless: imagecodecs.jpegls_decode,
    uid.JPEGLSNearLossless: imagecodecs.jpegls_decode,
    uid.JPEG2000Lossless: imagecodecs.jpeg2k_decode,
    uid.JPEG2000: imagecodecs.jpeg2k_decode,
}
DECODER_DEPENDENCIES = {syntax: ("numpy", "imagecodecs") for syntax in _DECODERS}


def is_available(syntax: str) -> bool:
    """True where this plugin decodes the transfer syntax. (pydicom calls it.)"""
    return syntax in _DECODERS


def _decode_frame(src: bytes, runner) -> bytearray:
    """One compressed frame -> its pixels, little endian, in the container that the header promises."""
    frame = _DECODERS[runner.transfer_syntax](src)
    wanted = (runner.rows, runner.columns) + ((runner.samples_per_pixel,) if runner.samples_per_pixel > 1 else ())
    if frame.shape != wanted:
        raise ValueError(f"the compressed image is {frame.shape}, the header says {wanted}")
    container = np.dtype(f"{'i' if runner.pixel_representation else 'u'}{runner.bits_allocated // 8}")
    # A lossless stream carries bit patterns: go through the unsigned type of the stream's own width.
    if frame.dtype.itemsize != container.itemsize:
        frame = frame.astype(container)
    return bytearray(frame.astype(frame.dtype.newbyteorder("<"), copy=False).tobytes())


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
