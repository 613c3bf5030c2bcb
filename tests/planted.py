"""Names, dates and numbers that no header's reader may let out: planting them in files, damaging those, and searching
for the words in whatever was written or said."""

from __future__ import annotations

import base64
import gzip
import io
import re
import warnings
import zipfile
import zlib
from pathlib import Path

import faults_series
import nibabel as nib
import numpy as np
import pydicom
from conftest import neck_mask, patient_volume, write_label_file, write_series
from PIL import Image
from pydicom import uid
from pydicom.datadict import DicomDictionary
from pydicom.dataset import Dataset

from cspine_utils.volume import Volume

NAME, DATE, TIME, AGE, NUMBER = "ZZPHINAME", "19310203", "231759", "087Y", "8675309"
#: What is planted, by VR.
PLANTED = {
    "PN": f"{NAME}^{NAME}=", "LO": NAME, "SH": NAME, "ST": NAME, "LT": NAME, "UT": NAME, "UC": NAME, "AE": NAME,
    "CS": NAME, "DA": DATE, "DT": DATE + TIME, "TM": TIME, "AS": AGE, "DS": NUMBER + ".5", "IS": NUMBER,
    "UI": f"1.2.{DATE}.{NUMBER}", "UR": f"http://{NAME}/",
}  # fmt: skip
#: Planting these would make another kind of file, or another geometry.
KEPT = {"Modality", "PhotometricInterpretation", "SpecificCharacterSet", "NumberOfFrames", "RescaleType", "SOPClassUID"}
SHAPE = (12, 16, 21)


# ------------------------------------------------------------------------------------------------ searching


def forms_of(word: str) -> list[bytes]:
    """A word as it can lie in a file: in two or four bytes a letter, in hexadecimal, in base64 at any place."""
    plain = word.encode()
    forms = [word.encode(f"utf-{bits}-{end}") for bits in (16, 32) for end in ("le", "be")]
    forms += [plain.hex().encode(), plain.hex().upper().encode()]
    for before in range(3):
        coded = base64.b64encode(b"\0" * before + plain)
        whole = (before + len(plain)) // 3 * 4  # the last group may hold bits of what follows
        forms.append(coded[(before * 8 + 5) // 6 : whole])
    return [re.escape(form) for form in forms]


PATTERN = re.compile(
    b"|".join(
        [
            *(form for word in (NAME, DATE, NUMBER) for form in forms_of(word)),
            rb"(?i:zzphi)|1931[-/. ]?0?2[-/. ]?0?3|0?3[-/. ]0?2[-/. ]1931|23:17:59",
            *(rb"(?<![0-9A-Za-z+/])" + word.encode() + rb"(?![0-9A-Za-z+/])" for word in (AGE, TIME)),
            NUMBER.encode(),
        ]
    )
)


def layers(content: bytes, name: str, depth: int = 4):
    """(name, bytes) of a file and of what is packed in it: zip and npz members, gzip, compressed text of pictures."""
    yield name, content
    if depth == 0:
        return
    if content[:4] == b"PK\3\4":
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            for member in archive.namelist():
                yield from layers(archive.read(member), f"{name}/{member}", depth - 1)
    if content[:2] == b"\x1f\x8b":
        yield from layers(gzip.decompress(content), f"{name}/", depth - 1)
    if content[:8] == b"\x89PNG\r\n\x1a\n":
        with Image.open(io.BytesIO(content)) as image:
            image.load()
            yield f"{name}/text", repr({**getattr(image, "text", {}), **image.info}).encode()
    for start in (match.start() for match in re.finditer(rb"\x78[\x01\x5e\x9c\xda]", content[: 2**20])):
        packed = zlib.decompressobj()
        try:
            yield f"{name}/zlib at {start}", packed.decompress(content[start:], 2**22)
        except zlib.error:
            pass


def found_in_bytes(content: bytes, name: str) -> list[str]:
    """Where a planted word stands: `name: ...word...`."""
    found = []
    for where, layer in layers(content, name):
        for match in list(PATTERN.finditer(layer))[:3]:
            found.append(f"{where}: {layer[max(0, match.start() - 60) : match.end() + 20]!r}")
    return found


def found_in_folder(folder: Path) -> list[str]:
    """The same for names and contents of all files below a folder."""
    found = []
    for path in sorted(folder.rglob("*")):
        found += found_in_bytes(str(path.relative_to(folder)).encode(), "a file's name")
        found += found_in_bytes(path.read_bytes(), path.name) if path.is_file() else []
    return found


def found_in_text(text: str) -> list[str]:
    """The same for what was said, and there also the start of the name, as text or as its bytes read as numbers."""
    start = re.findall(r"(?i).{0,60}zzph.{0,20}|.{0,60}23130\D{1,3}18512.{0,20}", text)
    return start + found_in_bytes(text.encode(errors="replace"), "said")


# ------------------------------------------------------------------------------------------------- planting


def plant(dataset: Dataset) -> None:
    """Every tag of the dictionary that takes text, sequences, private tags, file meta header, preamble."""
    warnings.simplefilter("ignore")
    for tag, (vr, _, _, _, keyword) in DicomDictionary.items():
        if vr in PLANTED and keyword not in KEPT and tag >> 16 not in (0, 2, 4) and tag not in dataset:
            dataset.add_new(tag, vr, PLANTED[vr])
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL", NAME]
    dataset.SeriesInstanceUID, dataset.SOPInstanceUID = PLANTED["UI"], PLANTED["UI"] + ".1"
    dataset.SpecificCharacterSet = "ISO_IR 192"
    item = Dataset()
    item.PatientName, item.StudyDate, item.TextValue = PLANTED["PN"], DATE, NAME
    dataset.ReferencedPatientSequence = dataset.RequestAttributesSequence = [item]
    block = dataset.private_block(0x0009, NAME, create=True)
    for number, vr in enumerate(PLANTED):
        block.add_new(number, vr, PLANTED[vr])
    meta = dataset.file_meta
    meta.MediaStorageSOPInstanceUID, meta.ImplementationVersionName = PLANTED["UI"], NAME
    meta.SourceApplicationEntityTitle, meta.PrivateInformationCreatorUID = NAME, PLANTED["UI"]
    meta.PrivateInformation = NAME.encode() + b"\0"
    dataset.preamble = (f"{NAME} {DATE} ".encode() * 10)[:128]


def necks() -> tuple[Volume, np.ndarray]:
    """A CT whose bones are bright, as far as that can be in twelve slices, and its label map."""
    volume, mask = patient_volume(SHAPE), neck_mask(SHAPE)
    hu = np.where(mask > 0, 500 + volume.hu % 200, volume.hu % 100)
    return Volume(hu.astype(np.int16), volume.affine), mask


def write_planted_series(folder: Path, volume: Volume) -> None:
    for path in write_series(folder, volume, signed=False):
        with warnings.catch_warnings():
            dataset = pydicom.dcmread(path)
            dataset.SOPClassUID = uid.CTImageStorage
            plant(dataset)
            dataset.save_as(path)


def write_planted_enhanced(path: Path, slices: list[Path]) -> bytes:
    """The slices as frames of one planted multi-frame file; names stand in its functional groups, too."""
    singles = [pydicom.dcmread(p) for p in slices]
    dataset = pydicom.dcmread(slices[0])
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = uid.EnhancedCTImageStorage
    dataset.NumberOfFrames = len(singles)
    dataset.PixelData = b"".join(single.PixelData for single in singles)
    groups = []
    for single in singles:
        item = Dataset()
        for name, keywords in (
            ("PlanePositionSequence", ["ImagePositionPatient"]),
            ("PlaneOrientationSequence", ["ImageOrientationPatient"]),
            ("PixelMeasuresSequence", ["PixelSpacing", "SliceThickness"]),
            ("PixelValueTransformationSequence", ["RescaleSlope", "RescaleIntercept"]),
            ("FrameContentSequence", ["ImageComments", "PatientName"]),
        ):
            part = Dataset()
            part.update({single[k].tag: single[k] for k in keywords})
            setattr(item, name, [part])
        groups.append(item)
    dataset.PerFrameFunctionalGroupsSequence = groups
    dataset.save_as(path)
    return path.read_bytes()


def write_planted_mask(path: Path, mask: np.ndarray, volume: Volume) -> bytes:
    image = nib.load(write_label_file(path, mask, volume))
    for field in ("descrip", "aux_file", "intent_name", "db_name"):
        image.header[field] = f"{NAME} {DATE}"[: image.header[field].dtype.itemsize]
    for code in ("comment", "afni", "xcede"):
        image.header.extensions.append(nib.nifti1.Nifti1Extension(code, f"{NAME} {DATE}".encode()))
    content = image.to_bytes()
    path.write_bytes(content)
    return content


def text_of(keyword: str, value: bytes = NAME.encode()):
    return lambda content: faults_series.with_value(content, keyword, value)


def vr_of(keyword: str, vr: str):
    return lambda content: faults_series.with_vr(content, keyword, vr.encode())


def length_of(keyword: str, length: int):
    return lambda content: faults_series.with_length(content, keyword, length)


def cut_at(share: float):
    return lambda content: content[: int(len(content) * share)]


def bare(content: bytes) -> bytes:
    return content[faults_series.meta_end(content) :]


def other_syntax(syntax: str):
    return lambda content: faults_series.renamed(content, syntax)


NUMBERS = ("PixelSpacing", "ImagePositionPatient", "ImageOrientationPatient", "RescaleSlope", "RescaleIntercept")
BINARY = ("Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "SamplesPerPixel")
#: Damages of one slice; readers and their libraries like to quote what they stumble over.
DAMAGES = {
    **{f"text in {k}": text_of(k) for k in (*NUMBERS, *BINARY, "SliceThickness", "InstanceNumber")},
    **{f"text in {k}": text_of(k) for k in ("Modality", "PhotometricInterpretation", "SOPClassUID")},
    **{f"text in {k}": text_of(k) for k in ("TransferSyntaxUID", "StudyInstanceUID", "SpecificCharacterSet")},
    **{f"text in {k}": text_of(k) for k in ("StudyDate", "StudyTime", "PatientAge", "PatientWeight", "SeriesNumber")},
    **{f"two texts in {k}": text_of(k, f"{NAME}\\{NAME}".encode()) for k in NUMBERS},
    **{f"a name and a number in {k}": text_of(k, f"0.5\\{NAME}".encode()) for k in NUMBERS},
    **{f"VR {v} of {k}": vr_of(k, v) for k in ("PixelSpacing", "Rows") for v in ("PN", "DA", "UN", "SQ")},
    **{f"VR {v} of PatientName": vr_of("PatientName", v) for v in ("DS", "US", "FD", "UI", "SQ", "XX")},
    **{f"PatientName of length {n:#x}": length_of("PatientName", n) for n in (1, 3, 0xFFFF)},
    **{f"{k} of length 6000": length_of(k, 6000) for k in ("Modality", "PixelSpacing", "TransferSyntaxUID")},
    "SOPClassUID of length 6000": length_of("SOPClassUID", 6000),
    **{f"cut at {share:.2f}": cut_at(share) for share in (0.01, 0.05, 0.2, 0.4, 0.6, 0.9, 0.99)},
    **{f"called {s}": other_syntax(s) for s in ("rle", "jpeg lossless", "jpeg-ls", "jpeg 2000", "deflated")},
    "a name as pixels": lambda c: faults_series.with_value(
        other_syntax("jpeg lossless")(c), "PixelData", NAME.encode() * 50
    ),
    "no meta header": bare,
    "a name alone": lambda content: NAME.encode() * 40,
    "a name behind a preamble": lambda content: content[:132] + NAME.encode() * 40,
    "a name in front": lambda content: NAME.encode() + content,
}  # fmt: skip

#: The same for label files.
MASK_DAMAGES = {
    "cut in the header": lambda c: c[:200],
    "cut in an extension": lambda c: c[:380],
    "cut in the voxels": lambda c: c[:-100],
    "text in its sizes": lambda c: c[:40] + NAME.encode() + c[49:],
    "text in its type": lambda c: c[:70] + b"ZZ" + c[72:],
    "text as its magic": lambda c: c[:344] + NAME.encode()[:4] + c[348:],
    "text in its affine": lambda c: c[:280] + (NAME * 6).encode()[:48] + c[328:],
    "text in its scale": lambda c: c[:112] + NAME.encode()[:8] + c[120:],
    "text as an extension's length": lambda c: c[:352] + NAME.encode()[:4] + c[356:],
    "a name alone": lambda c: NAME.encode() * 100,
    "gzip": lambda c: gzip.compress(c),
}
