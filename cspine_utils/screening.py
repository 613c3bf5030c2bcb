"""Look at every study before using any: headers only, one row a study, a verdict with its reason.

A bad study never stops the cohort: it is listed with what is wrong and what to do. Splits are by
study, since all slices of a study show the same patient and carry the same label.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from tqdm import tqdm

from cspine_utils.dicom import look_into, measure, read_series
from cspine_utils.errors import CSpineError, DatasetError, MaskError, ParameterError
from cspine_utils.nifti import read_mask

SURVEY_COLUMNS = (
    "verdict",
    "reason",
    "files",
    "first_number",
    "direction",
    "rows",
    "columns",
    "pixel_mm",
    "step_mm",
    "thickness_mm",
    "transfer_syntax",
    "has_mask",
)


def survey(dataset, *, progress: bool = True) -> pd.DataFrame:
    """Read the headers of every study.

    Parameters
    ----------
    dataset : RsnaDataset

    Returns
    -------
    DataFrame, index study, columns `SURVEY_COLUMNS`: verdict "use" or "reject" with a reason in words;
    direction "head -> feet" or "feet -> head" as the files are numbered; lengths in mm. A rejected
    study keeps its row, with the values that could not be read left empty.
    """
    rows = {}
    for study in tqdm(dataset.studies, desc="headers", unit="study", disable=not progress):
        row = dict.fromkeys(SURVEY_COLUMNS)
        row["has_mask"] = dataset.mask_path(study) is not None
        try:
            row |= _describe(dataset.series_dir(study))
            row |= {"verdict": "use", "reason": ""}
        except CSpineError as error:
            row |= {"verdict": "reject", "reason": str(error)}
        rows[study] = row
    table = pd.DataFrame.from_dict(rows, orient="index", columns=list(SURVEY_COLUMNS))
    table.index.name = "study"
    return table


def _describe(series_dir) -> dict:
    headers = look_into(series_dir).choose()
    geometry = measure(headers)
    geometry.check()
    numbered = {int(h.path.stem): h for h in headers if h.path.stem.isdecimal()}
    first = headers[0]
    return {
        "files": len(headers),
        "first_number": min(numbered) if numbered else None,
        "direction": _direction(numbered),
        "rows": first.rows,
        "columns": first.columns,
        "pixel_mm": first.pixel_spacing_mm[1],
        "step_mm": geometry.step_mm,
        "thickness_mm": first.thickness_mm,
        "transfer_syntax": first.transfer_syntax.name,
    }


def _direction(numbered: dict) -> str:
    """Which way the file numbers run: DICOM's z grows toward the head."""
    if len(numbered) < 2:
        return "not numbered"
    first, last = numbered[min(numbered)], numbered[max(numbered)]
    return "head -> feet" if first.position_mm[2] > last.position_mm[2] else "feet -> head"


def usable(table: pd.DataFrame, *, with_mask: bool = False) -> list[str]:
    """Studies with the verdict "use" (and a label map), in the order of the survey.

    Raises DatasetError where none is left: nothing in the course can go on from there.
    """
    chosen = table["verdict"] == "use"
    if with_mask:
        chosen &= table["has_mask"].astype(bool)
    if not chosen.any():
        reasons = table.loc[table["verdict"] == "reject", "reason"]
        raise DatasetError(
            "the survey",
            found=f"{len(table)} studies, none of them usable" + (" with a label map" if with_mask else ""),
            expected="at least one",
            remedy=f"mend the first: {reasons.iloc[0]}" if len(reasons) else "add label maps to segmentations/.",
        )
    return list(table.index[chosen])


def read_pairs(dataset, studies, failures: dict[str, str] | None = None):
    """Yield (study, volume, mask) of each study whose CT and label map can be read and fit together.

    A survey reads headers only; pixels and label maps may still be damaged. A study that cannot be read is
    left out, and its reason is put into `failures`.
    """
    for study in studies:
        try:
            path = dataset.mask_path(study)
            if path is None:
                raise MaskError(
                    dataset.root / "segmentations" / f"{study}.nii",
                    found="no label map",
                    expected="one",
                    remedy="leave this study out where a label map is needed.",
                )
            volume = read_series(dataset.series_dir(study))
            pair = study, volume, read_mask(path, volume)
        except CSpineError as error:
            if failures is not None:
                failures[study] = str(error)
            continue
        yield pair


def example(dataset, studies):
    """The first readable (study, volume, mask); raises DatasetError with a reason where there is none."""
    failures: dict[str, str] = {}
    for pair in read_pairs(dataset, studies, failures):
        return pair
    raise DatasetError(
        dataset.root,
        found=f"no readable CT with its label map among {len(failures)} studies",
        expected="at least one",
        remedy=f"mend the first: {next(iter(failures.values()))}" if failures else "choose other studies.",
    )


def split(studies, labels: pd.DataFrame, *, sizes: dict[str, int], generator: np.random.Generator) -> dict:
    """Deal studies out to named parts, each study to one part, with like shares of fractured studies.

    Parameters
    ----------
    studies : ids, each once
    labels : DataFrame indexed by study with the column `patient_overall`
    sizes : part -> number of studies, e.g. {"train": 70, "validation": 14, "test": 2}; studies that are
        left over are in no part

    Returns
    -------
    dict part -> list of ids. Fractured and intact studies are shuffled apart and then interleaved in
    proportion, so that each part gets its share of both.

    Raises
    ------
    ParameterError : a study appears twice, or the sizes ask for more studies than there are
    """
    studies = list(studies)
    if len(set(studies)) != len(studies):
        twice = next(s for s in studies if studies.count(s) > 1)
        raise ParameterError(
            "studies",
            found=f"study {twice} more than once",
            expected="each study once, or one patient could be on both sides of the split",
            remedy="pass study ids, not slices; remove repeats.",
        )
    unknown = [study for study in studies if study not in labels.index]
    if unknown:
        raise ParameterError(
            "studies",
            found=f"study {unknown[0]}, which has no labels",
            expected="studies of the label table",
            remedy="take them from dataset.studies.",
        )
    whole = all(isinstance(size, int | np.integer) and size >= 1 for size in sizes.values())
    if not sizes or not whole or sum(sizes.values()) > len(studies):
        raise ParameterError(
            "sizes",
            found=f"{sizes} for {len(studies)} studies",
            expected=f"parts of at least one study that add up to at most {len(studies)}",
            remedy="ask for smaller parts, or make a larger cohort.",
        )
    overall = labels.loc[studies, "patient_overall"].to_numpy()
    place = np.empty(len(studies))
    for value in (0, 1):
        members = np.flatnonzero(overall == value)
        # Members of each class sit evenly along 0 ... 1, so any run of the line holds both in proportion.
        place[generator.permutation(members)] = (np.arange(len(members)) + generator.random()) / max(len(members), 1)
    line = [studies[i] for i in np.argsort(place, kind="stable")]
    parts, start = {}, 0
    for part, size in sizes.items():
        parts[part] = line[start : start + size]
        start += size
    return parts
