"""Small sets for controls and demonstrations: studies that are easy, studies that are broken on purpose."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import TensorDataset

from cspine_utils.anatomy import LEVELS
from cspine_utils.errors import ParameterError
from cspine_utils.phantom import draw_plan, render
from cspine_utils.rsna import STUDY_COLUMN, RsnaDataset
from cspine_utils.stacks import normalise, six_channel
from cspine_utils.volume import Volume


def broken_copy(dataset: RsnaDataset, folder, studies) -> RsnaDataset:
    """Copy the five smallest of some readable studies into a folder and break four, each in its own way.

    In the order of the copy: a slice is missing, a text file calls itself .dcm, a file is cut short,
    there are no images, and the last one is left whole. The original is not touched.
    """
    root = Path(folder).resolve() / "broken"
    if len(studies) < 5:
        raise ParameterError(
            "studies", found=f"{len(studies)}", expected="at least five", remedy="show this on a larger cohort."
        )
    by_size = sorted(studies, key=lambda study: len(list(dataset.series_dir(study).iterdir())))
    studies = by_size[:5]
    for study in studies:
        shutil.copytree(dataset.series_dir(study), root / "train_images" / study)
    (root / "segmentations").mkdir()
    labels = dataset.labels.loc[studies].rename_axis(STUDY_COLUMN)
    labels.to_csv(root / "train.csv")
    dataset.boxes.iloc[:0].rename_axis(STUDY_COLUMN).to_csv(root / "train_bounding_boxes.csv")

    gap, text, short, empty, _ = (root / "train_images" / study for study in studies)
    _numbered(gap, 5).unlink()
    (text / "notes.dcm").write_text("Scanner was serviced on Tuesday.\n")
    cut = _numbered(short, 7)
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    shutil.rmtree(empty)
    return RsnaDataset(root)


def _numbered(series_dir: Path, position: int) -> Path:
    """The file at a position (from 1) in the order of the file numbers."""
    return sorted(series_dir.glob("*.dcm"), key=lambda path: int(path.stem))[position - 1]


def easy_studies(count: int, *, seed: int, size: int = 64) -> TensorDataset:
    """Synthetic studies with wide fractures, ready for a network and held in memory.

    Every level is fractured with probability one half, so that no prior answers for the network.

    Returns
    -------
    TensorDataset of x float32 `(105, 6, size, size)` and y float32 `(8,)`
    """
    stacks, targets = [], []
    for index in range(count):
        study = render(draw_plan(seed, index, size=size, difficulty="easy", prevalence="balanced"))
        stacks.append(normalise(six_channel(Volume(study.hu, study.affine), study.labels)))
        fractured = {fracture.level for fracture in study.fractures}
        targets.append([level in fractured for level in LEVELS] + [bool(fractured)])
    return TensorDataset(torch.tensor(np.array(stacks)), torch.tensor(targets, dtype=torch.float32))
