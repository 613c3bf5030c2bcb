"""From a volume and its mask to the course's tensor: 105 frames of six channels.

Of the 210 slices over C1-C7, counted from 1 as DICOM files are, every odd slice n gives one frame:
channels 0-4 = slices n-2 ... n+2 in HU, channel 5 = the mask of slice n. The borders repeat the first
and the last slice; an index never wraps around to the other end of the neck.

The 210 slices are resampled over the C1-C7 extent, because nine of the 87 real label maps have fewer
than 210 slices and 210 consecutive slices cover a median 70 % of a segmented study. Where the extent
is 210 slices exactly, resampling changes nothing and the frames are the stored slices.
"""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from tqdm import tqdm

from cspine_utils.anatomy import CERVICAL_IDS, TARGETS
from cspine_utils.errors import CSpineError, StackError
from cspine_utils.screening import read_pair, split
from cspine_utils.volume import Volume

FRAMES = 105
CHANNELS = 6
#: Slices beside the centre slice n of a frame.
NEIGHBOURS = (-2, -1, 0, 1, 2)

#: (level, width) in HU, as radiologists name a window.
WINDOWS = {"bone": (400, 1800), "soft": (40, 400), "wide": (500, 3000)}

#: Mean and standard deviation of a slice in the bone window (0 ... 1) and of label / 7 over the synthetic cohort.
#: Constants for all data: what a study looks like must not decide how it is scaled. Without them the sparse mask
#: channel hardly reaches the network (eight studies took several times as long to learn by heart).
SLICE_SCALE = (0.15, 0.16)
MASK_SCALE = (0.012, 0.093)


#: What numpy and zipfile raise on a damaged .npz.
_DAMAGED = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile)


def cervical_slices(mask: np.ndarray, count: int = 2 * FRAMES) -> np.ndarray:
    """Positions of `count` slices, evenly spaced from the first to the last slice that shows C1-C7.

    Parameters
    ----------
    mask : uint8 `(d, h, w)`, head -> feet, 1-7 = C1-C7; other labels are ignored
    count : at least 2

    Returns
    -------
    float64 `(count,)`, increasing, in slice indices from 0 of the volume; whole numbers where the
    extent is exactly `count` slices

    Raises
    ------
    StackError : the mask shows none of C1-C7, or on one slice only
    """
    _check_count(count)
    shown = np.flatnonzero(np.isin(mask, CERVICAL_IDS).any(axis=(1, 2)))
    if len(shown) == 0 or shown[0] == shown[-1]:
        raise StackError(
            "mask",
            found="no label from C1 to C7" if len(shown) == 0 else f"C1-C7 on slice {shown[0]} only",
            expected="labels 1-7 on at least two slices",
            remedy="check that the label map belongs to this study and that its labels are 1-7 for C1-C7.",
        )
    return np.linspace(shown[0], shown[-1], count)


def check_on_grid(mask: np.ndarray, volume: Volume) -> None:
    """Raise StackError unless the mask has the volume's shape."""
    if mask.shape != volume.shape:
        raise StackError(
            "mask",
            found=f"shape {mask.shape}",
            expected=f"the volume's shape {volume.shape}",
            remedy="read the mask with nifti.read_mask(path, volume), which places it on the volume's grid.",
        )


def _check_count(count: int) -> None:
    if not isinstance(count, int | np.integer) or count < 2:
        raise StackError("count", found=repr(count), expected="an integer, at least 2", remedy="210 is usual.")


def resample_slices(volume: Volume, mask: np.ndarray, count: int = 2 * FRAMES, size=None):
    """The `count` slices over C1-C7 and their masks, in plane resized to `size`.

    HU are interpolated linearly, between slices and (with antialiasing) in plane; the mask takes the nearest
    voxel in both, so that no label is invented.

    Returns
    -------
    (hu, labels) : int16 and uint8, each `(count, h, w)`
    """
    check_on_grid(mask, volume)
    positions = cervical_slices(mask, count)
    below = np.floor(positions).astype(int)
    above = np.minimum(below + 1, len(volume.hu) - 1)
    weight = (positions - below)[:, None, None].astype(np.float32)
    nearest = np.floor(positions + 0.5).astype(int)
    labels = mask[nearest]
    height, width = _pair(size, volume.shape[1:])
    hu = np.empty((count, height, width), dtype=np.int16)
    for i in range(count):  # slice by slice: a whole float32 study of 512 x 512 would need 220 MB
        slice_hu = volume.hu[below[i]] * (1 - weight[i]) + volume.hu[above[i]] * weight[i]
        hu[i] = np.rint(_resize(slice_hu, (height, width)))
    rows, columns = (_nearest_index(n, m) for n, m in zip(mask.shape[1:], (height, width), strict=True))
    return hu, np.ascontiguousarray(labels[:, rows][:, :, columns])


def gather_six(hu: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Six channels for every odd slice (counted from 1) of the resampled slices.

    Parameters
    ----------
    hu, labels : `(2 f, h, w)` from `resample_slices`

    Returns
    -------
    float32 `(f, 6, h, w)`: channels 0-4 in HU, channel 5 the label id of the centre slice
    """
    centres = np.arange(0, len(hu), 2)  # slices 1, 3, 5 ... counted from 1
    stack = np.empty((len(centres), CHANNELS, *hu.shape[1:]), dtype=np.float32)
    for channel, offset in enumerate(NEIGHBOURS):
        # np.clip repeats the border slice; a bare index -1 would silently take the last slice of the neck.
        stack[:, channel] = hu[np.clip(centres + offset, 0, len(hu) - 1)]
    stack[:, -1] = labels[centres]
    return stack


def six_channel(volume: Volume, mask: np.ndarray, frames: int = FRAMES, size=None) -> np.ndarray:
    """The study's tensor, in HU and label ids.

    Parameters
    ----------
    volume, mask : on the same grid, `(d, h, w)`
    frames : f; twice as many slices are laid over C1-C7
    size : in-plane pixels, one number or (h, w); None keeps the volume's

    Returns
    -------
    float32 `(frames, 6, h, w)`: for every odd slice n of the 2 f: HU of n-2, n-1, n, n+1, n+2 (border
    slices repeated, never wrapped), label id of n

    Raises
    ------
    StackError : mask empty or not on the volume's grid
    """
    if not isinstance(frames, int | np.integer) or frames < 1:
        raise StackError("frames", found=repr(frames), expected="an integer, at least 1", remedy="105 is usual.")
    return gather_six(*resample_slices(volume, mask, 2 * frames, size))


def apply_window(hu, level: float, width: float):
    """HU -> 0 ... 1, clipped; `level` is the HU in the middle, `width` the HU from black to white."""
    return ((hu - (level - width / 2)) / width).clip(0, 1)


def scale_hu(hu, window: str = "bone"):
    """HU of any shape -> windowed to 0 ... 1, then mean 0 and spread 1 by the course's constants."""
    if window not in WINDOWS:
        raise StackError("window", found=repr(window), expected=", ".join(WINDOWS), remedy="choose one of these.")
    return _scaled(apply_window(hu, *WINDOWS[window]), SLICE_SCALE)


def normalise(stack, window: str = "bone"):
    """What a network gets: HU windowed to 0 ... 1, labels 1-7 divided by 7 (others 0), both with mean 0 and spread 1.

    One fixed window and fixed constants for all studies: minimum-maximum scaling per slice would let a tooth
    filling decide the contrast of the bone beside it. Takes and gives `(f, 6, h, w)` (array or tensor).
    """
    out = stack.clone() if isinstance(stack, torch.Tensor) else stack.copy()
    out[:, :-1] = scale_hu(stack[:, :-1], window)
    labels = stack[:, -1]
    out[:, -1] = _scaled(labels * (labels <= CERVICAL_IDS[-1]) / CERVICAL_IDS[-1], MASK_SCALE)
    return out


def labels_of(channel: torch.Tensor) -> torch.Tensor:
    """Label ids 0-7 from a mask channel as `normalise` gives it, any shape."""
    mean, spread = MASK_SCALE
    return torch.round((channel * spread + mean) * CERVICAL_IDS[-1]).long().clamp_(0, CERVICAL_IDS[-1])


def _scaled(values, scale: tuple[float, float]):
    mean, spread = scale
    return (values - mean) / spread


def prepare(dataset, studies, out, *, size, count: int = 2 * FRAMES, progress: bool = True) -> pd.DataFrame:
    """Write each study's resampled slices and mask once; stacks are gathered from them when loaded.

    A study that cannot be prepared is listed with its reason and the run goes on. A study that is
    already there with the same settings and unchanged source files is not made again, and each is
    written under a temporary name and renamed, so a killed run leaves nothing half-written.

    Parameters
    ----------
    dataset : RsnaDataset
    studies : ids
    out : folder; a study becomes `<study>.npz` with `hu` int16, `labels` uint8 `(count, h, w)`
    size : in-plane pixels

    Returns
    -------
    DataFrame, index study, columns `status` ("made", "kept", "skipped" without a label map, "failed") and `reason`
    """
    out = Path(out)
    _pair(size, (1, 1))
    _check_count(count)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StackError(
            out, found=f"no folder ({error.strerror})", expected="a folder, made if missing", remedy="name another one."
        ) from error
    rows = {}
    bar = tqdm(studies, desc="stacks", unit="study", disable=not progress)
    for study in bar:
        try:
            if dataset.mask_path(study) is None:
                rows[study] = ("skipped", "no label map that says where C1-C7 are")
            else:
                rows[study] = (_prepare_one(dataset, study, out, size, count), "")
        except CSpineError as error:
            rows[study] = ("failed", str(error))
    table = pd.DataFrame.from_dict(rows, orient="index", columns=["status", "reason"])
    table.index.name = "study"
    return table


class StackDataset(torch.utils.data.Dataset):
    """Prepared studies as training samples: x float32 `(f, 6, h, w)`, y float32 `(8,)`.

    Parameters
    ----------
    store : folder written by `prepare`
    labels : DataFrame indexed by study with the columns `anatomy.TARGETS`; one sample a row
    window : a key of `WINDOWS`
    blank_mask : show no label anywhere (a control: the mask is an input too)
    """

    def __init__(self, store, labels: pd.DataFrame, *, window: str = "bone", blank_mask: bool = False):
        self.store, self.window, self.blank_mask = Path(store), window, blank_mask
        self.studies = list(labels.index)
        self.targets = torch.tensor(np.ascontiguousarray(labels[list(TARGETS)]), dtype=torch.float32)
        absent = [study for study in self.studies if not _file(self.store, study).is_file()]
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
        """Changes with the studies, their order, their labels, their stacks and the options: equal means equal data."""
        stacks = [_stored_source(_file(self.store, study)) for study in self.studies]
        facts = [self.studies, stacks, self.targets.tolist(), self.window, self.blank_mask]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]

    def __getitem__(self, index: int):
        path = _file(self.store, self.studies[index])
        try:
            with np.load(path) as file:
                stack = gather_six(file["hu"], file["labels"])
        except _DAMAGED as error:
            raise StackError(
                path,
                found=f"a file that cannot be read ({error})",
                expected="a prepared study",
                remedy="delete it and run stacks.prepare again.",
            ) from error
        if self.blank_mask:
            stack[:, -1] = 0
        return torch.from_numpy(normalise(stack, self.window)), self.targets[index]


def two_sets(dataset, store, *, size, validation_share: float, seed: int, progress: bool = False):
    """Prepare every study with a label map, and split them: the same studies in every notebook of one seed.

    Parameters
    ----------
    dataset : RsnaDataset
    store, size, progress : see `prepare`
    validation_share : share of the usable studies to judge by; at least two are taken
    seed : of the split

    Returns
    -------
    (train, validation, report) : two StackDatasets without a study in common; the table of `prepare`
    """
    report = prepare(dataset, dataset.studies, store, size=size, progress=progress)
    usable = report.index[report["status"].isin(["made", "kept"])]
    held_out = max(2, round(validation_share * len(usable)))
    sizes = {"validation": held_out, "train": len(usable) - held_out}
    parts = split(usable, dataset.labels, sizes=sizes, generator=np.random.default_rng(seed))
    train, validation = (StackDataset(store, dataset.labels.loc[parts[name]]) for name in ("train", "validation"))
    return train, validation, report


def _prepare_one(dataset, study: str, out: Path, size, count: int) -> str:
    path = _file(out, study)
    mask_path = dataset.mask_path(study)
    source = _fingerprint(dataset.series_dir(study), mask_path, size, count)
    if path.is_file() and _stored_source(path) == source:
        return "kept"
    hu, labels = resample_slices(*read_pair(dataset, study), count, size)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    with open(temporary, "wb") as file:
        np.savez(file, hu=hu, labels=labels, source=np.array(source))
    os.replace(temporary, path)
    return "made"


def _fingerprint(series_dir: Path, mask_path: Path, size, count: int) -> str:
    """Changes when a source file or a setting does. Names, sizes and times: hashing 300 GB takes hours."""
    facts = [[file.name, *_state(file)] for file in [*sorted(series_dir.iterdir()), mask_path]]
    return hashlib.sha256(json.dumps([1, list(_pair(size, (0, 0))), count, facts]).encode()).hexdigest()


def _state(file: Path) -> tuple[int, int]:
    try:
        state = file.stat()
    except OSError:  # a link that leads nowhere
        return -1, -1
    return state.st_size, state.st_mtime_ns


def _stored_source(path: Path) -> str | None:
    try:
        with np.load(path) as file:
            return str(file["source"])
    except _DAMAGED:  # make it again
        return None


def _file(store: Path, study: str) -> Path:
    return store / f"{study}.npz"


def _pair(size, default) -> tuple[int, int]:
    if size is None:
        return tuple(default)
    pair = tuple(size) if isinstance(size, tuple | list) else (size, size)
    if len(pair) != 2 or not all(isinstance(n, int | np.integer) and n > 0 for n in pair):
        raise StackError("size", found=repr(size), expected="pixels: one positive integer or (h, w)", remedy="e.g. 64.")
    return int(pair[0]), int(pair[1])


def _nearest_index(source: int, target: int) -> np.ndarray:
    """Index of the source pixel whose centre lies nearest to each target pixel's centre."""
    return np.minimum(((np.arange(target) + 0.5) * source / target).astype(int), source - 1)


def _resize(image: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Linear with antialiasing: a plain linear resize of 512 to 64 pixels would skip most of the thin cortex."""
    if image.shape == shape:
        return image
    tensor = torch.from_numpy(image)[None, None]
    return F.interpolate(tensor, size=shape, mode="bilinear", antialias=True, align_corners=False)[0, 0].numpy()
