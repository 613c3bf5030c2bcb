"""Whole synthetic necks straight into a store of stacks: hundreds of them in minutes, without DICOM files in between.

`phantom.write_cohort` and `stacks.prepare` lead to the same values, but for the noise, which is drawn anew. They are
the way for a cohort that somebody reads as files.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from cspine_utils import parallel, phantom, stacks
from cspine_utils.anatomy import LABEL_IDS, LEVELS, TARGETS
from cspine_utils.errors import CSpineError, ParameterError, StackError, check_whole_number
from cspine_utils.phantom.cohort import VERSION
from cspine_utils.phantom.rendering import NECK_MM
from cspine_utils.stacks.store import locked
from cspine_utils.volume import Volume


@dataclass(frozen=True)
class NeckForm:
    """How a stack lies on the neck.

    Attributes
    ----------
    frames : of the stack, twice as many slices
    size, field_mm : pixels and mm of the square around C1-C7: together about 1 mm a pixel, as crops have it. C1-C7
        of 110 phantoms reached 54-108 mm from front to back, 63-86 mm from side to side
    study_size : pixels across of the scan: 160 give voxels of 1.0-1.1 mm
    """

    frames: int = stacks.FRAMES
    size: int = 104
    field_mm: float = 108.0
    study_size: int = 160


def render_necks(
    out, count: int, *, seed: int, difficulty: str = "standard", prevalence: str = "rsna", first: int = 0,
    form: NeckForm = NeckForm(), twins: bool = False, workers: int = 0, progress: bool = True,
) -> pd.DataFrame:  # fmt: skip
    """Fill a store with the stacks of necks `first` ... `first + count - 1`; what is there is not made again.

    Parameters
    ----------
    out : folder of the store
    seed, difficulty, prevalence : of the phantom
    twins : store the intact twins of the fractured necks instead, as `<uid>.twin`
    workers : processes, 0 for none but this one

    Returns
    -------
    DataFrame, index study, columns `anatomy.TARGETS`: the labels, of 0 and 1; all 0 for twins

    Raises
    ------
    ParameterError : arguments that cannot be
    StackError : a neck that could not be rendered or stored
    """
    check_whole_number("count", count, 0)
    plans = [
        phantom.draw_plan(seed, i, size=form.study_size, difficulty=difficulty, prevalence=prevalence)
        for i in range(first, first + count)
    ]
    plans = [plan for plan in plans if plan.levels or not twins]
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    tasks = [_Task(str(out), plan, form, prevalence, twins) for plan in plans]
    missing = [task for task in tasks if not task.is_there()]
    bar = tqdm(total=len(tasks), initial=len(tasks) - len(missing), desc="necks", unit="study", disable=not progress)
    with bar:
        for task, result in parallel.each(_render_one, missing, workers=workers):
            if isinstance(result, parallel.Failure):
                raise StackError(
                    f"{out}: {task.study}", found=result.reason, expected="a rendered neck", remedy="run it again."
                )
            bar.update()
    table = pd.DataFrame([_labels(task) for task in tasks], columns=list(TARGETS))
    table.index = pd.Index([task.study for task in tasks], name="study")
    return table


@dataclass(frozen=True, eq=False)
class _Task:
    out: str
    plan: phantom.StudyPlan
    form: NeckForm
    prevalence: str
    twin: bool

    @property
    def study(self) -> str:
        return self.plan.uid + (".twin" if self.twin else "")

    def source(self) -> str:
        """Changes with whatever the stack depends on."""
        plan = self.plan
        facts = [VERSION, stacks.VERSION, plan.seed, plan.index, plan.difficulty, self.prevalence, self.twin]
        facts.append(NECK_MM)
        return hashlib.sha256(json.dumps([*facts, asdict(self.form)]).encode()).hexdigest()

    def is_there(self) -> bool:
        try:
            return stacks.open_study(self.out, self.study).facts["source"] == self.source()
        except CSpineError:
            return False


def _labels(task: _Task) -> list[int]:
    broken = [0 if task.twin else int(level in task.plan.fractures) for level in LEVELS]
    return [*broken, int(any(broken))]


def _render_one(task: _Task) -> None:
    with locked(Path(task.out), task.study):
        if not task.is_there():  # another run may have made it meanwhile
            _render_and_store(task)


def _render_and_store(task: _Task) -> None:
    form = task.form
    rendered = phantom.render_neck(task.plan, fractured=not task.twin)
    volume = Volume(rendered.hu, rendered.affine)
    layout = stacks.lay_out(volume, rendered.labels, 2 * form.frames, form.size, form.field_mm)
    placed = [[box.slice_index, box.x, box.y, box.width, box.height] for box in rendered.boxes]
    stacks.store_study(
        task.out, task.study, volume, rendered.labels, layout,
        boxes=np.array(placed, dtype=float).reshape(-1, 5), boxes_known=True, source=task.source(),
        settings={"phantom": VERSION, "difficulty": task.plan.difficulty, **asdict(form)},
    )  # fmt: skip


class FewBoxes(torch.utils.data.Dataset):
    """A `StackDataset` with evidence that forgets the boxes of fractured studies, but for those that are told.

    What needs no boxes stays: nothing is broken in a vertebra whose label says so. The voxels of the fractured ones are
    NaN, "not told".

    Parameters
    ----------
    dataset : `StackDataset(..., evidence=True)`
    told : ids of the studies whose boxes are told

    Raises ParameterError for a dataset without evidence and for studies that it does not have.
    """

    def __init__(self, dataset: stacks.StackDataset, told):
        strangers = sorted(set(told) - set(dataset.studies))
        if not dataset.evidence or strangers:
            raise ParameterError(
                "FewBoxes(dataset, told)",
                found=f"studies that the dataset does not have: {', '.join(strangers)}" if strangers else "no evidence",
                expected="StackDataset(..., evidence=True), and some of its studies",
                remedy="give both for the same studies.",
            )
        self.dataset, self.told = dataset, set(told)
        self.targets = dataset.targets

    def __len__(self) -> int:
        return len(self.dataset)

    @property
    def fingerprint(self) -> str:
        """Equal means equal data."""
        facts = [self.dataset.fingerprint, sorted(self.told)]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]

    def __getitem__(self, index: int):
        x, y = self.dataset[index]
        if self.dataset.studies[index] not in self.told:
            labels, marked = stacks.labels_of(x[:, stacks.CHANNELS - 1]), x[:, -1].clone()
            for level, broken in zip(LEVELS, y[:-1], strict=True):
                if broken:  # what is marked as its own beside its mask would tell, too
                    x[:, -1][(labels == LABEL_IDS[level]) | (marked == LABEL_IDS[level])] = torch.nan
        return x, y
