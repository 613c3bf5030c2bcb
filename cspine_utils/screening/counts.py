"""What the published tables say of the cohort, without opening an image."""

from __future__ import annotations

import pandas as pd

from cspine_utils import rsna
from cspine_utils.anatomy import LEVELS
from cspine_utils.errors import DatasetError

#: The same counts of the real training set: its published tables and, for the last two, its files' headers.
PUBLISHED_COUNTS = {
    "studies": 2019,
    "fractured": 961,
    "C1 fractured": 146,
    "C2 fractured": 285,
    "C3 fractured": 73,
    "C4 fractured": 108,
    "C5 fractured": 162,
    "C6 fractured": 277,
    "C7 fractured": 393,
    "0 levels fractured": 1058,
    "1 level fractured": 623,
    "2 levels fractured": 239,
    "3 levels fractured": 64,
    "4 levels fractured": 26,
    "5 levels fractured": 7,
    "6 levels fractured": 2,
    "7 levels fractured": 0,
    "boxes": 7217,
    "studies with boxes": 235,
    "label maps": 87,
    "fractured with a label map": 40,
    "label maps with boxes": 40,
    "without 1.dcm": 10,
    "stored feet -> head": 197,
}
_POSITION_COLUMNS = ("first_number", "last_number", "z_first_mm", "z_last_mm")


def count_tables(tables, *, label_maps=None, positions: pd.DataFrame | None = None) -> pd.DataFrame:
    """Count studies, fractures, boxes and label maps from the tables alone.

    Parameters
    ----------
    tables : folder with `train.csv` and `train_bounding_boxes.csv` (images are not needed), what `rsna.read_tables`
        made of it, or an RsnaDataset
    label_maps : ids of the studies that have one; None takes the names of the files in `segmentations/`
    positions : one row a study with StudyInstanceUID (as column or index), first_number, last_number (lowest and
        highest file number), z_first_mm, z_last_mm (their places, toward the head), such as a survey; studies whose
        numbers are empty are not counted

    Returns
    -------
    DataFrame, index what is counted, in the order of `PUBLISHED_COUNTS`: `count`, and `share` of all studies (empty
    for boxes, which are not studies). What cannot be told is left out: label maps where there is neither a folder nor
    a list, the last two rows without `positions`.

    The real set gives 2,019 studies, 961 of them fractured; 7,217 boxes in 235 studies; 87 label maps, 40 of them of
    fractured studies, the same 40 that have boxes; ten studies without `1.dcm`, 197 stored feet -> head.

    Raises
    ------
    DatasetError : a table is missing or damaged, or a study in `label_maps` or `positions` is unknown or appears twice
    """
    if not hasattr(tables, "labels"):
        tables = rsna.read_tables(tables)
    labels, boxes = tables.labels, tables.boxes
    overall = labels["patient_overall"] == 1
    levels = labels[list(LEVELS)].sum(axis=1)
    counts = {"studies": len(labels), "fractured": int(overall.sum())}
    counts |= {f"{level} fractured": int(labels[level].sum()) for level in LEVELS}
    counts |= {f"{n} level{'s' * (n != 1)} fractured": int((levels == n).sum()) for n in range(len(LEVELS) + 1)}
    with_boxes = labels.index.isin(boxes.index)
    counts |= {"boxes": len(boxes), "studies with boxes": int(with_boxes.sum())}
    if label_maps is None:
        label_maps = tables.label_maps
    if label_maps is not None:
        has_map = labels.index.isin(_known("label_maps", pd.Index(list(label_maps)), labels.index))
        counts["label maps"] = int(has_map.sum())
        counts["fractured with a label map"] = int((has_map & overall).sum())
        counts["label maps with boxes"] = int((has_map & with_boxes).sum())
    if positions is not None:
        numbered = _positions(positions, labels.index).dropna()
        counts["without 1.dcm"] = int((numbered["first_number"] > 1).sum())
        counts["stored feet -> head"] = int((numbered["z_last_mm"] > numbered["z_first_mm"]).sum())
    table = pd.DataFrame({"count": counts})
    table["share"] = table["count"] / max(len(labels), 1)
    table.loc["boxes", "share"] = float("nan")
    return table


def _positions(table: pd.DataFrame, studies: pd.Index) -> pd.DataFrame:
    if rsna.STUDY_COLUMN in table.columns:
        table = table.set_index(rsna.STUDY_COLUMN)
    missing = [column for column in _POSITION_COLUMNS if column not in table.columns]
    if missing:
        raise DatasetError(
            "positions",
            found=f"no column {', '.join(missing)}",
            expected=f"{rsna.STUDY_COLUMN} and {', '.join(_POSITION_COLUMNS)}",
            remedy="pass a survey, or rename the columns.",
        )
    _known("positions", table.index, studies)
    return table[list(_POSITION_COLUMNS)].apply(pd.to_numeric, errors="coerce")


def _known(what: str, found: pd.Index, studies: pd.Index) -> pd.Index:
    strange = found[~found.isin(studies) | found.duplicated()]
    if len(strange):
        twice = strange[0] in studies
        raise DatasetError(
            what,
            found=f"study {strange[0]}" + (" twice" if twice else ", which train.csv does not list"),
            expected="studies of train.csv, each once",
            remedy="take both from the same download.",
        )
    return found
