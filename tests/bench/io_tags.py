"""What stands in the headers of the series that bench_io writes. All values are invented.

"full" headers carry what a scanner writes (94 elements, three sequences, private ones, 3.5 kB), "thin" ones what a
strict anonymiser leaves (27 elements, 0.8 kB), as in the files of the competition.
"""

from __future__ import annotations

import numpy as np
import pydicom
from pydicom import uid
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.sequence import Sequence

STUDY_UID, SERIES_UID = "1.2.826.0.1.3680043.8.498.7.1", "1.2.826.0.1.3680043.8.498.7.1.2"
INTERCEPT = -1024
STEP_MM = 0.75
FIELD_MM = 230.0  # width and height of a slice, whatever its number of pixels


def height_mm(number: int) -> float:
    """z of the position of file `<number>.dcm`."""
    return 140.25 - STEP_MM * (number - 1)


def place(dataset: FileDataset, index: int, thin: bool) -> None:
    """What differs from slice to slice: number, name and position; from a scanner also dose and time.

    Their texts differ in length as well, so that what follows lies elsewhere in each file, as in real series.
    """
    z = height_mm(index + 1)
    dataset.InstanceNumber = index + 1
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = f"{SERIES_UID}.{index + 1}"
    dataset.ImagePositionPatient = [-118.5, -201.25, z]
    if thin:
        return
    current = round(160 + 120 * np.sin(index / 9))  # 40 to 280 mA: the shoulders need more than the neck
    seconds = 0.021 * index
    dataset.SliceLocation = z
    dataset.XRayTubeCurrent, dataset.Exposure = current, current // 2
    dataset.AcquisitionTime, dataset.ContentTime = (f"1200{start + seconds:09.6f}" for start in (10, 15))
    dataset.LargestImagePixelValue = 2000 + 7 * index
    dataset[0x0019, 0x1091].value = f"{1.75 * (index % 40):.4f}"
    dataset[0x0029, 0x1010].value = bytes((index + n) % 256 for n in range(1280))


def header(size: int, thin: bool, syntax: uid.UID, study_uid: str) -> FileDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = uid.CTImageStorage
    meta.TransferSyntaxUID = syntax
    dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    spacing = round(FIELD_MM / size, 6)
    for keyword, value in THIN.items():
        setattr(dataset, keyword, value)
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = study_uid, SERIES_UID
    dataset.Rows = dataset.Columns = size
    dataset.PixelSpacing = [spacing, spacing]
    if not thin:
        for keyword, value in FULL.items():
            setattr(dataset, keyword, value)
        for keyword, items in SEQUENCES.items():
            setattr(dataset, keyword, Sequence([_item(item) for item in items]))
        block = dataset.private_block(0x0019, "BENCH OF A SCANNER", create=True)
        for offset in range(2):
            block.add_new(0x90 + offset, "DS", f"{offset * 1.75:.4f}")
        block = dataset.private_block(0x0029, "BENCH OF A CONSOLE", create=True)
        block.add_new(0x10, "OB", bytes(range(256)) * 5)
    return dataset


def _item(values: dict) -> pydicom.Dataset:
    item = pydicom.Dataset()
    for keyword, value in values.items():
        setattr(item, keyword, value)
    return item


THIN = {
    "Modality": "CT",
    "PatientName": "BENCH",
    "PatientID": "BENCH",
    "SliceThickness": 0.8,
    "KVP": 120,
    "PatientPosition": "HFS",
    "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
    "SamplesPerPixel": 1,
    "PhotometricInterpretation": "MONOCHROME2",
    "BitsAllocated": 16,
    "BitsStored": 12,
    "HighBit": 11,
    "PixelRepresentation": 0,
    "WindowCenter": [450, 40],
    "WindowWidth": [1500, 350],
    "RescaleIntercept": INTERCEPT,
    "RescaleSlope": 1,
    "RescaleType": "HU",
}
FULL = {
    "SpecificCharacterSet": "ISO_IR 100",
    "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL", "HELIX"],
    "SOPClassUID": uid.CTImageStorage,
    "StudyDate": "20000101",
    "SeriesDate": "20000101",
    "AcquisitionDate": "20000101",
    "ContentDate": "20000101",
    "StudyTime": "120000.000000",
    "SeriesTime": "120000.000000",
    "AcquisitionTime": "120000.000000",
    "ContentTime": "120000.000000",
    "AccessionNumber": "0",
    "Manufacturer": "Invented scanners",
    "InstitutionName": "Hospital of the bench",
    "InstitutionAddress": "1 Road of the bench\r\nTown",
    "ReferringPhysicianName": "Nobody",
    "StationName": "CT1",
    "StudyDescription": "CT of the cervical spine",
    "SeriesDescription": "Bone 0.8 mm",
    "ManufacturerModelName": "Formula 64",
    "PatientBirthDate": "19000101",
    "PatientSex": "O",
    "PatientAge": "100Y",
    "PatientWeight": 70,
    "BodyPartExamined": "CSPINE",
    "DataCollectionDiameter": 500,
    "DeviceSerialNumber": "0",
    "SoftwareVersions": "1.0",
    "ProtocolName": "Cervical spine",
    "ReconstructionDiameter": 230,
    "DistanceSourceToDetector": 1085.6,
    "DistanceSourceToPatient": 595,
    "GantryDetectorTilt": 0,
    "TableHeight": 188,
    "RotationDirection": "CW",
    "ExposureTime": 1000,
    "XRayTubeCurrent": 215,
    "Exposure": 253,
    "FilterType": "FLAT",
    "GeneratorPower": 56,
    "FocalSpots": 0.9,
    "ConvolutionKernel": ["B60s", "3"],
    "SingleCollimationWidth": 0.6,
    "TotalCollimationWidth": 38.4,
    "TableSpeed": 46.3,
    "SpiralPitchFactor": 0.8,
    "CTDIvol": 18.541843087058826,
    "StudyID": "1",
    "SeriesNumber": 4,
    "AcquisitionNumber": 2,
    "FrameOfReferenceUID": "1.2.826.0.1.3680043.8.498.7.1.9",
    "PositionReferenceIndicator": "SN",
    "SmallestImagePixelValue": 0,
    "LargestImagePixelValue": 4095,
    "WindowCenterWidthExplanation": ["WINDOW1", "WINDOW2"],
    "RequestedProcedureDescription": "CT of the cervical spine",
    "PerformedProcedureStepStartDate": "20000101",
    "PerformedProcedureStepID": "1",
}
SEQUENCES = {
    "ReferencedImageSequence": [
        {"ReferencedSOPClassUID": uid.CTImageStorage, "ReferencedSOPInstanceUID": f"{SERIES_UID}.{900 + n}"}
        for n in range(2)
    ],
    "ProcedureCodeSequence": [
        {"CodeValue": "CTNECK", "CodingSchemeDesignator": "99BENCH", "CodeMeaning": "CT of the neck"}
    ],
    "CTDIPhantomTypeCodeSequence": [
        {"CodeValue": "113691", "CodingSchemeDesignator": "DCM", "CodeMeaning": "IEC Body Dosimetry Phantom"}
    ],
}
