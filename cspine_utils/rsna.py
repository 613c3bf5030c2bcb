"""The RSNA-2022 folder: which studies there are, what the tables say, where each file is.

    root/train.csv                                  StudyInstanceUID, patient_overall, C1 ... C7
    root/train_bounding_boxes.csv                   StudyInstanceUID, x, y, width, height, slice_number
    root/train_images/<StudyInstanceUID>/<n>.dcm    n counts from 1 (ten real studies have no 1.dcm)
    root/segmentations/<StudyInstanceUID>.nii       87 of the 2,019 real studies

The synthetic cohort has the same form, so nothing after this room knows which one it reads.
Form as described by the competition's data page; counts as in the published tables.
"""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pandas as pd

from cspine_utils.anatomy import LEVELS, TARGETS
from cspine_utils.errors import DatasetError, StudyError, brief

STUDY_COLUMN = "StudyInstanceUID"
BOX_COLUMNS = ("x", "y", "width", "height", "slice_number")

#: The first line of a table is short; a damaged file may be one endless line.
_LONGEST_HEADING = 65_536

# Letters, digits, dot, minus and underscore, first a letter or digit: such a name has no separator
# and is never "..", so joining it to a folder cannot lead out of that folder.
_SAFE_ID = re.compile(r"[0-9A-Za-z][0-9A-Za-z._-]{0,127}")


@dataclass(frozen=True, eq=False)
class Tables:
    """What the folder says without its images.

    Attributes
    ----------
    labels, boxes : as in `RsnaDataset`
    label_maps : ids named by the files in `segmentations/`, sorted; None where there is no such folder
    """

    labels: pd.DataFrame
    boxes: pd.DataFrame
    label_maps: tuple[str, ...] | None


def read_tables(root) -> Tables:
    """Read and check `train.csv` and `train_bounding_boxes.csv`; neither images nor label maps need to be there.

    Raises
    ------
    DatasetError : a table is missing or does not have the expected form
    StudyError : an id that could lead out of the folder
    """
    root = _existing(root)
    labels = _read_labels(root / "train.csv")
    boxes = _read_boxes(root / "train_bounding_boxes.csv", labels)
    folder = root / "segmentations"
    found = None
    if os.path.isdir(folder):
        try:
            names = os.listdir(folder)
        except OSError as error:
            raise DatasetError(
                folder,
                found=f"a folder that cannot be read ({error.strerror})",
                expected="the label maps",
                remedy="correct its permissions: without them every study would seem to have no label map.",
            ) from error
        ids = (name.removesuffix(".gz").removesuffix(".nii") for name in names if name.endswith((".nii", ".nii.gz")))
        found = sorted({name for name in ids if name and name[0] != "."})
    return Tables(labels, boxes, None if found is None else tuple(found))


def _existing(root) -> Path:
    root = Path(root)
    if not os.path.isdir(root):  # Path.is_dir would raise where a parent may not be entered
        raise DatasetError(
            root,
            found="a file" if os.path.exists(root) else "no such folder",
            expected="a folder in RSNA-2022 form",
            remedy="name the folder that holds train.csv, or make the synthetic cohort with "
            "`python -m cspine_utils.phantom --out data/phantom --studies 48 --seed 2022`.",
        )
    return root


class RsnaDataset:
    """A folder in the form that Kaggle ships.

    Parameters
    ----------
    root : the folder that holds `train.csv`

    Attributes
    ----------
    studies : StudyInstanceUIDs as str, in the order of `train.csv`
    labels : DataFrame, index = study, columns = `anatomy.TARGETS`, 0 or 1
    boxes : DataFrame, index = study (repeated), columns x, y, width, height in pixels and
        slice_number, the file number of the slice
    label_maps : ids named by the files in `segmentations/`

    Raises
    ------
    DatasetError : a table or folder is missing or does not have the expected form
    StudyError : (from the methods) an unknown study, or one without images
    """

    def __init__(self, root):
        self.root = _existing(root)
        for name in ("train_images", "segmentations"):
            if not os.path.isdir(self.root / name):
                raise DatasetError(
                    self.root / name,
                    found="no such folder",
                    expected=f"the folder {name}/ of the RSNA-2022 form",
                    remedy="finish the download or unpack it fully; if there really are no label maps, "
                    "make an empty folder segmentations/.",
                )
        tables = read_tables(self.root)
        self.labels, self.boxes, self.label_maps = tables.labels, tables.boxes, tables.label_maps

    @cached_property
    def studies(self) -> list[str]:
        return list(self.labels.index)

    def series_dir(self, study: str) -> Path:
        """The folder of the study's DICOM files. It exists."""
        folder = self.root / "train_images" / self._known(study)
        if not os.path.isdir(folder):
            raise StudyError(
                folder,
                found="no such folder",
                expected=f"the DICOM files of study {study}, which train.csv lists",
                remedy="download this study, or leave it out: a cohort run lists it and goes on.",
            )
        return folder

    def mask_path(self, study: str) -> Path | None:
        """The study's label map, or None where there is none."""
        path = self.root / "segmentations" / f"{self._known(study)}.nii"
        for found in (path, path.with_name(path.name + ".gz")):
            if os.path.lexists(found):  # a link that leads nowhere is a label map that got lost, not one never drawn
                return found
        return None

    def _known(self, study: str) -> str:
        if study not in self.labels.index:
            raise StudyError(
                self.root / "train.csv",
                found=f"no study {brief(repr(study))}",
                expected=f"one of its {len(self.labels)} studies",
                remedy="take an id from dataset.studies.",
            )
        return study


def _read_labels(path: Path) -> pd.DataFrame:
    table = _read_table(path, (STUDY_COLUMN, *TARGETS))
    repeated = table.index[table.index.duplicated()]
    if len(repeated):
        raise DatasetError(
            path,
            found=f"study {repeated[0]} {int((table.index == repeated[0]).sum())} times",
            expected="one row a study",
            remedy="remove the repeated rows; two rows could put one patient on both sides of a split.",
        )
    table = _whole_numbers(path, table[list(TARGETS)], allowed=(0, 1))
    inconsistent = table.index[table["patient_overall"] != table[list(LEVELS)].max(axis=1)]
    if len(inconsistent):
        raise DatasetError(
            path,
            found=f"study {inconsistent[0]} with patient_overall different from 'any of C1 ... C7'",
            expected="patient_overall = 1 exactly where a level is 1, as in all 2,019 real rows",
            remedy="check that the columns were not reordered or edited.",
        )
    return table


def _read_boxes(path: Path, labels: pd.DataFrame) -> pd.DataFrame:
    table = _read_table(path, (STUDY_COLUMN, *BOX_COLUMNS))[list(BOX_COLUMNS)]
    unknown = table.index.difference(labels.index)
    if len(unknown):
        raise DatasetError(
            path,
            found=f"boxes of study {unknown[0]}",
            expected="boxes of studies that train.csv lists",
            remedy="take both tables from the same download.",
        )
    numbers = table.map(_number)
    number, at_least = numbers["slice_number"], {"x": 0, "y": 0, "width": 0, "height": 0, "slice_number": 0}
    # Comparisons written so that NaN fails, too. (Ten real studies count their files from a number other than 1.)
    right = (numbers >= pd.Series(at_least)) & (numbers < 1e6)
    right["slice_number"] &= number == number.round()
    if not right.all(axis=None):
        row = (~right).any(axis=1).to_numpy().argmax()
        column = right.columns[(~right).iloc[row].to_numpy().argmax()]
        raise DatasetError(
            path,
            found=f"{column} {brief(table.iloc[row][column])!r} in data row {row + 1}",
            expected="numbers from 0 up in " + ", ".join(BOX_COLUMNS) + ", the last a whole one",
            remedy="take the table from a fresh download.",
        )
    return numbers.astype({"slice_number": int})


def _number(text) -> float:
    """A cell as a number; NaN for anything else."""
    try:
        return float(text)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def _read_table(path: Path, columns) -> pd.DataFrame:
    """Read a CSV, check its columns and study ids, index it by study."""
    if not os.path.isfile(path):
        raise DatasetError(
            path,
            found="no such file",
            expected=f"a table with the columns {', '.join(columns)}",
            remedy="name the folder that Kaggle's archive unpacks to; this file lies at its top.",
        )
    try:
        with open(path, "rb") as file:
            if len(file.readline(_LONGEST_HEADING + 1)) > _LONGEST_HEADING:
                raise ValueError(f"its first line has more than {_LONGEST_HEADING} bytes")
        table = pd.read_csv(path, dtype=str)
    except (ValueError, OSError) as error:  # pandas' parser errors are ValueErrors
        raise DatasetError(
            path,
            found=f"a file that is no CSV table ({brief(error)})",
            expected=f"columns {', '.join(columns)}",
            remedy="take the table from a fresh download.",
        ) from error
    missing = [column for column in columns if column not in table.columns]
    if missing:
        raise DatasetError(
            path,
            found=f"no column {', '.join(missing)} (columns: {brief(', '.join(map(str, table.columns)), 200)})",
            expected=f"columns {', '.join(columns)}",
            remedy="take the table from a fresh download, or rename its columns.",
        )
    for study in table[STUDY_COLUMN]:
        if not isinstance(study, str) or not _SAFE_ID.fullmatch(study):
            raise StudyError(
                path,
                found=f"the study id {brief(repr(study))}",
                expected="letters, digits, '.', '-' and '_' only, so that no id can lead out of the folder",
                remedy="correct the id in the table.",
            )
    return table.set_index(STUDY_COLUMN)


def _whole_numbers(path: Path, table: pd.DataFrame, allowed) -> pd.DataFrame:
    numbers = table.map(_number)
    wrong = ~numbers.isin(allowed)
    if wrong.any(axis=None):
        column = wrong.any().idxmax()
        study = wrong[column].idxmax()
        raise DatasetError(
            path,
            found=f"the value {brief(table.loc[study, column])} for study {study}, column {column}",
            expected=" or ".join(map(str, allowed)),
            remedy="correct the cell; a study without a label cannot be used for training.",
        )
    return numbers.astype(int)
