"""Small inputs that tests share. Every array is asymmetric, so that a flip or a swap cannot pass unseen."""

from __future__ import annotations

import os
from pathlib import Path

import matplotlib
import nibabel as nib
import numpy as np
import pandas as pd
import pydicom
import pytest
import torch
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from cspine_utils.anatomy import TARGETS
from cspine_utils.volume import Volume

matplotlib.use("agg")  # tests open no windows
torch.set_num_threads(1)  # models here are small: more threads gain little, and lose much on a busy machine

ROOT = Path(__file__).resolve().parents[1]
REAL_CT = Path(os.environ.get("CSPINE_REAL_CT", ROOT.parent / "shared" / "real-ct"))


def needs_real_ct(name: str):
    """Mark a test that reads real scanner files, which are not part of the repository."""
    return pytest.mark.skipif(
        not (REAL_CT / name).is_dir(),
        reason=f"no real scanner files at {REAL_CT / name}; set CSPINE_REAL_CT to the folder that holds {name}/",
    )


def patient_volume(shape=(7, 9, 11), spacing_mm=(1.5, 0.7, 0.6), seed=0) -> Volume:
    """Distinct HU in every voxel, in the package's orientation, at an odd place in the patient."""
    generator = np.random.default_rng(seed)
    hu = generator.permutation(np.prod(shape)).reshape(shape).astype(np.int16) - 1000
    d_mm, h_mm, w_mm = spacing_mm
    affine = np.array([[0, 0, -w_mm, 31.5], [0, -h_mm, 0, 18.25], [-d_mm, 0, 0, 77.0], [0, 0, 0, 1.0]])
    return Volume(hu, affine)


def write_series(
    folder: Path,
    volume: Volume,
    *,
    feet_first=False,
    first_number=1,
    thickness_mm=2.0,
    signed=True,
    explicit=True,
    study_uid="1.2.826.0.1.3680043.1",
    series_uid="1.2.826.0.1.3680043.1.1",
    slope=1,
    intercept=-1024,
) -> list[Path]:
    """A volume as one DICOM file a slice, written from the affine alone; returns the paths, head -> feet."""
    folder.mkdir(parents=True, exist_ok=True)
    lps = np.diag([-1, -1, 1, 1]) @ volume.affine
    order = range(len(volume.hu))[:: -1 if feet_first else 1]
    paths = {}
    for number, index in enumerate(order, start=first_number):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID = CTImageStorage
        meta.MediaStorageSOPInstanceUID = f"{series_uid}.{number}"
        meta.TransferSyntaxUID = ExplicitVRLittleEndian if explicit else ImplicitVRLittleEndian
        path = folder / f"{number}.dcm"
        dataset = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
        # As in the files of the competition, SOPClassUID is not in the data set.
        dataset.Modality = "CT"
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID = study_uid, series_uid
        dataset.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
        dataset.InstanceNumber = number
        dataset.ImagePositionPatient = [f"{v:.6f}" for v in (lps @ [index, 0, 0, 1])[:3]]
        spacing = volume.spacing_mm
        directions = [*(lps[:3, 2] / spacing[2]), *(lps[:3, 1] / spacing[1])]
        dataset.ImageOrientationPatient = [f"{v:.9f}" for v in directions]
        dataset.PixelSpacing = [spacing[1], spacing[2]]
        dataset.SliceThickness = thickness_mm
        dataset.Rows, dataset.Columns = volume.shape[1:]
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, *((16, 15) if signed else (12, 11))
        dataset.PixelRepresentation = int(signed)
        dataset.RescaleSlope, dataset.RescaleIntercept = slope, intercept
        stored = (volume.hu[index].astype(int) - intercept) / slope
        dataset.PixelData = np.rint(stored).astype("<i2" if signed else "<u2").tobytes()
        pydicom.dcmwrite(path, dataset, enforce_file_format=True)
        paths[index] = path
    return [paths[index] for index in sorted(paths)]


def write_label_file(path: Path, mask: np.ndarray, volume: Volume, codes="LAS", dtype=np.uint16) -> Path:
    """A mask on the volume's grid, stored in another axis order; nibabel does the turning."""
    image = nib.Nifti1Image(mask.astype(dtype), volume.affine, dtype=dtype)
    turn = nib.orientations.ornt_transform(
        nib.io_orientation(volume.affine), nib.orientations.axcodes2ornt(tuple(codes))
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(image.as_reoriented(turn), path)
    return path


def neck_mask(shape=(7, 9, 11)) -> np.ndarray:
    """Labels 1-7 from head to feet and thoracic 8 below, off centre, one or two slices each."""
    mask = np.zeros(shape, np.uint8)
    for index in range(1, shape[0]):
        label = 1 + (index - 1) * 8 // (shape[0] - 1)
        mask[index, 1 : 3 + index % 3, 2 : 4 + index % 4] = label
    return mask


def neck_volume(seed=0) -> Volume:
    """The CT of `neck_mask((12, 9, 11))`: bone under the labels, distinct HU in every voxel."""
    volume = patient_volume((12, 9, 11), seed=seed)
    volume.hu[neck_mask(volume.shape) > 0] += 1500
    return volume


@pytest.fixture
def volume() -> Volume:
    return patient_volume()


@pytest.fixture
def store(tmp_path) -> Path:
    """A folder for prepared studies, not there yet."""
    return tmp_path / "store"


@pytest.fixture
def rsna_folder(tmp_path) -> Path:
    """Four readable studies in RSNA-2022 form: the second feet -> head and fractured, the fourth without a mask."""
    root = tmp_path / "rsna"
    studies = [f"1.2.826.0.1.3680043.{n}" for n in (11, 12, 13, 14)]
    rows = []
    for i, study in enumerate(studies):
        volume = neck_volume(seed=i)
        write_series(root / "train_images" / study, volume, feet_first=i == 1, study_uid=study, series_uid=study + ".1")
        if i < 3:
            write_label_file(root / "segmentations" / f"{study}.nii", neck_mask((12, 9, 11)), volume)
        levels = [int(i == 1 and level == 4) for level in range(7)]
        rows.append([study, max(levels), *levels])
    columns = ["StudyInstanceUID", "patient_overall", *TARGETS[:7]]
    pd.DataFrame(rows, columns=columns).to_csv(root / "train.csv", index=False)
    boxes = [[studies[1], 2.0, 1.0, 3.0, 2.5, 6], [studies[1], 2.5, 1.0, 3.0, 2.5, 7]]
    pd.DataFrame(boxes, columns=["StudyInstanceUID", "x", "y", "width", "height", "slice_number"]).to_csv(
        root / "train_bounding_boxes.csv", index=False
    )
    return root
