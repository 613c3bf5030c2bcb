"""Stored values -> HU: every way in which scanners store them, against arithmetic on the numbers themselves."""

import imagecodecs
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from conftest import REAL_CT, needs_real_ct, patient_volume, write_series
from test_dicom import edit

from cspine_utils.dicom import read_series, read_slice
from cspine_utils.errors import SeriesError
from cspine_utils.volume import Volume


def store(paths, patterns, **header):
    """Give each file these stored bit patterns `(n, rows, columns)` and header values."""
    for path, pattern in zip(paths, patterns, strict=True):

        def change(dataset, pattern=pattern):
            for keyword, value in header.items():
                setattr(dataset, keyword, value)
                if dataset[keyword].VR == "US or SS":
                    dataset[keyword].VR = "SS" if dataset.PixelRepresentation else "US"
            dataset.PixelData = pattern.tobytes()
            dataset["PixelData"].VR = "OW"

        edit(path, change)


@pytest.mark.parametrize("garbage", ["zeros", "sign", "noise"])
@pytest.mark.parametrize("high", [11, 15])
@pytest.mark.parametrize("signed", [True, False])
def test_twelve_bits_in_sixteen(tmp_path, signed, high, garbage):
    """The other four bits hold no value, whatever is in them: zeros, the sign repeated, or an old overlay."""
    rng = np.random.default_rng(4)
    values = rng.integers(-2048 if signed else 0, 2048 if signed else 4096, (7, 9, 11))
    patterns = (values & 0xFFF).astype(np.uint16)
    if garbage == "sign" and signed:
        rest = np.where(values < 0, 0xF, 0).astype(np.uint16)
    else:
        rest = np.zeros_like(patterns) if garbage != "noise" else rng.integers(0, 16, patterns.shape).astype(np.uint16)
    patterns = patterns | rest << 12 if high == 11 else patterns << 4 | rest
    paths = write_series(tmp_path, patient_volume())
    store(paths, patterns, BitsStored=12, HighBit=high, PixelRepresentation=int(signed))
    assert np.array_equal(read_series(tmp_path).hu, values - 1024)


@pytest.mark.parametrize(
    ("allocated", "kind"), [(8, "u1"), (8, "i1"), (32, "<u4"), (32, "<i4"), (16, "<u2"), (16, "<i2")]
)
def test_every_width_over_its_whole_range(tmp_path, allocated, kind):
    rng = np.random.default_rng(5)
    limits = np.iinfo(kind)
    values = rng.integers(limits.min, limits.max, (7, 9, 11), endpoint=True).astype(kind)
    values[3, 4, 5:7] = limits.min, limits.max
    paths = write_series(tmp_path, patient_volume())
    store(
        paths, values, BitsAllocated=allocated, BitsStored=allocated, HighBit=allocated - 1,
        PixelRepresentation=int(kind[-2] == "i"), RescaleIntercept=-1024,
    )  # fmt: skip
    read = read_series(tmp_path).hu
    assert np.array_equal(read, np.clip(values.astype(np.int64) - 1024, -32768, 32767))


def test_a_slope_that_is_no_whole_number(tmp_path):
    values = np.random.default_rng(6).integers(0, 4096, (7, 9, 11)).astype("<u2")
    paths = write_series(tmp_path, patient_volume(), signed=False)
    store(paths, values, RescaleSlope="0.4375", RescaleIntercept="-1000.5")
    assert np.array_equal(read_series(tmp_path).hu, np.rint(values * 0.4375 - 1000.5))


def test_big_endian_pixels(tmp_path):
    volume = patient_volume()
    for path in write_series(tmp_path, volume):
        dataset = pydicom.dcmread(path)
        dataset.PixelData = dataset.pixel_array.astype(">i2").tobytes()
        dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRBigEndian
        dataset["PixelData"].VR = "OW"
        pydicom.dcmwrite(path, dataset, implicit_vr=False, little_endian=False)
    assert np.array_equal(read_series(tmp_path).hu, volume.hu)


# --- padding --------------------------------------------------------------------------------------------------------


def padded(tmp_path, *, stored_padding, tag_padding, signed, corner=True, limit=None):
    """A series with tissue of 40 HU, the padding in a corner, and a spot of the same value inside."""
    intercept = -1024
    paths = write_series(tmp_path, patient_volume(), signed=signed)
    patterns = np.full((7, 9, 11), 40 - intercept, "<i2" if signed else "<u2")
    if corner:
        patterns[:, ::8, ::10] = patterns[:, 0, :3] = stored_padding
    patterns[:, 4, 5] = stored_padding
    header = {"BitsStored": 16, "HighBit": 15, "PixelPaddingValue": tag_padding}
    header |= {} if limit is None else {"PixelPaddingRangeLimit": limit}
    store(paths, patterns, **header)
    return read_series(tmp_path).hu


def test_padding_as_dark_as_air_stays_what_it_is(tmp_path):
    hu = padded(tmp_path, stored_padding=-2000, tag_padding=-2000, signed=True)
    assert (hu[:, 0, :3] == -3024).all() and (hu[:, 8, 1:10] == 40).all()


def test_padding_that_would_be_bright_becomes_air(tmp_path):
    """-2000 as an unsigned number: 63536, or 62512 HU, a white ring around the patient."""
    hu = padded(tmp_path, stored_padding=63536, tag_padding=63536, signed=False)
    assert (hu[:, 0, :3] == -1024).all() and (hu[:, 4, 5] == -1024).all() and (hu[:, 8, 1:10] == 40).all()


def test_a_range_of_padding(tmp_path):
    hu = padded(tmp_path, stored_padding=63000, tag_padding=62000, signed=False, limit=63536)
    assert (hu[:, 0, :3] == -1024).all() and (hu[:, 8, 1:10] == 40).all()


def test_an_outdated_padding_value_takes_no_tissue_away(tmp_path):
    """Not even where noise puts that value into one corner."""
    hu = padded(tmp_path, stored_padding=1090, tag_padding=1090, signed=False, corner=False)
    assert (hu[:, 4, 5] == 66).all()
    paths = sorted(tmp_path.iterdir())
    edit(paths[0], lambda dataset: setattr(dataset, "PixelData", (1090).to_bytes(2, "little") + dataset.PixelData[2:]))
    assert (read_series(tmp_path).hu[:, 4, 5] == 66).all()


# --- MONOCHROME1 ----------------------------------------------------------------------------------------------------


def neck_in_air() -> Volume:
    volume = patient_volume()
    hu = np.full(volume.shape, -1000, np.int16)
    hu[:, 2:7, 3:9] = np.random.default_rng(7).integers(20, 900, (7, 5, 6))
    return Volume(hu, volume.affine)


@pytest.mark.parametrize(("signed", "bits", "intercept"), [(False, 12, -1024), (True, 16, -1024), (True, 16, 0)])
@pytest.mark.parametrize("turned", [False, True])
def test_monochrome1(tmp_path, signed, bits, intercept, turned):
    """As the standard means it, HU do not change; values that a writer turned round as well are turned back."""
    volume = neck_in_air()
    paths = write_series(tmp_path, volume, signed=signed, intercept=intercept)
    stored = volume.hu.astype(int) - intercept
    if turned:
        stored = -1 - stored if signed else 2**bits - 1 - stored
    store(paths, stored.astype("<i2" if signed else "<u2"), PhotometricInterpretation="MONOCHROME1")
    assert np.array_equal(read_series(tmp_path).hu, volume.hu)
    if turned:  # SimpleITK always turns such values
        assert np.array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(paths[2])))[0], volume.hu[2])


def test_monochrome1_without_air_is_taken_at_its_word(tmp_path):
    volume = patient_volume()
    volume.hu[:] += 1200
    paths = write_series(tmp_path, volume)
    for path in paths:
        edit(path, lambda dataset: setattr(dataset, "PhotometricInterpretation", "MONOCHROME1"))
    assert np.array_equal(read_series(tmp_path).hu, volume.hu)


# --- compressed -----------------------------------------------------------------------------------------------------


def compress(paths, syntax, encode):
    for path in paths:
        dataset = pydicom.dcmread(path)
        dataset.PixelData = pydicom.encaps.encapsulate([bytes(encode(dataset.pixel_array))])
        dataset.file_meta.TransferSyntaxUID = syntax
        dataset["PixelData"].VR, dataset["PixelData"].is_undefined_length = "OB", True
        dataset.save_as(path)


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("predictor", range(1, 8))
def test_jpeg_lossless_of_every_predictor(tmp_path, predictor, signed):
    volume = patient_volume((3, 24, 31))
    paths = write_series(tmp_path, volume, signed=signed)

    def encode(pixels):
        return imagecodecs.jpeg8_encode(pixels.view(np.uint16), lossless=True, predictor=predictor, bitspersample=16)

    compress(paths, pydicom.uid.JPEGLosslessSV1 if predictor == 1 else pydicom.uid.JPEGLossless, encode)
    assert np.array_equal(read_series(tmp_path).hu, volume.hu)


@pytest.mark.parametrize("signed", [True, False])
def test_rle_and_deflated(tmp_path, signed):
    volume = patient_volume((3, 24, 31))
    for path in write_series(tmp_path / "rle", volume, signed=signed):
        dataset = pydicom.dcmread(path)
        dataset.compress(pydicom.uid.RLELossless)
        dataset.save_as(path)
    for path in write_series(tmp_path / "deflated", volume, signed=signed):
        dataset = pydicom.dcmread(path)
        dataset.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
        dataset.save_as(path)
    for form in ("rle", "deflated"):
        assert np.array_equal(read_series(tmp_path / form).hu, volume.hu), form


def test_jpeg_baseline_of_eight_bits(tmp_path):
    """Lossy: within a few grey values of a smooth image."""
    h, w = np.mgrid[:24, :32]
    image = (60 + 3 * h + 2 * w).astype(np.uint8)
    volume = Volume(np.repeat(image[None].astype(np.int16), 3, axis=0), patient_volume().affine)
    paths = write_series(tmp_path, volume, signed=False, intercept=0)
    store(paths, np.repeat(image[None], 3, axis=0), BitsAllocated=8, BitsStored=8, HighBit=7)
    compress(paths, pydicom.uid.JPEGBaseline8Bit, lambda pixels: imagecodecs.jpeg8_encode(pixels, level=98))
    assert np.abs(read_series(tmp_path).hu - volume.hu).max() <= 3


def test_several_fragments_are_one_frame(tmp_path):
    volume = patient_volume((3, 24, 31))
    for path in write_series(tmp_path, volume, signed=False):
        dataset = pydicom.dcmread(path)
        stream = bytes(imagecodecs.ljpeg_encode(dataset.pixel_array, bitspersample=12))
        dataset.PixelData = pydicom.encaps.encapsulate([stream], fragments_per_frame=3)
        dataset.file_meta.TransferSyntaxUID = pydicom.uid.JPEGLossless
        dataset["PixelData"].VR, dataset["PixelData"].is_undefined_length = "OB", True
        dataset.save_as(path)
    assert np.array_equal(read_series(tmp_path).hu, volume.hu)


@needs_real_ct("transfer-syntaxes")
@pytest.mark.parametrize("image", ["CT1", "CT2"])
@pytest.mark.parametrize(
    ("form", "tolerance"),
    [("RLE", 0), ("JPLL", 0), ("J2KR", 0), ("JLSL", 0), ("JLSN", 4), ("J2KI", None), ("UNC", 0)],
)
def test_real_files_of_every_syntax_equal_what_simpleitk_reads(image, form, tolerance):
    """J2KI is lossy (about 400 HU at edges)."""
    source = REAL_CT / "transfer-syntaxes" / f"{image}_{form}"
    hu = read_slice(source).astype(int)
    assert hu.std() > 100
    if form != "J2KI":  # two decoders of a lossy stream may round differently
        assert np.array_equal(hu, sitk.GetArrayFromImage(sitk.ReadImage(str(source)))[0])
    twin = sitk.GetArrayFromImage(sitk.ReadImage(str(REAL_CT / "transfer-syntaxes" / f"{image}_UNC")))[0]
    difference = np.abs(hu - twin)
    if tolerance is None:
        assert np.median(difference) < 20
    else:
        assert difference.max() <= tolerance


def test_a_slice_by_itself(tmp_path):
    volume = patient_volume()
    paths = write_series(tmp_path, volume, feet_first=True)
    assert np.array_equal(read_slice(paths[2]), volume.hu[2])
    edit(paths[0], lambda dataset: setattr(dataset, "Modality", "MR"))
    (tmp_path / "notes.txt").write_text("no slice")
    for name, said in ((paths[0].name, "not CT .MR."), ("notes.txt", "not DICOM"), ("absent", "opened")):
        with pytest.raises(SeriesError, match=said):
            read_slice(tmp_path / name)
