"""Nothing of a header but geometry and study ids gets out: names, dates and numbers are planted wherever a file can
hold text, the pipeline runs over good and damaged files, and everything that it wrote or said is searched for them."""

import base64
import gzip
import io
import logging
import re
import shutil
import traceback
import warnings
import zipfile
import zlib
from pathlib import Path

import faults_dicom as bytes_of
import matplotlib.pyplot as plt
import nibabel as nib
import numpy as np
import pandas as pd
import pydicom
import pytest
from conftest import ROOT, neck_mask, patient_volume, write_label_file, write_series
from PIL import Image, PngImagePlugin
from pydicom import uid
from pydicom.datadict import DicomDictionary
from pydicom.dataset import Dataset

from cspine_utils import dicom, nifti, plots, runs, screening, stacks
from cspine_utils.anatomy import TARGETS
from cspine_utils.errors import CSpineError
from cspine_utils.rsna import RsnaDataset
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


def _forms(word: str) -> list[bytes]:
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
            *(form for word in (NAME, DATE, NUMBER) for form in _forms(word)),
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
    """The same for what was said, and there also the start of the name, as text or as the numbers that it looks like."""
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
    return lambda content: bytes_of.with_value(content, keyword, value)


def vr_of(keyword: str, vr: bytes):
    return lambda content: bytes_of.with_vr(content, keyword, vr)


def length_of(keyword: str, length: int):
    return lambda content: bytes_of.with_length(content, keyword, length)


def cut_at(share: float):
    return lambda content: content[: int(len(content) * share)]


def bare(content: bytes) -> bytes:
    return content[bytes_of._meta_end(content) :]


def other_syntax(syntax: str):
    return lambda content: bytes_of._renamed(content, syntax)


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
    **{f"VR {vr.decode()} of {k}": vr_of(k, vr) for k in ("PixelSpacing", "Rows") for vr in (b"PN", b"DA", b"UN", b"SQ")},
    **{f"VR {vr.decode()} of PatientName": vr_of("PatientName", vr) for vr in (b"DS", b"US", b"FD", b"UI", b"SQ", b"XX")},
    **{f"PatientName of length {n:#x}": length_of("PatientName", n) for n in (1, 3, 0xFFFF)},
    **{f"{k} of length 6000": length_of(k, 6000) for k in ("Modality", "PixelSpacing", "TransferSyntaxUID", "SOPClassUID")},
    **{f"cut at {share:.2f}": cut_at(share) for share in (0.01, 0.05, 0.2, 0.4, 0.6, 0.9, 0.99)},
    **{f"called {s}": other_syntax(s) for s in ("rle", "jpeg lossless", "jpeg-ls", "jpeg 2000", "deflated")},
    "a name as pixels": lambda c: bytes_of.with_value(other_syntax("jpeg lossless")(c), "PixelData", NAME.encode() * 50),
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


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    """Good studies; studies with one damaged slice each; studies with a damaged label map each. All of them planted."""
    folder = tmp_path_factory.mktemp("planted")
    root, (volume, mask) = folder / "rsna", necks()
    template = folder / "template"
    write_planted_series(template, volume)
    content = write_planted_mask(folder / "mask.nii", mask, volume)
    good = [f"1.2.3.1.{n}" for n in range(8)]
    damaged = {f"1.2.3.2.{n}": damage for n, damage in enumerate(DAMAGES.values())}
    masks = {f"1.2.3.3.{n}": damage for n, damage in enumerate(MASK_DAMAGES.values())}
    (root / "segmentations").mkdir(parents=True)
    for study in (*good, *damaged, *masks):
        shutil.copytree(template, root / "train_images" / study)
        changed = masks[study](content) if study in masks else content
        (root / "segmentations" / f"{study}.nii").write_bytes(changed)
    for study, damage in damaged.items():
        path = root / "train_images" / study / "4.dcm"
        path.write_bytes(damage(path.read_bytes()))
    put_strangers(root / "train_images" / good[0])
    rows = [[s, int(n % 3 == 0), int(n % 3 == 0), *[0] * 6, NAME] for n, s in enumerate((*good, *damaged, *masks))]
    table = pd.DataFrame(rows, columns=["StudyInstanceUID", TARGETS[-1], *TARGETS[:-1], "PatientName"])
    table.to_csv(root / "train.csv", index=False)
    (root / "train_bounding_boxes.csv").write_text("StudyInstanceUID,x,y,width,height,slice_number\n")
    return RsnaDataset(root), good, damaged, masks


def put_strangers(folder: Path) -> None:
    """Files beside the slices that are left out, with reasons that must not quote them."""
    for number, (sop_class, modality) in enumerate(
        [(uid.XRayRadiationDoseSRStorage, "SR"), (uid.SecondaryCaptureImageStorage, "OT"), (uid.MRImageStorage, "MR")]
    ):
        dataset = pydicom.dcmread(folder / "1.dcm")
        dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = sop_class
        dataset.Modality, dataset.SeriesInstanceUID = modality, PLANTED["UI"] + ".7"
        dataset.save_as(folder / f"stranger{number}.dcm")
    (folder / "notes.txt").write_text(f"{NAME}, born {DATE}")


@pytest.fixture
def said(capfd, caplog):
    """Runs something; returns all that it printed, logged and warned, however quietly."""

    def run(act):
        with warnings.catch_warnings(record=True) as warned, caplog.at_level(logging.DEBUG):
            warnings.simplefilter("always")
            act()
        printed = capfd.readouterr()
        messages = "\n".join(f"{w.category.__name__}: {w.message}" for w in warned)
        return "\n".join([printed.out, printed.err, caplog.text, messages])

    return run


# ------------------------------------------------------------------------------------------------ the tests


def test_the_words_are_in_the_files(cohort):
    """Otherwise the tests below would show nothing."""
    dataset, good, damaged, masks = cohort
    for study in good:
        for path in [*dataset.series_dir(study).glob("[0-9]*.dcm"), dataset.mask_path(study)]:
            assert len(found_in_bytes(path.read_bytes(), "")) >= 3
    slice_bytes = (dataset.series_dir(good[0]) / "1.dcm").read_bytes()
    for word in (NAME, DATE, TIME, AGE, NUMBER):
        assert slice_bytes.count(word.encode()) > 2
    header = pydicom.dcmread(dataset.series_dir(good[0]) / "1.dcm")
    assert len(header) > 2500 and header.PatientName == f"{NAME}^{NAME}"
    with warnings.catch_warnings(record=True) as warned:  # pydicom does quote values
        warnings.simplefilter("always")
        str(pydicom.dcmread(dataset.series_dir(next(iter(damaged))) / "4.dcm", force=True))
        pydicom.dcmread(good_with_character_set(dataset, damaged)).decode()
    assert any(NAME in str(w.message) for w in warned)


def good_with_character_set(dataset, damaged):
    study = list(damaged)[list(DAMAGES).index("text in SpecificCharacterSet")]
    return dataset.series_dir(study) / "4.dcm"


def test_survey(cohort, tmp_path, said):
    dataset, good, damaged, masks = cohort
    tables = []

    def run():
        for _ in range(2):  # the second takes its rows from the file of the first
            tables.append(screening.survey(dataset, workers=0, resume=tmp_path / "survey.jsonl", progress=True))

    assert found_in_text(said(run)) == []
    assert (tables[0].loc[good, "verdict"] == "use").all()
    assert (tables[0].loc[list(masks)[:-3], "verdict"] == "repair").all()
    for number, table in enumerate(tables):
        table.to_csv(tmp_path / f"{number}.csv")
        assert found_in_text(table.to_string()) == []
    assert found_in_folder(tmp_path) == []


def test_pairs_store_masks_and_figures(cohort, tmp_path, said):
    dataset, good, damaged, masks = cohort
    failures, read = {}, {}

    def run():
        for study, volume, mask in screening.read_pairs(dataset, dataset.studies, failures):
            read[study] = None
            print(volume, volume.left_out)
            if study not in good[:2]:
                continue
            nifti.write_mask(tmp_path / f"{study}.nii", mask, volume)
            nifti.write_mask(tmp_path / f"{study}.nii.gz", mask, volume)
            figure, axes = plt.subplots(1, 2)
            plots.show_plane(axes[0], volume, "sagittal", 9, mask=mask)
            plots.show_plane(axes[1], volume, "axial", 3)
            plots.save(figure, tmp_path / "figures", study)
            plt.close(figure)
        report = stacks.prepare(dataset, dataset.studies, tmp_path / "stacks", size=8, count=12)
        report.to_csv(tmp_path / "report.csv")
        print(report.to_string(max_colwidth=None))
        sample, _ = stacks.StackDataset(tmp_path / "stacks", dataset.labels.loc[good])[0]
        assert sample.shape == (6, 6, 8, 8)

    assert found_in_text(said(run)) == []
    assert set(good) <= set(read) and set(list(masks)[:-3]) <= set(failures) and len(failures) > 40
    for study, reason in failures.items():
        assert found_in_text(reason) == [], study
    assert len(list((tmp_path / "stacks").glob("*.npz"))) >= len(good)
    assert found_in_folder(tmp_path) == []


@pytest.mark.parametrize("name", [*DAMAGES, *(f"mask: {name}" for name in MASK_DAMAGES)])
def test_errors_and_their_causes(cohort, said, name):
    """A notebook shows the causes of an error, too."""
    dataset, good, damaged, masks = cohort
    texts = []

    def run():
        try:
            if name in DAMAGES:
                volume = dicom.read_series(dataset.series_dir(list(damaged)[list(DAMAGES).index(name)]))
                texts.append(repr(volume) + repr(volume.left_out))
            else:
                study = list(masks)[list(MASK_DAMAGES).index(name.removeprefix("mask: "))]
                path, volume = dataset.mask_path(study), necks()[0]
                texts.append(repr(nifti.describe_mask(path, volume)))
                nifti.read_mask(path, volume)
        except CSpineError as error:
            texts.append("".join(traceback.format_exception(error)))

    printed = said(run)
    # The traceback quotes lines of the package, and this test's own name; neither holds a planted word.
    assert found_in_text(printed) == [] and found_in_text("\n".join(texts)) == []


def test_listings(cohort, said):
    dataset, good, _, _ = cohort
    listing = dicom.look_into(dataset.series_dir(good[0]))
    assert len(listing.left_out) == 4
    for reason in listing.left_out.values():
        assert found_in_text(reason) == []
    with pytest.raises(CSpineError) as error:
        listing.choose("absent.dcm")
    assert found_in_text(str(error.value)) == []


def test_a_notebook(cohort, tmp_path, said):
    dataset, good, damaged, masks = cohort
    parameters = {"data_dir": str(dataset.root), "figures_dir": str(tmp_path / "figures"), "progress": True}
    notebook = ROOT / "notebooks" / "02_dataset_screening.ipynb"
    assert found_in_text(said(lambda: runs.run_notebook(notebook, tmp_path / "02.ipynb", parameters))) == []
    assert len(list((tmp_path / "figures").glob("*.png"))) >= 3
    assert "reject" in (tmp_path / "02.ipynb").read_text()
    assert found_in_folder(tmp_path) == []


# ---------------------------------------------------------------------------- writers that leak, and one that does not


def leak_csv(folder):
    pd.DataFrame({"study": ["1.2.3"], "reason": [f"PatientName {NAME.title()}"]}).to_csv(folder / "t.csv")


def leak_date(folder):
    pd.DataFrame({"day": [pd.Timestamp("1931-02-03")]}).to_csv(folder / "t.csv")


def leak_npz(folder):
    np.savez_compressed(folder / "s.npz", hu=np.zeros(5), source=np.array(NAME))


def leak_npz_member_name(folder):
    np.savez(folder / "s.npz", **{NAME: np.zeros(5)})


def leak_png(folder):
    text = PngImagePlugin.PngInfo()
    text.add_text("Title", NAME)
    Image.new("L", (4, 4)).save(folder / "f.png", pnginfo=text)


def leak_packed_png(folder):
    text = PngImagePlugin.PngInfo()
    text.add_text("Title", NAME * 9, zip=True)
    Image.new("L", (4, 4)).save(folder / "f.png", pnginfo=text)


def leak_exif(folder):
    exif = Image.Exif()
    exif[0x010E] = NAME
    Image.new("L", (4, 4)).save(folder / "f.png", exif=exif)


def leak_nifti(folder):
    image = nib.Nifti1Image(np.zeros((2, 2, 2), np.uint8), np.eye(4))
    image.header["descrip"] = NAME
    nib.save(image, folder / "m.nii.gz")


def leak_utf16(folder):
    (folder / "t.txt").write_text(f"name {NAME}", encoding="utf-16")


def leak_base64(folder):
    (folder / "n.ipynb").write_text('{"image/png": "' + base64.b64encode(b"ab" + NAME.encode() + b"c").decode() + '"}')


def leak_zip_in_zip(folder):
    inner, outer = io.BytesIO(), folder / "z.zip"
    with zipfile.ZipFile(inner, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.csv", f"{NAME},{NUMBER}")
    with zipfile.ZipFile(outer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("b.zip", inner.getvalue())


def leak_file_name(folder):
    (folder / f"{NAME}.csv").touch()


def leak_age(folder):
    (folder / "t.csv").write_text(f"age\n{AGE}\n")


def leak_number(folder):
    (folder / "t.json").write_text(f'{{"weight": {NUMBER}.0}}')


@pytest.mark.parametrize(
    "leak",
    [
        leak_csv, leak_date, leak_npz, leak_npz_member_name, leak_png, leak_packed_png, leak_exif, leak_nifti, leak_utf16,
        leak_base64, leak_zip_in_zip, leak_file_name, leak_age, leak_number,
    ],
)  # fmt: skip
def test_a_leak_is_found(tmp_path, leak):
    leak(tmp_path)
    assert found_in_folder(tmp_path)


@pytest.mark.parametrize(
    "text", [f"for {NAME}", "magic ZZPH", "Rows = 23130\\18512", f"born {DATE}", "on 1931-02-03", AGE]
)
def test_a_leak_in_words_is_found(text):
    assert found_in_text(text)


def test_what_leaks_nothing_is_let_through(tmp_path):
    """A thousand random arrays, tables and pictures hold none of the words."""
    generator = np.random.default_rng(0)
    np.savez(tmp_path / "s.npz", hu=generator.integers(-1000, 2000, (40, 64, 64), dtype=np.int16))
    Image.fromarray(generator.integers(0, 255, (256, 256), dtype=np.uint8)).save(tmp_path / "f.png")
    pd.DataFrame(generator.normal(size=(500, 20))).to_csv(tmp_path / "t.csv")
    (tmp_path / "n.ipynb").write_bytes(base64.b64encode(generator.bytes(2**20)))
    assert found_in_folder(tmp_path) == []
