"""The tables of a cohort: labels and boxes in the form of RSNA-2022, and the truth beside them."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pandas as pd

from cspine_utils.anatomy import LEVELS
from cspine_utils.files import write_text

from .export import Storage
from .study import Stage, StudyPlan

_BOX = ("x", "y", "width", "height", "slice_number")
_FRACTURE = ("level", "type", "pattern", "gap_mm", "displacement_mm", "altered_voxels")
_STORAGE = ("order", "first_number", "transfer_syntax", "signed", "intercept", "step_mm", "thickness_mm", "has_mask")


def write_tables(
    root: Path, plans: list[StudyPlan], storages: list[Storage], records: list[dict], box_share: float
) -> None:
    """Write every table of a cohort; one record, plan and storage a study, in the same order."""
    labels, boxes, fractures, mimics, storage_rows = [], [], [], [], []
    for plan, storage, record in zip(plans, storages, records, strict=True):
        broken = [int(level in record["levels"]) for level in LEVELS]
        labels.append([plan.uid, max(broken), *broken])
        if plan.stream(Stage.STORAGE, 1).random() < box_share:
            boxes += [
                [plan.uid, *(box[name] for name in _BOX)]
                for box in sorted(record["boxes"], key=lambda b: b["slice_number"])
            ]
        fractures += [[plan.uid, *(fracture[name] for name in _FRACTURE)] for fracture in record["fractures"]]
        mimics += [[plan.uid, level, name] for level, names in plan.mimics.items() for name in names]
        stored = {**asdict(storage), "step_mm": plan.grid.step_mm, "thickness_mm": plan.grid.thickness_mm}
        storage_rows.append(
            [plan.uid, *(int(stored[n]) if n in ("signed", "has_mask") else stored[n] for n in _STORAGE)]
        )
    uid = "StudyInstanceUID"
    _write_table(root / "train.csv", labels, [uid, "patient_overall", *LEVELS])
    _write_table(root / "train_bounding_boxes.csv", boxes, [uid, *_BOX])
    _write_table(root / "truth" / "fractures.csv", fractures, ["study", *_FRACTURE])
    _write_table(root / "truth" / "mimics.csv", mimics, ["study", "level", "mimic"])
    people = [{"study": plan.uid, **plan.facts()} for plan in plans]
    _write_table(root / "truth" / "people.csv", [list(p.values()) for p in people], list(people[0]))
    _write_table(root / "truth" / "storage.csv", storage_rows, ["study", *_STORAGE])


def _write_table(path: Path, rows: list, columns: list[str]) -> None:
    write_text(path, pd.DataFrame(rows, columns=columns).to_csv(index=False, lineterminator="\n"))
