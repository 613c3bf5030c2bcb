"""Nothing of a header but geometry and study ids gets out: names, dates and numbers are planted wherever a file can
hold text, the pipeline runs over good and damaged files, and everything that it wrote or said is searched for them."""

import base64
import io
import logging
import shutil
import traceback
import warnings
import zipfile
from pathlib import Path

import matplotlib.pyplot as plt
import nibabel as nib
import numpy as np
import pandas as pd
import pydicom
import pytest
from conftest import ROOT
from PIL import Image, PngImagePlugin
from planted import (
    AGE,
    DAMAGES,
    DATE,
    MASK_DAMAGES,
    NAME,
    NUMBER,
    PLANTED,
    TIME,
    found_in_bytes,
    found_in_folder,
    found_in_text,
    necks,
    write_planted_enhanced,
    write_planted_mask,
    write_planted_series,
)
from pydicom import uid

from cspine_utils import dicom, nifti, plots, runs, screening, stacks
from cspine_utils.anatomy import TARGETS
from cspine_utils.errors import CSpineError
from cspine_utils.rsna import RsnaDataset


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
        report = stacks.prepare(dataset, tmp_path / "stacks", size=8, count=12)
        report.to_csv(tmp_path / "report.csv")
        print(report.to_string(max_colwidth=None))
        sample, _ = stacks.StackDataset(tmp_path / "stacks", dataset.labels.loc[good])[0]
        assert sample.shape == (6, 6, 8, 8)

    assert found_in_text(said(run)) == []
    assert set(good) <= set(read) and set(list(masks)[:-3]) <= set(failures) and len(failures) > 40
    for study, reason in failures.items():
        assert found_in_text(reason) == [], study
    assert len(list((tmp_path / "stacks").glob("*.hu.npy"))) >= len(good)
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


@pytest.mark.parametrize("old", ["", "-31.500000", "-1024.0 ", "0.7", "PixelData", "a length"])
def test_multi_frame_files(cohort, tmp_path, said, old):
    """Whole, and with a name in place of numbers of a frame, of its pixels, of a length."""
    dataset, good, _, _ = cohort
    slices = sorted(dataset.series_dir(good[1]).glob("*.dcm"))
    content = write_planted_enhanced(tmp_path / "all.dcm", slices)
    assert len(found_in_bytes(content, "")) >= 3
    new = (NAME * 2).encode()[: len(old)]
    at = {"": 0, "PixelData": len(content) - 100, "a length": content.index(b"-31.500000") - 30}.get(old)
    at = content.rindex(old.encode()) if at is None else at
    (tmp_path / "all.dcm").write_bytes(content[:at] + new + content[at + len(new) :])
    texts = []

    def run():
        try:
            volume = dicom.read_series(tmp_path)
            texts.append(repr(volume) + repr(volume.file_names))
            assert old in ("", "PixelData", "a length") and len(volume.hu) == len(slices)
        except CSpineError as error:
            assert old not in ("", "PixelData")
            texts.append("".join(traceback.format_exception(error)))

    printed = said(run)
    assert found_in_text(printed) == [] and found_in_text("\n".join(texts)) == [] and texts


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
        leak_csv, leak_date, leak_npz, leak_npz_member_name, leak_png, leak_packed_png, leak_exif, leak_nifti,
        leak_utf16, leak_base64, leak_zip_in_zip, leak_file_name, leak_age, leak_number,
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
