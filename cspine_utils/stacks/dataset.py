"""Prepared studies as training samples."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from cspine_utils.anatomy import LEVELS, TARGETS
from cspine_utils.errors import StackError
from cspine_utils.screening import split

from .making import prepare
from .store import open_study, read_facts
from .windows import scale_hu


class StackDataset(torch.utils.data.Dataset):
    """Prepared studies as training samples: x float32 `(f, 6, h, w)`, y float32 `(8,)`.

    Parameters
    ----------
    store : folder written by `prepare`
    labels : DataFrame indexed by study with the columns `anatomy.TARGETS`; one sample a row
    window : a key of `WINDOWS`
    blank_mask : show no label anywhere (a control: the mask is an input too)
    evidence : add a seventh channel, x `(f, 7, h, w)`: where the centre slice's voxel lies in a bounding box and in a
        vertebra that `labels` call fractured, that vertebra's label (1-7), 0 elsewhere; NaN everywhere in a study
        whose boxes are not known. It is something to learn from, never an input.

    Raises
    ------
    StackError : studies that the store does not have, a window that there is not; on loading, damaged files
    """

    def __init__(
        self, store, labels: pd.DataFrame, *, window: str = "bone", blank_mask: bool = False, evidence: bool = False
    ):
        self.store, self.window, self.blank_mask, self.evidence = Path(store), window, blank_mask, evidence
        scale_hu(np.zeros(1, np.float32), window)  # refuses a window that there is not
        self.studies = list(labels.index)
        self.targets = torch.tensor(np.ascontiguousarray(labels[list(TARGETS)]), dtype=torch.float32)
        absent = [study for study in self.studies if not (self.store / f"{study}.json").is_file()]
        if absent:
            raise StackError(
                self.store,
                found=f"no stack of {len(absent)} studies, the first {absent[0]}",
                expected=f"the stacks of all {len(self.studies)} studies",
                remedy="run stacks.prepare for them and leave out those that it lists as failed.",
            )

    def __len__(self) -> int:
        return len(self.studies)

    @property
    def fingerprint(self) -> str:
        """Changes with the studies, their order, their labels, their stacks and the options: equal means equal data.

        Stacks are known by what they were made from, so nothing but a small JSON a study is read.
        """
        sources = [(read_facts(self.store, study) or {}).get("source") for study in self.studies]
        facts = [self.studies, sources, self.targets.tolist(), self.window, self.blank_mask, self.evidence]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]

    def __getitem__(self, index: int):
        stored, target = open_study(self.store, self.studies[index]), self.targets[index]
        x = torch.from_numpy(stored.normalised(self.window, blank_mask=self.blank_mask))
        if not self.evidence:
            return x, target
        fractured = [level for level, broken in zip(LEVELS, target.tolist(), strict=False) if broken]
        return torch.cat([x, torch.from_numpy(stored.evidence(fractured))[:, None]], dim=1), target


def two_sets(
    dataset,
    store,
    *,
    size,
    validation_share: float,
    seed: int,
    field_mm: float | None = None,
    evidence: bool = False,
    progress: bool = False,
):
    """Prepare every study with a label map, and split them: the same studies in every notebook of one seed.

    Parameters
    ----------
    dataset : RsnaDataset
    store, size, field_mm, progress : see `prepare`
    validation_share : share of the usable studies to judge by; at least two are taken
    seed : of the split
    evidence : see `StackDataset`

    Returns
    -------
    (train, validation, report) : two StackDatasets without a study in common; the table of `prepare`
    """
    report = prepare(dataset, store, size=size, field_mm=field_mm, progress=progress)
    usable = report.index[report["status"].isin(["made", "kept"])]
    held_out = max(2, round(validation_share * len(usable)))
    sizes = {"validation": held_out, "train": len(usable) - held_out}
    parts = split(usable, dataset.labels, sizes=sizes, generator=np.random.default_rng(seed))
    train, validation = (
        StackDataset(store, dataset.labels.loc[parts[name]], evidence=evidence) for name in ("train", "validation")
    )
    return train, validation, report
