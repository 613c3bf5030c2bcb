"""Vertebrae cut out of synthetic necks, each beside its intact twin: what a small transformer learns to see from.

A crop has the form of a piece of the study tensor: f frames of six channels, [slice n-2 ... n+2, mask n], at nearly
the spacing that whole stacks have, so that what is learned here can be used there. Two crops of a pair differ in
nothing but the fracture; they even share their noise.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from functools import partial
from numbers import Real
from pathlib import Path

import numpy as np
import torch
from scipy.ndimage import map_coordinates
from tqdm import tqdm

from cspine_utils import files, parallel, phantom, stacks
from cspine_utils.anatomy import LABEL_IDS, LEVELS, TARGETS
from cspine_utils.errors import ParameterError, StackError, check_whole_number
from cspine_utils.mask_jitter import MaskJitter
from cspine_utils.phantom.cohort import VERSION

#: A piece of a crop shows its fracture if so many altered voxels (of about 1 mm3) are in it.
ENOUGH_VOXELS = 20

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

    Raises ParameterError for a form that cannot be.
    """

    frames: int = 40
    size: int = 64
    frame_mm: float = 1.05
    pixel_mm: float = 1.0
    study_size: int = 160

    def __post_init__(self):
        check_whole_number("frames", self.frames, 1)
        check_whole_number("size", self.size, 1)
        for name in ("frame_mm", "pixel_mm"):
            length = getattr(self, name)
            if not isinstance(length, Real) or not 0.1 <= length <= 10:
                raise ParameterError(name, found=repr(length), expected="0.1 to 10 mm", remedy="about 1 mm is usual.")

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
    ParameterError : a folder of other crops; arguments that cannot be
    StackError : a pair that could not be rendered
    """
    check_whole_number("count", count, 0)
    check_whole_number("first", first, 0)
    phantom.draw_plan(seed, first, size=form.study_size, difficulty=difficulty)  # refuses before a folder is claimed
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    _claim(out, {"difficulty": difficulty, "seed": seed, "phantom": VERSION, **asdict(form)})
    numbers = [i for i in range(first, first + count) if not _file(out, i).is_file()]
    work = partial(_render_one, str(out), difficulty, seed, form)
    bar = tqdm(
        total=count, initial=count - len(numbers), desc=f"crops, {difficulty}", unit="pair", disable=not progress
    )
    with bar:
        for number, result in parallel.each(work, numbers, workers=workers):
            if isinstance(result, parallel.Failure):
                raise StackError(
                    _file(out, number), found=result.reason, expected="a rendered pair", remedy="run it again."
                )
            bar.update()
    return out


@dataclass(frozen=True)
class View:
    """A piece of a pair of crops, the same of both twins, for one epoch.

    Attributes
    ----------
    corner, frames, size : where it begins (frame, row, column) and how large it is
    mirrored : left and right exchanged
    gain, offset : HU are multiplied by one and raised by the other
    torn : seed by which the mask is torn, of both twins alike; None leaves it as it is
    """

    corner: tuple[int, int, int]
    frames: int
    size: int
    mirrored: bool = False
    gain: float = 1.0
    offset: float = 0.0
    torn: int | None = None

    @property
    def place(self) -> tuple[slice, slice, slice]:
        """Of `(f, h, w)`."""
        first, top, left = self.corner
        return slice(first, first + self.frames), slice(top, top + self.size), slice(left, left + self.size)


class TwinCrops(torch.utils.data.Dataset):
    """Pairs written by `render_crops` as samples: items 2i and 2i + 1 are the broken and the intact crop of pair i.

    x is float32 `(f, 7, h, w)`: the six channels as `stacks.normalise` gives them, then the vertebra's label where the
    fracture altered the centre slice and 0 elsewhere. y is float32 `(8,)` with the crop's own level 0 or 1 and NaN,
    "not told", elsewhere.

    Parameters
    ----------
    folder, numbers : the pairs to use
    window : a key of `stacks.WINDOWS`
    closer : (frames, size) of the pieces that are looked at in training, None for whole crops. Half of them lie around
        a broken voxel, half around any voxel of the vertebra. A piece costs a quarter of a crop and shows what matters.
    jitter : how masks are torn in training, the same way for the two of a pair; None leaves them as they are
    twins : `epoch_order` puts the two of a pair side by side; False shuffles all crops
    voxels : False gives NaN instead of the altered voxels: the image label alone

    Pieces, mirror images, brightness and torn masks are drawn by `epoch_order`, which training calls at the start of
    an epoch. A set for which it was never called shows whole crops as they are.

    Raises
    ------
    StackError : pairs that the folder does not have, a window that there is not
    ParameterError : pieces larger than the crops
    """

    def __init__(
        self, folder, numbers, *, window: str = "bone", closer: tuple[int, int] | None = None,
        jitter: MaskJitter | None = None, twins: bool = True, voxels: bool = True,
    ):  # fmt: skip
        self.folder, self.numbers, self.window = Path(folder), list(numbers), window
        self.closer, self.jitter, self.twins, self.voxels = closer, jitter, twins, voxels
        self.views: dict[int, View] = {}
        self._last: tuple[int, View | None] | None = None
        self._shown: list[np.ndarray] = []
        stacks.scale_hu(np.zeros(1, np.float32), window)  # refuses a window that there is not
        absent = [i for i in self.numbers if not _file(self.folder, i).is_file()]
        if absent:
            raise StackError(
                self.folder,
                found=f"{len(absent)} pairs missing, the first {absent[0]}",
                expected=f"{len(self.numbers)} pairs",
                remedy="write them with crops.render_crops.",
            )
        if closer is not None:
            _check_closer(closer, json.loads((self.folder / "crops.json").read_text()))

    def __len__(self) -> int:
        return 2 * len(self.numbers)

    @property
    def fingerprint(self) -> str:
        """Equal means equal data."""
        made = (self.folder / "crops.json").read_text()
        facts = [made, self.numbers, self.window, self.closer, repr(self.jitter), self.twins, self.voxels]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]

    @property
    def levels(self) -> np.ndarray:
        """Level of each crop, as an index into `LEVELS`."""
        return np.repeat([number % len(LEVELS) for number in self.numbers], 2)

    @property
    def patients(self) -> np.ndarray:
        """Number of the neck of each crop."""
        return np.repeat(self.numbers, 2)

    def epoch_order(self, generator: torch.Generator) -> list[int]:
        """Draw what is seen of each pair in one epoch, and the order in which."""
        rng = np.random.default_rng(int(torch.randint(2**62, (1,), generator=generator)))
        self.views = {pair: self._draw_view(pair, rng) for pair in range(len(self.numbers))}
        if not self.twins:
            return rng.permutation(len(self)).tolist()
        return [2 * int(pair) + side for pair in rng.permutation(len(self.numbers)) for side in (BROKEN, INTACT)]

    def __getitem__(self, index: int):
        pair, side = divmod(index, 2)
        number, view = self.numbers[pair], self.views.get(pair)
        hu, labels, altered, shown = self._show(pair, view)
        view = view or View((0, 0, 0), *altered.shape[:2])
        x = torch.from_numpy(_seen(hu[side], shown[side], view, self.window))
        marked = torch.from_numpy((labels[side, ::2] * (altered & (side == BROKEN)))[view.place]).float()
        if not self.voxels:
            marked = torch.full_like(marked, torch.nan)
        x = torch.cat([x, marked[:, None]], dim=1)
        y = torch.full((len(TARGETS),), torch.nan)
        y[number % len(LEVELS)] = self._told(side, altered, labels[side], number, view)
        return x.flip(-1) if view.mirrored else x, y

    def _told(self, side: int, altered, labels, number: int, view: View) -> float:
        """0 or 1, or NaN where the piece shows too little of the fracture, or nothing of the vertebra, to tell."""
        if side == INTACT:
            shown = (labels[::2][view.place] == LABEL_IDS[LEVELS[number % len(LEVELS)]]).any()
            return 0.0 if shown else float("nan")
        seen = int(altered[view.place].sum())
        return 1.0 if seen and seen >= min(ENOUGH_VOXELS, int(altered.sum())) else float("nan")

    def _draw_view(self, pair: int, rng: np.random.Generator) -> View:
        labels, altered = self._read(pair, "labels", "altered")
        changes = {"mirrored": bool(rng.random() < 0.5), "gain": float(rng.uniform(0.93, 1.07))}
        changes["offset"] = float(rng.uniform(-40, 40))
        changes["torn"] = None if self.jitter is None else int(rng.integers(2**62))
        if self.closer is None:
            return View((0, 0, 0), *altered.shape[:2], **changes)
        frames, size = self.closer
        around = altered if rng.random() < 0.5 and altered.any() else None
        if around is None:
            around = labels[INTACT, ::2] == LABEL_IDS[LEVELS[self.numbers[pair] % len(LEVELS)]]
        extent = np.array([frames, size, size])
        places = np.argwhere(around)
        middle = places[rng.integers(len(places))] + rng.integers(-(extent // 3), extent // 3 + 1)
        corner = np.clip(middle - extent // 2, 0, np.array(altered.shape) - extent)
        return View(tuple(int(c) for c in corner), frames, size, **changes)

    def _show(self, pair: int, view: View | None) -> list[np.ndarray]:
        """hu, labels, altered of both twins, and the masks that are shown of them, on the centre slices.

        Kept until another pair is asked for: twins follow each other, and are read and torn once.
        """
        if self._last != (pair, view):
            self._shown = self._read(pair, "hu", "labels", "altered")
            mask = torch.from_numpy(self._shown[1][:, ::2])
            torn = mask if view is None or view.torn is None else self.jitter(mask, view.torn)
            self._shown.append(torn.numpy())
            self._last = pair, view
        return self._shown

    def _read(self, pair: int, *names: str) -> list[np.ndarray]:
        with np.load(_file(self.folder, self.numbers[pair])) as file:
            return [file[name] for name in names]


def _seen(hu: np.ndarray, mask: np.ndarray, view: View, window: str) -> np.ndarray:
    """The six channels of a view, as networks get them: hu `(2 f, h, w)`, mask `(f, h, w)` -> `(frames, 6, h, w)`."""
    frames, rows, columns = view.place
    # Two slices more on either side, repeated at the crop's own ends as a whole stack repeats its.
    slices = np.clip(np.arange(2 * frames.start - 2, 2 * frames.stop + 2), 0, len(hu) - 1)
    bright = stacks.scale_hu(hu[slices, rows, columns].astype(np.float32) * view.gain + view.offset, window)
    named = stacks.scale_labels(mask[frames, rows, columns].astype(np.float32))
    x = np.empty((view.frames, stacks.CHANNELS, view.size, view.size), dtype=np.float32)
    for channel, offset in enumerate(stacks.NEIGHBOURS):
        x[:, channel] = bright[2 + offset : 2 + offset + 2 * view.frames : 2]
    x[:, -1] = named
    return x


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
    with files.replacing(path, shared=True) as temporary, open(temporary, "wb") as file:
        np.savez(file, hu=np.stack(hu), labels=np.stack(labels), altered=altered[BROKEN])


def _check_closer(closer, form: dict) -> None:
    """Raise ParameterError unless a piece (frames, size) fits into crops of this form."""
    if not isinstance(closer, tuple | list) or len(closer) != 2:
        raise ParameterError("closer", found=repr(closer), expected="(frames, size)", remedy="(25, 40) is usual.")
    frames, size = closer
    check_whole_number("frames of closer", frames, 1)
    check_whole_number("size of closer", size, 1)
    if frames > form["frames"] or size > form["size"]:
        raise ParameterError(
            "closer",
            found=f"{frames} frames of {size} x {size}",
            expected=f"at most {form['frames']} frames of {form['size']} x {form['size']}, as the crops have them",
            remedy="take smaller pieces, or None for whole crops.",
        )


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
    files.write_text(path, text, shared=True)


def _file(folder: Path, number: int) -> Path:
    return folder / f"{number}.npz"
