"""All studies -> one table, by processes, a dask cluster or one after the other; and who of them can be used."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import pandas as pd
from tqdm import tqdm

import cspine_utils
from cspine_utils import parallel
from cspine_utils.anatomy import LEVELS
from cspine_utils.errors import CSpineError, DatasetError
from cspine_utils.journal import Journal

from .study import SURVEY_COLUMNS, Job, look_at, without_ct

#: From so many studies on, starting processes costs less than it saves.
_PAYS_FROM = 64
_MOST_PROCESSES = 16


def survey(dataset, *, client=None, workers: int | None = None, resume=None, progress: bool = True) -> pd.DataFrame:
    """Read the headers of every study, and its label map.

    Parameters
    ----------
    dataset : RsnaDataset
    client : a `distributed.Client` whose workers have this package and reach the same files; instead of `workers`
    workers : processes; 0 reads in this one. None takes one a processor (at most 16) if there are many studies.
    resume : a file that takes each row as it is done. If it is there already, its rows are taken instead of read, as
        long as the files of the study (names, sizes, times), its label map, its labels and boxes, and the version of
        this package are what they were. Rows of studies whose reading killed its process are tried again.

    Returns
    -------
    DataFrame, index study in the order of the dataset, columns `SURVEY_COLUMNS`:

    verdict : "use" - CT and label map are read as they are; "repair" - CT or label map is read only with the option
        that `reason` names, or the study is used without its label map; "reject" - the CT cannot be read
    reason : in words; "" where the verdict is "use"
    ct : "use", "repair" or "reject", of the CT alone
    mask : "none", "fits", "wrong", or "not judged" where there is no CT grid to judge it by
    files : of the series; left_out : files in the folder that are no slices of it
    first_number, last_number : lowest and highest file number; z_first_mm, z_last_mm : their places, toward the head
    direction : of axial series, as the files are numbered: "head -> feet", "feet -> head", "not in order" (along the
        patient), or "not numbered"
    pixel_mm : between columns; pixel_rows_mm : between rows, where that differs
    step_mm, step_min_mm, step_max_mm : median, smallest and largest distance between neighbouring slices
    tilt_degrees : the gantry's; orientation : "axial", "coronal" or "sagittal"; transfer_syntax : its name
    mask_shape : as stored; mask_levels : "C1-C7, T1"; labels : fractured levels, "C2, C5"; boxes : their number

    A rejected study keeps its row, with the values that could not be read left empty. No value of a header beyond
    geometry and study id is in the table.
    """
    return _survey(dataset, look_at, client=client, workers=workers, resume=resume, progress=progress)


def _survey(dataset, look: Callable, *, client, workers, resume, progress) -> pd.DataFrame:
    """`look` makes a row of a job, as `look_at` does."""
    rows, jobs = {}, []
    for study in dataset.studies:
        try:
            jobs.append(_job(dataset, study, dataset.series_dir(study)))
        except CSpineError as error:
            rows[study] = without_ct(_job(dataset, study, None), str(error))
    with tqdm(total=len(jobs), desc="headers", unit="study", disable=not progress) as bar:
        if resume is None:
            rows |= _rows(jobs, look, workers, client, bar)
        else:
            with Journal(resume) as journal:
                known = {job.study: journal.value(job.study, _mark(job)) for job in jobs if job.study in journal}
                rows |= {study: row for study, row in known.items() if row is not None}
                bar.update(len(jobs) - sum(job.study not in rows for job in jobs))
                rows |= _rows([job for job in jobs if job.study not in rows], look, workers, client, bar, journal)
    columns = list(SURVEY_COLUMNS)
    table = pd.DataFrame([[rows[s][c] for c in columns] for s in dataset.studies], columns=columns, dtype=object)
    table.index = pd.Index(list(dataset.studies), name="study")
    return table.astype(SURVEY_COLUMNS)


def _job(dataset, study: str, folder: Path | None) -> Job:
    fractured = [level for level in LEVELS if dataset.labels.at[study, level]]
    boxes = int((dataset.boxes.index == study).sum())
    return Job(study, folder, dataset.mask_path(study), ", ".join(fractured), boxes)


def _rows(jobs: list[Job], look: Callable, workers, client, bar, journal: Journal | None = None) -> dict[str, dict]:
    if workers is None:
        many = client is None and len(jobs) >= _PAYS_FROM
        workers = min(parallel.processors(), _MOST_PROCESSES) if many else 0
    rows = {}
    tasks = [(job, look, journal is not None) for job in jobs]
    for (job, *_), result in parallel.each(_marked, tasks, workers=workers, client=client):
        if isinstance(result, parallel.Failure):
            row = without_ct(job, f"{job.folder}: {result.reason}. What to do: look at this study by itself.")
        else:
            mark, row = result
            if journal is not None:
                journal.add(job.study, mark, row)
        rows[job.study] = row
        bar.update()
    return rows


def _marked(task: tuple[Job, Callable, bool]) -> tuple[str, dict]:
    job, look, wanted = task
    mark = _mark(job) if wanted else ""  # first: what changes while it is read must not pass for what was read
    return mark, look(job)


def _mark(job: Job) -> str:
    """Changes when anything does that a row is made from."""
    with os.scandir(job.folder) as entries:
        files = sorted((entry.name, *_state(entry)) for entry in entries)
    mask = None if job.mask is None else _state(job.mask)
    everything = [cspine_utils.__version__, list(SURVEY_COLUMNS), job.labels, job.boxes, files, mask]
    return hashlib.sha256(json.dumps(everything).encode()).hexdigest()


def _state(file: Path | os.DirEntry) -> tuple[int, int]:
    try:
        state = file.stat()
    except OSError:
        return -1, -1
    return state.st_size, state.st_mtime_ns


def usable(table: pd.DataFrame, *, with_mask: bool = False) -> list[str]:
    """Studies whose CT is read as it is (and whose label map fits), in the order of the survey.

    Raises DatasetError where none is left: nothing in the course can go on from there.
    """
    chosen = table["ct"] == "use"
    if with_mask:
        chosen &= table["mask"] == "fits"
    if not chosen.any():
        reasons = table.loc[table["reason"] != "", "reason"]
        raise DatasetError(
            "the survey",
            found=f"{len(table)} studies, none of them usable" + (" with a label map" if with_mask else ""),
            expected="at least one",
            remedy=f"mend the first: {reasons.iloc[0]}" if len(reasons) else "add label maps to segmentations/.",
        )
    return list(table.index[chosen])


def funnel(table: pd.DataFrame) -> pd.DataFrame:
    """What is left of a survey, step by step, down to the studies of `usable(table, with_mask=True)`.

    Returns
    -------
    DataFrame, index step in words, columns: studies (left after this step), left_out (by this step), why
    """
    steps = (
        ("in train.csv", True, ""),
        ("CT can be read", table["ct"] != "reject", "images missing, damaged or cut short, or slices missing"),
        ("CT is one even stack", table["ct"] != "repair", "uneven steps: readable by resampling alone"),
        ("has a label map", table["mask"] != "none", "nobody drew one"),
        ("label map fits the CT", table["mask"] == "fits", "label map damaged or on another grid"),
    )
    left, rows = pd.Series(True, index=table.index), {}
    for name, passed, why in steps:
        before = int(left.sum())
        left &= passed
        rows[name] = {"studies": int(left.sum()), "left_out": before - int(left.sum()), "why": why}
    return pd.DataFrame.from_dict(rows, orient="index")
