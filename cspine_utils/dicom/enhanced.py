"""Enhanced multi-frame CT: all slices of a series as frames of one file. (DICOM PS3.3, A.38 and C.7.6.16)"""

from __future__ import annotations

from pathlib import Path

import pydicom

from cspine_utils.errors import SeriesError

from .elements import Elements
from .headers import SliceHeader, make_header
from .thorough import quietly, read_by_pydicom

#: More frames than any CT; a damaged header can say billions.
MAX_FRAMES = 20_000

# What a header needs: (functional group, element in it).
_PLACES = {
    "position": ("PlanePositionSequence", "ImagePositionPatient"),
    "orientation": ("PlaneOrientationSequence", "ImageOrientationPatient"),
    "spacing": ("PixelMeasuresSequence", "PixelSpacing"),
    "thickness": ("PixelMeasuresSequence", "SliceThickness"),
    "slope": ("PixelValueTransformationSequence", "RescaleSlope"),
    "intercept": ("PixelValueTransformationSequence", "RescaleIntercept"),
}
_COUNTS = {"position": 3, "orientation": 6, "spacing": 2}


def read_headers(path: Path, read: Elements) -> list[SliceHeader]:
    """One header a frame. Raises SeriesError where a frame lacks its geometry or its rescaling."""
    if read.dataset is None:
        read = read_by_pydicom(path)
    dataset = read.dataset
    frames = read.values.get("NumberOfFrames", (1,))
    try:
        with quietly():
            shared = list(dataset.get("SharedFunctionalGroupsSequence") or [pydicom.Dataset()])[0]
            each = list(dataset.get("PerFrameFunctionalGroupsSequence") or [])
            if not frames or not 1 <= frames[0] <= MAX_FRAMES or len(each) != frames[0]:
                raise SeriesError(
                    path,
                    found=f"NumberOfFrames {frames[0] if frames else 'missing'} and {len(each)} descriptions of frames",
                    expected="one description a frame",
                    remedy="the file is damaged: download it again, or leave it out.",
                )
            return [
                make_header(
                    path,
                    read,
                    frame=number,
                    **{name: _value(path, number, frame, shared, name) for name in _PLACES},
                )
                for number, frame in enumerate(each)
            ]
    except SeriesError:
        raise
    except Exception as error:  # damaged sequences make pydicom raise many kinds of errors
        raise SeriesError(
            path,
            found=f"functional groups that cannot be read ({type(error).__name__})",
            expected="an Enhanced CT with the geometry of each frame",
            remedy="the file is truncated or damaged: download it again.",
        ) from None  # pydicom's message quotes the header


def _value(path: Path, number: int, frame: pydicom.Dataset, shared: pydicom.Dataset, name: str):
    """Numbers of one element, from the frame's own groups or from those that all frames share."""
    group, keyword = _PLACES[name]
    for groups in (frame, shared):
        sequence = groups.get(group)
        value = sequence[0].get(keyword) if sequence else None
        if value is not None and value != "":
            numbers = tuple(float(v) for v in value) if name in _COUNTS else (float(value),)
            if len(numbers) == _COUNTS.get(name, 1):
                return numbers
    if name in _COUNTS:
        raise SeriesError(
            path,
            found=f"frame {number + 1} without {keyword}",
            expected=f"{_COUNTS[name]} numbers",
            remedy="the file is incomplete: export the series again, best as single files.",
        )
    return None
