"""One study -> one row: what its headers and its label map say, and what is wrong with it."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from cspine_utils import dicom, nifti
from cspine_utils.anatomy import LABEL_NAMES
from cspine_utils.errors import CSpineError

#: Columns of a survey and their types.
SURVEY_COLUMNS = {
    "verdict": "str",
    "reason": "str",
    "ct": "str",
    "mask": "str",
    "files": "Int64",
    "left_out": "Int64",
    "first_number": "Int64",
    "last_number": "Int64",
    "direction": "str",
    "orientation": "str",
    "rows": "Int64",
    "columns": "Int64",
    "pixel_mm": "float64",
    "pixel_rows_mm": "float64",
    "step_mm": "float64",
    "step_min_mm": "float64",
    "step_max_mm": "float64",
    "thickness_mm": "float64",
    "tilt_degrees": "float64",
    "z_first_mm": "float64",
    "z_last_mm": "float64",
    "transfer_syntax": "str",
    "has_mask": "bool",
    "mask_shape": "str",
    "mask_levels": "str",
    "labels": "str",
    "boxes": "Int64",
}


class Job(NamedTuple):
    """What is needed to look at one study, and nothing that another process could not be sent."""

    study: str
    folder: Path
    mask: Path | None
    labels: str
    boxes: int


def look_at(job: Job) -> dict:
    """The row of one study; what is wrong with it is in the row, not raised."""
    row = without_ct(job, "")
    problems, grid = [], None
    try:
        listing = dicom.look_into(job.folder)
        headers = listing.choose()
        row |= _files(headers, len(listing.left_out))
        geometry = dicom.measure(headers)
        row |= _geometry(geometry)
        if geometry.problem is not None:
            problems.append(str(geometry.problem))
        row["ct"] = "use" if geometry.problem is None else "repair" if geometry.repairable else "reject"
        if row["ct"] != "reject":
            grid = geometry.grid
    except CSpineError as error:
        problems.append(str(error))
    if job.mask is not None and grid is not None:
        report = nifti.describe_mask(job.mask, grid)
        row["mask"] = "fits" if report.problem is None else "wrong"
        row["mask_shape"] = " x ".join(map(str, report.shape)) or None
        row["mask_levels"] = _in_words(report.labels)
        if report.problem is not None:
            problems.append(str(report.problem))
    row["verdict"] = "repair" if row["ct"] != "reject" and problems else row["ct"]
    return row | {"reason": "; ".join(problems)}


def without_ct(job: Job, reason: str) -> dict:
    """A row with all that is known before a file is opened."""
    row = dict.fromkeys(SURVEY_COLUMNS)
    row |= {"verdict": "reject", "ct": "reject", "reason": reason, "labels": job.labels, "boxes": job.boxes}
    return row | {"has_mask": job.mask is not None, "mask": "none" if job.mask is None else "not judged"}


def _files(headers, left_out: int) -> dict:
    """What the slices say one by one, whether or not they form a stack."""
    first = headers[0]
    between_rows, between_columns = first.pixel_spacing_mm
    numbered = {int(stem): h for h in headers if h.frame is None and (stem := h.path.stem).isdecimal()}
    numbers = sorted(numbered)
    z_mm = [float(numbered[number].position_mm[2]) for number in numbers]
    axial = abs(np.cross(first.orientation[:3], first.orientation[3:])[2]) > 0.8
    return {
        "files": len({header.path for header in headers}),
        "left_out": left_out,
        "first_number": numbers[0] if numbers else None,
        "last_number": numbers[-1] if numbers else None,
        "z_first_mm": z_mm[0] if numbers else None,
        "z_last_mm": z_mm[-1] if numbers else None,
        "direction": _direction(z_mm) if axial else None,
        "rows": first.rows,
        "columns": first.columns,
        "pixel_mm": between_columns,
        "pixel_rows_mm": between_rows if abs(between_rows - between_columns) > 1e-6 else None,
        "thickness_mm": first.thickness_mm,
        "transfer_syntax": first.transfer_syntax.name,
    }


def _direction(z_mm: list[float]) -> str:
    """Which way the file numbers run: DICOM's z grows toward the head."""
    steps = np.diff(z_mm)
    if not len(steps):
        return "not numbered"
    if (steps <= 0).all():
        return "head -> feet"
    return "feet -> head" if (steps >= 0).all() else "not in order"


def _geometry(geometry) -> dict:
    return {
        "step_mm": geometry.step_mm,
        "step_min_mm": float(geometry.gaps_mm.min()),
        "step_max_mm": float(geometry.gaps_mm.max()),
        "tilt_degrees": geometry.tilt_degrees,
        "orientation": geometry.orientation,
    }


def _in_words(labels) -> str:
    """Label ids as "C1-C7, T1-T3": runs of neighbouring vertebrae, the neck apart from the chest."""
    runs: list[list[str]] = []
    before = None
    for label in sorted(labels):
        name = LABEL_NAMES.get(label, f"label {label}")
        if runs and label - 1 == before and name[0] == runs[-1][0][0] and label in LABEL_NAMES:
            runs[-1].append(name)
        else:
            runs.append([name])
        before = label
    return ", ".join(run[0] if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
