"""A whole synthetic cohort in the folder form of the RSNA-2022 cervical spine data.

```
root/
  train.csv                     StudyInstanceUID, patient_overall, C1 ... C7
  train_bounding_boxes.csv      StudyInstanceUID, x, y, width, height, slice_number
  train_images/<uid>/<n>.dcm
  segmentations/<uid>.nii       for a part of the studies
  cohort.json                   the parameters that this folder was made with
  truth/                        what was really drawn; no reader of the course looks in here
    fractures.csv, mimics.csv, people.csv, storage.csv, <uid>.npz
    twins/<uid>.npz             the same neck without its fractures, if asked for
```

A study is made under `.partial/` and moved into place with its truth file last, so that a study is there completely
or not at all; a run that was stopped goes on where it was, and ends with the same bytes.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import shutil
import zipfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from numbers import Real
from pathlib import Path

import numpy as np
from tqdm import tqdm

from cspine_utils.errors import ParameterError
from cspine_utils.files import write_text
from cspine_utils.nifti import write_mask
from cspine_utils.volume import Grid

from .export import Storage, draw_storage, write_series, write_truth
from .rendering import render, render_pair
from .study import Stage, StudyPlan, check_device, check_parameters, draw_plan, stream
from .tables import write_tables

#: Raised whenever the same parameters give other bytes.
VERSION = 4

#: With fewer studies, starting more processes costs more than it brings.
_FEW = 16

#: Bytes a voxel of a study takes on disk: image, label map, truth with labels; and each twin.
_BYTES_PER_VOXEL, _BYTES_PER_TWIN_VOXEL = 6.3, 2.3


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
    twins: bool = False,
    workers: int | None = 1,
    device: str = "cpu",
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
    twins : write the intact twin of every fractured study into truth/twins/
    workers : processes that render at the same time, each of which takes seconds to start; None chooses: one for a
        few studies, else one a core. The bytes do not depend on it.
    device : torch device; another one than "cpu" gives other rounding errors, and so may change a few bytes
    progress : show a progress bar

    Returns
    -------
    Path : `root`

    Raises
    ------
    ParameterError : an argument that cannot be, a folder that holds something else, or too little free space;
        raised before the first study is written
    """
    root = Path(root)
    _check(studies, seed, size, difficulty, prevalence, mask_share, box_share, workers, device)
    if workers is None:
        workers = 1 if studies < _FEW else os.cpu_count() or 1
    settings = {
        "version": VERSION,
        "studies": int(studies),
        "seed": int(seed),
        "size": int(size),
        "difficulty": difficulty,
        "prevalence": prevalence,
        "mask_share": float(mask_share),
        "box_share": float(box_share),
        "twins": bool(twins),
        "device": str(device),
    }
    plans = [draw_plan(seed, i, size=size, difficulty=difficulty, prevalence=prevalence) for i in range(studies)]
    storages = draw_storage(studies, stream(seed, 0, Stage.STORAGE), mask_share)
    _claim(root, settings, plans)
    shutil.rmtree(root / ".partial", ignore_errors=True)
    records = {plan.index: _finished(root, plan, storage, twins) for plan, storage in zip(plans, storages, strict=True)}
    missing = [(plan, storage) for plan, storage in zip(plans, storages, strict=True) if records[plan.index] is None]
    bar = tqdm(total=studies, initial=studies - len(missing), desc="phantom", unit="study", disable=not progress)
    with bar:
        for index, record in _made(root, missing, twins, device, workers):
            records[index] = record
            bar.update()
    shutil.rmtree(root / ".partial", ignore_errors=True)
    write_tables(root, plans, storages, [records[plan.index] for plan in plans], box_share)
    return root


def _check(studies, seed, size, difficulty, prevalence, mask_share, box_share, workers, device) -> None:
    if not isinstance(studies, (int, np.integer)) or isinstance(studies, bool) or not 1 <= studies <= 99_999:
        raise ParameterError(
            "studies", found=repr(studies), expected="an integer from 1 to 99999", remedy="ask for at least one study"
        )
    check_parameters(seed=seed, size=size, difficulty=difficulty, prevalence=prevalence)
    if workers is not None and (
        not isinstance(workers, (int, np.integer)) or isinstance(workers, bool) or not 1 <= workers <= 256
    ):
        raise ParameterError(
            "workers", found=repr(workers), expected="an integer from 1 to 256", remedy="one process per core is enough"
        )
    check_device(device)
    for name, share in (("mask_share", mask_share), ("box_share", box_share)):
        if not isinstance(share, Real) or not math.isfinite(share) or not 0 <= share <= 1:
            raise ParameterError(name, found=repr(share), expected="a number from 0 to 1", remedy="e.g. 0.75")


def _claim(root: Path, settings: dict, plans: list[StudyPlan]) -> None:
    """Make `root` this cohort's folder, or refuse a folder that belongs to something else or lies on a full disk."""
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
    else:
        _check_space(root, settings, plans)
    root.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(settings, indent=2) + "\n")


def _check_space(root: Path, settings: dict, plans: list[StudyPlan]) -> None:
    """Refuse to begin what cannot be finished."""
    per_voxel = _BYTES_PER_VOXEL + (_BYTES_PER_TWIN_VOXEL if settings["twins"] else 0.0)
    needed = sum(math.prod(plan.grid.shape) for plan in plans) * per_voxel
    there = next(p for p in (root, *root.resolve().parents) if p.exists())
    free = shutil.disk_usage(there).free
    if free < needed:
        raise ParameterError(
            root,
            found=f"{free / 1e6:.0f} MB of free space",
            expected=f"about {needed / 1e6:.0f} MB for {len(plans)} studies of size {settings['size']}",
            remedy="free some space, name a folder on another disk, or ask for fewer or smaller studies",
        )


def _made(root: Path, missing: list, twins: bool, device: str, workers: int) -> Iterator[tuple[int, dict]]:
    """Write the missing studies and yield (index, record) of each as it is done."""
    if workers == 1 or len(missing) < 2:
        for plan, storage in missing:
            yield plan.index, _write_study(root, plan, storage, twins, device)
        return
    context = multiprocessing.get_context("spawn")  # a forked torch can hang
    with ProcessPoolExecutor(min(workers, len(missing)), mp_context=context) as pool:
        jobs = {pool.submit(_work, os.getpid(), root, *study, twins, device): study[0].index for study in missing}
        try:
            for job in as_completed(jobs):
                yield jobs[job], job.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _work(parent: int, *study) -> dict:
    """One study in a process of the pool, which ends when its parent has been killed."""
    if os.getppid() != parent:
        os._exit(1)
    return _write_study(*study)


def _put(made: Path, place: Path) -> None:
    """Move a finished file or folder into place. A process that outlived a killed run may have put its own there:
    the same bytes, so either may stay."""
    for _ in range(5):
        if place.is_dir():
            shutil.rmtree(place, ignore_errors=True)
        try:
            os.replace(made, place)
            return
        except OSError:
            if not made.exists():
                raise
    raise OSError(f"{place}: another process keeps writing here")


def _finished(root: Path, plan: StudyPlan, storage: Storage, twins: bool) -> dict | None:
    """The record of a study that is there completely, or None."""
    truth, images, mask, twin = _places(root, plan)
    if not truth.exists() or not images.is_dir() or storage.has_mask != mask.exists():
        return None
    if twin.exists() != (twins and bool(plan.levels)):
        return None
    try:
        with np.load(truth) as file:
            record = json.loads(file["record"].tobytes())
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    wanted = {f"{storage.file_number(d, plan.grid.shape[0])}.dcm" for d in range(plan.grid.shape[0])}
    files = list(images.iterdir())
    return record if {p.name for p in files} == wanted and record.get("bytes") == _total(files) else None


def _total(files) -> int:
    """Bytes of some files: tells one that was cut short."""
    return sum(path.stat().st_size for path in files)


def _places(root: Path, plan: StudyPlan) -> tuple[Path, Path, Path, Path]:
    """Truth file, folder of images, label map, twin."""
    return (
        root / "truth" / f"{plan.uid}.npz",
        root / "train_images" / plan.uid,
        root / "segmentations" / f"{plan.uid}.nii",
        root / "truth" / "twins" / f"{plan.uid}.npz",
    )


def _write_study(root: Path, plan: StudyPlan, storage: Storage, twins: bool, device: str) -> dict:
    truth, images, mask, twin = _places(root, plan)
    for old in (truth, mask, twin):  # the truth file goes first: without it nothing here counts as finished
        old.unlink(missing_ok=True)
    shutil.rmtree(images, ignore_errors=True)
    twins = twins and bool(plan.levels)
    for folder in (truth.parent, images.parent, mask.parent, *([twin.parent] if twins else [])):
        folder.mkdir(exist_ok=True)
    work = root / ".partial" / f"{plan.uid}-{os.getpid()}"
    rendered, intact = render_pair(plan, device=device) if twins else (render(plan, device=device), None)
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
    record = {
        "levels": list(plan.levels),
        "fractures": [asdict(f) for f in rendered.fractures],
        "boxes": boxes,
        "landmarks": {
            name: {key: np.round(value, 4).tolist() for key, value in place.items()}
            for name, place in plan.landmarks().items()
        },
    }
    write_series(work / "images", rendered.hu, plan, storage)
    record["bytes"] = _total((work / "images").iterdir())
    if storage.has_mask:
        write_mask(work / "mask.nii", rendered.labels, Grid(rendered.labels.shape, rendered.affine))
    write_truth(work / "truth.npz", rendered, record)
    if intact is not None:
        write_truth(work / "twin.npz", intact, record | {"levels": [], "fractures": [], "boxes": []})
        _put(work / "twin.npz", twin)
    _put(work / "images", images)
    if storage.has_mask:
        _put(work / "mask.nii", mask)
    _put(work / "truth.npz", truth)
    return record
