import re

import imagecodecs
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from conftest import REAL_CT, needs_real_ct, patient_volume, write_series
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cspine_utils.dicom import look_into, measure, read_series
from cspine_utils.errors import SeriesError
from cspine_utils.volume import Volume


def edit(path, change):
    dataset = pydicom.dcmread(path)
    change(dataset)
    dataset.save_as(path)


@pytest.mark.parametrize("feet_first", [False, True])
@pytest.mark.parametrize("first_number", [1, 2])
@pytest.mark.parametrize(("signed", "intercept"), [(True, -1024), (True, 0), (False, -1024)])
@pytest.mark.parametrize("explicit", [True, False])
def test_what_is_written_is_read(tmp_path, volume, feet_first, first_number, signed, intercept, explicit):
    paths = write_series(
        tmp_path, volume, feet_first=feet_first, first_number=first_number, signed=signed, intercept=intercept,
        explicit=explicit,
    )  # fmt: skip
    read = read_series(tmp_path)
    assert read.hu.dtype == np.int16
    assert np.array_equal(read.hu, volume.hu)
    assert read.affine == pytest.approx(volume.affine, abs=1e-5)
    assert read.file_names == tuple(path.name for path in paths)
    assert read.study_uid == "1.2.826.0.1.3680043.1"
    assert read.spacing_mm[0] == pytest.approx(1.5), "the step comes from the positions; SliceThickness says 2.0"


def test_order_ignores_names_and_instance_numbers(tmp_path, volume):
    paths = write_series(tmp_path, volume)
    generator = np.random.default_rng(3)
    numbers = generator.permutation(len(paths))
    for path, number in zip(paths, numbers, strict=True):
        edit(path, lambda dataset, number=number: setattr(dataset, "InstanceNumber", int(number)))
        path.rename(tmp_path / f"x{number:03d}.dcm")
    read = read_series(tmp_path)
    assert np.array_equal(read.hu, volume.hu)
    assert read.file_names == tuple(f"x{number:03d}.dcm" for number in numbers)


def test_rescale_slope_is_applied_per_file(tmp_path, volume):
    paths = write_series(tmp_path, volume, intercept=0)
    edit(paths[2], lambda dataset: setattr(dataset, "RescaleSlope", "2.5"))
    read = read_series(tmp_path)
    assert np.array_equal(read.hu[2], np.rint(volume.hu[2] * 2.5))
    assert np.array_equal(np.delete(read.hu, 2, 0), np.delete(volume.hu, 2, 0))


def test_values_beyond_int16_saturate(tmp_path, volume):
    paths = write_series(tmp_path, volume, intercept=0)
    edit(paths[0], lambda dataset: setattr(dataset, "RescaleSlope", "100"))
    read = read_series(tmp_path)
    assert np.array_equal(read.hu[0], np.clip(volume.hu[0].astype(int) * 100, -32768, 32767))


def test_images_turned_in_plane_end_up_upright(tmp_path, volume):
    """Rows that run to the back and columns that run to the right (a turned acquisition)."""
    turned = Volume(
        np.ascontiguousarray(volume.hu.transpose(0, 2, 1)[:, ::-1]),
        volume.affine @ np.array([[1, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, volume.shape[2] - 1], [0, 0, 0, 1.0]]),
    )
    write_series(tmp_path, turned)
    read = read_series(tmp_path)
    assert np.array_equal(read.hu, volume.hu)
    assert read.affine == pytest.approx(volume.affine, abs=1e-5)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    step=st.floats(0.3, 5), rows=st.floats(0.2, 1.5), columns=st.floats(0.2, 1.5), tilt=st.floats(-25, 25),
    origin=st.tuples(*[st.floats(-300, 300)] * 3), slices=st.integers(2, 6), feet_first=st.booleans(),
)  # fmt: skip
def test_any_geometry_agrees_with_simpleitk(tmp_path_factory, step, rows, columns, tilt, origin, slices, feet_first):
    """Values and the place of every corner, for tilted gantries too (the images lean, the table moves along z)."""
    folder = tmp_path_factory.mktemp("series")
    volume = patient_volume((slices, 4, 5), (step, rows, columns))
    affine = volume.affine.copy()
    angle = np.radians(tilt)
    affine[:3, 1] = rows * np.array([0, -np.cos(angle), np.sin(angle)])
    affine[:3, 3] = np.round(origin, 3)
    paths = write_series(folder, Volume(volume.hu, affine), feet_first=feet_first)
    read = read_series(folder)
    assert np.array_equal(read.hu, volume.hu)
    for index, path in enumerate(paths):  # SimpleITK reads slice by slice: its series reader knows no shear
        image = sitk.ReadImage(str(path))
        assert np.array_equal(sitk.GetArrayFromImage(image)[0], read.hu[index])
        for h, w in ((0, 0), (3, 4), (0, 4)):
            lps = image.TransformIndexToPhysicalPoint((w, h, 0))
            assert read.position_mm((index, h, w)) == pytest.approx((-lps[0], -lps[1], lps[2]), abs=1e-3)


def bad_text(paths):
    (paths[0].parent / "9.dcm").write_text("Meeting notes, not DICOM.")


def bad_truncated_header(paths):
    paths[3].write_bytes(paths[3].read_bytes()[:300])


def bad_truncated_pixels(paths):
    paths[3].write_bytes(paths[3].read_bytes()[:-40])


def bad_link(paths):
    (paths[0].parent / "9.dcm").symlink_to("nowhere")


def bad_no_intercept(paths):
    edit(paths[3], lambda dataset: delattr(dataset, "RescaleIntercept"))


def bad_zero_slope(paths):
    edit(paths[3], lambda dataset: setattr(dataset, "RescaleSlope", 0))


def bad_empty_file(paths):
    paths[3].write_bytes(b"")


def bad_missing_slice(paths):
    paths[3].unlink()


def bad_two_missing_slices(paths):
    paths[3].unlink()
    paths[4].unlink()


def bad_repeated_slice(paths):
    (paths[0].parent / "99.dcm").write_bytes(paths[3].read_bytes())


def bad_no_position(paths):
    edit(paths[3], lambda dataset: delattr(dataset, "ImagePositionPatient"))


def bad_nan_position(paths):
    edit(paths[3], lambda dataset: setattr(dataset, "ImagePositionPatient", ["nan", "0", "0"]))


def bad_drift(paths):
    def move(dataset):
        x, y, z = dataset.ImagePositionPatient
        dataset.ImagePositionPatient = [x + 2, y, z]

    edit(paths[3], move)


def bad_size(paths):
    def change(dataset):
        dataset.Rows = 8
        dataset.PixelData = dataset.PixelData[: 8 * 11 * 2]

    edit(paths[3], change)


def bad_turned_slice(paths):
    edit(paths[3], lambda dataset: setattr(dataset, "ImageOrientationPatient", [0, 1, 0, 0, 0, -1]))


def bad_edges_for_slices(paths):
    """Positions run within the plane of the slices: a sagittal header on an axial series."""
    for path in paths:
        edit(path, lambda dataset: setattr(dataset, "ImageOrientationPatient", [0, 1, 0, 0, 0, -1]))


def bad_modality(paths):
    for path in paths:
        edit(path, lambda dataset: setattr(dataset, "Modality", "MR"))


def bad_one_modality(paths):
    edit(paths[-1], lambda dataset: setattr(dataset, "Modality", "MR"))


def bad_multiframe(paths):
    for path in paths:
        edit(path, lambda dataset: setattr(dataset, "NumberOfFrames", 4))


def bad_transfer_syntax(paths):
    def change(dataset):
        dataset.file_meta.TransferSyntaxUID = pydicom.uid.MPEG2MPML
        dataset.PixelData = pydicom.encaps.encapsulate([dataset.PixelData])
        dataset["PixelData"].is_undefined_length = True

    edit(paths[3], change)


def bad_unit(paths):
    for path in paths:
        edit(path, lambda dataset: setattr(dataset, "RescaleType", "MGML"))


def bad_bits(paths):
    edit(paths[3], lambda dataset: setattr(dataset, "BitsStored", 17))


def bad_spacing(paths):
    edit(paths[3], lambda dataset: setattr(dataset, "PixelSpacing", [0, 0.6]))


def bad_orientation(paths):
    edit(paths[3], lambda dataset: setattr(dataset, "ImageOrientationPatient", [1, 0, 0, 1, 0, 0]))


def bad_only_one(paths):
    for path in paths[1:]:
        path.unlink()


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (bad_text, ["9.dcm", "not DICOM"]),
        (bad_truncated_header, ["4.dcm", "download it again"]),
        (bad_truncated_pixels, ["4.dcm", "cut short", "198 bytes", "9 x 11"]),
        (bad_link, ["9.dcm", "leads nowhere"]),
        (bad_no_intercept, ["4.dcm", "no RescaleIntercept"]),
        (bad_zero_slope, ["4.dcm", "RescaleSlope 0"]),
        (bad_empty_file, ["4.dcm", "download it again"]),
        (bad_missing_slice, ["3.000 mm", "3.dcm", "5.dcm", "1 slice(s) missing", "1.500 mm"]),
        (bad_two_missing_slices, ["3.dcm", "6.dcm", "2 slice(s) missing"]),
        (bad_repeated_slice, ["4.dcm", "99.dcm", "same position"]),
        (bad_no_position, ["4.dcm", "no ImagePositionPatient"]),
        (bad_nan_position, ["4.dcm", "ImagePositionPatient"]),
        (bad_drift, ["4.dcm", "2.00 mm off"]),
        (bad_size, ["4.dcm", "rows x columns [8.0, 11.0]", "[9.0, 11.0]", "as in 1.dcm"]),
        (bad_turned_slice, ["4.dcm", "row and column directions", "separate them"]),
        (bad_edges_for_slices, ["all of them at one place"]),
        (bad_modality, ["no CT slice among 7 files", "1.dcm: not CT (MR)"]),
        (bad_one_modality, ["7.dcm", "not CT (MR), in the series of the slices"]),
        (bad_multiframe, ["no CT slice", "a multi-frame file (4 frames) that is no Enhanced CT"]),
        (bad_transfer_syntax, ["4.dcm", "MPEG2", "1.2.840.10008.1.2.4.100", "a decoder", "gdcmconv"]),
        (bad_unit, ["no CT slice", "not in HU (mg/ml of a material)"]),
        (bad_bits, ["4.dcm", "17 bits", "in 16"]),
        (bad_spacing, ["4.dcm", "positive spacing"]),
        (bad_orientation, ["4.dcm", "right angles"]),
        (bad_only_one, ["1.dcm", "single slice"]),
    ],
)
def test_bad_series_are_refused_in_words(tmp_path, volume, damage, said):
    damage(write_series(tmp_path, volume))
    with pytest.raises(SeriesError) as error:
        read_series(tmp_path)
    for words in [*said, "What to do:"]:
        assert words in str(error.value)


def test_two_series_in_one_folder(tmp_path, volume):
    write_series(tmp_path, volume)
    write_series(tmp_path, volume, first_number=100, series_uid="1.2.826.0.1.3680043.1.2")
    with pytest.raises(SeriesError, match=r"2 series.* 7 axial .* 1\.dcm\); 7 axial .* 100\.dcm\)"):
        read_series(tmp_path)


def capture(dataset):
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = pydicom.uid.SecondaryCaptureImageStorage
    del dataset.ImagePositionPatient, dataset.ImageOrientationPatient, dataset.RescaleIntercept, dataset.RescaleSlope


def colour(dataset):
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PlanarConfiguration = 3, "RGB", 0
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 8, 8, 7, 0
    dataset.PixelData = bytes(3 * dataset.Rows * dataset.Columns + 1)


def report(dataset):
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.88.67"
    dataset.Modality = "SR"
    del dataset.PixelData, dataset.Rows, dataset.Columns
    del dataset.ImagePositionPatient, dataset.ImageOrientationPatient, dataset.RescaleIntercept, dataset.RescaleSlope


@pytest.mark.parametrize(
    ("change", "said"), [(capture, "a secondary capture"), (colour, "a colour image"), (report, "structured report")]
)
def test_what_surely_is_something_else_is_left_out_of_its_own_series(tmp_path, volume, change, said):
    """Some stations file captures and reports under the series they were made of."""
    paths = write_series(tmp_path, volume)
    other = tmp_path / "other.dcm"
    other.write_bytes(paths[3].read_bytes())
    edit(other, change)
    read = read_series(tmp_path)
    assert np.array_equal(read.hu, volume.hu)
    assert list(read.left_out) == ["other.dcm"] and said in read.left_out["other.dcm"]


@pytest.mark.parametrize("where", ["data set", "file meta header"])
def test_one_damaged_sop_class_makes_no_stranger_of_a_slice(tmp_path, volume, where):
    """...1.1.7 is a secondary capture; all else still says CT."""
    paths = write_series(tmp_path, volume)

    keyword = "SOPClassUID" if where == "data set" else "MediaStorageSOPClassUID"

    def change(dataset):
        part = dataset if where == "data set" else dataset.file_meta
        setattr(part, keyword, pydicom.uid.SecondaryCaptureImageStorage)

    edit(paths[-1], change)
    with pytest.raises(SeriesError, match=r"7\.dcm.*a secondary capture.*in the series of the slices"):
        read_series(tmp_path)


@pytest.mark.parametrize("at", [0, 3, 6])
def test_a_slice_whose_uid_is_damaged_is_not_left_out(tmp_path, volume, at):
    paths = write_series(tmp_path, volume)
    edit(paths[at], lambda dataset: setattr(dataset, "SeriesInstanceUID", "1.2.826.0.1.3680043.1.7"))
    with pytest.raises(SeriesError, match=rf"{paths[at].name}.*continues the other series"):
        read_series(tmp_path)


def test_a_single_slice_elsewhere_is_left_out(tmp_path, volume):
    paths = write_series(tmp_path, volume)
    alone = tmp_path / "monitoring.dcm"
    alone.write_bytes(paths[3].read_bytes())

    def elsewhere(dataset):
        dataset.SeriesInstanceUID = "1.2.826.0.1.3680043.1.7"
        dataset.ImagePositionPatient[2] -= 40

    edit(alone, elsewhere)
    read = read_series(tmp_path)
    assert np.array_equal(read.hu, volume.hu)
    assert re.fullmatch(r"another series: 1 axial slice.*monitoring\.dcm\)", read.left_out["monitoring.dcm"])


def test_empty_and_absent_folders(tmp_path):
    with pytest.raises(SeriesError, match="no files"):
        read_series(tmp_path)
    with pytest.raises(SeriesError, match="no such folder"):
        read_series(tmp_path / "absent")
    with pytest.raises(SeriesError, match="cannot be read"):
        read_series("a name\0that no file has")


def test_hidden_files_are_not_slices(tmp_path, volume):
    write_series(tmp_path, volume)
    (tmp_path / ".DS_Store").write_bytes(b"\0\1")
    assert np.array_equal(read_series(tmp_path).hu, volume.hu)


def encode(path, syntax, encoder, **options):
    """Replace a file's pixels by a compressed stream."""
    dataset = pydicom.dcmread(path)
    stream = encoder(dataset.pixel_array, **options)
    dataset.PixelData = pydicom.encaps.encapsulate([bytes(stream)])
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset["PixelData"].VR = "OB"
    dataset.save_as(path)


LOSSLESS = [
    (pydicom.uid.JPEGLossless, imagecodecs.ljpeg_encode, {"bitspersample": 12}),
    (pydicom.uid.JPEG2000Lossless, imagecodecs.jpeg2k_encode, {"codecformat": "j2k", "level": 0}),
    (pydicom.uid.JPEGLSLossless, imagecodecs.jpegls_encode, {}),
]


@pytest.mark.parametrize(("syntax", "encoder", "options"), LOSSLESS, ids=lambda value: getattr(value, "name", ""))
def test_lossless_streams_give_back_every_value(tmp_path, syntax, encoder, options):
    volume = patient_volume((4, 24, 31))
    for path in write_series(tmp_path, volume, signed=False):
        encode(path, syntax, encoder, **options)
    assert np.array_equal(read_series(tmp_path).hu, volume.hu)


@pytest.mark.parametrize(("syntax", "encoder", "options"), LOSSLESS, ids=lambda value: getattr(value, "name", ""))
def test_a_damaged_stream_is_refused_with_its_syntax(tmp_path, caplog, syntax, encoder, options):
    paths = write_series(tmp_path, patient_volume((4, 24, 31)), signed=False)
    for path in paths:
        encode(path, syntax, encoder, **options)
    dataset = pydicom.dcmread(paths[2])
    stream = next(pydicom.encaps.generate_frames(dataset.PixelData, number_of_frames=1))
    dataset.PixelData = pydicom.encaps.encapsulate([stream[:40]])
    dataset.save_as(paths[2])
    with pytest.raises(SeriesError, match=rf"3\.dcm.*cannot be decoded.*{re.escape(syntax.name)}"):
        read_series(tmp_path)
    assert "Traceback" not in caplog.text


@pytest.mark.parametrize(("syntax", "encoder", "options"), LOSSLESS, ids=lambda value: getattr(value, "name", ""))
def test_a_compressed_file_cut_short_is_seen_in_its_header(tmp_path, syntax, encoder, options):
    paths = write_series(tmp_path, patient_volume((4, 24, 31)), signed=False)
    for path in paths:
        encode(path, syntax, encoder, **options)
    assert len(look_into(tmp_path).choose()) == 4
    content = paths[2].read_bytes()
    for kept in (0.97, 0.7, 0.5):
        paths[2].write_bytes(content[: int(kept * len(content))])
        with pytest.raises(SeriesError, match=r"3\.dcm"):
            look_into(tmp_path)


def test_a_stream_of_another_size_is_refused(tmp_path):
    paths = write_series(tmp_path, patient_volume((4, 24, 31)), signed=False)
    encode(paths[1], *LOSSLESS[0][:2], **LOSSLESS[0][2])

    def claim(dataset):
        dataset.Rows, dataset.Columns = 31, 24

    for path in paths:
        edit(path, claim)
    with pytest.raises(SeriesError, match=r"2\.dcm.*has 24 x 31 pixels, the header says \(31, 24\)"):
        read_series(tmp_path)


@needs_real_ct("head-gantry-tilt")
def test_a_real_series_with_tilt_and_uneven_gaps_is_refused_with_its_numbers():
    geometry = measure(look_into(REAL_CT / "head-gantry-tilt").choose())
    assert geometry.orientation == "axial" and len(geometry.headers) == 28
    assert geometry.tilt_degrees == pytest.approx(18.5, abs=0.05)
    assert not geometry.repairable, "from 24.dcm to 25.dcm it is 1.75 steps"
    message = r"6\.999 mm between 24\.dcm and 25\.dcm; gaps: median 4\.002, smallest 1\.081, largest 6\.999 mm"
    for options in ({}, {"resample_uneven": True}):
        with pytest.raises(SeriesError, match=message + "; gantry tilt 18.5 degrees.*too much of the patient"):
            read_series(REAL_CT / "head-gantry-tilt", **options)


def test_a_series_that_goes_on_in_a_subfolder_is_refused(tmp_path, volume):
    paths = write_series(tmp_path, volume)
    (tmp_path / "more").mkdir()
    for path in paths[4:]:
        path.rename(tmp_path / "more" / path.name)
    with pytest.raises(SeriesError, match="more: found slices of the same series in a subfolder.*one folder"):
        read_series(tmp_path)


def test_a_second_choice_forgets_the_first(tmp_path, volume):
    write_series(tmp_path, volume)
    write_series(tmp_path, volume, first_number=100, series_uid="1.2.826.0.1.3680043.1.2")
    listing = look_into(tmp_path)
    for name, others in (("1.dcm", range(100, 107)), ("101.dcm", range(1, 8))):
        assert name in [header.path.name for header in listing.choose(name)]
        assert set(listing.left_out) == {f"{number}.dcm" for number in others}


@pytest.mark.parametrize("name", ["CT.1.2.840.{}", "IM.{:03d}", "{}.ima", "{}"])
@pytest.mark.parametrize("content", [b"", bytes(5000), b"\x89PNG\r\n\x1a\n" + bytes(90)])
def test_what_is_named_like_the_slices_is_not_left_out(tmp_path, volume, name, content):
    for path in write_series(tmp_path, volume):
        path.rename(tmp_path / name.format(int(path.stem)))
    (tmp_path / "notes.txt").write_text("no slice")
    (tmp_path / name.format(8)).write_bytes(content)
    with pytest.raises(SeriesError, match="named like one"):
        read_series(tmp_path)
    (tmp_path / name.format(8)).unlink()
    assert list(read_series(tmp_path).left_out) == ["notes.txt"]


@pytest.mark.parametrize("name", ["8.dcm.part", "8.dcm.crdownload", "8.dcm.gz"])
def test_leftovers_of_a_download_are_not_left_out(tmp_path, volume, name):
    write_series(tmp_path, volume)
    (tmp_path / name).write_bytes(b"\x1f\x8b half a slice")
    with pytest.raises(SeriesError, match="named like one"):
        read_series(tmp_path)


def unplaced(dataset):
    del dataset.ImagePositionPatient, dataset.ImageOrientationPatient


def test_a_page_of_the_protocol_is_left_out(tmp_path, volume):
    """Some scanners file it as a CT image in a series of its own, without a place in the patient."""
    paths = write_series(tmp_path, volume)
    page = tmp_path / "page.dcm"
    page.write_bytes(paths[0].read_bytes())
    edit(page, unplaced)
    with pytest.raises(SeriesError, match="without a place in the patient.*in the series of the slices"):
        read_series(tmp_path)
    edit(page, lambda dataset: setattr(dataset, "SeriesInstanceUID", "1.2.826.0.1.3680043.1.7"))
    read = read_series(tmp_path)
    assert np.array_equal(read.hu, volume.hu) and "without a place" in read.left_out["page.dcm"]


def test_notes_beside_slices_without_a_suffix(tmp_path, volume):
    for path in write_series(tmp_path, volume):
        path.rename(path.with_suffix(""))
    (tmp_path / "README").write_text("How this disc is read.\n")
    assert list(read_series(tmp_path).left_out) == ["README"]
    (tmp_path / "8").write_text("Error 503: no such slice")
    with pytest.raises(SeriesError, match="8: found a file that is not DICOM"):
        read_series(tmp_path)


@pytest.mark.parametrize("others", [1, 7])
def test_a_slice_that_got_the_uid_of_another_series_is_not_left_out(tmp_path, volume, others):
    """Series of one study often differ in the last digit of their UIDs."""
    paths = write_series(tmp_path, volume)
    coronal = Volume(volume.hu.transpose(1, 0, 2)[:others].copy(), volume.affine[:, [1, 0, 2, 3]])
    write_series(tmp_path, coronal, first_number=100, series_uid="1.2.826.0.1.3680043.1.2")
    assert np.array_equal(read_series(tmp_path).hu, volume.hu)
    edit(paths[-1], lambda dataset: setattr(dataset, "SeriesInstanceUID", "1.2.826.0.1.3680043.1.2"))
    with pytest.raises(SeriesError, match=r"7\.dcm.*continues the other series"):
        read_series(tmp_path)


def test_several_images_a_place_beside_a_stray_one(tmp_path, volume):
    for series in range(2):
        write_series(tmp_path, volume, first_number=1 + 10 * series)
    stray = tmp_path / "stray.dcm"
    stray.write_bytes((tmp_path / "1.dcm").read_bytes())
    edit(stray, lambda dataset: setattr(dataset, "SeriesInstanceUID", "1.2.826.0.1.3680043.1.7"))
    with pytest.raises(SeriesError, match="at the same position"):
        read_series(tmp_path)
