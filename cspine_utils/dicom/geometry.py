"""Where the slices of a series lie, measured: order, step, tilt, and whether they form one even grid.

Order and step come from ImagePositionPatient along the slice normal, never from file names, InstanceNumber or
SliceThickness: 197 of the 2,019 real studies are stored feet -> head, ten have no `1.dcm`, and the step often differs
from the thickness. (DICOM PS3.3, C.7.6.2 Image Plane Module.)
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from nibabel import orientations

from cspine_utils.errors import SeriesError
from cspine_utils.volume import AXIS_CODES, Grid, lps_to_ras

from .headers import SliceHeader

#: A gap between neighbouring slices may differ from the median gap by this share of it.
STEP_TOLERANCE = 0.1
#: Small differences add up: no slice may lie further than this share of a step from its place on the even grid.
PLACE_TOLERANCE = 0.5
#: Positions rounded to 0.1 mm are even, too: slices this close to their places on the even grid (and within a fifth
#: of a step), whatever that does to the gaps.
ROUNDING_MM = 0.1
#: A slice may lie this many mm off the line through the others (rounding in the headers is far smaller).
LINE_TOLERANCE_MM = 0.2
#: Gaps of up to this many median gaps are bridged on request; beyond it half a slice or more would be invented.
MAX_BRIDGED_GAP = 1.5
#: Neighbours closer than this share of the median gap show the same place.
SAME_PLACE = 0.01
#: Directions and spacings of slices of one series agree to this (mm, or parts of a unit vector).
SAME_GEOMETRY = 1e-4

_PLANES = ("sagittal", "coronal", "axial")  # by the axis (x, y, z) that the slice normal is closest to


@dataclass(frozen=True, eq=False)
class SeriesGeometry:
    """Where the slices of a series lie.

    Attributes
    ----------
    headers : sorted along the slice normal; the order of `affine`'s first axis (not yet head -> feet)
    affine : 4x4, voxel (slice, row, column) -> RAS+ mm, with the mean step
    gaps_mm : distance along the normal between neighbours, (n - 1,)
    tilt_degrees : between the slice normal and the line on which the slices lie (the gantry's tilt); 0 for most
    orientation : "axial", "coronal" or "sagittal", whichever the slices are closest to
    problem : why the series cannot be read as it is, or None
    repairable : True where reading with `resample_uneven=True` is possible
    """

    headers: tuple[SliceHeader, ...]
    affine: np.ndarray
    gaps_mm: np.ndarray
    tilt_degrees: float
    orientation: str
    problem: SeriesError | None
    repairable: bool

    @property
    def step_mm(self) -> float:
        """Median distance between neighbours along the normal."""
        return float(np.median(self.gaps_mm))

    @property
    def stored_shape(self) -> tuple[int, int, int]:
        """(slices, rows, columns)"""
        return len(self.headers), self.headers[0].rows, self.headers[0].columns

    @property
    def grid(self) -> Grid:
        """Shape and affine of the Volume that the series becomes, voxel (d, h, w) -> RAS+ mm."""
        return upright(self.affine, self.stored_shape)[1]

    def check(self, *, resample_uneven: bool = False) -> None:
        """Raise the SeriesError that stands in the way of reading, if there is one."""
        if self.problem is not None and not (resample_uneven and self.repairable):
            raise self.problem

    def even(self) -> tuple[np.ndarray, tuple[int, int, int]]:
        """Affine and stored shape with the same extent and all gaps alike: what resampling reads this series onto."""
        slices = round(float(self.gaps_mm.sum()) / self.step_mm) + 1
        affine = self.affine.copy()
        affine[:3, 0] *= (len(self.headers) - 1) / (slices - 1)
        return affine, (slices, *self.stored_shape[1:])


def upright(affine: np.ndarray, stored_shape) -> tuple[np.ndarray, Grid]:
    """How axes (slice, row, column) are turned and reversed to run head -> feet, front -> back, right -> left.

    Returns nibabel's orientation transform, and the grid that results from it.
    """
    turn = orientations.ornt_transform(orientations.io_orientation(affine), orientations.axcodes2ornt(AXIS_CODES))
    shape = [0, 0, 0]
    for size, axis in zip(stored_shape, turn[:, 0], strict=True):
        shape[int(axis)] = int(size)
    return turn, Grid(tuple(shape), affine @ orientations.inv_ornt_aff(turn, stored_shape))


def orientation_of(header: SliceHeader) -> str:
    """ "axial", "coronal" or "sagittal", whichever the slice is closest to."""
    return _PLANES[int(np.argmax(np.abs(_normal(header))))]


def measure(headers) -> SeriesGeometry:
    """Sort slices along their normal, derive the affine and say what keeps them from being one even grid.

    Parameters
    ----------
    headers : SliceHeaders of one series, in any order

    Raises
    ------
    SeriesError : a single slice, slices of different size, spacing or direction, or all slices at one place.
        What can be measured is not raised but kept in `problem`.
    """
    headers = tuple(headers)
    folder = headers[0].path.parent
    _check_same_geometry(headers)
    if len(headers) < 2:
        raise SeriesError(
            headers[0].path,
            found="a single slice",
            expected="at least two, since the step between slices comes from their positions",
            remedy="download the rest of the series; read_slice reads a file by itself.",
        )
    normal = _normal(headers[0])
    positions = np.array([header.position_mm for header in headers])
    along = positions @ normal
    order = np.argsort(along, kind="stable")
    ordered = tuple(headers[i] for i in order)
    positions, gaps_mm = positions[order], np.diff(along[order])
    if gaps_mm.sum() < 1e-3:
        raise SeriesError(
            folder,
            found=f"{len(headers)} slices, all of them at one place",
            expected="slices one beside the other",
            remedy="leave this series out: it follows one place in time (bolus tracking, perfusion).",
        )
    step = (positions[-1] - positions[0]) / (len(ordered) - 1)
    tilt = float(np.degrees(np.arccos(np.clip(step @ normal / np.linalg.norm(step), -1, 1))))
    problem, repairable = _problem(folder, ordered, positions, gaps_mm, step, normal, tilt)
    affine_lps = np.eye(4)
    affine_lps[:3, 0] = step
    affine_lps[:3, 1] = np.array(headers[0].orientation[3:]) * headers[0].pixel_spacing_mm[0]
    affine_lps[:3, 2] = np.array(headers[0].orientation[:3]) * headers[0].pixel_spacing_mm[1]
    affine_lps[:3, 3] = positions[0]
    return SeriesGeometry(
        ordered, lps_to_ras(affine_lps), gaps_mm, tilt, orientation_of(headers[0]), problem, repairable
    )


def _normal(header: SliceHeader) -> np.ndarray:
    return np.cross(header.orientation[:3], header.orientation[3:])


def name_of(header: SliceHeader) -> str:
    """The file of a slice, with the frame where the file has several."""
    return header.path.name if header.frame is None else f"{header.path.name}, frame {header.frame + 1}"


def _check_same_geometry(headers: tuple[SliceHeader, ...]) -> None:
    numbers = np.array([(h.rows, h.columns, *h.pixel_spacing_mm, *h.orientation) for h in headers], dtype=float)
    differs = np.abs(numbers - numbers[0]) > SAME_GEOMETRY
    if not differs.any():
        return
    at = int(np.argmax(differs.any(axis=1)))
    what, part = next(
        (what, part)
        for what, part in (
            ("rows x columns", slice(0, 2)),
            ("PixelSpacing", slice(2, 4)),
            ("row and column directions", slice(4, 10)),
        )
        if differs[at, part].any()
    )
    raise SeriesError(
        headers[at].path,
        found=f"{what} {numbers[at, part].tolist()}",
        expected=f"{numbers[0, part].tolist()}, as in {headers[0].path.name}",
        remedy="slices of different geometry are different series: separate them.",
    )


def _problem(folder: Path, ordered, positions, gaps_mm, step, normal, tilt) -> tuple[SeriesError | None, bool]:
    """What keeps the slices from being one even grid, with its numbers; and whether resampling can mend it."""
    median = float(np.median(gaps_mm))
    numbers = f"gaps: median {median:.3f}, smallest {gaps_mm.min():.3f}, largest {gaps_mm.max():.3f} mm"
    numbers += f"; gantry tilt {tilt:.1f} degrees" if tilt > 0.1 else ""
    if (gaps_mm < SAME_PLACE * max(median, 1e-3)).any():
        twin = int(np.argmin(gaps_mm))
        return SeriesError(
            folder,
            found=f"{name_of(ordered[twin])} and {name_of(ordered[twin + 1])} at the same position; {numbers}",
            expected="one file a position",
            remedy="remove the repeated slice, or separate the two series.",
        ), False
    if _overlapping_acquisitions(ordered, positions @ normal):
        return SeriesError(
            folder,
            found=f"several acquisitions in one series whose slices lie between each other; {numbers}",
            expected="one acquisition, or one after the other",
            remedy="put each acquisition into a folder of its own: together they are no one volume.",
        ), False
    off_mm = _off_the_line(positions, gaps_mm, step, normal)
    if off_mm.max() > LINE_TOLERANCE_MM:
        worst = int(np.argmax(off_mm))
        return SeriesError(
            ordered[worst].path,
            found=f"a slice {off_mm[worst]:.2f} mm off the line through the first and last slice; {numbers}",
            expected=f"at most {LINE_TOLERANCE_MM} mm",
            remedy="leave this study out: its slices do not form one grid.",
        ), False
    travelled = np.concatenate([[0.0], np.cumsum(gaps_mm)])
    mean = travelled[-1] / len(gaps_mm)
    out_of_place = np.abs(travelled - mean * np.arange(len(travelled))) / mean
    uneven = np.abs(gaps_mm - median) > STEP_TOLERANCE * median
    if not uneven.any() and out_of_place.max() <= PLACE_TOLERANCE:
        return None, False
    if out_of_place.max() <= min(ROUNDING_MM / mean, 0.2):
        return None, False
    repairable = bool(gaps_mm.max() <= MAX_BRIDGED_GAP * median)
    if uneven.any():
        at = int(np.argmax(np.abs(gaps_mm - median)))
        found = f"a gap of {gaps_mm[at]:.3f} mm between {name_of(ordered[at])} and {name_of(ordered[at + 1])}"
        missing = _missing(gaps_mm[at], median)
        found += f" ({missing} slice(s) missing)" if missing else ""
    else:
        missing, worst = 0, int(np.argmax(out_of_place))
        found = f"{name_of(ordered[worst])} {out_of_place[worst]:.1f} steps from its place on an even grid"
    remedy = (
        "download the missing slices."
        if missing
        else "read it with resample_uneven=True, which interpolates it onto an even grid, or leave it out."
        if repairable
        else "leave this study out: too much of the patient lies between two slices."
    )
    return SeriesError(
        folder,
        found=f"{found}; {numbers}",
        expected=f"{median:.3f} mm between all neighbours, within {STEP_TOLERANCE:.0%}",
        remedy=remedy,
    ), repairable


def _overlapping_acquisitions(ordered, along: np.ndarray) -> bool:
    """Whether two acquisitions of the same part of the patient lie between each other, as two phases do.

    Scanners number acquisitions in many ways (one for every rotation, anew after a pause, some not at all), so only the
    clear case counts: two numbers, each of them alone a stack of wider steps, over the same extent.
    """
    places: dict[int, list[float]] = {}
    for header, place in zip(ordered, along, strict=True):
        if header.acquisition is not None:
            places.setdefault(header.acquisition, []).append(place)
    if len(places) != 2 or min(map(len, places.values())) < 3:
        return False
    gap = np.median(np.diff(along))
    first, second = places.values()
    shared = min(first[-1], second[-1]) - max(first[0], second[0])
    extent = min(first[-1] - first[0], second[-1] - second[0])
    return bool(shared > extent / 2 and all(np.median(np.diff(one)) >= 1.5 * gap for one in (first, second)))


def _missing(gap: float, step: float) -> int:
    """How many slices a gap looks to have lost: a whole multiple of the step, within the tolerance."""
    multiple = round(gap / step)
    return multiple - 1 if multiple >= 2 and abs(gap - multiple * step) <= STEP_TOLERANCE * step else 0


def _off_the_line(positions, gaps_mm, step, normal) -> np.ndarray:
    """mm between each slice and its place on the line: a drift across the slices is no grid of any affine."""
    travelled = np.concatenate([[0.0], np.cumsum(gaps_mm)])
    across = positions - positions[0] - travelled[:, None] * step / (step @ normal)
    return np.linalg.norm(across, axis=1)
