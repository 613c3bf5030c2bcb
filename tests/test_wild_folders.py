"""Folders as discs and archives leave them: one CT series among everything that scanners put beside it."""

import re
import warnings
import zlib

import imagecodecs
import numpy as np
import pydicom
import pytest
from conftest import patient_volume, write_series
from highdicom.legacy import LegacyConvertedEnhancedCTImage
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.fileset import FileSet

from cspine_utils import dicom
from cspine_utils.dicom import read_series
from cspine_utils.errors import SeriesError
from cspine_utils.volume import Volume

STUDY = "1.2.826.0.1.3680043.7"
OWN_SERIES = STUDY + ".55"
SHAPE = (6, 9, 11)


def write_complete(folder, volume, *, series=1, name="{}.dcm", **tags):
    """A series with the tags that the standard asks for, and others; file names take the number of the slice."""
    series_uid = f"{STUDY}.{series}"
    paths = write_series(folder / f"new{series}", volume, study_uid=STUDY, series_uid=series_uid)
    written = []
    for path in paths:
        dataset = pydicom.dcmread(path)
        dataset.SOPClassUID = uid.CTImageStorage
        dataset.FrameOfReferenceUID = STUDY + ".99"
        dataset.PatientName, dataset.PatientID, dataset.StudyID, dataset.AccessionNumber = "", "1", "1", ""
        dataset.PatientBirthDate = dataset.PatientSex = dataset.ReferringPhysicianName = ""
        dataset.StudyDate, dataset.StudyTime = "20220101", "120000"
        dataset.ContentDate = dataset.AcquisitionDate = "20220101"
        dataset.ContentTime = dataset.AcquisitionTime = "120000"
        dataset.SeriesNumber, dataset.AcquisitionNumber = series, 1
        dataset.Manufacturer, dataset.ImageType = "", ["ORIGINAL", "PRIMARY", "AXIAL"]
        dataset.update({pydicom.datadict.tag_for_keyword(k): _element(k, v) for k, v in tags.items()})
        target = folder / name.format(dataset.InstanceNumber)
        dataset.save_as(target)
        path.unlink()
        written.append(target)
    (folder / f"new{series}").rmdir()
    return written


def _element(keyword, value):
    return pydicom.DataElement(
        pydicom.datadict.tag_for_keyword(keyword), pydicom.datadict.dictionary_VR(keyword), value
    )


def coronal(volume):
    """The same voxels, cut from front to back."""
    matrix = np.array([[0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
    return Volume(np.ascontiguousarray(volume.hu.transpose(1, 0, 2)), volume.affine @ matrix)


def sagittal(volume):
    matrix = np.array([[0, 1, 0, 0], [0, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 1.0]])
    return Volume(np.ascontiguousarray(volume.hu.transpose(2, 0, 1)), volume.affine @ matrix)


def save(dataset, path, sop_class):
    """A data set of any kind as a file of its own, in a series of its own unless it was put into one."""
    if dataset.SeriesInstanceUID == OWN_SERIES:
        dataset.SeriesInstanceUID = f"{STUDY}.{zlib.crc32(path.name.encode())}"
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = sop_class
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = f"{STUDY}.5.{len(path.name)}"
    dataset.save_as(path)


def copy_of(path, **tags):
    dataset = pydicom.dcmread(path)
    dataset.SeriesInstanceUID = OWN_SERIES
    for keyword, value in tags.items():
        setattr(dataset, keyword, value)
    return dataset


def geometry_removed(dataset):
    for keyword in (
        "ImagePositionPatient",
        "ImageOrientationPatient",
        "PixelSpacing",
        "RescaleSlope",
        "SliceThickness",
    ):
        delattr(dataset, keyword)
    return dataset


def coloured(dataset):
    size = dataset.Rows * dataset.Columns
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PlanarConfiguration = 3, "RGB", 0
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 8, 8, 7, 0
    dataset.PixelData = bytes(range(256)) * (3 * size // 256) + bytes(3 * size % 256 + size % 2)
    dataset["PixelData"].VR = "OB"
    return geometry_removed(dataset)


def localizer(path):
    return copy_of(path, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"], ImageOrientationPatient=[0, 1, 0, 0, 0, -1])


def write_dicomdir(folder, paths):
    files = FileSet()
    for path in paths:
        files.add(path)
    files.write(folder / "disc")
    content = (folder / "disc" / "DICOMDIR").read_bytes()
    for path in sorted((folder / "disc").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    (folder / "disc").rmdir()
    (folder / "DICOMDIR").write_bytes(content)


# What to put beside the slices; the words that the reason must hold.
def put_localizer(folder, paths):
    save(localizer(paths[0]), folder / "localizer.dcm", uid.CTImageStorage)


def put_localizer_of_the_series(folder, paths):
    dataset = localizer(paths[0])
    dataset.SeriesInstanceUID = f"{STUDY}.1"
    save(dataset, folder / "0.dcm", uid.CTImageStorage)


def put_two_localizers(folder, paths):
    put_localizer(folder, paths)
    dataset = localizer(paths[0])
    dataset.ImageOrientationPatient = [1, 0, 0, 0, 0, -1]
    save(dataset, folder / "front.dcm", uid.CTImageStorage)


def put_capture(folder, paths):
    save(coloured(copy_of(paths[0], Modality="OT")), folder / "capture.dcm", uid.SecondaryCaptureImageStorage)


def put_ct_capture(folder, paths):
    """Scanners call their screens CT, too."""
    save(coloured(copy_of(paths[0])), folder / "screen.dcm", uid.SecondaryCaptureImageStorage)


def put_grey_capture(folder, paths):
    save(geometry_removed(copy_of(paths[0])), folder / "page.dcm", uid.SecondaryCaptureImageStorage)


def put_report(folder, paths):
    dataset = copy_of(paths[0], Modality="SR")
    for keyword in ("PixelData", "Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation"):
        delattr(dataset, keyword)
    item = Dataset()
    item.RelationshipType, item.ValueType, item.TextValue = "CONTAINS", "TEXT", "CTDIvol 12 mGy"
    geometry_removed(dataset).ContentSequence = [item]
    save(dataset, folder / "dose.dcm", uid.XRayRadiationDoseSRStorage)


def put_mr(folder, paths):
    for number, path in enumerate(paths[:3]):
        save(
            copy_of(path, Modality="MR", SeriesInstanceUID=STUDY + ".57"),
            folder / f"mr{'0' * number}.dcm",
            uid.MRImageStorage,
        )


def put_dicomdir(folder, paths):
    write_dicomdir(folder, paths)


def put_coronal(folder, paths):
    write_complete(folder, coronal(patient_volume(SHAPE)), series=3, name="cor{}.dcm")


def put_monitoring(folder, paths):
    save(copy_of(paths[2], AcquisitionNumber=7), folder / "premonitoring.dcm", uid.CTImageStorage)


def put_bolus(folder, paths):
    for number in range(5):
        dataset = copy_of(paths[2], AcquisitionNumber=number, SeriesInstanceUID=STUDY + ".56")
        save(dataset, folder / f"bolus{'0' * number}.dcm", uid.CTImageStorage)


def put_hidden(folder, paths):
    (folder / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")


def put_apple_double(folder, paths):
    (folder / "._1.dcm").write_bytes(b"\0\5\26\7\0\2\0\0Mac OS X")


def put_thumbs(folder, paths):
    (folder / "Thumbs.db").write_bytes(bytes.fromhex("d0cf11e0a1b11ae1"))


def put_notes(folder, paths):
    (folder / "notes.txt").write_text("Neck, fall from a ladder.")


def put_viewer(folder, paths):
    (folder / "VIEWER.EXE").write_bytes(b"MZ" + bytes(200))
    (folder / "AUTORUN.INF").write_text("[autorun]\nopen=VIEWER.EXE\n")


def put_subfolder(folder, paths):
    (folder / "1").mkdir()
    other = pydicom.dcmread(paths[0])
    other.SeriesInstanceUID += ".7"
    other.save_as(folder / "1" / "1.dcm")


KINDS = {
    put_localizer: "localizer",
    put_localizer_of_the_series: "localizer",
    put_two_localizers: "localizer",
    put_capture: "capture|colour",
    put_ct_capture: "capture|colour",
    put_grey_capture: "capture",
    put_report: "report",
    put_mr: "MR",
    put_dicomdir: "DICOMDIR|table of contents",
    put_coronal: "coronal",
    put_monitoring: "1 (axial )?slice|single",
    put_bolus: "0.0 mm|one place|same place",
    put_hidden: "hidden",
    put_apple_double: "hidden",
    put_thumbs: "not DICOM",
    put_notes: "not DICOM",
    put_viewer: "not DICOM",
    put_subfolder: "subfolder",
}


def assert_same(read, volume):
    assert read.hu.dtype == np.int16 and np.array_equal(read.hu, volume.hu)
    assert read.affine == pytest.approx(volume.affine, abs=1e-5)


@pytest.mark.parametrize("put", KINDS, ids=lambda put: put.__name__)
def test_what_lies_beside_the_slices_is_left_out_with_its_reason(tmp_path, put):
    volume = patient_volume(SHAPE)
    paths = write_complete(tmp_path, volume)
    put(tmp_path, paths)
    others = {path.name for path in tmp_path.iterdir()} - {path.name for path in paths}
    read = read_series(tmp_path)
    assert_same(read, volume)
    assert read.file_names == tuple(path.name for path in paths)
    assert set(read.left_out) == others and others
    for reason in read.left_out.values():
        assert re.search(KINDS[put], reason), reason


def test_all_of_it_at_once(tmp_path):
    volume = patient_volume(SHAPE)
    paths = write_complete(tmp_path, volume, name="IM{:04d}")
    for put in KINDS:
        if put is not put_localizer:  # the two come with the next
            put(tmp_path, paths)
    read = read_series(tmp_path)
    assert_same(read, volume)
    assert read.file_names == tuple(path.name for path in paths)
    assert set(read.left_out) == {path.name for path in tmp_path.iterdir()} - set(read.file_names)
    listing = dicom.look_into(tmp_path)
    assert not set(listing.left_out) & set(read.file_names)
    assert {h.path.name for series in listing.series for h in series} | set(listing.left_out) == {
        path.name for path in tmp_path.iterdir()
    }


@pytest.mark.parametrize("put", [p for p in KINDS if p not in (put_coronal, put_bolus, put_monitoring)])
def test_a_folder_of_nothing_else_is_refused(tmp_path, put):
    paths = write_complete(tmp_path, patient_volume(SHAPE))
    put(tmp_path, paths)
    for path in paths:
        path.unlink()
    with pytest.raises(SeriesError, match=rf"{re.escape(str(tmp_path))}.*no CT slice.*({KINDS[put]})"):
        read_series(tmp_path)


def test_two_axial_series_are_refused_with_a_list_and_each_can_be_named(tmp_path):
    sharp = patient_volume(SHAPE)
    soft = patient_volume((4, 9, 11), spacing_mm=(3.0, 0.7, 0.6), seed=8)
    write_complete(tmp_path, sharp, series=1, name="sharp{}.dcm", ConvolutionKernel="B70s")
    write_complete(tmp_path, soft, series=2, name="soft{}.dcm", ConvolutionKernel="B30s")
    put_notes(tmp_path, [])
    with pytest.raises(SeriesError) as error:
        read_series(tmp_path)
    for words in (
        str(tmp_path),
        "6 axial",
        "4 axial",
        "9 x 11",
        "7.5 mm",
        "9.0 mm",
        "sharp1.dcm",
        "soft1.dcm",
        "containing",
    ):
        assert words in str(error.value)
    assert "3680043" not in str(error.value), "UIDs say nothing to a reader, and point at a patient"
    for name, volume in (("sharp4.dcm", sharp), ("soft2.dcm", soft)):
        read = read_series(tmp_path, containing=name)
        assert_same(read, volume)
        prefix = name[:4]
        assert all(file.startswith(prefix) for file in read.file_names)
        assert len(read.left_out) == len(list(tmp_path.iterdir())) - len(read.file_names)
        assert all("axial" in reason for file, reason in read.left_out.items() if file != "notes.txt")
    for name in ("notes.txt", "absent.dcm", "../sharp4.dcm"):
        with pytest.raises(SeriesError, match="no CT slice.*sharp1.dcm"):
            read_series(tmp_path, containing=name)


def test_two_studies_of_one_series_number_are_not_mixed(tmp_path):
    first, second = patient_volume(SHAPE), patient_volume(SHAPE, seed=9)
    write_series(tmp_path, first, study_uid="1.2.3", series_uid="1.2.3.1")
    write_series(tmp_path, second, study_uid="1.2.4", series_uid="1.2.3.1", first_number=50)
    with pytest.raises(SeriesError, match="6 axial.*6 axial"):
        read_series(tmp_path)
    assert_same(read_series(tmp_path, containing="52.dcm"), second)


def test_a_coronal_series_is_read_on_request_too(tmp_path):
    volume, other = patient_volume(SHAPE), patient_volume((5, 8, 7), seed=4)
    write_complete(tmp_path, volume)
    write_complete(tmp_path, coronal(other), series=3, name="cor{}.dcm")
    assert_same(read_series(tmp_path), volume)
    assert_same(read_series(tmp_path, containing="cor2.dcm"), other)


@pytest.mark.parametrize("turned", [coronal, sagittal])
def test_the_only_series_is_read_whatever_its_orientation(tmp_path, turned):
    volume = patient_volume(SHAPE)
    write_complete(tmp_path, turned(volume))
    assert_same(read_series(tmp_path), volume)


def test_coronal_and_sagittal_reformats_alone_are_refused_with_a_list(tmp_path):
    write_complete(tmp_path, coronal(patient_volume(SHAPE)), series=1, name="cor{}.dcm")
    write_complete(tmp_path, sagittal(patient_volume(SHAPE)), series=2, name="sag{}.dcm")
    with pytest.raises(SeriesError, match=r"9 coronal.*cor1\.dcm.*11 sagittal.*sag1\.dcm"):
        read_series(tmp_path)


# ------------------------------------------------------------------------------------------ forms of files


def as_bare(dataset, path):
    """A data set alone, implicit little endian, as old archives hold them."""
    bare = Dataset()
    bare.update({e.tag: e for e in dataset})
    pydicom.dcmwrite(path, bare, implicit_vr=True, little_endian=True, enforce_file_format=False)


def as_bare_explicit(dataset, path):
    bare = Dataset()
    bare.update({e.tag: e for e in dataset})
    pydicom.dcmwrite(path, bare, implicit_vr=False, little_endian=True, enforce_file_format=False)


def as_big_endian(dataset, path):
    dataset.PixelData = np.frombuffer(dataset.PixelData, "<i2").astype(">i2").tobytes()
    dataset["PixelData"].VR = "OW"
    dataset.file_meta.TransferSyntaxUID = uid.ExplicitVRBigEndian
    pydicom.dcmwrite(path, dataset, implicit_vr=False, little_endian=False, enforce_file_format=True)


def as_deflated(dataset, path):
    dataset.file_meta.TransferSyntaxUID = uid.DeflatedExplicitVRLittleEndian
    dataset.save_as(path, enforce_file_format=True)


def as_implicit(dataset, path):
    dataset.file_meta.TransferSyntaxUID = uid.ImplicitVRLittleEndian
    pydicom.dcmwrite(path, dataset, implicit_vr=True, little_endian=True, enforce_file_format=True)


def as_preamble_of_tiff(dataset, path):
    """Files that are TIFF and DICOM in one have a preamble of their own."""
    dataset.preamble = b"II*\0" + bytes(124)
    dataset.save_as(path, enforce_file_format=True)


def as_padded(dataset, path):
    """Some archives put zeros behind the pixels."""
    dataset.DataSetTrailingPadding = bytes(512)
    dataset.save_as(path, enforce_file_format=True)


FORMS = [as_bare, as_bare_explicit, as_big_endian, as_deflated, as_implicit, as_preamble_of_tiff, as_padded]


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
@pytest.mark.parametrize("name", ["{}.dcm", "IM{:05d}", "1.2.840.{}", "Z{}.ima"])
def test_every_form_of_file_and_name(tmp_path, form, name):
    volume = patient_volume(SHAPE)
    paths = write_complete(tmp_path, volume, name=name)
    for path in paths:
        form(pydicom.dcmread(path), path)
    read = read_series(tmp_path)
    assert_same(read, volume)
    assert read.file_names == tuple(path.name for path in paths) and not read.left_out


def test_forms_may_be_mixed_in_one_series(tmp_path):
    volume = patient_volume(SHAPE)
    for path, form in zip(write_complete(tmp_path, volume), FORMS, strict=False):
        form(pydicom.dcmread(path), path)
    assert_same(read_series(tmp_path), volume)


def test_a_damaged_bare_file_is_no_stranger(tmp_path):
    """Without a preamble nothing but the suffix tells that a cut file was a slice."""
    paths = write_complete(tmp_path, patient_volume(SHAPE))
    for path in paths:
        as_bare(pydicom.dcmread(path), path)
    content = paths[-1].read_bytes()
    for kept in (0, 1, 10, 100, len(content) // 2, len(content) - 1):
        paths[-1].write_bytes(content[:kept])
        with pytest.raises(SeriesError, match=paths[-1].name):
            read_series(tmp_path)


# --------------------------------------------------------------------------------------- multi-frame files


@pytest.fixture(scope="module")
def enhanced(tmp_path_factory):
    """(volume, content of the multi-frame file that highdicom makes of its slices), slope and intercept vary."""
    folder = tmp_path_factory.mktemp("single")
    volume = patient_volume(SHAPE)
    paths = write_complete(folder, volume)
    dataset = pydicom.dcmread(paths[2])
    dataset.RescaleSlope, dataset.RescaleIntercept = 2, -1000
    dataset.save_as(paths[2])
    volume.hu[2] = (volume.hu[2].astype(int) + 1024) * 2 - 1000
    singles = [pydicom.dcmread(path) for path in paths[::2] + paths[1::2]]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        converted = LegacyConvertedEnhancedCTImage(
            singles, series_instance_uid=STUDY + ".77", series_number=7, sop_instance_uid=STUDY + ".77.1",
            instance_number=1, transfer_syntax_uid=uid.ExplicitVRLittleEndian, include_dimension_index=False,
        )  # fmt: skip
    converted.save_as(folder / "enhanced.dcm")
    return volume, folder / "enhanced.dcm", folder


def frames_of(dataset):
    return np.frombuffer(dataset.PixelData, "<i2").reshape(dataset.NumberOfFrames, dataset.Rows, dataset.Columns)


def as_rle(dataset):
    dataset.compress(uid.RLELossless)


def as_jpeg_2000(dataset):
    streams = [bytes(imagecodecs.jpeg2k_encode(f, codecformat="j2k", level=0)) for f in frames_of(dataset)]
    dataset.PixelData = encapsulate(streams)
    dataset["PixelData"].VR, dataset.file_meta.TransferSyntaxUID = "OB", uid.JPEG2000Lossless


def as_fragments(dataset):
    """Every frame in two fragments: the table of offsets says which belong together."""
    streams = [bytes(imagecodecs.jpeg2k_encode(f, codecformat="j2k", level=0)) for f in frames_of(dataset)]
    dataset.PixelData = encapsulate(streams, fragments_per_frame=2)
    dataset["PixelData"].VR, dataset.file_meta.TransferSyntaxUID = "OB", uid.JPEG2000Lossless


def as_true_enhanced(dataset):
    """Scanners' own enhanced files have another SOP class than converted ones."""
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = uid.EnhancedCTImageStorage


@pytest.mark.parametrize("change", [lambda dataset: None, as_true_enhanced, as_rle, as_jpeg_2000, as_fragments])
def test_an_enhanced_file_equals_its_single_frames(tmp_path, enhanced, change):
    volume, path, singles = enhanced
    dataset = pydicom.dcmread(path)
    change(dataset)
    dataset.save_as(tmp_path / "all.dcm")
    read = read_series(tmp_path)
    assert_same(read, volume)
    assert len(read.file_names) == SHAPE[0] and all("all.dcm" in name for name in read.file_names)
    (tmp_path / "single").mkdir()
    for single in singles.glob("[0-9].dcm"):
        (tmp_path / "single" / single.name).write_bytes(single.read_bytes())
    assert_same(read_series(tmp_path / "single"), read)


def test_an_enhanced_file_beside_its_single_frames_is_ambiguous(tmp_path, enhanced):
    volume, _, singles = enhanced
    for path in singles.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    with pytest.raises(SeriesError, match="6 axial.*6 axial"):
        read_series(tmp_path)
    for name in ("enhanced.dcm", "3.dcm"):
        assert_same(read_series(tmp_path, containing=name), volume)


def without_groups(dataset):
    del dataset.PerFrameFunctionalGroupsSequence


def too_few_groups(dataset):
    dataset.PerFrameFunctionalGroupsSequence = dataset.PerFrameFunctionalGroupsSequence[:-1]


def too_many_frames(dataset):
    dataset.NumberOfFrames = 2**31 - 1


def a_frame_without_place(dataset):
    del dataset.PerFrameFunctionalGroupsSequence[3].PlanePositionSequence


def an_empty_group(dataset):
    dataset.PerFrameFunctionalGroupsSequence[3].PlanePositionSequence = []


def a_frame_without_rescale(dataset):
    for groups in (*dataset.PerFrameFunctionalGroupsSequence, *dataset.SharedFunctionalGroupsSequence):
        if "PixelValueTransformationSequence" in groups:
            del groups.PixelValueTransformationSequence


def a_place_of_nan(dataset):
    place = dataset.PerFrameFunctionalGroupsSequence[3].PlanePositionSequence[0]
    with pydicom.config.disable_value_validation():
        place.ImagePositionPatient = [pydicom.valuerep.DSfloat("nan"), 0, 0]


def half_of_the_pixels(dataset):
    dataset.PixelData = dataset.PixelData[: len(dataset.PixelData) // 4 * 2]


def fewer_streams(dataset):
    as_jpeg_2000(dataset)
    streams = list(pydicom.encaps.generate_frames(dataset.PixelData, number_of_frames=SHAPE[0]))
    dataset.PixelData = encapsulate(streams[:-1])


def two_frames_at_one_place(dataset):
    groups = dataset.PerFrameFunctionalGroupsSequence
    groups[3].PlanePositionSequence = groups[2].PlanePositionSequence


@pytest.mark.parametrize(
    "damage",
    [
        without_groups, too_few_groups, too_many_frames, a_frame_without_place, an_empty_group, a_frame_without_rescale,
        a_place_of_nan, half_of_the_pixels, fewer_streams, two_frames_at_one_place,
    ],
)  # fmt: skip
def test_a_damaged_enhanced_file_is_refused_by_name(tmp_path, enhanced, damage):
    dataset = pydicom.dcmread(enhanced[1])
    damage(dataset)
    dataset.save_as(tmp_path / "all.dcm")
    with pytest.raises(SeriesError, match=r"all\.dcm.*What to do"):
        read_series(tmp_path)


def cut_places(content):
    return [int(len(content) * share) for share in np.linspace(0.02, 0.98, 13)] + [len(content) - 1]


def test_a_cut_enhanced_file_is_refused_by_name(tmp_path, enhanced):
    content = enhanced[1].read_bytes()
    for kept in cut_places(content):
        (tmp_path / "all.dcm").write_bytes(content[:kept])
        with pytest.raises(SeriesError, match=r"all\.dcm"):
            read_series(tmp_path)


@pytest.mark.parametrize(
    ("sop_class", "modality", "said"),
    [
        (uid.EnhancedMRImageStorage, "MR", "MR"),
        (uid.CTImageStorage, "CT", "multi-frame|6 frames"),
        (uid.MultiFrameGrayscaleWordSecondaryCaptureImageStorage, "CT", "capture"),
        (uid.EnhancedPETImageStorage, "PT", "PET"),
        (uid.SegmentationStorage, "SEG", "segmentation"),
        (uid.EnhancedXAImageStorage, "XA", "angiography"),
    ],
)
def test_multi_frame_files_of_other_kinds_are_refused_by_name(tmp_path, enhanced, sop_class, modality, said):
    dataset = pydicom.dcmread(enhanced[1])
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = sop_class
    dataset.Modality = modality
    dataset.save_as(tmp_path / "frames.dcm")
    with pytest.raises(SeriesError, match=rf"frames\.dcm.*({said})"):
        read_series(tmp_path)
