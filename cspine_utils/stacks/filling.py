"""One study into a store: its volume on the stack's slices and pixels, its mask, its boxes."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cspine_utils.volume import Volume

from .boxes import in_stack
from .layout import Layout
from .slices import labels_at, slices_at
from .store import VERSION, write_study


def store_study(
    store, study: str, volume: Volume, mask: np.ndarray | None, layout: Layout, *,
    boxes: np.ndarray, boxes_known: bool | None, source: str, settings: dict, notes: list[str] = (),
) -> list[str]:  # fmt: skip
    """Write the files of a study, whose lock the caller holds if others may write there.

    Parameters
    ----------
    store, study : folder and name
    volume, mask : on one grid, `(d, h, w)`; None stores a mask of zeros
    layout : where the stack lies in them
    boxes : float64 `(n, 5)`, (slice index, x, y, width, height) in pixels of the volume's slices
    boxes_known : whether boxes say all about where the study is broken; None if there is one, and a mask to tell whose
    source : changes with whatever the stack is made from
    settings, notes : kept in the JSON

    Returns
    -------
    the notes, with one about boxes outside of the stack
    """
    inside = in_stack(boxes, layout)
    notes = list(notes)
    if len(inside) < len(boxes):
        notes.append(f"{len(boxes) - len(inside)} of {len(boxes)} boxes lie outside of the stack")
    hu = slices_at(volume, layout)
    labels = np.zeros(hu.shape, dtype=np.uint8) if mask is None else labels_at(mask, layout)
    if boxes_known is None:
        boxes_known = mask is not None and len(inside) > 0
    facts = {
        "study": study,
        "version": VERSION,
        "source": source,
        "settings": settings,
        "shape": list(hu.shape),
        "geometry": _geometry(volume, layout),
        "boxes": inside.round(4).tolist(),
        "boxes_known": bool(boxes_known),
        "notes": notes,
    }
    write_study(Path(store), study, hu, labels, facts)
    return notes


def _geometry(volume: Volume, layout: Layout) -> dict:
    """Where the stack lies in the volume, and the volume in the patient."""
    spacing = volume.spacing_mm
    axes = {"rows": layout.rows, "columns": layout.columns}
    return {
        "source_shape": list(volume.shape),
        "source_spacing_mm": list(spacing),
        "source_affine": volume.affine.tolist(),
        "first_slice": float(layout.positions[0]),
        "last_slice": float(layout.positions[-1]),
        "slice_step": layout.slice_step,
        "slice_mm": layout.slice_step * spacing[0],
        "pixel_mm": [axis.step * mm for axis, mm in zip(axes.values(), spacing[1:], strict=True)],
        **{name: {"start": axis.start, "step": axis.step} for name, axis in axes.items()},
    }
