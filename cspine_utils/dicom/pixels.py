"""Stored values of slices -> HU, read straight into one preallocated volume."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pydicom
from pydicom.pixels import iter_pixels, pixel_array

from cspine_utils import codecs
from cspine_utils.errors import SeriesError

from .elements import DEFLATED, NATIVE_SYNTAXES
from .headers import PixelFormat, SliceHeader
from .thorough import open_within, quietly
from .walk import inflate

#: HU of air, which is what lies outside the scanned circle.
AIR_HU = -1000
#: HU given to padding that would come out brighter than air.
PADDING_HU = -1024
#: Share of the image's border that padding takes at least; a circle leaves most of it, noise hits a few pixels.
PADDED_BORDER = 0.1
#: Codecs let other threads run, so two of them share the work.
THREADS = 2

_INT16 = np.iinfo(np.int16)


def read_into(headers, slices: np.ndarray) -> None:
    """Read the pixels of every slice.

    Parameters
    ----------
    headers : SliceHeaders of one series
    slices : int16 `(n, rows, columns)`, a view of any strides; filled with HU, values beyond int16 saturate

    Raises
    ------
    SeriesError : pixels that cannot be decoded, or that are not what the header promises
    """
    if headers[0].frame is not None:
        for path in dict.fromkeys(header.path for header in headers):
            places = [place for place, header in enumerate(headers) if header.path == path]
            for place, stored in zip(places, _frames([headers[place] for place in places]), strict=True):
                _fill(headers[place], slices[place], stored)
    elif all(map(_lies_as_in_the_volume, headers, slices)):  # more threads would wait for the same memory
        for header, target in zip(headers, slices, strict=True):
            _fill(header, target)
    else:
        with ThreadPoolExecutor(THREADS) as pool:
            for _ in pool.map(_fill, headers, slices):
                pass  # raises what a slice raised, and drops the slices that wait
    if any(header.pixels.inverted_display for header in headers):
        _undo_inversion(headers, slices)


def _fill(header: SliceHeader, target: np.ndarray, stored: np.ndarray | None = None) -> None:
    """Fill `target`, int16 `(rows, columns)`, with the HU of one slice. Raises SeriesError."""
    try:
        if stored is None and _lies_as_in_the_volume(header, target):
            stored = target.view(_container(header.pixels))
            with open(header.path, "rb", buffering=0) as file:
                file.seek(header.elements.pixels_at)
                if file.readinto(stored) != stored.nbytes:
                    raise ValueError("the file ends within its pixels")
        elif stored is None:
            stored = _stored(header)
        _to_hu(stored, header.pixels, target)
    except MemoryError:
        raise
    except Exception as error:  # damaged pixels make every decoder fail in its own way
        raise _undecodable(header, error) from (error if header.elements.simple else None)


def _undecodable(header: SliceHeader, error: Exception) -> SeriesError:
    # pydicom's messages quote the header, which may hold a person's name: their kind has to do.
    ours = isinstance(error, ValueError | OSError | RuntimeError) and header.elements.simple and header.frame is None
    why = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}" if ours else type(error).__name__
    return SeriesError(
        header.path,
        found=f"pixels that cannot be decoded ({why})",
        expected=f"{header.rows} x {header.columns} pixels in {header.transfer_syntax.name}",
        remedy="the file is truncated or damaged: download it again.",
    )


def _lies_as_in_the_volume(header: SliceHeader, target: np.ndarray) -> bool:
    """The common case: uncompressed 16-bit pixels that lie in the file as they lie in the volume."""
    return (
        header.elements.simple
        and header.frame is None
        and header.pixels.allocated == 16
        and header.transfer_syntax in NATIVE_SYNTAXES
        and header.transfer_syntax != DEFLATED
        and target.flags.c_contiguous
    )


def _container(pixels: PixelFormat) -> np.dtype:
    return np.dtype(f"<{'i' if pixels.signed else 'u'}{pixels.allocated // 8}")


def _stored(header: SliceHeader) -> np.ndarray:
    """Stored values `(rows, columns)` in the container of the header."""
    read, shape, container = header.elements, (header.rows, header.columns), _container(header.pixels)
    if not read.simple:
        with quietly():
            with open_within(header.path) as file:
                dataset = pydicom.dcmread(file, force=True)
            dataset.file_meta.TransferSyntaxUID = header.transfer_syntax
            expected = header.rows * header.columns * container.itemsize
            if header.transfer_syntax in NATIVE_SYNTAXES and len(dataset.PixelData) - expected not in (0, 1):
                raise ValueError("another number of pixels than the header says")
            return pixel_array(dataset, raw=True, decoding_plugin=_plugin(header))
    with open(header.path, "rb", buffering=0) as file:
        if header.transfer_syntax in NATIVE_SYNTAXES and header.transfer_syntax != DEFLATED:
            return np.fromfile(file, container, header.rows * header.columns, offset=read.pixels_at).reshape(shape)
        stream = b"".join(os.pread(file.fileno(), length, at) for at, length in read.fragments)
    if header.transfer_syntax == DEFLATED:
        stored = np.frombuffer(inflate(header.path, stream), container, shape[0] * shape[1], read.pixels_at)
        return stored.reshape(shape).copy()
    return codecs.decode(header.transfer_syntax, stream, shape, container)


def _frames(headers):
    """Stored values of frames of one multi-frame file, one after the other."""
    frames = [header.frame for header in headers]
    try:
        with quietly(), open_within(headers[0].path) as file:
            yield from iter_pixels(file, indices=frames, raw=True, decoding_plugin=_plugin(headers[0]))
    except Exception as error:
        raise _undecodable(headers[0], error) from None


def _plugin(header: SliceHeader) -> str:
    return codecs.PLUGIN if codecs.is_available(header.transfer_syntax) else ""


def _to_hu(stored: np.ndarray, pixels: PixelFormat, target: np.ndarray) -> None:
    """Rescale stored values into `target`. `stored` may be the very memory of `target`."""
    if stored.shape != target.shape:
        raise ValueError(f"{stored.shape} pixels, one grey value a pixel was expected")
    if not stored.flags.writeable or not stored.dtype.isnative:
        stored = stored.astype(stored.dtype.newbyteorder("="))
    _fill_unused_bits(stored, pixels)
    outside = _padding(stored, pixels)
    slope, intercept = pixels.slope, pixels.intercept
    if slope == 1 and intercept.is_integer() and stored.dtype.itemsize == 2 and _fits(stored, pixels):
        # The sum fits into 16 bits, so it may be done modulo 2**16 in the memory of the volume itself.
        np.add(stored.view(np.int16), np.int64(intercept).astype(np.int16), out=target)
    else:
        hu = stored.astype(np.float64) * slope + intercept
        np.rint(np.clip(hu, _INT16.min, _INT16.max, out=hu), out=hu)
        target[:] = hu
    if outside is not None:
        target[outside] = PADDING_HU


def _fill_unused_bits(stored: np.ndarray, pixels: PixelFormat) -> None:
    """Bits beyond BitsStored hold no value: repeat the sign there, or clear them. (PS3.5, 8.1.1)"""
    bits = 8 * stored.dtype.itemsize
    if pixels.stored == bits:
        return
    if pixels.signed or pixels.high + 1 != pixels.stored:
        np.left_shift(stored, bits - 1 - pixels.high, out=stored)
        np.right_shift(stored, bits - pixels.stored, out=stored)
    else:
        np.bitwise_and(stored, 2**pixels.stored - 1, out=stored)


def _fits(stored: np.ndarray, pixels: PixelFormat) -> bool:
    """True where stored + intercept stays within int16. Only what the header leaves open is looked up."""
    lowest = -(2 ** (pixels.stored - 1)) if pixels.signed else 0
    highest = lowest + 2**pixels.stored - 1
    shift = int(pixels.intercept)
    low = lowest if lowest + shift >= _INT16.min else int(stored.min())
    high = highest if highest + shift <= _INT16.max else int(stored.max())
    return low + shift >= _INT16.min and high + shift <= _INT16.max


def _padding(stored: np.ndarray, pixels: PixelFormat) -> np.ndarray | None:
    """Pixels outside the scanned circle that rescaling would make brighter than air, or None.

    Padding as dark as air harms nobody and stays as it is. Padding counts only where it makes up a good part of the
    image's border: outdated headers name values that tissue has.
    """
    if pixels.padding is None or pixels.padding[1] * pixels.slope + pixels.intercept <= AIR_HU:
        return None
    low, high = pixels.padding
    border = np.concatenate([stored[0], stored[-1], stored[:, 0], stored[:, -1]])
    if np.mean((border >= low) & (border <= high)) < PADDED_BORDER:
        return None
    return (stored >= low) & (stored <= high)


def _undo_inversion(headers, slices: np.ndarray) -> None:
    """Put right what some writers of MONOCHROME1 did, in place.

    MONOCHROME1 asks a viewer to show low values white; it does not touch HU (PS3.3, C.7.6.3.1.2). Some writers turned
    the stored values round as well. Every CT shows air around the patient, and hardly anything below air or above
    dense bone: if that holds only after the values are turned back, they were turned round.
    """
    turned = [_turned(header.pixels, hu) for header, hu in zip(headers, slices, strict=True)]
    if np.mean([_likeness(hu) for hu in turned]) > np.mean([_likeness(hu) for hu in slices]) + 0.05:
        slices[:] = turned


def _turned(pixels: PixelFormat, hu: np.ndarray) -> np.ndarray:
    ends = -1 if pixels.signed else 2**pixels.stored - 1  # lowest plus highest stored value
    both = pixels.slope * ends + 2 * pixels.intercept
    return np.clip(np.rint(both - hu.astype(np.float64)), _INT16.min, _INT16.max).astype(np.int16)


def _likeness(hu: np.ndarray) -> float:
    """Share of voxels that look like air, less the share that no patient has."""
    return float(np.mean((hu > -1100) & (hu < -850)) - np.mean((hu <= -1100) | (hu > 2800)))
