"""The readers that bench_io compares: each as a careful user of that package would write it.

Each takes a folder and the paths of its slices from head to feet (which most ignore, since they must find out for
themselves) and ends with the HU of all slices in one array, head -> feet. A package that is not there is left out.
"""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
from pydicom.pixels import apply_rescale, get_decoder

from cspine_utils import dicom
from cspine_utils.volume import AXIS_CODES

THREADS = 2
#: Distribution -> name to import. The last two are for this comparison only.
PACKAGES = {"pydicom": "pydicom", "SimpleITK": "SimpleITK", "dicomsdl": "dicomsdl", "python-gdcm": "gdcm"}


def installed(module: str):
    try:
        return importlib.import_module(module)
    except ImportError:
        return None


dicomsdl, gdcm, sitk = (installed(name) for name in ("dicomsdl", "gdcm", "SimpleITK"))
if sitk:
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(THREADS)


def as_they_are(result) -> np.ndarray:
    return result


@dataclass(frozen=True)
class Reader:
    """One way to read a series.

    read : (folder, paths head -> feet) -> anything; this is what is timed
    values : that anything -> HU `(slices, rows, columns)` head -> feet; not timed
    uses : what it runs on, in words
    package : what must be installed for it
    """

    name: str
    read: Callable[[Path, list[Path]], object]
    uses: str
    package: str
    values: Callable[[object], np.ndarray] = as_they_are

    @property
    def is_installed(self) -> bool:
        return bool(_dcm2niix() if self.package == "dcm2niix" else installed(PACKAGES[self.package]))


def ours(folder: Path, paths: list[Path]) -> np.ndarray:
    return dicom.read_series(folder).hu


def sitk_named(folder: Path, paths: list[Path]):
    reader = sitk.ImageSeriesReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileNames([str(path) for path in paths])
    return reader.Execute()


def sitk_finding(folder: Path, paths: list[Path]):
    return sitk_named(folder, sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder)))


def sitk_values(image) -> np.ndarray:
    """A view without a copy; slices follow z upwards where SimpleITK sorted them, and the names where it was told."""
    values = sitk.GetArrayViewFromImage(image)
    return values if image.GetDirection()[-1] < 0 else values[::-1]


def dicomsdl_careful(folder: Path, paths: list[Path]) -> np.ndarray:
    """Headers first, to sort by position; then every frame straight into the volume, rescaled in place."""
    found = []
    for entry in os.scandir(folder):
        header = dicomsdl.open_file(entry.path, load_until=BEFORE_PIXELS)
        position, rows, columns = header.getValues(["ImagePositionPatient", "Rows", "Columns"])
        found.append((position[2], entry.path, rows, columns))
        header.close()
    found.sort(reverse=True)
    hu = np.empty((len(found), *found[0][2:]), np.int16)
    for target, (_, path, _, _) in zip(hu, found, strict=True):
        dataset = dicomsdl.open_file(path)
        dataset.copyFrameData(0, target.view(np.uint16))
        slope, intercept = dataset.getValues(["RescaleSlope", "RescaleIntercept"])
        _rescale(target, slope, intercept)
        dataset.close()
    return hu


def dicomsdl_bare(folder: Path, paths: list[Path]) -> np.ndarray:
    """Nothing but stored values, in the order given: no geometry, no HU."""
    stored = None
    for index, path in enumerate(paths):
        dataset = dicomsdl.open_file(str(path))
        if stored is None:
            stored = np.empty((len(paths), dataset.Rows, dataset.Columns), np.uint16)
        dataset.copyFrameData(0, stored[index])
    return stored


def pydicom_tutorial(folder: Path, paths: list[Path]) -> np.ndarray:
    """As it is written in tutorials: all files, sorted, stacked in float64."""
    files = [pydicom.dcmread(path) for path in folder.iterdir()]
    files.sort(key=lambda file: file.ImagePositionPatient[2], reverse=True)
    return np.stack([apply_rescale(_pixels(file), file) for file in files])


def pydicom_careful(folder: Path, paths: list[Path]) -> np.ndarray:
    """int16 all the way, one volume, every file let go as soon as its pixels are in."""
    files = [pydicom.dcmread(path) for path in folder.iterdir()]
    files.sort(key=lambda file: file.ImagePositionPatient[2])
    hu = np.empty((len(files), files[0].Rows, files[0].Columns), np.int16)
    for target in hu:
        file = files.pop()
        target.view(np.uint16)[:] = _pixels(file)
        _rescale(target, file.RescaleSlope, file.RescaleIntercept)
    return hu


def gdcm_reader(folder: Path, paths: list[Path]) -> np.ndarray:
    sorter = gdcm.IPPSorter()
    sorter.SetComputeZSpacing(True)
    sorter.SetZSpacingTolerance(1e-3)
    directory = gdcm.Directory()
    directory.Load(str(folder), False)
    if not sorter.Sort(directory.GetFilenames()):
        raise RuntimeError("gdcm could not sort the files by position")
    names = sorter.GetFilenames()[::-1]
    hu = None
    for index, name in enumerate(names):
        reader = gdcm.ImageReader()
        reader.SetFileName(name)
        if not reader.Read():
            raise RuntimeError("gdcm could not read a file")
        image = reader.GetImage()
        if hu is None:
            hu = np.empty((len(names), image.GetRows(), image.GetColumns()), np.int16)
        # gdcm hands bytes to Python as text; this is how its own examples turn them back.
        stored = np.frombuffer(image.GetBuffer().encode("utf-8", "surrogateescape"), np.uint16)
        hu[index] = stored.reshape(hu.shape[1:]).view(np.int16)
        _rescale(hu[index], image.GetSlope(), image.GetIntercept())
    return hu


def dcm2niix(folder: Path, paths: list[Path]) -> Path:
    """A process of its own that writes a file: not the same job, for information."""
    out = folder.with_name(folder.name + "-dcm2niix")
    out.mkdir(exist_ok=True)
    command = [_dcm2niix(), "-z", "n", "-b", "n", "-w", "1", "-f", "volume", "-o", str(out), str(folder)]
    subprocess.run(command, check=True, capture_output=True)
    return out / "volume.nii"


def _dcm2niix() -> str | None:
    """The program, which its Python package puts beside the interpreter."""
    return shutil.which(
        "dcm2niix", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    )


def nifti_values(path: Path) -> np.ndarray:
    image = nib.load(path, mmap=False)
    turn = nib.orientations.ornt_transform(nib.io_orientation(image.affine), nib.orientations.axcodes2ornt(AXIS_CODES))
    return np.asarray(image.as_reoriented(turn).dataobj)


BEFORE_PIXELS = 0x7FDFFFFF

READERS = (
    Reader("this package", ours, "finds, checks, sorts, HU in int16; two threads for codecs, one without", "pydicom"),
    Reader(
        "SimpleITK, names given",
        sitk_named,
        f"told {THREADS} threads, reads slices in one; order as given",
        "SimpleITK",
        values=sitk_values,
    ),
    Reader(
        "SimpleITK, finds names",
        sitk_finding,
        "the same, after GetGDCMSeriesFileNames",
        "SimpleITK",
        values=sitk_values,
    ),
    Reader("dicomsdl, careful", dicomsdl_careful, "one thread (holds the GIL); sorted, HU in int16", "dicomsdl"),
    Reader(
        "dicomsdl, pixels alone",
        dicomsdl_bare,
        "one thread; names given, no HU",
        "dicomsdl",
        values=lambda stored: stored.view(np.int16) + np.int16(-1024),
    ),
    Reader("pydicom, careful", pydicom_careful, "one thread; sorted, HU in int16; gdcm decodes", "pydicom"),
    Reader("pydicom, as in tutorials", pydicom_tutorial, "one thread; sorted, HU in float64; gdcm decodes", "pydicom"),
    Reader("gdcm", gdcm_reader, "one thread; sorted by IPPSorter, HU in int16", "python-gdcm"),
    Reader("dcm2niix", dcm2niix, "a process that writes a NIfTI file", "dcm2niix", values=nifti_values),
)


def _rescale(values: np.ndarray, slope: float, intercept: float) -> None:
    """HU in place. The series of the bench has slope 1; a reader that met another one would need more room."""
    if slope != 1 or intercept != int(intercept):
        raise ValueError(f"slope {slope}, intercept {intercept}: not a series of this bench")
    values += np.int16(intercept)


def _pixels(file: pydicom.Dataset) -> np.ndarray:
    """Decoded by gdcm where pydicom can have it, and not by the decoder that this package adds to pydicom."""
    syntax = file.file_meta.TransferSyntaxUID
    if syntax.is_encapsulated and "gdcm" in get_decoder(syntax).available_plugins:
        file.pixel_array_options(decoding_plugin="gdcm")
    return file.pixel_array
