"""Bounding boxes of fractures: from pixels of DICOM files to a stack, and as voxels that a network can learn from.

`train_bounding_boxes.csv` names a file by its number and a box by pixels of that file. Numbers say nothing about
order (197 of the 2,019 real studies run feet -> head), so a box is brought to the patient by its file's own header
and from there to the volume.
"""

from __future__ import annotations

import numpy as np

from cspine_utils import dicom
from cspine_utils.anatomy import LABEL_IDS, LEVELS
from cspine_utils.volume import Volume, grid_map

from .layout import Layout

#: Slice positions come from headers with some decimals: half a slice and a little more still counts as half.
_ROUNDING = 1e-3


def in_volume(volume: Volume, series_dir, rows) -> tuple[np.ndarray, list[str]]:
    """Boxes of DICOM files as boxes of the volume that these files became.

    Parameters
    ----------
    volume : from `dicom.read_series(series_dir)`
    rows : (x, y, width, height, slice_number) each, as in train_bounding_boxes.csv; pixel x of the file reaches from
        x to x + 1

    Returns
    -------
    (boxes, notes) : float64 `(n, 5)`, each (slice index, x, y, width, height) in pixels of the volume's slice; and
        what could not be placed, in words
    """
    geometry = dicom.measure(dicom.look_into(series_dir).choose())
    to_volume = grid_map(geometry.affine, volume.affine)  # (slice, row, column) as stored -> (d, h, w)
    stored = {header.path.stem: i for i, header in enumerate(geometry.headers) if header.frame is None}
    boxes, lost = [], set()
    for x, y, width, height, number in rows:
        index = stored.get(str(int(number)))
        if index is None:
            lost.add(int(number))
            continue
        corners = [[index, y - 0.5, x - 0.5, 1], [index, y + height - 0.5, x + width - 0.5, 1]]
        ends = (to_volume @ np.transpose(corners))[:3].T  # places count from pixel centres here
        if abs(ends[1, 0] - ends[0, 0]) > 0.5:
            return np.empty((0, 5)), ["boxes of slices that are not axial cannot be drawn on axial ones"]
        low, high = ends.min(axis=0) + 0.5, ends.max(axis=0) + 0.5
        boxes.append([ends[:, 0].mean(), low[2], low[1], high[2] - low[2], high[1] - low[1]])
    notes = [f"boxes on slices without a file: {', '.join(map(str, sorted(lost)))}"] if lost else []
    return np.array(boxes, dtype=float).reshape(-1, 5), notes


def in_stack(boxes: np.ndarray, layout: Layout) -> np.ndarray:
    """Boxes of a volume as boxes of a stack: float64 `(n, 5)`, (slice index, x, y, width, height) in stack pixels.

    The slice index counts from 0 and need not be whole. Boxes that reach no slice of the stack, or lie beside the
    square that it shows, are left out.
    """
    out = boxes.copy()
    out[:, 0] = (boxes[:, 0] - layout.positions[0]) / layout.slice_step
    for axis, place, length in ((layout.columns, 1, 3), (layout.rows, 2, 4)):
        out[:, place] = (boxes[:, place] - axis.start) / axis.step
        out[:, length] = boxes[:, length] / axis.step
    half, last = _half_slice(layout.slice_step), len(layout.positions) - 1
    seen = (out[:, 0] >= -half) & (out[:, 0] <= last + half)
    for axis, place, length in ((layout.columns, 1, 3), (layout.rows, 2, 4)):
        seen &= (out[:, place] < axis.pixels) & (out[:, place] + out[:, length] > 0)
    return out[seen]


def evidence(labels: np.ndarray, boxes, slice_step: float, fractured) -> np.ndarray:
    """Voxels of the frames' centre slices that lie in a box and in a fractured vertebra.

    Parameters
    ----------
    labels : uint8 `(2 f, h, w)`, of a stack
    boxes : from `in_stack`; a box covers the slices within half a slice of the volume from its own
    slice_step : slices of the volume from one slice of the stack to the next
    fractured : names of the fractured levels

    Returns
    -------
    float32 `(f, h, w)`, the voxel's label where its centre lies in a box and the label is that of a fractured level;
    else 0
    """
    centres = labels[::2]
    inside = np.zeros(centres.shape, dtype=bool)
    half = _half_slice(slice_step)
    for place, x, y, width, height in boxes:
        first, last = np.ceil((place - half) / 2), np.floor((place + half) / 2)  # of the frames
        frames = slice(max(0, int(first)), max(0, int(last) + 1))
        rows, columns = (slice(*_pixels_within(*ends)) for ends in ((y, y + height), (x, x + width)))
        inside[frames, rows, columns] = True
    broken = np.isin(centres, [LABEL_IDS[level] for level in LEVELS if level in set(fractured)])
    return np.where(inside & broken, centres, 0).astype(np.float32)


def _half_slice(slice_step: float) -> float:
    """Half a slice of the volume, in slices of the stack."""
    return (0.5 + _ROUNDING) / slice_step


def _pixels_within(low: float, high: float) -> tuple[int, int]:
    """First pixel, and the one after the last, whose centres lie between two places."""
    return max(0, int(np.ceil(low - 0.5))), max(0, int(np.ceil(high - 0.5)))
