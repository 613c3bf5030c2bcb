"""Two ways through a header, and the shortcut for headers that resemble each other, must say the same."""

import logging
import threading
import time
import warnings
from pathlib import Path

import imagecodecs
import numpy as np
import pydicom
import pytest
from conftest import REAL_CT, patient_volume, write_series
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from test_dicom import LOSSLESS, edit, encode

from cspine_utils.dicom import alike, headers, look_into, read_slice
from cspine_utils.dicom.elements import NotDicom
from cspine_utils.dicom.thorough import quietly, read_by_pydicom
from cspine_utils.dicom.walk import StructError, Unusual, walk
from cspine_utils.errors import SeriesError

PYDICOM_FILES = Path(pydicom.__file__).parent / "data" / "test_files"


def files_at_hand() -> list[Path]:
    """Every file that comes with pydicom (of many makers, some broken on purpose), and the real scanner files."""
    folders = [PYDICOM_FILES, *([REAL_CT] if REAL_CT.is_dir() else [])]
    return sorted(path for folder in folders for path in folder.rglob("*") if path.is_file())


def outcome(read, path):
    try:
        return read(path)
    except (NotDicom, SeriesError, Unusual, StructError) as error:
        return error


def test_the_direct_way_says_what_pydicom_says_of_every_file_at_hand():
    walked = []
    for path in files_at_hand():
        direct = outcome(walk, path)
        if not isinstance(direct, Exception):
            thorough = outcome(read_by_pydicom, path)
            assert not isinstance(thorough, Exception), path
            assert direct.values == thorough.values, path
            walked.append(path)
    assert len(walked) > 120, "most files should not need pydicom"


def test_a_walk_that_misses_a_value_is_noticed(monkeypatch):
    from cspine_utils.dicom import walk as room

    key = next(key for key, (keyword, _) in room._BY_KEY.items() if keyword == "ImagePositionPatient")
    monkeypatch.delitem(room._BY_KEY, key)
    with pytest.raises(AssertionError):
        test_the_direct_way_says_what_pydicom_says_of_every_file_at_hand()


def test_no_file_at_hand_raises_anything_untyped():
    kinds = [type(outcome(headers.read_headers, path)).__name__ for path in files_at_hand()]
    assert {"list", "NoSlice", "NotDicom", "SeriesError"} == set(kinds)


def add_sequences(dataset):
    """Nested sequences of undefined length, and long or misleading private values."""
    inner = Dataset()
    inner.ImagePositionPatient, inner.Rows = [9, 9, 9], 77  # must not be taken for the image's own
    outer = Dataset()
    outer.ReferencedSOPInstanceUID = "1.2.3"
    outer.RelatedSeriesSequence = Sequence([inner, inner])
    dataset.SourceImageSequence = Sequence([outer, outer])
    for sequence in (dataset["SourceImageSequence"], outer["RelatedSeriesSequence"]):
        sequence.is_undefined_length = True
    for item in (outer, inner):
        item.is_undefined_length_sequence_item = True
    block = dataset.private_block(0x0009, "COURSE", create=True)
    block.add_new(0x01, "OB", bytes(range(250)) * 80)  # 20 kB: more than is read at first
    block.add_new(0x02, "UN", b"\xe0\x7f\x10\x00\xff\xff")  # bytes that look like the tag of pixels


@pytest.mark.parametrize("explicit", [True, False])
def test_sequences_and_private_values_are_stepped_over(tmp_path, explicit):
    path = write_series(tmp_path, patient_volume(), explicit=explicit)[2]
    before = walk(path)
    edit(path, add_sequences)
    after = walk(path)
    assert after.values == before.values == read_by_pydicom(path).values
    assert after.pixels_at > before.pixels_at + 20_000 and after.pixels_bytes == before.pixels_bytes


@pytest.mark.parametrize("form", ["explicit", "implicit", "jpeg", "rle"])
def test_the_shortcut_for_headers_alike_says_what_reading_each_says(tmp_path, form):
    volume = patient_volume((130, 24, 31), spacing_mm=(0.8, 0.7, 0.6))  # numbers of one to three digits
    volume.affine[2, 3] = 20.3
    paths = write_series(tmp_path, volume, signed=False, explicit=form != "implicit")
    for path in paths if form in ("jpeg", "rle") else []:
        if form == "jpeg":
            encode(path, *LOSSLESS[0][:2], **LOSSLESS[0][2])
        else:
            dataset = pydicom.dcmread(path)
            dataset.compress(pydicom.uid.RLELossless)
            dataset.save_as(path)
    edit(paths[7], lambda dataset: setattr(dataset, "RescaleIntercept", "-1000"))
    edit(paths[8], lambda dataset: setattr(dataset, "PatientName", "of another length"))
    reader, shortcuts = alike.HeaderReader(), 0
    for path in sorted(paths):
        shortcuts += reader._alike(path) is not None
        assert reader.read(path) == headers.read_headers(path)
    assert shortcuts > 100


def test_the_shortcut_takes_no_file_whose_header_says_something_else(tmp_path):
    """Every byte before the pixels of a second file, changed one by one: the same answer with and without."""
    first, second = write_series(tmp_path, patient_volume((2, 9, 11)))
    reader = alike.HeaderReader()
    reader.read(first)
    good = second.read_bytes()
    pixels_at = walk(second).pixels_at
    taken = 0
    for at in range(132, pixels_at):
        second.write_bytes(good[:at] + bytes([good[at] ^ 0x15]) + good[at + 1 :])
        expected = outcome(headers.read_headers, second)
        found = reader._alike(second)
        taken += found is not None
        assert found is None or found == expected, at
    assert 0 < taken < pixels_at / 4, "only values that nobody reads, and digits of the position"


def test_a_file_that_is_cut_short_does_not_pass_by_the_shortcut(tmp_path):
    paths = write_series(tmp_path, patient_volume())
    paths[-1].write_bytes(paths[-1].read_bytes()[:-1])
    with pytest.raises(SeriesError, match=r"7\.dcm.*ends within its pixels"):
        look_into(tmp_path)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=600), keep=st.integers(0, 700))
@example(data=b"\x02\x00\x00\x00UL\xff\xff", keep=132)
def test_any_bytes_are_typed(tmp_path, data, keep):
    path = tmp_path / "1.dcm"
    start = write_series(tmp_path / "good", patient_volume((2, 9, 11)))[0].read_bytes()[:keep]
    path.write_bytes(start + data)
    result = outcome(headers.read_headers, path)
    assert isinstance(result, list | headers.NoSlice | NotDicom | SeriesError)


def test_nothing_is_inflated_without_a_limit(tmp_path):
    path = write_series(tmp_path, patient_volume())[0]
    dataset = pydicom.dcmread(path)
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
    dataset.add_new(0x00091001, "OB", bytes(200 * 2**20))
    dataset.save_as(path)
    assert path.stat().st_size < 2**20
    with pytest.raises(SeriesError, match="more than 64 MiB"):
        walk(path)


@pytest.mark.parametrize("offset", [0, 3])
def test_the_size_in_a_stream_is_read_before_it_is_decoded(offset):
    from cspine_utils import codecs

    image = np.arange(24 * 31, dtype=np.uint16).reshape(24, 31)
    encoders = (
        (imagecodecs.ljpeg_encode, {"bitspersample": 12}),
        (imagecodecs.jpegls_encode, {}),
        (imagecodecs.jpeg2k_encode, {"codecformat": "j2k", "level": 0}),
        (imagecodecs.jpeg8_encode, {}),
    )
    for encoder, options in encoders:
        pixels = image.astype(np.uint8) if encoder is imagecodecs.jpeg8_encode else image
        stream = bytes(encoder(pixels, **options))
        assert codecs.stream_size(stream) == (24, 31), encoder
    assert codecs.stream_size(b"\0" * offset + b"no image at all") is None


def test_deep_nesting_ends(tmp_path):
    """Thousands of sequences within each other: refused or read, but neither endless nor a crash."""
    path = write_series(tmp_path, patient_volume())[0]
    content = path.read_bytes()
    at = content.index(b"\x08\x00\x60\x00CS")  # before the first wanted element of the data set
    nest = (b"\x08\x00\x12\x21SQ\0\0\xff\xff\xff\xff" + b"\xfe\xff\x00\xe0\xff\xff\xff\xff") * 5000
    path.write_bytes(content[:at] + nest + content[at:])
    started = time.monotonic()
    assert isinstance(outcome(headers.read_headers, path), SeriesError | NotDicom)
    assert time.monotonic() - started < 60, "a limit for hanging, not for speed"


@pytest.mark.parametrize("odd", ["big endian", "ImageType of unknown type", "odd private value"])
def test_a_stranger_that_pydicom_read_does_not_swallow_the_slices_after_it(tmp_path, odd):
    """Its walk was broken off, so what was walked says nothing of other files."""
    volume = patient_volume((7, 9, 11))
    paths = write_series(tmp_path, volume)
    stranger = tmp_path / "1a.dcm"
    dataset = pydicom.dcmread(paths[0])
    dataset.SeriesInstanceUID += ".9"
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    dataset.save_as(stranger)
    content = stranger.read_bytes()
    if odd == "ImageType of unknown type":
        at = content.index(b"CS", content.index(b"LOCALIZER") - 40)
        length = int.from_bytes(content[at + 2 : at + 4], "little")
        stranger.write_bytes(content[:at] + b"UN\0\0" + length.to_bytes(4, "little") + content[at + 4 :])
    elif odd == "odd private value":
        at = content.index(b"\x20\x00\x0d\x00UI")
        private = b"\x19\x00\x10\x00LO\x04\x00ODD " + b"\x19\x00\x10\x10??\x02\x00ab"
        stranger.write_bytes(content[:at] + private + content[at:])
    else:
        dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRBigEndian
        pydicom.dcmwrite(stranger, dataset, implicit_vr=False, little_endian=False)
    with pytest.raises((Unusual, StructError)):
        walk(stranger)
    assert isinstance(headers.read_headers(stranger), headers.NoSlice)
    assert len(look_into(tmp_path).choose()) == 7


def test_an_element_twice_is_damage(tmp_path):
    """One bit of a tag makes the smallest pixel value a second PixelRepresentation."""
    path = write_series(tmp_path, patient_volume())[0]
    dataset = pydicom.dcmread(path)
    dataset.add_new(0x00280106, "US", 0)
    dataset.save_as(path)
    content = path.read_bytes()
    path.write_bytes(content.replace(b"\x28\x00\x06\x01US", b"\x28\x00\x03\x01US"))
    with pytest.raises(SeriesError, match="PixelRepresentation twice"):
        headers.read_headers(path)


def test_pixels_with_another_type_are_not_shifted(tmp_path):
    path = write_series(tmp_path, patient_volume())[0]
    content = path.read_bytes()
    at = content.index(b"\xe0\x7f\x10\x00OW")
    path.write_bytes(content[: at + 4] + b"\x07" + content[at + 5 :])
    with pytest.raises(SeriesError):
        read_slice(path)


def test_silence_ends_with_the_thread_that_asked_for_it_last():
    """The second thread must not find the silence of the first, and put that back when it leaves."""
    logger, filters = logging.getLogger("pydicom"), list(warnings.filters)
    inside, leave = threading.Event(), threading.Event()

    def first():
        with quietly():
            inside.set()
            leave.wait(10)

    def second():
        inside.wait(10)
        with quietly():
            leave_again.wait(10)

    leave_again = threading.Event()
    threads = [threading.Thread(target=work) for work in (first, second)]
    for thread in threads:
        thread.start()
    inside.wait(10)
    time.sleep(0.1)  # the second one comes while the first one is inside
    leave.set()
    threads[0].join()
    leave_again.set()
    threads[1].join()
    assert not logger.disabled and list(warnings.filters) == filters
