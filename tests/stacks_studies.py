"""Stores and studies for the tests of `stacks`: one study made to order, what lies in a store."""

from __future__ import annotations

import pandas as pd
from conftest import neck_mask, neck_volume, write_label_file, write_series

from cspine_utils import stacks
from cspine_utils.rsna import RsnaDataset

ARGS = {"size": 8, "count": 12, "progress": False}


def contents(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def names(*studies):
    return {f"{study}.{ending}" for study in studies for ending in ("hu.npy", "mask.npy", "json")}


def make_study(root, *, shape=(12, 9, 11), kept=slice(None), mask=None, feet_first=False, with_map=True, boxes=()):
    """One study, slices `kept` of `neck_volume`'s; boxes are (x, y, width, height, file number). C4 is fractured."""
    study = "1.2.826.0.1.3680043.77"
    whole = neck_volume(seed=4)
    hu, mask = whole.hu[kept], (neck_mask(shape) if mask is None else mask)[kept]
    volume = type(whole)(hu, whole.affine)
    write_series(root / "train_images" / study, volume, feet_first=feet_first, study_uid=study, series_uid=study + ".1")
    (root / "segmentations").mkdir(exist_ok=True)
    if with_map:
        write_label_file(root / "segmentations" / f"{study}.nii", mask, volume)
    levels = {f"C{level}": int(level == 4 and bool(boxes is not None)) for level in range(1, 8)}
    table = pd.DataFrame([{"StudyInstanceUID": study, "patient_overall": max(levels.values()), **levels}])
    table.to_csv(root / "train.csv", index=False)
    rows = [[study, *box] for box in boxes or ()]
    columns = ["StudyInstanceUID", "x", "y", "width", "height", "slice_number"]
    pd.DataFrame(rows, columns=columns).to_csv(root / "train_bounding_boxes.csv", index=False)
    return RsnaDataset(root), study, volume, mask


def prepared(root, store, count=12, **options):
    """One study, made: (row of the report, Stored, volume, mask)."""
    asked = {name: options.pop(name) for name in ("without_mask", "field_mm") if name in options}
    dataset, study, volume, mask = make_study(root, **options)
    row = stacks.prepare(dataset, store, **ARGS | {"count": count} | asked).loc[study]
    return row, stacks.open_study(store, study) if row["status"] == "made" else None, volume, mask
