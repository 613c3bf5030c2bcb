"""A folder as it is found in the wild: which series are in it, and what else.

Discs and archives put localizers, screen captures, dose reports and tables of contents beside the slices. They are
left out, each with its reason. What may be a damaged slice is never left out: a series that lost its last slice
looks whole.
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from cspine_utils.errors import SeriesError

from .alike import HeaderReader
from .elements import NotDicom
from .geometry import measure, orientation_of
from .headers import NoSlice, SliceHeader, read_headers


@dataclass(frozen=True, eq=False)
class FolderListing:
    """What lies in a folder.

    Attributes
    ----------
    folder : the folder
    series : the headers of each CT series, in the order of their first file name
    left_out : file name -> why it is no slice; `choose` adds the series that it does not choose
    """

    folder: Path
    series: tuple[tuple[SliceHeader, ...], ...]
    left_out: dict[str, str] = field(default_factory=dict)

    def choose(self, containing: str | None = None) -> tuple[SliceHeader, ...]:
        """The series to read.

        Parameters
        ----------
        containing : name of any file of the wanted series; None takes the one axial stack of slices, or the only
            stack there is, whatever its orientation

        Raises
        ------
        SeriesError : none, or more than one that it could be; the message lists them
        """
        if containing is not None:
            chosen = [s for s in self.series if any(h.path.name == containing for h in s)]
            if not chosen:
                raise self._refusal(f"no CT slice {containing!r}", "the name of a file of the wanted series")
            if len(chosen) > 1:
                raise self._refusal(f"{containing!r}, which holds frames of several series", "a file of one series")
        else:
            chosen = self._unambiguous()
        for header in (header for series in self.series for header in series):
            self.left_out.pop(header.path.name, None)  # of an earlier choice
        for series in self.series:
            if series is not chosen[0]:
                _check_no_continuation(series, chosen[0])
                reason = "another series: " + describe(series)
                self.left_out.update({header.path.name: reason for header in series})
        return chosen[0]

    def _unambiguous(self) -> list[tuple[SliceHeader, ...]]:
        if len(self.series) == 1:
            return list(self.series)
        stacks = [s for s in self.series if _is_stack(s)]
        axial = [s for s in stacks if orientation_of(s[0]) == "axial"]
        chosen = axial or stacks
        if len(chosen) != 1:
            raise self._refusal(f"{len(self.series)} series", "one axial CT series")
        return chosen

    def _refusal(self, found: str, expected: str) -> SeriesError:
        listed = "; ".join(describe(series) for series in self.series[:6])
        listed += f"; and {len(self.series) - 6} more" if len(self.series) > 6 else ""
        return SeriesError(
            self.folder,
            found=f"{found}. The folder holds: {listed}",
            expected=expected,
            remedy="name a file of the wanted series, read_series(folder, containing=...), or put each series into "
            "a folder of its own.",
        )


def look_into(folder) -> FolderListing:
    """Read the header of every file in a folder; pixels and subfolders are not read.

    Raises
    ------
    SeriesError : no such folder, no CT slice in it, or a file that may be a damaged slice: a slice with a damaged
        header or cut short, or anything unreadable that is named like the slices
    """
    folder = Path(folder)
    headers: list[SliceHeader] = []
    left_out: dict[str, str] = {}
    doubtful: dict[Path, str] = {}  # what may be a damaged slice
    others: dict[Path, NoSlice] = {}
    reader = HeaderReader()
    for path, kind in _entries(folder):
        if kind == _BROKEN_LINK:
            doubtful[path] = kind
        elif kind:
            left_out[path.name] = kind
        else:
            try:
                read = reader.read(path)
            except NotDicom:
                doubtful[path] = "a file that is not DICOM"
                continue
            if isinstance(read, NoSlice):
                others[path] = read
            else:
                headers += read
    _sort_out(headers, others, doubtful, left_out)
    for name in [name for name, reason in left_out.items() if reason == _SUBFOLDER]:
        _check_subfolder(folder / name, {(header.study_uid, header.series_uid) for header in headers})
    if not headers:
        first = next(iter(left_out.items()), None)
        raise SeriesError(
            folder,
            found=f"no CT slice among {len(left_out)} files (such as {first[0]}: {first[1]})" if first else "no files",
            expected="the DICOM slices of one CT series",
            remedy="name the folder of one series, e.g. train_images/<StudyInstanceUID>; an interrupted download "
            "leaves empty folders.",
        )
    series: dict[tuple[str, str], list[SliceHeader]] = {}
    for header in headers:
        series.setdefault((header.study_uid, header.series_uid), []).append(header)
    return FolderListing(folder, tuple(map(tuple, series.values())), left_out)


def _sort_out(headers, others: dict[Path, NoSlice], doubtful: dict[Path, str], left_out: dict[str, str]) -> None:
    """Put what surely is no slice into `left_out`; raise SeriesError for what may be a damaged one."""
    series = {(header.study_uid, header.series_uid) for header in headers}
    for path, other in others.items():
        if other.series in series:
            raise SeriesError(
                path,
                found=f"{other.reason}, in the series of the slices",
                expected="a CT slice, like the other files of its series",
                remedy="its header is damaged or it was put into the wrong series: download it again, or move it away.",
            )
        left_out[path.name] = other.reason
    suffixes = {_suffix(header.path.name) for header in headers} | {".dcm"} if doubtful else set()
    for path, reason in doubtful.items():
        suffix, before = _suffix(path.name), _suffix(path.stem)  # of 5.dcm.part, .part and .dcm
        if (suffix in suffixes and (suffix or not _is_text(path))) or (before and before in suffixes):
            raise SeriesError(
                path,
                found=reason,
                expected="a DICOM slice, since it is named like one",
                remedy="download it again if it should be a slice, or move it out of the folder.",
            )
        left_out[path.name] = reason


def _suffix(name: str) -> str:
    """The suffix, if it is one: names made of UIDs or numbers (CT.1.2.840.15, IM.001) have none."""
    suffix = os.path.splitext(name)[1].lower()
    return suffix if suffix[1:].isalpha() else ""


def _check_subfolder(folder: Path, series: set) -> None:
    """Refuse a folder whose series goes on in a subfolder, as some archives cut series; a few files tell."""
    try:
        with os.scandir(folder) as entries:
            names = sorted(entry.name for entry in entries if not _kind(entry))[:20]
    except OSError:
        return
    for name in names:
        try:
            read = read_headers(folder / name)
        except (NotDicom, SeriesError):
            continue
        if not isinstance(read, NoSlice) and (read[0].study_uid, read[0].series_uid) in series:
            raise SeriesError(
                folder,
                found="slices of the same series in a subfolder",
                expected="all slices of a series in one folder",
                remedy="move them into one folder; if they are copies, move them away.",
            )


def _is_text(path: Path) -> bool:
    """A note such as README beside slices without a suffix, which have digits in their names.

    What a server says instead of a slice is text, too, but it has the slice's name.
    """
    if any(letter.isdigit() for letter in path.name):
        return False
    try:
        with open(path, "rb") as file:
            start = file.read(512).decode("utf-8", "ignore")
    except OSError:
        return False
    return (
        bool(start) and start.lstrip()[:1] != "<" and all(letter.isprintable() or letter.isspace() for letter in start)
    )


_BROKEN_LINK = "a link that leads nowhere"
_SUBFOLDER = "a subfolder: what lies deeper is not read"


def _entries(folder: Path) -> list[tuple[Path, str]]:
    """Every entry, sorted by name, with the reason why it is not opened, or ""."""
    try:
        with os.scandir(folder) as entries:
            return [(folder / entry.name, _kind(entry)) for entry in sorted(entries, key=lambda entry: entry.name)]
    except (OSError, ValueError) as error:  # ValueError: a name that holds a zero byte
        if isinstance(error, FileNotFoundError):
            found = "no such folder"
        elif os.path.isfile(folder):
            found = "a file"
        else:
            found = f"a folder that cannot be read ({getattr(error, 'strerror', error)})"
        raise SeriesError(
            folder,
            found=found,
            expected="a folder of DICOM slices",
            remedy="name the folder of one series, e.g. train_images/<StudyInstanceUID>.",
        ) from error


def _kind(entry: os.DirEntry) -> str:
    if entry.name.startswith("."):
        return "a hidden file"
    try:
        if entry.is_dir():
            return _SUBFOLDER
        if entry.is_file():
            return ""
        return _BROKEN_LINK if entry.is_symlink() else "neither a file nor a folder"
    except OSError:  # a link that leads to itself
        return _BROKEN_LINK


def _is_stack(series: tuple[SliceHeader, ...]) -> bool:
    """Slices at different places: not a single image, and not one place followed in time."""
    places = np.array([header.position_mm for header in series])
    return len(series) > 1 and bool(np.ptp(places, axis=0).max() > 1e-3)


def _check_no_continuation(other, chosen) -> None:
    """Refuse to leave out a slice that is the next one, or a missing one, of the chosen series.

    One flipped digit in a UID makes a series of its own of it, and the chosen one looks whole if it was the last.
    """
    lost = _odd_ones(other, _plane(chosen[0]))
    if not lost or not _is_stack(chosen):
        return
    geometry = measure(chosen)
    if geometry.step_mm < 1e-3:  # several slices at each place: it will be refused for that
        return
    steps = geometry.gaps_mm.sum() / geometry.step_mm  # from the first to the last slice, missing ones counted
    affine = geometry.affine.copy()
    affine[:3, 0] *= len(geometry.gaps_mm) / steps
    for header in lost:
        x, y, z = header.position_mm
        place = np.linalg.inv(affine) @ [-x, -y, z, 1]
        number = round(place[0])
        on_the_grid = np.abs(place[:3] - [number, 0, 0]).max() < 0.05
        if on_the_grid and (number in (-1, round(steps) + 1) or (geometry.problem and 0 < number < steps)):
            raise SeriesError(
                header.path,
                found="a slice that continues the other series of the folder, under another UID",
                expected="the UID of that series, or another place",
                remedy="its header is damaged: download it again. If it really is something else, move it away.",
            )


def _odd_ones(series, plane: tuple) -> list[SliceHeader]:
    """Slices of that plane which hardly belong to their series: next to alone, in the minority, or at a taken place."""
    same = [header for header in series if _plane(header) == plane]
    if len(series) <= 2 or len(same) <= len(series) / 2:
        return same
    taken = Counter(header.position_mm for header in same)
    return [header for header in same if taken[header.position_mm] > 1]


def _plane(header: SliceHeader) -> tuple:
    """What all slices of a series share."""
    return header.rows, header.columns, *np.round((*header.orientation, *header.pixel_spacing_mm), 3)


def describe(series: tuple[SliceHeader, ...]) -> str:
    """One series in words, by nothing but its geometry and file names."""
    first = series[0]
    places = np.array([header.position_mm for header in series])
    extent = float(np.linalg.norm(np.ptp(places, axis=0)))
    return (
        f"{len(series)} {orientation_of(first)} slice(s) of {first.rows} x {first.columns} over {extent:.1f} mm "
        f"(pixels {first.pixel_spacing_mm[1]:.3f} mm; {first.path.name})"
    )
