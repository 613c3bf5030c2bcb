"""Where the slices and the pixels of a stack lie in the volume that they are taken from.

Along the neck: `count` positions, evenly spaced over C1-C7, because nine of the 87 real label maps have fewer than
210 slices and 210 consecutive slices cover a median 70 % of a segmented study. In plane: the whole field of view, or a
square of some mm around the neck, so that a pixel is as large in one study as in another.

In-plane places count from the edge of the first pixel: pixel i reaches from i to i + 1 and has its centre at i + 0.5.
"""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Real

import numpy as np

from cspine_utils.anatomy import CERVICAL_IDS, LEVELS
from cspine_utils.errors import StackError
from cspine_utils.volume import Volume

FRAMES = 105


@dataclass(frozen=True)
class Axis:
    """How the pixels of a stack lie along the rows or the columns of a volume.

    Attributes
    ----------
    source : pixels of the volume
    start, step : stack place p lies at volume place start + step p (both from the edge of the first pixel)
    pixels : of the stack
    """

    source: int
    start: float
    step: float
    pixels: int

    def centres(self) -> np.ndarray:
        """Volume places of the centres of the stack's pixels, float64 `(pixels,)`."""
        return self.start + self.step * (np.arange(self.pixels) + 0.5)

    @property
    def is_whole(self) -> bool:
        """Whether it reaches from edge to edge of the volume."""
        return self.start == 0 and self.step == self.source / self.pixels


@dataclass(frozen=True, eq=False)
class Layout:
    """Where a stack lies in its volume.

    Attributes
    ----------
    positions : float64 `(count,)`, increasing, slice indices from 0 of the volume
    rows, columns : in plane
    """

    positions: np.ndarray
    rows: Axis
    columns: Axis

    @property
    def slice_step(self) -> float:
        """Slices of the volume from one slice of the stack to the next."""
        return float(self.positions[-1] - self.positions[0]) / (len(self.positions) - 1)


def lay_out(volume: Volume, mask: np.ndarray, count: int, size=None, field_mm: float | None = None) -> Layout:
    """The places of a stack: `count` slices over C1-C7 of the mask.

    Parameters
    ----------
    volume, mask : on the same grid, `(d, h, w)`
    size : in-plane pixels, one number or (h, w); None keeps the volume's
    field_mm : None for the whole field of view, or the side of a square, in mm, around the middle of the rows and
        columns that C1-C7 reach; it takes one `size`

    Raises
    ------
    StackError : mask empty, on one slice only or not on the volume's grid; size, count or field that cannot be
    """
    check_on_grid(mask, volume)
    positions = cervical_slices(mask, count)
    if field_mm is None:
        return Layout(positions, *_whole_field(volume, size))
    check_field(field_mm, size)
    pixels = pair(size, volume.shape[1:])[0]
    inside = np.isin(mask, CERVICAL_IDS).any(axis=0)
    axes = []
    for axis in (0, 1):
        shown = np.flatnonzero(inside.any(axis=1 - axis))
        middle = (shown[0] + shown[-1] + 1) / 2
        field = field_mm / volume.spacing_mm[1 + axis]  # in pixels of the volume
        axes.append(Axis(volume.shape[1 + axis], float(middle - field / 2), field / pixels, pixels))
    return Layout(positions, *axes)


def whole_neck(volume: Volume, count: int, size=None) -> Layout:
    """The places of a stack of a study without a mask: all slices, the whole field of view."""
    check_count(count)
    return Layout(np.linspace(0, len(volume.hu) - 1, count), *_whole_field(volume, size))


def _whole_field(volume: Volume, size) -> list[Axis]:
    source = volume.shape[1:]
    return [Axis(n, 0.0, n / m, m) for n, m in zip(source, pair(size, source), strict=True)]


def cervical_slices(mask: np.ndarray, count: int = 2 * FRAMES) -> np.ndarray:
    """Positions of `count` slices, evenly spaced from the first to the last slice that shows C1-C7.

    Parameters
    ----------
    mask : uint8 `(d, h, w)`, head -> feet, 1-7 = C1-C7; other labels are ignored
    count : at least 2

    Returns
    -------
    float64 `(count,)`, increasing, in slice indices from 0 of the volume; whole numbers where the
    extent is exactly `count` slices

    Raises
    ------
    StackError : the mask shows none of C1-C7, or on one slice only
    """
    check_count(count)
    shown = np.flatnonzero(_levels_by_slice(mask).any(axis=1))
    if len(shown) == 0 or shown[0] == shown[-1]:
        raise StackError(
            "mask",
            found="no label from C1 to C7" if len(shown) == 0 else f"C1-C7 on slice {shown[0]} only",
            expected="labels 1-7 on at least two slices",
            remedy="check that the label map belongs to this study and that its labels are 1-7 for C1-C7.",
        )
    return np.linspace(shown[0], shown[-1], count)


def what_is_missing(mask: np.ndarray) -> list[str]:
    """What a mask does not show of C1-C7, in words: levels without a label, levels that the scan cuts off."""
    shown = _levels_by_slice(mask)
    notes = []
    if not shown.any(axis=0).all():
        notes.append(f"the label map shows no {_names(~shown.any(axis=0))}")
    for edge, word in ((shown[0], "begins"), (shown[-1], "ends")):
        notes += [f"the scan {word} within {_names(edge)}"] if edge.any() else []
    return notes


def check_on_grid(mask: np.ndarray, volume: Volume) -> None:
    """Raise StackError unless the mask has the volume's shape."""
    if mask.shape != volume.shape:
        raise StackError(
            "mask",
            found=f"shape {mask.shape}",
            expected=f"the volume's shape {volume.shape}",
            remedy="read the mask with nifti.read_mask(path, volume), which places it on the volume's grid.",
        )


def check_count(count: int) -> None:
    """Raise StackError unless `count` slices make a stack."""
    if not isinstance(count, int | np.integer) or count < 2:
        raise StackError("count", found=repr(count), expected="an integer, at least 2", remedy="210 is usual.")


def check_field(field_mm, size) -> None:
    """Raise StackError unless `field_mm` is None or a length that `size` divides into square pixels."""
    if field_mm is None:
        return
    if not isinstance(field_mm, Real) or isinstance(field_mm, bool) or not 1 <= field_mm <= 1000:
        raise StackError("field_mm", found=repr(field_mm), expected="1 to 1000 mm, or None", remedy="108 is usual.")
    if size is None or len(set(pair(size, (1, 1)))) > 1:
        raise StackError(
            "size",
            found=repr(size),
            expected="one number of pixels for the square of field_mm",
            remedy="e.g. size=104 with field_mm=104.0, which makes a pixel 1 mm.",
        )


def pair(size, default) -> tuple[int, int]:
    """`size` as (h, w); StackError for what is no number of pixels."""
    if size is None:
        return tuple(default)
    both = tuple(size) if isinstance(size, tuple | list) else (size, size)
    if len(both) != 2 or not all(isinstance(n, int | np.integer) and n > 0 for n in both):
        raise StackError("size", found=repr(size), expected="pixels: one positive integer or (h, w)", remedy="e.g. 64.")
    return int(both[0]), int(both[1])


def _levels_by_slice(mask: np.ndarray) -> np.ndarray:
    """Whether each slice shows each of C1-C7: bool `(d, 7)`. Most voxels are 0, and are looked at once."""
    shown = np.zeros((len(mask), len(LEVELS)), dtype=bool)
    for plane, levels in zip(mask, shown, strict=True):
        counts = np.bincount(plane[plane > 0], minlength=CERVICAL_IDS.stop)
        levels[:] = counts[CERVICAL_IDS.start : CERVICAL_IDS.stop] > 0
    return shown


def _names(levels: np.ndarray) -> str:
    return ", ".join(name for name, there in zip(LEVELS, levels, strict=True) if there)
