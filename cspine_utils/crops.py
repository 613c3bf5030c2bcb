"""Vertebrae cut out of synthetic necks, each beside its intact twin: what a small transformer learns to see from.

A crop has the form of a piece of the study tensor: f frames of six channels, [slice n-2 ... n+2, mask n], at nearly the
spacing that whole stacks have, so that what is learned here can be used there. Two crops of a pair differ in nothing but
the fracture; they even share their noise.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy.ndimage import map_coordinates
from tqdm import tqdm

from cspine_utils import parallel, phantom, stacks
from cspine_utils.anatomy import LEVELS, TARGETS
from cspine_utils.errors import ParameterError, StackError
from cspine_utils.phantom.cohort import VERSION

#: A fractured crop and its twin, in this order along a pair.
BROKEN, INTACT = 0, 1


@dataclass(frozen=True)
class CropForm:
    """How a crop lies on the neck.

    Attributes
    ----------
    frames, size : f and the h = w of its tensor `(f, 6, h, w)`
    frame_mm, pixel_mm : from frame to frame, and from pixel to pixel; a whole stack has 105 frames on 95-120 mm
    study_size : pixels across of the study that it is cut from: 160 give voxels of 1.0-1.1 mm
    """

    frames: int = 40
    size: int = 64
    frame_mm: float = 1.05
    pixel_mm: float = 1.0
    study_size: int = 160

    @property
    def box_mm(self) -> tuple[float, float, float]:
        """What must be rendered, with two voxels to spare on every side for the interpolation."""
        return (self.frames * self.frame_mm + 6.0, self.size * self.pixel_mm + 5.0, self.size * self.pixel_mm + 5.0)


def render_crops(
    out, count: int, *, difficulty: str, seed: int, first: int = 0, form: CropForm = CropForm(),
    workers: int = 0, progress: bool = True,
) -> Path:  # fmt: skip
    """Write `count` pairs, one vertebra of one neck each, levels in turn; necks are numbered from `first`.

    A pair that is there is not made again: a killed run goes on where it was.

    Parameters
    ----------
    out : folder; pair i becomes `<i>.npz`, with `crops.json` telling what made them
    difficulty, seed : of the phantom; two sets with other numbers of necks share no patient
    workers : processes, 0 for none but this one

    Raises
    ------
    ParameterError : a folder of other crops
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    _claim(out, {"difficulty": difficulty, "seed": seed, "phantom": VERSION, **asdict(form)})
    numbers = [i for i in range(first, first + count) if not _file(out, i).is_file()]
    work = partial(_render_one, str(out), difficulty, seed, form)
    bar = tqdm(total=count, initial=count - len(numbers), desc=f"crops, {difficulty}", unit="pair", disable=not progress)
    with bar:
        for number, result in parallel.each(work, numbers, workers=workers):
            if isinstance(result, parallel.Failure):
                raise StackError(
                    _file(out, number), found=result.reason, expected="a rendered pair", remedy="run it again."
                )
            bar.update()
    return out


class TwinCrops(torch.utils.data.Dataset):
    """Pairs written by `render_crops` as samples: items 2i and 2i + 1 are the broken crop and the intact one of pair i.

    x is float32 `(f, 7, h, w)`: the six channels as `stacks.normalise` gives them, then 1 where the fracture altered the
    centre slice and 0 elsewhere. y is float32 `(8,)` with the crop's own level 0 or 1 and NaN, "not told", elsewhere.

    Parameters
    ----------
    folder, numbers : the pairs to use
    window : a key of `stacks.WINDOWS`
    twins_in_batch : `epoch_order` puts the two of a pair side by side; False shuffles all crops
    voxels : False gives NaN instead of the altered voxels: the image label alone
    """

    def __init__(self, folder, numbers, *, window: str = "bone", twins_in_batch: bool = True, voxels: bool = True):
        self.folder, self.numbers, self.window = Path(folder), list(numbers), window
        self.twins_in_batch, self.voxels = twins_in_batch, voxels
        absent = [i for i in self.numbers if not _file(self.folder, i).is_file()]
        if absent:
            raise StackError(
                self.folder,
                found=f"{len(absent)} pairs missing, the first {absent[0]}",
                expected=f"{len(self.numbers)} pairs",
                remedy="write them with crops.render_crops.",
            )

    def __len__(self) -> int:
        return 2 * len(self.numbers)

    @property
    def fingerprint(self) -> str:
        """Equal means equal data."""
        facts = [(self.folder / "crops.json").read_text(), self.numbers, self.window, self.twins_in_batch, self.voxels]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]

    @property
    def levels(self) -> np.ndarray:
        """Level of each crop, as an index into `LEVELS`."""
        return np.repeat([number % len(LEVELS) for number in self.numbers], 2)

    @property
    def broken(self) -> np.ndarray:
        """1 for a broken crop, 0 for its twin."""
        return np.tile([1, 0], len(self.numbers))

    @property
    def patients(self) -> np.ndarray:
        """Number of the neck of each crop."""
        return np.repeat(self.numbers, 2)

    def epoch_order(self, generator: torch.Generator) -> list[int]:
        """The order of one epoch: pairs in random order, or all crops."""
        if not self.twins_in_batch:
            return torch.randperm(len(self), generator=generator).tolist()
        return [2 * i + side for i in torch.randperm(len(self.numbers), generator=generator).tolist() for side in (0, 1)]

    def __getitem__(self, index: int):
        pair, side = divmod(index, 2)
        number = self.numbers[pair]
        hu, labels, altered = self._read(number)
        stack = stacks.gather_six(hu[side], labels[side])
        if side == INTACT:
            altered = np.zeros_like(altered)
        x = stacks.normalise(stack, self.window)
        marked = altered.astype(np.float32) if self.voxels else np.full(altered.shape, np.nan, np.float32)
        y = torch.full((len(TARGETS),), torch.nan)
        y[number % len(LEVELS)] = float(side == BROKEN)
        return torch.from_numpy(np.concatenate([x, marked[:, None]], axis=1)), y

    def _read(self, number: int):
        with np.load(_file(self.folder, number)) as file:
            return file["hu"], file["labels"], file["altered"]


def crop_of(rendered: phantom.Rendered, form: CropForm) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The middle of a rendered box on the crop's grid.

    Returns
    -------
    (hu, labels, altered) : int16 and uint8 `(2 f, h, w)`; bool `(f, h, w)` on the centre slices
    """
    steps = np.array([form.frame_mm / 2, form.pixel_mm, form.pixel_mm])
    spacing = np.linalg.norm(rendered.affine[:3, :3], axis=0)
    shape = (2 * form.frames, form.size, form.size)
    axes = [
        (n_from - 1) / 2 + (np.arange(n) - (n - 1) / 2) * step / mm
        for n_from, n, step, mm in zip(rendered.hu.shape, shape, steps, spacing, strict=True)
    ]
    places = np.stack(np.meshgrid(*axes, indexing="ij"))
    hu = map_coordinates(rendered.hu.astype(np.float32), places, order=1, mode="nearest")
    nearest = tuple(np.clip(np.rint(p).astype(int), 0, n - 1) for p, n in zip(places, rendered.hu.shape, strict=True))
    return np.rint(hu).astype(np.int16), rendered.labels[nearest], rendered.altered[nearest][::2]


def _render_one(out: str, difficulty: str, seed: int, form: CropForm, number: int) -> None:
    level = LEVELS[number % len(LEVELS)]
    plan = phantom.draw_plan(seed, number, size=form.study_size, difficulty=difficulty, levels=(level,))
    pair = phantom.render_vertebra_pair(plan, level, box_mm=form.box_mm)
    hu, labels, altered = zip(*(crop_of(rendered, form) for rendered in pair), strict=True)
    path = _file(Path(out), number)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    with open(temporary, "wb") as file:
        np.savez(file, hu=np.stack(hu), labels=np.stack(labels), altered=altered[BROKEN])
    os.replace(temporary, path)


def _claim(out: Path, settings: dict) -> None:
    """The folder's settings are these, or it is refused."""
    path, text = out / "crops.json", json.dumps(settings, indent=2, sort_keys=True) + "\n"
    if path.exists() and path.read_text() != text:
        raise ParameterError(
            path,
            found=" ".join(path.read_text().split()),
            expected=" ".join(text.split()),
            remedy="name another folder, or delete this one.",
        )
    temporary = path.with_name(f".crops.json.{os.getpid()}.part")
    temporary.write_text(text)
    os.replace(temporary, path)


def _file(folder: Path, number: int) -> Path:
    return folder / f"{number}.npz"
