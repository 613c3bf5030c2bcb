"""Readers of headers that bench_io compares: all of them are asked for the same tags and stop before the pixels."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pydicom
from io_readers import BEFORE_PIXELS, PACKAGES, dicomsdl, gdcm, installed

from cspine_utils import dicom

TAGS = {
    "StudyInstanceUID": (0x0020, 0x000D),
    "SeriesInstanceUID": (0x0020, 0x000E),
    "ImagePositionPatient": (0x0020, 0x0032),
    "ImageOrientationPatient": (0x0020, 0x0037),
    "PixelSpacing": (0x0028, 0x0030),
    "Rows": (0x0028, 0x0010),
    "Columns": (0x0028, 0x0011),
    "SliceThickness": (0x0018, 0x0050),
    "TransferSyntaxUID": (0x0002, 0x0010),
}


@dataclass(frozen=True)
class HeaderReader:
    """One way to read the headers of one or several folders.

    read : folders -> {(folder name, file name): something with the position}; timed
    height_mm : that something -> z of its position; not timed
    """

    name: str
    read: Callable[[list[Path]], dict]
    uses: str
    package: str
    height_mm: Callable[[object], float]

    @property
    def is_installed(self) -> bool:
        return bool(installed(PACKAGES[self.package]))


def look_ours(folders: list[Path]) -> dict:
    found = {}
    for folder in folders:
        headers = dicom.look_into(folder).choose()
        dicom.measure(headers)
        found |= {(folder.name, header.path.name): header for header in headers}
    return found


def scan_gdcm(folders: list[Path]) -> dict:
    """The scan alone: its values stay in gdcm."""
    found = {}
    for folder in folders:
        scanner, names = _scanner(folder)
        found |= {(folder.name, os.path.basename(name)): (scanner, name) for name in names}
    return found


def scan_gdcm_values(folders: list[Path]) -> dict:
    """The scan, and its values as text in Python."""
    tags = [gdcm.Tag(*tag) for tag in TAGS.values()]
    found = {}
    for folder in folders:
        scanner, names = _scanner(folder)
        for name in names:
            found[folder.name, os.path.basename(name)] = [scanner.GetValue(name, tag) for tag in tags]
    return found


def _scanner(folder: Path):
    directory = gdcm.Directory()
    directory.Load(str(folder), False)
    names = directory.GetFilenames()
    scanner = gdcm.Scanner()
    for tag in TAGS.values():
        scanner.AddTag(gdcm.Tag(*tag))
    if not scanner.Scan(names):
        raise RuntimeError("gdcm could not scan the folder")
    return scanner, names


def _each(read: Callable[[str], object], folders: list[Path]) -> dict:
    return {(folder.name, entry.name): read(entry.path) for folder in folders for entry in os.scandir(folder)}


def look_pydicom(folders: list[Path]) -> dict:
    return _each(lambda path: pydicom.dcmread(path, stop_before_pixels=True), folders)


def look_pydicom_tags(folders: list[Path]) -> dict:
    tags = list(TAGS)
    return _each(lambda path: pydicom.dcmread(path, stop_before_pixels=True, specific_tags=tags), folders)


def look_dicomsdl(folders: list[Path]) -> dict:
    tags = [name for name in TAGS if name != "TransferSyntaxUID"]

    def read(path: str) -> list:
        header = dicomsdl.open_file(path, load_until=BEFORE_PIXELS)
        return [*header.getValues(tags), header.getTransferSyntax()]

    return _each(read, folders)


def _of_text(position: str) -> float:
    return float(position.split("\\")[2])


def _of_scan(found) -> float:
    scanner, name = found
    return _of_text(scanner.GetValue(name, gdcm.Tag(*TAGS["ImagePositionPatient"])))


_AT = list(TAGS).index("ImagePositionPatient")
HEADER_READERS = (
    HeaderReader(
        "this package", look_ours, "look_into, choose, measure, with all checks", "pydicom", lambda h: h.position_mm[2]
    ),
    HeaderReader("gdcm.Scanner", scan_gdcm, "the scan alone", "python-gdcm", _of_scan),
    HeaderReader(
        "gdcm.Scanner and values",
        scan_gdcm_values,
        "its values as text in Python",
        "python-gdcm",
        lambda v: _of_text(v[_AT]),
    ),
    HeaderReader("dicomsdl", look_dicomsdl, "stops before pixels, getValues", "dicomsdl", lambda v: v[_AT][2]),
    HeaderReader(
        "pydicom, tags named",
        look_pydicom_tags,
        "stops before pixels, specific_tags",
        "pydicom",
        lambda d: d.ImagePositionPatient[2],
    ),
    HeaderReader("pydicom", look_pydicom, "stops before pixels", "pydicom", lambda d: d.ImagePositionPatient[2]),
)
