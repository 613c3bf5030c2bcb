"""A volume and its mask -> the slices of a stack -> 105 frames of six channels.

Of the 210 slices over C1-C7, counted from 1 as DICOM files are, every odd slice n gives one frame:
channels 0-4 = slices n-2 ... n+2 in HU, channel 5 = the mask of slice n. The borders repeat the first
and the last slice; an index never wraps around to the other end of the neck. Where C1-C7 reach over 210 slices
exactly, resampling changes nothing and the frames are the stored slices.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from cspine_utils.errors import StackError
from cspine_utils.volume import Volume

from .layout import FRAMES, Axis, Layout, lay_out

CHANNELS = 6
#: Slices beside the centre slice n of a frame.
NEIGHBOURS = (-2, -1, 0, 1, 2)
#: What lies beyond the scan.
AIR_HU = -1024


def resample_slices(volume: Volume, mask: np.ndarray, count: int = 2 * FRAMES, size=None, field_mm=None):
    """The `count` slices over C1-C7 and their masks, in plane resized to `size`.

    HU are interpolated linearly, between slices and (with antialiasing) in plane; the mask takes the nearest
    voxel in both, so that no label is invented. `field_mm` as in `layout.lay_out`: what the square shows beyond the
    scan is air (-1024 HU, label 0).

    Returns
    -------
    (hu, labels) : int16 and uint8, each `(count, h, w)`
    """
    layout = lay_out(volume, mask, count, size, field_mm)
    return slices_at(volume, layout), labels_at(mask, layout)


def slices_at(volume: Volume, layout: Layout) -> np.ndarray:
    """HU of a volume at the places of a layout: int16 `(count, h, w)`."""
    rows, columns = layout.rows, layout.columns
    is_whole = rows.is_whole and columns.is_whole
    (seen_rows, across_rows), (seen_columns, across_columns) = _weights(rows), _weights(columns)
    hu = np.empty((len(layout.positions), rows.pixels, columns.pixels), dtype=np.int16)
    for i, position in enumerate(layout.positions):  # a whole float32 study of 512 x 512 would need 220 MB
        if is_whole:
            plane = _resize(_between(volume.hu, position), hu.shape[1:])
        else:
            seen = _between(volume.hu[:, seen_rows, seen_columns], position) - np.float32(AIR_HU)
            plane = across_rows @ seen @ across_columns.T + AIR_HU
        hu[i] = plane if plane.dtype == hu.dtype else np.rint(plane)
    return hu


def labels_at(mask: np.ndarray, layout: Layout) -> np.ndarray:
    """Labels of a mask at the places of a layout, each of the nearest voxel: uint8 `(count, h, w)`."""
    labels = mask[np.floor(layout.positions + 0.5).astype(int)]
    for number, axis in ((1, layout.rows), (2, layout.columns)):
        if axis.is_whole and axis.pixels == axis.source:
            continue
        index = np.floor(axis.centres()).astype(int)  # of the pixel that holds the centre
        labels = labels.take(index.clip(0, axis.source - 1), axis=number)
        labels[(slice(None),) * number + ((index < 0) | (index >= axis.source),)] = 0
    return labels


def gather_six(hu: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Six channels for every odd slice (counted from 1) of the resampled slices.

    Parameters
    ----------
    hu, labels : `(2 f, h, w)` from `resample_slices` (HU and ids, or both as a network gets them)

    Returns
    -------
    float32 `(f, 6, h, w)`: channels 0-4 the slices, channel 5 the mask of the centre slice
    """
    shown = shown_slices(len(hu))
    stack = np.empty((len(shown), CHANNELS, *hu.shape[1:]), dtype=np.float32)
    for channel, slices in enumerate(shown.T):
        stack[:, channel] = hu[slices]
    stack[:, -1] = labels[::2]
    return stack


def shown_slices(count: int) -> np.ndarray:
    """Which of `count` slices (from 0) are channels 0-4 of each frame: int `(f, 5)`."""
    centres = np.arange(0, count, 2)  # slices 1, 3, 5 ... counted from 1
    # np.clip repeats the border slice; a bare index -1 would silently take the last slice of the neck.
    return np.stack([np.clip(centres + offset, 0, count - 1) for offset in NEIGHBOURS], axis=1)


def six_channel(volume: Volume, mask: np.ndarray, frames: int = FRAMES, size=None, field_mm=None) -> np.ndarray:
    """The study's tensor, in HU and label ids.

    Parameters
    ----------
    volume, mask : on the same grid, `(d, h, w)`
    frames : f; twice as many slices are laid over C1-C7
    size : in-plane pixels, one number or (h, w); None keeps the volume's
    field_mm : None for the whole field of view, or the side, in mm, of a square around the neck

    Returns
    -------
    float32 `(frames, 6, h, w)`: for every odd slice n of the 2 f: HU of n-2, n-1, n, n+1, n+2 (border
    slices repeated, never wrapped), label id of n

    Raises
    ------
    StackError : mask empty or not on the volume's grid
    """
    if not isinstance(frames, int | np.integer) or frames < 1:
        raise StackError("frames", found=repr(frames), expected="an integer, at least 1", remedy="105 is usual.")
    return gather_six(*resample_slices(volume, mask, 2 * frames, size, field_mm))


def _between(hu: np.ndarray, position: float) -> np.ndarray:
    """The plane at a position between two slices, float32; a stored slice as it is, int16."""
    below = int(position)
    if below == position:
        return hu[below]
    share = np.float32(position - below)
    return hu[below] * (1 - share) + hu[min(below + 1, len(hu) - 1)] * share


def _weights(axis: Axis) -> tuple[slice, np.ndarray]:
    """What each pixel of the stack takes from the pixels of the volume: `(pixels, seen)` for the pixels `seen`.

    A triangle around the pixel's centre, as wide as the pixel where that is wider than the volume's: linear with
    antialiasing. Weights of places beyond the volume are left out, so what they would bring has to be 0.
    """
    reach = max(1.0, axis.step)
    places = np.arange(np.floor(axis.start - reach), np.ceil(axis.start + axis.step * axis.pixels + reach)).astype(int)
    weights = np.maximum(0, 1 - np.abs(places + 0.5 - axis.centres()[:, None]) / reach)
    weights /= weights.sum(axis=1, keepdims=True)
    inside = (places >= 0) & (places < axis.source)
    seen = places[inside]
    part = slice(seen[0], seen[-1] + 1) if len(seen) else slice(0, 0)
    return part, weights[:, inside].astype(np.float32)


def _resize(image: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Linear with antialiasing: a plain linear resize of 512 to 64 pixels would skip most of the thin cortex."""
    if image.shape == shape:
        return image
    tensor = torch.from_numpy(image.astype(np.float32, copy=False))[None, None]
    return F.interpolate(tensor, size=shape, mode="bilinear", antialias=True, align_corners=False)[0, 0].numpy()
