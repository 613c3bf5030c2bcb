"""Prepared studies on disk: three files a study, the last of which says that the study is there.

    <study>.hu.npy     int16 (count, h, w), HU
    <study>.mask.npy   uint8 (count, h, w), label ids
    <study>.json       what it was made from and how, its geometry, its boxes

Each file is written under a temporary name and renamed, the JSON last. Whoever writes a study holds its lock, which
the system takes back from a killed process; so two runs in one folder wait for each other instead of mixing files.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import io
import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from cspine_utils.errors import StackError

from .boxes import evidence
from .slices import CHANNELS, gather_six, shown_slices
from .windows import scale_hu, scale_labels

#: Of the files' form. A store of another version is made again.
VERSION = 2
_ARRAYS = {"hu": np.dtype(np.int16), "mask": np.dtype(np.uint8)}
_REMEDY = "delete its three files and run stacks.prepare again."


@dataclass(frozen=True, eq=False)
class Stored:
    """A prepared study, its arrays mapped from disk: nothing is read before it is used.

    Attributes
    ----------
    hu : int16 `(count, h, w)`; labels : uint8 of the same shape
    facts : what its JSON says
    """

    study: str
    hu: np.ndarray
    labels: np.ndarray
    facts: dict

    def __len__(self) -> int:
        """Frames."""
        return len(self._shown)

    @cached_property
    def _shown(self) -> np.ndarray:
        return shown_slices(len(self.hu))

    @property
    def positions(self) -> np.ndarray:
        """Where the slices lie: float64 `(count,)`, in slice indices from 0 of the volume."""
        geometry = self.facts["geometry"]
        return np.linspace(geometry["first_slice"], geometry["last_slice"], len(self.hu))

    def frame(self, index: int) -> np.ndarray:
        """Six channels of one frame in HU and label ids: float32 `(6, h, w)`."""
        out = np.empty((CHANNELS, *self.hu.shape[1:]), dtype=np.float32)
        for channel, slice_index in enumerate(self._shown[index]):
            out[channel] = self.hu[slice_index]
        out[-1] = self.labels[2 * index]
        return out

    def stack(self) -> np.ndarray:
        """All frames in HU and label ids: float32 `(f, 6, h, w)`, equal to `six_channel` of the volume."""
        return gather_six(self.hu, self.labels)

    def normalised(self, window: str = "bone", *, blank_mask: bool = False) -> np.ndarray:
        """All frames as a network gets them: float32 `(f, 6, h, w)`, equal to `normalise(self.stack())`.

        A slice is shown by two or three frames, so slices are scaled before the frames are gathered.
        """
        labels = self.labels[:].astype(np.float32) * (not blank_mask)
        return gather_six(scale_hu(self.hu.astype(np.float32), window), scale_labels(labels))

    def evidence(self, fractured) -> np.ndarray:
        """Where the boxes say that a fractured vertebra is broken: float32 `(f, h, w)` of its label, or 0.

        NaN everywhere if nobody said where: a fractured study without boxes, or without a label map.
        """
        if not self.facts["boxes_known"]:
            return np.full((len(self), *self.hu.shape[1:]), np.nan, dtype=np.float32)
        return evidence(self.labels, self.facts["boxes"], self.facts["geometry"]["slice_step"], fractured)


def open_study(store, study: str) -> Stored:
    """A study of a store written by `stacks.prepare`.

    Raises StackError for a study that is not there or whose files are damaged.
    """
    store = Path(store)
    path = store / f"{study}.json"
    facts = read_facts(store, study)
    if facts is None:
        missing = not path.exists()
        raise StackError(
            path,
            found="no such study in this store" if missing else "a file that cannot be read",
            expected="a study prepared by this version of the package",
            remedy="run stacks.prepare for it." if missing else _REMEDY,
        )
    return Stored(study, *(_mapped(store / f"{study}.{name}.npy", name, facts) for name in _ARRAYS), facts)


def read_facts(store: Path, study: str) -> dict | None:
    """What the JSON of a study says, or None where there is none of this version that can be read."""
    try:
        facts = json.loads((store / f"{study}.json").read_bytes())
        right = facts["version"] == VERSION and facts["study"] == study
        shape, geometry = facts["shape"], facts["geometry"]
        right &= (
            len(shape) == 3
            and min(shape) > 0
            and geometry["last_slice"] > geometry["first_slice"]
            and geometry["slice_step"] > 0
        )
        right &= all(len(box) == 5 for box in facts["boxes"]) and isinstance(facts["boxes_known"], bool)
        return facts if right and isinstance(facts["source"], str) and isinstance(facts["notes"], list) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def is_whole(store: Path, study: str, facts: dict) -> bool:
    """Whether the arrays that the JSON speaks of are there in full."""
    try:
        for name in _ARRAYS:
            _mapped(store / f"{study}.{name}.npy", name, facts)
    except StackError:
        return False
    return True


def _mapped(path: Path, name: str, facts: dict) -> np.ndarray:
    """The array in a file that begins and ends as `prepare` wrote it.

    What the heading of a damaged file says is not even looked at: the JSON tells what it must be.
    """
    shape, kind = tuple(facts["shape"]), _ARRAYS[name]
    heading = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        heading, {"descr": np.lib.format.dtype_to_descr(kind), "fortran_order": False, "shape": shape}
    )
    expected = heading.tell() + math.prod(shape) * kind.itemsize
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size == expected and file.read(heading.tell()) == heading.getvalue():
                return np.memmap(file, kind, "r", heading.tell(), shape)
        found = f"{size} bytes" if size != expected else "another heading"
    except OSError as error:
        found = f"a file that cannot be read ({error.strerror})"
    raise StackError(path, found=found, expected=f"{expected} bytes, {kind} {shape} as its JSON says", remedy=_REMEDY)


@contextlib.contextmanager
def locked(store: Path, study: str) -> Iterator[None]:
    """Nobody else writes this study meanwhile. Waits for whoever does; the lock of a killed process is free."""
    path = _lock_file(store, study)
    descriptor = _lock(path)
    try:
        for name in _files(study):  # of a killed run: nobody writes them now
            _temporary(store / name).unlink(missing_ok=True)
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def is_at_work(store: Path, study: str) -> bool:
    """Whether somebody writes this study, or was killed over it: only who gets its lock knows what is there."""
    return _lock_file(store, study).exists()


def _lock_file(store: Path, study: str) -> Path:
    return store / f".{study}.lock"


def _lock(path: Path) -> int:
    """A descriptor that holds the lock of the file that is at this path now."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        try:
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                return descriptor
        except FileNotFoundError:
            pass  # its last holder has taken it away meanwhile
        os.close(descriptor)


def write_study(store: Path, study: str, hu: np.ndarray, labels: np.ndarray, facts: dict) -> None:
    """Write the three files of a study, whose lock the caller holds.

    Raises StackError where there is no room or no way to write; the study is then not in the store.
    """
    try:
        for name, content in zip(_files(study), (hu, labels, facts), strict=True):
            replace_file(store / name, content)
    except OSError as error:
        forget(store, study)
        raise no_place(store, error, size=hu.nbytes + labels.nbytes) from error


def forget(store: Path, study: str) -> None:
    """Take a study, whose lock the caller holds, out of the store: first what says that it is there."""
    for name in reversed(_files(study)):
        (store / name).unlink(missing_ok=True)


def _files(study: str) -> tuple[str, str, str]:
    """Names of its files in the order in which they are written."""
    return f"{study}.hu.npy", f"{study}.mask.npy", f"{study}.json"


def replace_file(path: Path, content) -> None:
    """Write an array, or a dict as JSON, under a temporary name and rename it. Nothing is left of a write that fails.

    Raises OSError.
    """
    temporary = _temporary(path)
    try:
        with open(temporary, "wb") as file:
            if isinstance(content, dict):
                file.write(json.dumps(content, separators=(",", ":")).encode() + b"\n")
            else:
                np.lib.format.write_array(file, np.ascontiguousarray(content), allow_pickle=False)
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.part")


def no_place(store: Path, error: OSError, size: int = 0) -> StackError:
    """What to say when a store cannot be written to."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    return StackError(
        store,
        found="a full disk" if full else f"no place to write to ({error.strerror})",
        expected=f"room for {size / 1e6:.1f} MB a study" if size else "a folder, made if missing",
        remedy="free some space and run stacks.prepare again: finished studies are kept."
        if full
        else "name another folder, or correct its permissions.",
    )
