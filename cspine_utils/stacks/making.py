"""A cohort -> a store of prepared studies, in several processes, past those that cannot be prepared."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from cspine_utils import dicom, parallel
from cspine_utils.errors import CSpineError, ParameterError
from cspine_utils.screening import read_files
from cspine_utils.volume import Volume

from . import boxes
from .layout import FRAMES, Layout, check_count, check_field, lay_out, pair, what_is_missing, whole_neck
from .slices import labels_at, slices_at
from .store import VERSION, forget, is_at_work, is_whole, locked, no_place, read_facts, write_study

#: From so many studies on, starting processes (each loads torch) costs less than it saves.
_PAYS_FROM = 48
_MOST_PROCESSES = 16
_NO_MASK = "no label map that says where C1-C7 are"


@dataclass(frozen=True)
class Settings:
    """How a study is prepared: a part of what its files are made from."""

    size: tuple[int, int] | None
    count: int
    field_mm: float | None


@dataclass(frozen=True)
class Task:
    """All that a process needs to prepare one study. `boxes` as in train_bounding_boxes.csv."""

    study: str
    store: Path
    series_dir: Path
    mask_path: Path | None
    boxes: tuple[tuple[float, ...], ...]
    intact: bool
    settings: Settings

    def source(self) -> str:
        """Changes when a source file or a setting does. Names, sizes and times: hashing 300 GB takes hours."""
        paths = [*sorted(self.series_dir.iterdir()), *([self.mask_path] if self.mask_path else [])]
        facts = [[path.name, *_state(path)] for path in paths]
        everything = [VERSION, asdict(self.settings), self.boxes, self.intact, facts]
        return hashlib.sha256(json.dumps(everything).encode()).hexdigest()


def prepare(
    dataset,
    out,
    *,
    studies: Sequence[str] | None = None,
    size,
    count: int = 2 * FRAMES,
    field_mm: float | None = None,
    without_mask: str = "skip",
    client=None,
    workers: int | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Write each study's resampled slices and mask once; stacks are gathered from them when loaded.

    A study that cannot be prepared is listed with its reason and the run goes on. A study that is already there with
    the same settings and unchanged source files is not made again. A killed run leaves no study half-written, and the
    next run goes on where it was; two runs in one folder share the work.

    Parameters
    ----------
    dataset : RsnaDataset
    out : folder of the store, made if missing; files as in `stacks.store`
    studies : ids; None for all of the dataset
    size : in-plane pixels, one number or (h, w); None keeps the study's
    count : slices over C1-C7
    field_mm : None for the whole field of view; or the side in mm of a square around C1-C7, which makes a pixel
        field_mm / size mm in every study
    without_mask : "skip" leaves studies without a label map out; "whole" takes all their slices and the whole field
        of view, with a mask of zeros, and says so
    client : a `distributed.Client` whose workers have this package and reach the same files; instead of `workers`
    workers : processes; 0 stays in this one. None takes one a processor (at most 16) if there is much to make

    Returns
    -------
    DataFrame, index study, columns `status` ("made", "kept", "skipped" without a label map, "failed") and `reason`:
    why it failed or was skipped; of studies in the store, what is to be known about them ("the label map shows no C7")

    Raises
    ------
    StackError : size, count, field or folder that cannot be
    ParameterError : another `without_mask`, `workers` that cannot be
    """
    settings = _settings(size, count, field_mm)
    if without_mask not in ("skip", "whole"):
        raise ParameterError(
            "without_mask",
            found=repr(without_mask),
            expected="'skip' or 'whole'",
            remedy="'whole' prepares studies without a label map from all their slices.",
        )
    out = Path(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise no_place(out, error) from error
    studies = list(dict.fromkeys(dataset.studies if studies is None else studies))
    rows, tasks = {}, []
    for study in studies:
        try:
            task = _task(dataset, study, out, settings)
            unwanted = task.mask_path is None and without_mask == "skip"
            if unwanted:
                rows[study] = ("skipped", _NO_MASK)
            else:
                rows[study] = None if is_at_work(out, study) else _kept(task)
            if rows[study] is None:
                tasks.append(task)
        except CSpineError as error:
            rows[study] = ("failed", str(error))
        except OSError as error:
            rows[study] = ("failed", f"its folder cannot be read ({error.strerror})")
    with tqdm(total=len(studies), initial=len(studies) - len(tasks), desc="stacks", unit="study",
              disable=not progress) as bar:  # fmt: skip
        for task, result in _each(tasks, workers, client):
            failed = isinstance(result, parallel.Failure)
            rows[task.study] = ("failed", f"{task.series_dir}: {result.reason}") if failed else result
            bar.update()
    table = pd.DataFrame.from_dict(rows, orient="index", columns=["status", "reason"])
    table.index.name = "study"
    return table


def _settings(size, count, field_mm) -> Settings:
    check_count(count)
    check_field(field_mm, size)
    size = None if size is None else pair(size, None)
    return Settings(size, int(count), None if field_mm is None else float(field_mm))


def _task(dataset, study: str, out: Path, settings: Settings) -> Task:
    mask_path, rows = dataset.mask_path(study), dataset.boxes.loc[dataset.boxes.index == study]
    return Task(
        study=study,
        store=out,
        series_dir=dataset.series_dir(study),
        mask_path=mask_path,
        boxes=tuple(tuple(float(value) for value in row) for row in rows.itertuples(index=False)),
        intact=not dataset.labels.loc[study].any(),
        settings=settings,
    )


def _each(tasks: list[Task], workers: int | None, client):
    if workers is None:
        many = client is None and len(tasks) >= _PAYS_FROM
        workers = min(parallel.processors(), _MOST_PROCESSES) if many else 0
    return parallel.each(_on_one_thread if workers else _make, tasks, workers=workers, client=client)


def _on_one_thread(task: Task) -> tuple[str, str]:
    torch.set_num_threads(1)  # there are as many processes as processors
    return _make(task)


def _kept(task: Task) -> tuple[str, str] | None:
    facts = read_facts(task.store, task.study)
    if facts is None or facts["source"] != task.source() or not is_whole(task.store, task.study, facts):
        return None
    return "kept", "; ".join(facts["notes"])


def _make(task: Task) -> tuple[str, str]:
    """Status and reason of one study, which is then in the store unless it failed."""
    try:
        with locked(task.store, task.study):
            # Another run may have made it while this one waited.
            return _kept(task) or _made(task)
    except CSpineError as error:
        return "failed", str(error)
    except OSError as error:
        return "failed", str(no_place(task.store, error))


def _made(task: Task) -> tuple[str, str]:
    source = task.source()  # first: what changes while it is read must not pass for what was read
    forget(task.store, task.study)  # what cannot be made anew must not stay as it was
    volume, mask, layout, notes = _read(task)
    placed, lost = boxes.in_volume(volume, task.series_dir, task.boxes) if task.boxes else (np.empty((0, 5)), [])
    in_stack = boxes.in_stack(placed, layout)
    if len(in_stack) < len(placed):
        notes = [*notes, f"{len(placed) - len(in_stack)} of {len(task.boxes)} boxes lie outside of the stack"]
    hu = slices_at(volume, layout)
    labels = np.zeros(hu.shape, dtype=np.uint8) if mask is None else labels_at(mask, layout)
    notes += lost
    facts = {
        "study": task.study,
        "version": VERSION,
        "source": source,
        "settings": asdict(task.settings),
        "shape": list(hu.shape),
        "geometry": _geometry(volume, layout),
        "boxes": in_stack.round(4).tolist(),
        "boxes_known": task.intact or (mask is not None and len(in_stack) > 0),
        "notes": notes,
    }
    write_study(task.store, task.study, hu, labels, facts)
    return "made", "; ".join(notes)


def _read(task: Task) -> tuple[Volume, np.ndarray | None, Layout, list[str]]:
    settings = task.settings
    if task.mask_path is None:
        volume = dicom.read_series(task.series_dir)
        notes = ["no label map: all slices and the whole field of view"]
        return volume, None, whole_neck(volume, settings.count, settings.size), notes
    volume, mask = read_files(task.series_dir, task.mask_path)
    layout = lay_out(volume, mask, settings.count, settings.size, settings.field_mm)
    return volume, mask, layout, what_is_missing(mask)


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


def _state(file: Path) -> tuple[int, int]:
    try:
        state = os.stat(file)
    except OSError:  # a link that leads nowhere
        return -1, -1
    return state.st_size, state.st_mtime_ns
