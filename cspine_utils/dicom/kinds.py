"""What kind of file it is: a slice of a CT, something else, or damage that cannot be told from a slice."""

from __future__ import annotations

import math
from pathlib import Path

from pydicom.config import IGNORE
from pydicom.uid import UID

from .elements import Elements, damaged

_CT = {"1.2.840.10008.5.1.4.1.1.2"}
ENHANCED_CT = {"1.2.840.10008.5.1.4.1.1.2.1", "1.2.840.10008.5.1.4.1.1.2.2"}  # the second: converted from single files
_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
_DIRECTORY = "1.2.840.10008.1.3.10"
LOCALIZER = "a localizer (the overview from which a scan is planned)"
# Words for what a file may be other than CT. Only words of this list reach a message: a header can hold any text.
_MODALITIES = {
    "": "another kind of file",
    "MR": "MR",
    "PT": "PET",
    "NM": "nuclear medicine",
    "US": "ultrasound",
    "CR": "radiograph",
    "DX": "radiograph",
    "XA": "angiography",
    "SR": "structured report",
    "OT": "secondary capture",
    "SC": "secondary capture",
    "SEG": "segmentation",
    "PR": "presentation state",
    "KO": "key object note",
    "REG": "registration",
    "RTSTRUCT": "radiotherapy structures",
    "RTPLAN": "radiotherapy plan",
    "RTDOSE": "radiotherapy dose",
}
# Every term there is or was (PS3.3, C.7.3.1.1.1): anything else is damage, and may be that of a slice.
_TERMS = {"CT", *_MODALITIES} | set(
    "AR AS ASMT AU BDUS BI BMD CD CF CFM CP CS CTPROTOCOL DD DF DG DM DMS DOC DS EC ECG EEG EMG EOG EPS ES FA FID FS "
    "GM HC HD IO IOL IVOCT IVUS KER LEN LP LS M3D MA MG MS OAM OCT OP OPM OPR OPT OPTBSV OPTENF OPV OSS PA PLAN POS "
    "PX RESP RF RG RTIMAGE RTINTENT RTRAD RTRECORD RTSEGANN RWV SM SMR SRF ST STAIN TEXTUREMAP TG VA VF XC".split()
)
_GREY = ("MONOCHROME1", "MONOCHROME2")
_COLOUR = set("RGB YBR_FULL YBR_FULL_422 YBR_PARTIAL_420 YBR_PARTIAL_422 YBR_ICT YBR_RCT HSV ARGB CMYK".split())
_COLOUR.add("PALETTE COLOR")
# Units of dual-energy and other maps that carry the CT modality (PS3.3, C.11.1.1.2).
_NOT_HU = {
    "OD": "optical density",
    "MGML": "mg/ml of a material",
    "Z_EFF": "effective atomic number",
    "ED": "electron density",
    "EDW": "electron density of water",
    "PCT": "percent",
}


def sop_class(read: Elements) -> str:
    """SOPClassUID; where it is missing, as in the files of the competition, the one of the file meta header."""
    return read.values.get("SOPClassUID") or read.values.get("MediaStorageSOPClassUID", "")


def why_no_slice(path: Path, read: Elements) -> str:
    """Why the file is no slice of a CT series, or "". Raises SeriesError for what no kind of file can say."""
    values, kind = read.values, sop_class(read)
    modality = values.get("Modality", "")
    if kind == _DIRECTORY:
        return "a DICOMDIR, the table of contents of a disc"
    if kind.startswith(_SECONDARY_CAPTURE):
        return "a secondary capture: a picture of a screen or a form, no CT slice"
    if modality not in _TERMS:
        raise damaged(path, "a Modality that does not exist")
    unknown = kind and UID(kind, IGNORE).name == kind
    if unknown and (not modality or kind.startswith("1.2.840.10008.")):
        raise damaged(path, "a SOP class that does not exist")
    if modality not in ("", "CT") or (not modality and kind not in ("", *_CT, *ENHANCED_CT)):
        return f"not CT ({_MODALITIES.get(modality, 'another kind of file')})"
    photometric, samples = values.get("PhotometricInterpretation", "MONOCHROME2"), values.get("SamplesPerPixel", (1,))
    if photometric not in (*_GREY, *_COLOUR) or samples not in ((1,), (3,), (4,)):
        raise damaged(path, "a PhotometricInterpretation or SamplesPerPixel that does not exist")
    if photometric not in _GREY or samples != (1,):
        return "a colour image"
    if values.get("RescaleType", "") in _NOT_HU:
        return f"not in HU ({_NOT_HU[values['RescaleType']]})"
    if any(word in values.get("ImageType", "").upper() for word in ("LOCALIZER", "SCOUT", "TOPOGRAM")):
        return LOCALIZER
    frames = values.get("NumberOfFrames", (1,))
    if kind not in ENHANCED_CT and frames not in ((1,), (0,)):
        return f"a multi-frame file ({frames[0] if frames else 'unknown'} frames) that is no Enhanced CT"
    if kind not in ("", *_CT, *ENHANCED_CT) and "Rows" not in values:
        return "no image"
    return ""


def is_surely_another(read: Elements) -> bool:
    """More than one element says that the file is no CT slice, so it is no damaged one, whatever its series is.

    (Some scanners put the localizer into the series that is planned on it, and some stations their captures.)
    """
    values = read.values
    if {"ImagePositionPatient", "RescaleIntercept"} <= set(values) and values.get("SamplesPerPixel") == (1,):
        return False
    said = [values.get(keyword, "") for keyword in ("SOPClassUID", "MediaStorageSOPClassUID")]
    if any(said) and all(kind not in (*_CT, *ENHANCED_CT) and UID(kind, IGNORE).name != kind for kind in said if kind):
        return True
    if values.get("PhotometricInterpretation") not in _COLOUR or values.get("SamplesPerPixel", (1,)) == (1,):
        return False
    sizes = [values.get(name, ()) for name in ("SamplesPerPixel", "Rows", "Columns", "BitsAllocated")]
    return all(len(size) == 1 for size in sizes) and read.pixels_bytes >= math.prod(size[0] for size in sizes) // 8
