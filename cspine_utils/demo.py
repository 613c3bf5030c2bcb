"""Small sets for controls and demonstrations: studies that are easy, studies that are broken on purpose."""

from __future__ import annotations

import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import torch
from torch.utils.data import TensorDataset

from cspine_utils.anatomy import LEVELS
from cspine_utils.errors import ParameterError
from cspine_utils.phantom import draw_plan, render
from cspine_utils.rsna import STUDY_COLUMN, RsnaDataset
from cspine_utils.stacks import normalise, six_channel
from cspine_utils.volume import Volume


def broken_copy(dataset: RsnaDataset, folder, studies) -> RsnaDataset:
    """Copy the smallest of some usable studies with label maps, at most seven, and break six, each in its own way.

    In the order of the copy: a slice is missing; slices lie 0.76 to 1.24 steps apart (as in one real study); a file is
    cut short; there are no images; the label map lies half a voxel off; the label map has a slice less than the CT;
    the seventh study is left whole. The original is not touched.

    Raises ParameterError where no study has a label map.
    """
    root = Path(folder).resolve() / "broken"
    studies = [study for study in studies if dataset.mask_path(study)]
    if not studies:
        raise ParameterError(
            "studies", found="none with a label map", expected="at least one", remedy="show this on another cohort."
        )
    studies = sorted(studies, key=lambda study: len(list(dataset.series_dir(study).iterdir())))[:7]
    (root / "segmentations").mkdir(parents=True)
    for study in studies:
        shutil.copytree(dataset.series_dir(study), root / "train_images" / study)
        shutil.copy(dataset.mask_path(study), root / "segmentations")
    dataset.labels.loc[studies].rename_axis(STUDY_COLUMN).to_csv(root / "train.csv")
    dataset.boxes.iloc[:0].rename_axis(STUDY_COLUMN).to_csv(root / "train_bounding_boxes.csv")
    copy = RsnaDataset(root)
    for study, damage in zip(studies, (_lose_slice, _move_slices, _cut_file, shutil.rmtree), strict=False):
        damage(copy.series_dir(study))
    for study, change in zip(studies[4:], ({"moved": 0.5}, {"slices": -1}), strict=False):
        _rewrite(copy.mask_path(study), **change)
    return copy


def _in_order(series_dir: Path) -> list[Path]:
    return sorted(series_dir.glob("*.dcm"), key=lambda path: int(path.stem))


def _lose_slice(series_dir: Path) -> None:
    _in_order(series_dir)[4].unlink()


def _cut_file(series_dir: Path) -> None:
    path = _in_order(series_dir)[6]
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _move_slices(series_dir: Path) -> None:
    """Every third slice 0.24 steps toward its neighbour, along the line through the slices."""
    paths = _in_order(series_dir)
    slices = [pydicom.dcmread(path) for path in paths]
    places = np.array([dataset.ImagePositionPatient for dataset in slices], dtype=float)
    step = (places[-1] - places[0]) / (len(places) - 1)
    for path, dataset, place in list(zip(paths, slices, places, strict=True))[1:-1:3]:
        dataset.ImagePositionPatient = [f"{mm:.4f}" for mm in place + 0.24 * step]
        dataset.save_as(path)


def _rewrite(path: Path, *, moved: float = 0.0, slices: int | None = None) -> None:
    """A label map moved by some voxels along its first axis, or with only some of its slices (its third axis)."""
    image = nib.load(path)
    affine = image.affine.copy()
    affine[:3, 3] += moved * affine[:3, 0]
    labels = np.asarray(image.dataobj)[:, :, :slices].copy()  # a copy, since the file that it lies in is written anew
    nib.save(nib.Nifti1Image(labels, affine), path)


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
