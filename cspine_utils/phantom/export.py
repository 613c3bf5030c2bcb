"""Writing one rendered study in the forms that the RSNA-2022 data come in."""

from __future__ import annotations

import json
import zipfile
from dataclasses import dataclass
from pathlib import Path

import imagecodecs
import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, ImplicitVRLittleEndian, JPEGLossless

from .scanner import KERNELS
from .study import StudyPlan
from .truth import Rendered

HEAD_FIRST, FEET_FIRST = "head_to_feet", "feet_to_head"


@dataclass(frozen=True)
class Storage:
    """How a study lies on disk; drawn from the cohort's seed without a look at the labels.

    Attributes
    ----------
    order : `HEAD_FIRST` (the first file is the topmost slice) or `FEET_FIRST`
    first_number : number of the first file; 1 as a rule, a few real studies have no `1.dcm`
    transfer_syntax : Explicit or Implicit VR Little Endian, or JPEG Lossless. imagecodecs writes predictor 6, so those
        files are 1.2.840.10008.1.2.4.57 (process 14), not .70, which promises predictor 1.
    signed : False: 12 bits stored in 16, unsigned; True: 16 bits, two's complement
    intercept : HU = stored value + intercept
    has_mask : whether the study comes with a label map
    """

    order: str
    first_number: int
    transfer_syntax: str
    signed: bool
    intercept: int
    has_mask: bool

    def file_number(self, slice_index: int, slices: int) -> int:
        """File number of a slice that is counted head -> feet from 0."""
        return self.first_number + (slice_index if self.order == HEAD_FIRST else slices - 1 - slice_index)


def draw_storage(studies: int, rng: np.random.Generator, mask_share: float) -> list[Storage]:
    """Storage of every study of a cohort. With six studies or more, every form occurs at least once.

    About a tenth runs feet -> head (197 of 2,019 in RSNA-2022), a tenth is JPEG Lossless, a quarter of the rest is
    Implicit VR; pixels are 12-bit unsigned, 16-bit signed with intercept -1024, or with intercept 0, a third each;
    one study in 200, and at least one, has no `1.dcm`.
    """
    tenth = max(1, round(0.1 * studies)) if studies > 1 else 0
    rank = {name: np.argsort(rng.permutation(studies)) for name in ("order", "first", "jpeg", "mask")}
    masks = round(mask_share * studies)
    if 0 < mask_share < 1 and studies > 1:
        masks = min(max(masks, 1), studies - 1)
    plain = np.cumsum(rank["jpeg"] >= tenth) - 1 + int(rng.integers(12))  # counts the uncompressed studies
    result = []
    for i in range(studies):
        jpeg = bool(rank["jpeg"][i] < tenth)
        syntax = ImplicitVRLittleEndian if plain[i] % 4 == 1 else ExplicitVRLittleEndian
        pixels = (False, -1024) if jpeg else ((False, -1024), (True, -1024), (True, 0))[plain[i] % 3]
        result.append(
            Storage(
                FEET_FIRST if rank["order"][i] < tenth else HEAD_FIRST,
                2 if studies > 1 and rank["first"][i] < max(1, studies // 200) else 1,
                str(JPEGLossless if jpeg else syntax),
                *pixels,
                bool(rank["mask"][i] < masks),
            )
        )
    return result


def write_series(folder: Path, hu: np.ndarray, plan: StudyPlan, storage: Storage) -> None:
    """Write `<number>.dcm` per slice into `folder` (made here). `hu`: int16 `(d, h, w)`, head -> feet."""
    grid, uid = plan.grid, plan.uid
    folder.mkdir(parents=True)
    header = _header(plan, storage)
    stored = (hu - np.int16(storage.intercept)).astype("<i2" if storage.signed else "<u2")
    x, y, z = grid.origin_lps
    for d, pixels in enumerate(stored):
        number = storage.file_number(d, len(stored))
        header.InstanceNumber = number
        header.SOPInstanceUID = header.file_meta.MediaStorageSOPInstanceUID = f"{uid}.1.{number}"
        height = f"{z - d * grid.step_mm:.4f}"
        header.ImagePositionPatient = [f"{x:.4f}", f"{y:.4f}", height]
        header.SliceLocation = height
        if storage.transfer_syntax == JPEGLossless:
            header.PixelData = encapsulate([imagecodecs.ljpeg_encode(pixels, bitspersample=16)])
            header["PixelData"].is_undefined_length = True
        else:
            header.PixelData = pixels.tobytes()
            header["PixelData"].VR = "OW"
        header.save_as(folder / f"{number}.dcm", enforce_file_format=True)


def _header(plan: StudyPlan, storage: Storage) -> Dataset:
    """Everything that is the same in all slices of a series: the modules of CT Image Storage."""
    grid, uid, index = plan.grid, plan.uid, plan.index
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.TransferSyntaxUID = storage.transfer_syntax
    ds = Dataset()
    ds.file_meta = meta
    ds.SpecificCharacterSet = "ISO_IR 100"
    ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    ds.SOPClassUID = CTImageStorage
    ds.StudyDate = ds.SeriesDate = ds.ContentDate = "20220101"
    ds.StudyTime = ds.SeriesTime = ds.ContentTime = "120000"
    ds.AccessionNumber = ds.ReferringPhysicianName = ds.PatientBirthDate = ds.PatientSex = ""
    ds.Modality, ds.Manufacturer = "CT", "Synthetic phantom"
    ds.StudyDescription, ds.SeriesDescription = "CT cervical spine, synthetic", "Axial"
    ds.PatientName = ds.PatientID = f"PHANTOM^{index:04d}"
    ds.BodyPartExamined, ds.PatientPosition = "CSPINE", "HFS"
    ds.SliceThickness, ds.KVP, ds.ConvolutionKernel = (
        f"{grid.thickness_mm:g}",
        "120",
        KERNELS[plan.scan.kernel].dicom_name,
    )
    if plan.surroundings.contrast_hu is not None:
        ds.ContrastBolusAgent = "IODINE"
    ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.FrameOfReferenceUID = uid, f"{uid}.1", f"{uid}.2"
    ds.StudyID, ds.SeriesNumber, ds.AcquisitionNumber = str(index), 1, 1
    ds.PositionReferenceIndicator = ""
    ds.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.Rows, ds.Columns = grid.shape[1:]
    ds.PixelSpacing = [f"{grid.pixel_mm:.4f}"] * 2
    ds.BitsAllocated = 16
    ds.BitsStored = 16 if storage.signed else 12
    ds.HighBit, ds.PixelRepresentation = ds.BitsStored - 1, int(storage.signed)
    ds.WindowCenter, ds.WindowWidth = 400, 1800
    ds.RescaleIntercept, ds.RescaleSlope, ds.RescaleType = storage.intercept, 1, "HU"
    return ds


def write_truth(path: Path, rendered: Rendered, record: dict) -> None:
    """Write what was really drawn as `.npz`: hu, labels, altered (packed bits), affine, record (JSON as bytes).

    The members are written one by one, because the noisy HU do not compress and the labels compress to almost nothing.
    """
    arrays = {
        "record": np.frombuffer(json.dumps(record, sort_keys=True).encode(), dtype=np.uint8),
        "affine": rendered.affine,
        "hu": rendered.hu,
        "labels": rendered.labels,
        "altered": np.packbits(rendered.altered),
    }
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in arrays.items():
            member = zipfile.ZipInfo(f"{name}.npy")  # its date is fixed, so the same study gives the same bytes
            member.compress_type = zipfile.ZIP_STORED if name == "hu" else zipfile.ZIP_DEFLATED
            with archive.open(member, "w", force_zip64=True) as file:
                np.lib.format.write_array(file, np.ascontiguousarray(array), allow_pickle=False)


def read_truth(path: Path) -> tuple[Rendered, dict]:
    """Read `truth/<uid>.npz` back: the rendered study (without boxes and fractures, which the record holds), record."""
    with np.load(path) as file:
        labels = file["labels"]
        altered = np.unpackbits(file["altered"], count=labels.size).reshape(labels.shape).astype(bool)
        record = json.loads(file["record"].tobytes())
        return Rendered(file["hu"], labels, altered, file["affine"], (), ()), record
