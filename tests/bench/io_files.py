"""The series that bench_io reads: a neck drawn by formulas, written in each of several forms, one file after the other.

The neck is smooth and the noise is not, as in a CT of bone: JPEG Lossless then halves the files, as it does real ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import imagecodecs
import io_tags
import numpy as np
import pydicom
from io_tags import FIELD_MM, INTERCEPT, STUDY_UID
from pydicom import uid
from pydicom.dataset import FileDataset
from pydicom.encaps import encapsulate

from cspine_utils.anatomy import LEVELS
from cspine_utils.rsna import BOX_COLUMNS, STUDY_COLUMN

try:
    import gdcm
except ImportError:
    gdcm = None

NOISE_HU = 55.0
SEED = 11


@dataclass(frozen=True)
class Form:
    """One way to store the same neck: transfer syntax, how much header, and a name for tables."""

    name: str
    syntax: uid.UID
    thin: bool = False


def forms() -> dict[str, Form]:
    """Every form that can be written here. JPEG Lossless is .70 (first-order prediction, predictor 1, as in most real
    files) where gdcm is there to write it, else .57 with imagecodecs' predictor 6."""
    lossless = uid.JPEGLosslessSV1 if gdcm else uid.JPEGLossless
    known = [
        Form("explicit", uid.ExplicitVRLittleEndian),
        Form("implicit", uid.ImplicitVRLittleEndian),
        Form("thin", uid.ExplicitVRLittleEndian, thin=True),
        Form(f"JPEG Lossless .{lossless[-2:]}", lossless),
        Form("RLE", uid.RLELossless),
        Form("JPEG-LS", uid.JPEGLSLossless),
        Form("JPEG 2000", uid.JPEG2000Lossless),
    ]
    return {form.name: form for form in known}


def neck_slice(index: int, slices: int, size: int) -> np.ndarray:
    """Stored values of one slice, uint16 `(size, size)` of 12 bits (HU + 1024), different in every slice."""
    generator = np.random.default_rng((SEED, index))
    across = (np.arange(size, dtype=np.float32) - (size - 1) / 2) * (FIELD_MM / size)
    x, y = across[None, :], across[:, None]
    phase = 12.0 * index / max(slices - 1, 1)  # seven vertebrae on the way down

    def within(cx, cy, rx, ry):
        return ((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2 < 1

    wide = 62 + 6 * np.cos(phase / 4)
    hu = np.full((size, size), -1000, np.float32)
    for shape, value in (
        ((3, 4, wide, 55), -90),  # fat under the skin
        ((3, 4, wide - 6, 48), 50),  # muscle
        ((2, -24, 9, 7), -1000),  # the airway, off the midline so that a mirrored slice differs
        ((0, 2, 13 + np.sin(phase), 10), 900),  # cortex of a vertebra
        ((0, 2, 11 + np.sin(phase), 8), 280 + 60 * np.cos(phase)),  # its inside, and the discs between
        ((0, 22, 12, 10), 800),
        ((0, 22, 9, 7), 30),  # the canal
        ((27, 18, 6, 7), 650 + 100 * np.sin(phase)),
        ((-25, 19, 5, 6), 550),
    ):
        hu[within(*shape)] = value
    hu += NOISE_HU * generator.standard_normal((size, size), dtype=np.float32)
    hu[x**2 + y**2 > (0.5 * FIELD_MM) ** 2] = INTERCEPT  # outside the scanner's circle
    return np.clip(np.rint(hu) - INTERCEPT, 0, 4095).astype(np.uint16)


def neck(slices: int, size: int) -> np.ndarray:
    """The whole series as it should be read: int16 HU `(slices, size, size)`, head -> feet."""
    hu = np.empty((slices, size, size), np.int16)
    for index, target in enumerate(hu):
        target[:] = neck_slice(index, slices, size)
        target += INTERCEPT
    return hu


def write_series(folder: Path, form: Form, *, slices: int, size: int, study_uid: str = STUDY_UID) -> list[Path]:
    """Write `1.dcm` (head) to `<slices>.dcm` (feet), each as soon as it is drawn; returns the paths in that order."""
    folder.mkdir(parents=True, exist_ok=True)
    dataset = io_tags.header(size, form.thin, form.syntax, study_uid)
    return [_write_slice(folder, dataset, form, index, slices, size) for index in range(slices)]


def write_hollow_series(folder: Path, form: Form, *, slices: int, size: int, study_uid: str) -> None:
    """Headers before a hole of the right length instead of pixels: for readers of headers only, takes no room."""
    folder.mkdir(parents=True, exist_ok=True)
    dataset = io_tags.header(size, form.thin, form.syntax, study_uid)
    for index in range(slices):
        path = folder / f"{index + 1}.dcm"
        io_tags.place(dataset, index, form.thin)
        dataset.PixelData = b""
        pydicom.dcmwrite(path, dataset, enforce_file_format=True)
        count = 2 * size * size
        with open(path, "r+b") as file:
            file.seek(-4, 2)  # the length of the pixels is the last word of the file
            file.write(count.to_bytes(4, "little"))
            file.truncate(file.tell() + count)


def write_hollow_cohort(root: Path, *, studies: int, slices: int, size: int) -> list[Path]:
    """A folder in RSNA-2022 form, thin headers without pixels; returns the folders of the studies."""
    names = [f"{STUDY_UID}.{100 + number}" for number in range(studies)]
    folders = [root / "train_images" / name for name in names]
    for name, folder in zip(names, folders, strict=True):
        write_hollow_series(folder, forms()["thin"], slices=slices, size=size, study_uid=name)
    (root / "segmentations").mkdir()
    rows = [f"{name},0{',0' * len(LEVELS)}" for name in names]
    (root / "train.csv").write_text("\n".join([",".join([STUDY_COLUMN, "patient_overall", *LEVELS]), *rows]) + "\n")
    (root / "train_bounding_boxes.csv").write_text(",".join([STUDY_COLUMN, *BOX_COLUMNS]) + "\n")
    return folders


def _write_slice(folder: Path, dataset: FileDataset, form: Form, index: int, slices: int, size: int) -> Path:
    pixels = neck_slice(index, slices, size)
    io_tags.place(dataset, index, form.thin)
    dataset.PixelData = _encoded(pixels, form.syntax)
    dataset["PixelData"].is_undefined_length = form.syntax.is_encapsulated
    path = folder / f"{index + 1}.dcm"
    pydicom.dcmwrite(path, dataset, enforce_file_format=True)
    return path


def _encoded(pixels: np.ndarray, syntax: uid.UID) -> bytes:
    if not syntax.is_encapsulated:
        return pixels.astype("<u2").tobytes()
    if syntax == uid.JPEGLosslessSV1:
        frame = _gdcm_encoded(pixels)
    elif syntax == uid.RLELossless:
        frame = _rle_encoded(pixels)
    elif syntax == uid.JPEGLSLossless:
        frame = imagecodecs.jpegls_encode(pixels)
    elif syntax == uid.JPEG2000Lossless:
        frame = imagecodecs.jpeg2k_encode(pixels, codecformat="j2k", reversible=True, level=0, bitspersample=12)
    else:
        frame = imagecodecs.ljpeg_encode(pixels, bitspersample=12)
    return encapsulate([bytes(frame)])


def _gdcm_encoded(pixels: np.ndarray) -> bytes:
    """One frame by gdcm's JPEG Lossless encoder (process 14, selection value 1)."""
    writer = gdcm.ImageWriter()  # never writes: it owns the image, which gdcm wants owned while it is encoded
    image = writer.GetImage()
    image.SetNumberOfDimensions(2)
    image.SetDimension(0, pixels.shape[1])
    image.SetDimension(1, pixels.shape[0])
    image.SetPixelFormat(gdcm.PixelFormat(1, 16, 12, 11, 0))
    image.SetPhotometricInterpretation(gdcm.PhotometricInterpretation(gdcm.PhotometricInterpretation.MONOCHROME2))
    image.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.ExplicitVRLittleEndian))
    element = gdcm.DataElement(gdcm.Tag(0x7FE0, 0x0010))
    element.SetByteStringValue(pixels.astype("<u2").tobytes())
    image.SetDataElement(element)
    change = gdcm.ImageChangeTransferSyntax()
    change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.JPEGLosslessProcess14_1))
    change.SetInput(image)
    if not change.Change():
        raise RuntimeError("gdcm could not write JPEG Lossless")
    fragment = change.GetOutput().GetDataElement().GetSequenceOfFragments().GetFragment(0)
    return fragment.GetByteValue().GetBuffer().encode("utf-8", "surrogateescape")


def _rle_encoded(pixels: np.ndarray) -> bytes:
    """DICOM's RLE (PS3.5, annex G): the high bytes, then the low bytes, each row by PackBits."""
    planes = (pixels >> 8).astype(np.uint8), (pixels & 255).astype(np.uint8)
    segments = [b"".join(imagecodecs.packbits_encode(row.tobytes()) for row in plane) for plane in planes]
    segments = [segment + b"\0" * (len(segment) % 2) for segment in segments]
    starts = [64, 64 + len(segments[0])]
    return np.array([2, *starts] + [0] * 13, "<u4").tobytes() + b"".join(segments)
