"""A whole synthetic cohort in the folder form of the RSNA-2022 cervical spine data.

```
root/
  train.csv                     StudyInstanceUID, patient_overall, C1 ... C7
  train_bounding_boxes.csv      StudyInstanceUID, x, y, width, height, slice_number
  train_images/<uid>/<n>.dcm
  segmentations/<uid>.nii       for a part of the studies
  cohort.json                   the parameters that this folder was made with
  truth/                        what was really drawn; no reader of the course looks in here
    fractures.csv, storage.csv, <uid>.npz
```

A study is made under `.partial/` and moved into place with its truth file last, so that a study is there completely
or not at all; a run that was stopped goes on where it was, and ends with the same bytes.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from cspine_utils.anatomy import LEVELS
from cspine_utils.errors import ParameterError

from .export import Storage, draw_storage, write_mask, write_series, write_truth
from .study import Stage, StudyPlan, check_parameters, draw_plan, render, stream

#: Raised whenever the same parameters give other bytes.
VERSION = 1

_BOX = ("x", "y", "width", "height", "slice_number")
_FRACTURE = ("level", "type", "gap_mm", "displacement_mm", "altered_voxels")


def write_cohort(
    root,
    studies: int,
    seed: int,
    *,
    size: int = 128,
    difficulty: str = "standard",
    prevalence: str = "rsna",
    mask_share: float = 0.75,
    box_share: float = 1.0,
    progress: bool = True,
) -> Path:
    """Write a synthetic cohort, or finish one that was begun with the same parameters.

    Parameters
    ----------
    root : folder, made if missing
    studies : number of studies (>= 1); from six on, every storage form occurs
    seed, size, difficulty, prevalence : see `draw_plan`
    mask_share : share of studies with a label map; below 1 at least one study has none
    box_share : share of the fractured studies that have bounding boxes (235 of 961 in RSNA-2022; here all)
    progress : show a progress bar

    Returns
    -------
    Path : `root`

    Raises
    ------
    ParameterError : an argument that cannot be, or a folder that holds something else
    """
    root = Path(root)
    _check(studies, seed, size, difficulty, prevalence, mask_share, box_share)
    settings = {
        "version": VERSION,
        "studies": int(studies),
        "seed": int(seed),
        "size": int(size),
        "difficulty": difficulty,
        "prevalence": prevalence,
        "mask_share": float(mask_share),
        "box_share": float(box_share),
    }
    _claim(root, settings)
    shutil.rmtree(root / ".partial", ignore_errors=True)
    plans = [draw_plan(seed, i, size=size, difficulty=difficulty, prevalence=prevalence) for i in range(studies)]
    storages = draw_storage(studies, stream(seed, 0, Stage.STORAGE), mask_share)
    records = []
    for plan, storage in zip(tqdm(plans, desc="phantom", unit="study", disable=not progress), storages, strict=True):
        record = _finished(root, plan, storage)
        records.append(_write_study(root, plan, storage) if record is None else record)
    shutil.rmtree(root / ".partial", ignore_errors=True)
    _write_tables(root, plans, storages, records, box_share)
    return root


def _check(studies, seed, size, difficulty, prevalence, mask_share, box_share) -> None:
    if not isinstance(studies, (int, np.integer)) or isinstance(studies, bool) or not 1 <= studies <= 99_999:
        raise ParameterError(
            "studies", found=repr(studies), expected="an integer from 1 to 99999", remedy="ask for at least one study"
        )
    check_parameters(seed=seed, size=size, difficulty=difficulty, prevalence=prevalence)
    for name, share in (("mask_share", mask_share), ("box_share", box_share)):
        if not isinstance(share, (int, float)) or not math.isfinite(share) or not 0 <= share <= 1:
            raise ParameterError(name, found=repr(share), expected="a number from 0 to 1", remedy="correct this share")


def _claim(root: Path, settings: dict) -> None:
    """Make `root` this cohort's folder, or refuse a folder that belongs to something else."""
    other = "choose an empty folder, or delete this one if it is no longer wanted"
    if root.exists() and not root.is_dir():
        raise ParameterError(root, found="a file", expected="a folder or nothing", remedy="choose another --out")
    path = root / "cohort.json"
    if path.exists():
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise ParameterError(path, found="no JSON object", expected="the parameters of a cohort", remedy=other)
        if found != settings:
            names = [k for k in sorted({*found, *settings}) if found.get(k) != settings.get(k)]
            raise ParameterError(
                path,
                found=", ".join(f"{k}={found.get(k)!r}" for k in names),
                expected=", ".join(f"{k}={settings.get(k)!r}" for k in names),
                remedy=f"use the folder's own parameters, or {other}",
            )
    elif root.exists() and (strange := sorted(p.name for p in root.iterdir() if not p.name.startswith("."))):
        raise ParameterError(
            root,
            found=f"{strange[0]} without a cohort.json",
            expected="an empty folder",
            remedy=other + " (real data is never written over)",
        )
    root.mkdir(parents=True, exist_ok=True)
    _write_text(path, json.dumps(settings, indent=2) + "\n")


def _finished(root: Path, plan: StudyPlan, storage: Storage) -> dict | None:
    """The record of a study that is there completely, or None."""
    truth, images, mask = _places(root, plan)
    if not truth.exists() or not images.is_dir() or storage.has_mask != mask.exists():
        return None
    try:
        with np.load(truth) as file:
            record = json.loads(file["record"].tobytes())
    except (OSError, ValueError, KeyError):
        return None
    wanted = {f"{storage.file_number(d, plan.grid.shape[0])}.dcm" for d in range(plan.grid.shape[0])}
    return record if {p.name for p in images.iterdir()} == wanted else None


def _places(root: Path, plan: StudyPlan) -> tuple[Path, Path, Path]:
    return (
        root / "truth" / f"{plan.uid}.npz",
        root / "train_images" / plan.uid,
        root / "segmentations" / f"{plan.uid}.nii",
    )


def _write_study(root: Path, plan: StudyPlan, storage: Storage) -> dict:
    truth, images, mask = _places(root, plan)
    for old in (truth, mask):  # the truth file goes first: without it nothing here counts as finished
        old.unlink(missing_ok=True)
    shutil.rmtree(images, ignore_errors=True)
    for folder in (truth.parent, images.parent, mask.parent):
        folder.mkdir(exist_ok=True)
    work = root / ".partial" / plan.uid
    rendered = render(plan)
    slices = plan.grid.shape[0]
    boxes = [
        {
            "x": b.x,
            "y": b.y,
            "width": b.width,
            "height": b.height,
            "slice_number": storage.file_number(b.slice_index, slices),
        }
        for b in rendered.boxes
    ]
    record = {"levels": list(plan.levels), "fractures": [asdict(f) for f in rendered.fractures], "boxes": boxes}
    write_series(work / "images", rendered.hu, plan.grid, storage, plan.uid, plan.index)
    if storage.has_mask:
        write_mask(work / "mask.nii", rendered.labels, rendered.affine)
    write_truth(work / "truth.npz", rendered, record)
    os.replace(work / "images", images)
    if storage.has_mask:
        os.replace(work / "mask.nii", mask)
    os.replace(work / "truth.npz", truth)
    return record


def _write_tables(root: Path, plans, storages, records, box_share: float) -> None:
    labels, boxes, fractures, storage_rows = [], [], [], []
    for plan, storage, record in zip(plans, storages, records, strict=True):
        broken = [int(level in record["levels"]) for level in LEVELS]
        labels.append([plan.uid, max(broken), *broken])
        if stream(plan.seed, plan.index, Stage.STORAGE, 1).random() < box_share:
            boxes += [
                [plan.uid, *(box[name] for name in _BOX)]
                for box in sorted(record["boxes"], key=lambda b: b["slice_number"])
            ]
        fractures += [[plan.uid, *(fracture[name] for name in _FRACTURE)] for fracture in record["fractures"]]
        storage_rows.append(
            [
                plan.uid,
                storage.order,
                storage.first_number,
                storage.transfer_syntax,
                int(storage.signed),
                storage.intercept,
                plan.grid.step_mm,
                plan.grid.thickness_mm,
                int(storage.has_mask),
            ]
        )
    uid = "StudyInstanceUID"
    _write_table(root / "train.csv", labels, [uid, "patient_overall", *LEVELS])
    _write_table(root / "train_bounding_boxes.csv", boxes, [uid, *_BOX])
    _write_table(root / "truth" / "fractures.csv", fractures, ["study", *_FRACTURE])
    _write_table(
        root / "truth" / "storage.csv",
        storage_rows,
        [
            "study",
            "order",
            "first_number",
            "transfer_syntax",
            "signed",
            "intercept",
            "step_mm",
            "thickness_mm",
            "has_mask",
        ],
    )


def _write_table(path: Path, rows: list, columns: list[str]) -> None:
    _write_text(path, pd.DataFrame(rows, columns=columns).to_csv(index=False, lineterminator="\n"))


def _write_text(path: Path, text: str) -> None:
    """Write a small file at once or not at all."""
    temporary = path.with_name(f".{path.name}.partial")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
