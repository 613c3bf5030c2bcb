"""Placing what a NIfTI file holds on the grid of a CT, and everything that must be refused."""

import gzip
import os
import tracemalloc

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from conftest import neck_mask, patient_volume, write_label_file
from scipy.spatial import cKDTree
from test_volume import ALL_CODES

from cspine_utils import nifti
from cspine_utils.errors import GridMismatch, MaskError, ParameterError
from cspine_utils.nifti import describe_mask, read_aligned, read_mask, write_mask
from cspine_utils.volume import Grid, Volume


@pytest.mark.parametrize("codes", ALL_CODES)
def test_any_stored_orientation_lands_on_the_grid(tmp_path, volume, codes):
    mask = neck_mask()
    read = read_mask(write_label_file(tmp_path / "m.nii", mask, volume, codes), volume)
    assert read.dtype == np.uint8 and read.flags.c_contiguous
    assert np.array_equal(read, mask)


@pytest.mark.parametrize("codes", ALL_CODES)
def test_whatever_is_stored_lands_on_the_grid_untouched(tmp_path, volume, codes):
    path = write_label_file(tmp_path / "hu.nii.gz", volume.hu, volume, codes, dtype=np.int16)
    read = read_aligned(path, Grid(volume.shape, volume.affine))
    assert read.dtype == np.int16 and read.flags.c_contiguous and np.array_equal(read, volume.hu)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", ["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8"])
def test_every_type_in_either_byte_order(tmp_path, volume, kind, order):
    values = np.arange(volume.hu.size).reshape(volume.shape) - (300 if kind[0] != "u" else 0)
    values = (values % 100 if kind[1] == "1" else values + (2**62 if kind == "i8" else 0)).astype(kind)
    header = nib.Nifti1Header(endianness=order)
    nib.save(nib.Nifti1Image(values, volume.affine, header, dtype=np.dtype(kind)), tmp_path / "v.nii")
    assert (tmp_path / "v.nii").read_bytes()[:4] == (348).to_bytes(4, "little" if order == "<" else "big")
    read = read_aligned(tmp_path / "v.nii", volume)
    assert read.dtype == np.dtype(kind) and np.array_equal(read, values)


def test_scaled_values_and_nifti_2(tmp_path, volume):
    image = nib.Nifti2Image(volume.hu, volume.affine)
    nib.save(image, tmp_path / "two.nii")
    assert np.array_equal(read_aligned(tmp_path / "two.nii", volume), volume.hu)
    data = bytearray(nib.Nifti1Image(volume.hu, volume.affine).to_bytes())
    for slope, intercept, kind in [
        (0.5, -3, np.float64),
        (1, -1024, np.int32),
        (3, 1.5, np.float64),
        (1, 1e9, np.float64),
    ]:
        data[112:120] = np.array([slope, intercept], "<f4").tobytes()  # nibabel would scale the numbers that it writes
        (tmp_path / "scaled.nii").write_bytes(data)
        read = read_aligned(tmp_path / "scaled.nii", volume)
        assert read.dtype == kind and np.array_equal(read, volume.hu.astype(float) * slope + intercept)
        assert np.array_equal(
            read, np.asarray(nib.as_closest_canonical(nib.load(tmp_path / "scaled.nii")).dataobj).T[::-1, ::-1, ::-1]
        )


def test_more_slabs_than_one_and_labels_in_one_corner(tmp_path, volume, monkeypatch):
    monkeypatch.setattr("cspine_utils.nifti_file._SLAB_BYTES", 700)  # three planes or fewer at a time
    mask = np.zeros(volume.shape, np.uint8)
    mask[0, 0, -1], mask[-1, -1, 0], mask[3, 4, 5] = 3, 200, 7
    for name in ("m.nii", "m.nii.gz"):
        for codes in ("LAS", "PIR", "SRA"):
            assert np.array_equal(read_mask(write_label_file(tmp_path / name, mask, volume, codes), volume), mask)
    assert not read_mask(write_label_file(tmp_path / "zeros.nii", 0 * mask, volume), volume).any()


def test_trailing_axes_of_length_one(tmp_path, volume):
    nib.save(nib.Nifti1Image(neck_mask()[..., None, None], volume.affine), tmp_path / "m.nii")
    assert np.array_equal(read_mask(tmp_path / "m.nii", volume), neck_mask())


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.int64, np.float32, np.float64])
@pytest.mark.parametrize("name", ["m.nii", "m.nii.gz"])
def test_stored_types(tmp_path, volume, dtype, name):
    assert np.array_equal(
        read_mask(write_label_file(tmp_path / name, neck_mask(), volume, dtype=dtype), volume), neck_mask()
    )


def test_oblique_grids_agree_too(tmp_path):
    volume = patient_volume()
    lean = np.radians(12)
    turn = np.array([[1, 0, 0], [0, np.cos(lean), -np.sin(lean)], [0, np.sin(lean), np.cos(lean)]])
    affine = volume.affine.copy()
    affine[:3, :3] = turn @ affine[:3, :3]
    oblique = Volume(volume.hu, affine)
    assert np.array_equal(read_mask(write_label_file(tmp_path / "m.nii", neck_mask(), oblique), oblique), neck_mask())


def test_header_rounding_is_tolerated(tmp_path, volume):
    affine = volume.affine.copy()
    affine[:3, 3] += 0.02
    path = write_label_file(tmp_path / "m.nii", neck_mask(), Volume(volume.hu, affine))
    assert np.array_equal(read_mask(path, volume), neck_mask())


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (np.float32(1.5), "whole numbers"),
        (np.int16(-1), "values from -1"),
        (np.int16(900), "to 900"),
        (np.float32(np.nan), "values from nan"),
    ],
)
def test_values_that_are_no_labels(tmp_path, volume, values, said):
    mask = neck_mask().astype(values.dtype)
    mask[3, 3, 3] = values
    nib.save(nib.Nifti1Image(mask, volume.affine), tmp_path / "m.nii")
    with pytest.raises(MaskError, match=said):
        read_mask(tmp_path / "m.nii", volume)


def refused(path, volume, said, error=MaskError, **options):
    """Both readers must refuse the file, in these words; the survey must report the same and not stop."""
    for read in (read_mask, read_aligned):
        with pytest.raises(error, match=said) as caught:
            read(path, volume, **options)
        assert str(path) in str(caught.value) and "What to do" in str(caught.value)
    assert isinstance(describe_mask(path, volume).problem, error)


def test_what_is_no_file(tmp_path, volume):
    refused(tmp_path / "absent.nii", volume, "no such file")
    refused(tmp_path, volume, "no file")
    (tmp_path / "a.nii").symlink_to("b.nii")
    (tmp_path / "b.nii").symlink_to("a.nii")
    refused(tmp_path / "a.nii", volume, "a link that leads to no file")
    os.mkfifo(tmp_path / "pipe.nii")  # opening it would wait for ever
    refused(tmp_path / "pipe.nii", volume, "no file")


@pytest.mark.parametrize(
    "content", [b"", b"labels", b"\0" * 600, gzip.compress(b"x", mtime=0), b"\x1f\x8b\x08 not gzip", b"\xff" * 9999]
)
def test_what_is_no_nifti(tmp_path, volume, content):
    (tmp_path / "m.nii").write_bytes(content)
    refused(tmp_path / "m.nii", volume, "cannot be read")


@pytest.mark.parametrize("share", np.linspace(0, 0.999, 20).round(3))
@pytest.mark.parametrize("name", ["m.nii", "m.nii.gz"])
def test_cut_short_at_any_place(tmp_path, volume, name, share):
    whole = write_label_file(tmp_path / name, neck_mask(), volume).read_bytes()
    (tmp_path / name).write_bytes(whole[: int(share * len(whole))])
    refused(tmp_path / name, volume, "cannot be read")


def test_a_large_file_passes_through_little_memory(tmp_path):
    """52 MB of float64, compressed: besides the mask of 6.6 MB, a few slabs of 4 MB."""
    grid = Grid((100, 256, 256), patient_volume().affine)
    values = np.zeros(grid.shape)
    values[50, 100:200, 30:40] = 5
    nib.save(nib.Nifti1Image(values, grid.affine), tmp_path / "m.nii.gz")
    tracemalloc.start()
    try:
        mask = read_mask(tmp_path / "m.nii.gz", grid)
        assert tracemalloc.get_traced_memory()[1] < mask.nbytes + 16e6
    finally:
        tracemalloc.stop()
    assert np.array_equal(mask, values)


def test_a_flipped_bit_in_compressed_data_is_noticed(tmp_path, volume):
    whole = bytearray(write_label_file(tmp_path / "m.nii.gz", neck_mask(), volume).read_bytes())
    whole[-6] ^= 1  # of the sum that the file carries: the data unpack, but are not what was written
    (tmp_path / "m.nii.gz").write_bytes(whole)
    refused(tmp_path / "m.nii.gz", volume, "cannot be read.*CRC")


def test_compressed_or_not_is_seen_in_the_bytes_not_in_the_name(tmp_path, volume):
    path = write_label_file(tmp_path / "m.nii", neck_mask(), volume)
    path.write_bytes(gzip.compress(path.read_bytes()))
    assert np.array_equal(read_mask(path, volume), neck_mask())
    odd = tmp_path / "Maske für C1 – 頸椎.nii"
    assert np.array_equal(read_mask(write_label_file(odd, neck_mask(), volume), volume), neck_mask())


def test_more_axes_and_other_types_are_refused(tmp_path, volume):
    for shape in [(7, 9, 11, 2), (7, 9), (7, 9, 11, 1, 3)]:
        nib.save(nib.Nifti1Image(np.zeros(shape, np.uint8), volume.affine), tmp_path / "4d.nii")
        refused(tmp_path / "4d.nii", volume, "three axes")
    rgb = np.zeros(volume.shape, [("R", "u1"), ("G", "u1"), ("B", "u1")])
    for values, said in [
        (rgb, "RGB"),
        (np.zeros(volume.shape, np.complex64), "complex"),
    ]:
        nib.save(nib.Nifti1Image(values, volume.affine), tmp_path / "type.nii")
        refused(tmp_path / "type.nii", volume, f"values of type {said}")


def changed_header(path, volume, **fields):
    """A label file whose header fields are overwritten after nibabel has written it."""
    data = bytearray(write_label_file(path, neck_mask(), volume).read_bytes())
    header = nib.Nifti1Header(bytes(data[:348]), check=False)
    for name, value in fields.items():
        header[name] = value
    data[:348] = header.binaryblock
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"sform_code": 0, "qform_code": 0}, "no affine .*both 0"),
        ({"srow_x": [np.nan, 0, 0, 1]}, "no place of their own"),
        ({"srow_y": [0, np.inf, 0, 1]}, "no place of their own"),
        ({"srow_z": [0, 0, 0, 5]}, "no place of their own"),  # one axis of no length
        ({"srow_x": [0, 0.7, 0, 1]}, "no place of their own"),  # two axes that point the same way
        ({"srow_x": [3e38, 0, 0, 1]}, "no place of their own"),
        ({"sform_code": 0, "qform_code": 1, "quatern_b": 9.0}, "cannot be read"),
        ({"magic": b"ni1"}, "another file"),
        ({"magic": b"xyz"}, "cannot be read"),
        ({"dim": [3, 11, -9, 7, 1, 1, 1, 1]}, "shape"),
        ({"dim": [0, 11, 9, 7, 1, 1, 1, 1]}, "cannot be read|shape"),
        ({"datatype": 4242}, "cannot be read"),
        ({"datatype": 1536}, "cannot be read|float128"),
        ({"vox_offset": np.nan}, "cannot be read"),
        ({"vox_offset": 1e30}, "data that begin at byte"),
        ({"vox_offset": 4e6}, "cut short"),
        ({"vox_offset": -400}, "data that begin at byte|cannot be read"),
        ({"scl_slope": 1.0, "scl_inter": np.nan}, "cannot be read"),
    ],
)
def test_headers_that_cannot_be(tmp_path, volume, fields, said):
    refused(changed_header(tmp_path / "m.nii", volume, **fields), volume, said)


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("resample", [False, True])
def test_a_header_that_claims_35_terabytes_allocates_nothing(tmp_path, volume, resample, compressed):
    path = changed_header(tmp_path / "m.nii", volume, dim=[3, 32767, 32767, 32767, 1, 1, 1, 1])
    if compressed:
        path.write_bytes(gzip.compress(path.read_bytes()))
    tracemalloc.start()
    try:
        refused(path, volume, "7.04e.04 GB" if resample else "32760 slices too many along d", resample=resample)
        assert tracemalloc.get_traced_memory()[1] < 20e6
    finally:
        tracemalloc.stop()


def test_random_damage_is_typed_or_harmless(tmp_path, volume):
    whole = write_label_file(tmp_path / "m.nii", neck_mask(), volume).read_bytes()
    generator = np.random.default_rng(4)
    outcomes = set()
    with np.errstate(all="raise"):
        for number in range(600):
            damaged = bytearray(whole)
            for place in generator.integers(0, 352, 1 + number % 4):
                damaged[place] = generator.integers(256)
            (tmp_path / "m.nii").write_bytes(damaged)
            try:
                read_mask(tmp_path / "m.nii", volume, resample=number % 2 == 1)
                outcomes.add("read")
            except MaskError as error:
                outcomes.add(type(error).__name__)
    assert outcomes == {"read", "MaskError", "GridMismatch"}


# Another grid, by nearest neighbour


def oblique_grid(shape, spacing_mm, degrees, origin):
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    affine = np.eye(4)
    affine[:3, :3] = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ np.diag(spacing_mm)
    affine[:3, 3] = origin
    return Grid(shape, affine)


@pytest.mark.parametrize("degrees", [0, 17])
@pytest.mark.parametrize("kind", [np.uint16, np.int64, np.float32])
def test_resampling_takes_the_nearest_voxel_and_zero_outside(tmp_path, volume, degrees, kind):
    """Oracle: the nearest centre among all voxels of the file, by a search in millimetres."""
    grid = oblique_grid((14, 10, 12), (0.83, 1.1, 0.91), degrees, (22.3137, 10.1071, 66.2013))
    values = np.random.default_rng(1).integers(1, 200, volume.shape).astype(kind)
    path = write_label_file(tmp_path / "m.nii.gz", values, volume, "ASR", dtype=kind)
    centres = volume.position_mm(np.moveaxis(np.indices(volume.shape), 0, -1)).reshape(-1, 3)
    wanted_mm = nib.affines.apply_affine(grid.affine, np.moveaxis(np.indices(grid.shape), 0, -1).reshape(-1, 3))
    distance, nearest = cKDTree(centres).query(wanted_mm)
    index = nib.affines.apply_affine(np.linalg.inv(volume.affine), wanted_mm)
    inside = ((index > -0.5) & (index < np.array(volume.shape) - 0.5)).all(axis=1)
    expected = np.where(inside, values.reshape(-1)[nearest], 0).reshape(grid.shape)
    assert 0.2 < inside.mean() < 0.98, "some of the grid must lie outside"
    read = read_aligned(path, grid, resample=True)
    assert read.dtype == kind and np.array_equal(read, expected)
    assert np.array_equal(read_mask(path, grid, resample=True), expected)


def test_resampling_is_asked_for_and_leaves_equal_grids_alone(tmp_path, volume):
    coarse = volume.affine @ np.diag([2, 2, 2, 1.0])
    path = write_label_file(tmp_path / "m.nii", neck_mask((4, 5, 6)), Volume(volume.hu[::2, ::2, ::2], coarse))
    with pytest.raises(GridMismatch, match="resample=True"):
        read_mask(path, volume)
    read = read_mask(path, volume, resample=True)
    assert set(np.unique(read)) == set(np.unique(neck_mask((4, 5, 6)))) and np.array_equal(
        read[::2, ::2, ::2], neck_mask((4, 5, 6))
    )
    path = write_label_file(tmp_path / "m.nii", neck_mask(), volume, "RPI")
    assert np.array_equal(read_mask(path, volume, resample=True), neck_mask())


def test_resampling_does_not_turn_a_stranger_into_an_empty_mask(tmp_path, volume):
    far = Volume(volume.hu, volume.affine.copy())
    far.affine[:3, 3] += 200
    with pytest.raises(GridMismatch, match="do not overlap"):
        read_mask(write_label_file(tmp_path / "m.nii", neck_mask(), far), volume, resample=True)
    beside = Volume(volume.hu, volume.affine.copy())
    beside.affine[:3, 3] += 6 * beside.affine[:3, 0]  # only its first slice, which has no label, lies in the CT
    with pytest.raises(GridMismatch, match="6.00 voxels along d"):
        read_mask(write_label_file(tmp_path / "m.nii", neck_mask(), beside), volume, resample=True)


def test_values_are_checked_before_they_are_resampled(tmp_path, volume):
    values = np.full(volume.shape, 1.5, np.float32)
    path = write_label_file(
        tmp_path / "m.nii", values, Volume(volume.hu, volume.affine @ np.diag([1, 1, 1.2, 1])), dtype=np.float32
    )
    with pytest.raises(MaskError, match="whole numbers"):
        read_mask(path, volume, resample=True)


# The survey's report


def test_describe_mask(tmp_path, volume):
    report = describe_mask(write_label_file(tmp_path / "m.nii.gz", neck_mask(), volume, "PIR"), volume)
    assert report.shape == (9, 7, 11) and report.codes == "PIR" and report.problem is None
    assert report.labels == tuple(np.unique(neck_mask())[1:].tolist()) == (1, 2, 3, 5, 6, 7)
    assert all(type(label) is int for label in report.labels)
    report = describe_mask(write_label_file(tmp_path / "short.nii", neck_mask()[:-1], volume), volume)
    assert report.shape == (11, 9, 6) and report.codes == "LAS" and report.labels == ()
    assert isinstance(report.problem, GridMismatch)
    report = describe_mask(tmp_path / "absent.nii", volume)
    assert report.shape == () and report.codes == "" and "no such file" in str(report.problem)
    assert describe_mask(write_label_file(tmp_path / "zeros.nii", 0 * neck_mask(), volume), volume).labels == ()


# The way back


@pytest.mark.parametrize("codes", ["IPL", "LAS", "PIR", "ASR", "RPI"])
@pytest.mark.parametrize("name", ["m.nii", "m.nii.gz"])
def test_write_mask_has_the_form_of_the_real_files(tmp_path, volume, codes, name):
    """From a grid of any orientation; read back by nibabel, by SimpleITK and by ourselves."""
    turn = nib.orientations.ornt_transform(nib.io_orientation(volume.affine), nib.orientations.axcodes2ornt(codes))
    image = nib.Nifti1Image(neck_mask(), volume.affine).as_reoriented(turn)
    write_mask(tmp_path / "made" / name, np.asarray(image.dataobj), Grid(image.shape, image.affine))
    assert [p.name for p in (tmp_path / "made").iterdir()] == [name], "no temporary file is left"
    written = nib.load(tmp_path / "made" / name)
    assert written.get_data_dtype() == np.uint16 and nib.aff2axcodes(written.affine) == ("L", "A", "S")
    assert (int(written.header["qform_code"]), int(written.header["sform_code"])) == (1, 1)
    assert written.header.get_xyzt_units()[0] == "mm" and np.allclose(
        written.get_qform(), written.get_sform(), atol=1e-5
    )
    assert np.array_equal(read_mask(tmp_path / "made" / name, volume), neck_mask())
    theirs = sitk.ReadImage(str(tmp_path / "made" / name))
    for index in np.argwhere(neck_mask()):
        x, y, z = volume.position_mm(index)
        assert theirs[theirs.TransformPhysicalPointToIndex((-x, -y, z))] == neck_mask()[tuple(index)]


def test_write_mask_gives_the_same_bytes_twice(tmp_path, volume):
    write_mask(tmp_path / "a.nii.gz", neck_mask(), volume)
    write_mask(tmp_path / "b.nii.gz", neck_mask(), volume)
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()


def test_write_mask_marks_a_qform_that_cannot_hold_a_gantry_tilt(tmp_path, volume):
    affine = volume.affine.copy()
    affine[:3, 1:3] = np.array([[1, 0, 0], [0, 0.948, -0.317], [0, 0.317, 0.948]]) @ affine[:3, 1:3]
    tilted = Grid(volume.shape, affine)
    write_mask(tmp_path / "m.nii", neck_mask(), tilted)
    header = nib.load(tmp_path / "m.nii").header
    assert int(header["qform_code"]) == 0 and int(header["sform_code"]) == 1 and b"sheared" in header["descrip"].item()
    assert np.array_equal(read_mask(tmp_path / "m.nii", tilted), neck_mask())


def test_write_mask_refuses_and_leaves_nothing_behind(tmp_path, volume):
    path = tmp_path / "m.nii"
    for mask, said in [(neck_mask()[1:], "shape"), (neck_mask() + 0.5, "whole numbers"), (neck_mask() - 3.0, "-3.0")]:
        with pytest.raises(MaskError, match=said):
            write_mask(path, mask, volume)
    with pytest.raises(MaskError, match="place of its own"):
        write_mask(path, neck_mask(), Grid(volume.shape, np.full((4, 4), np.nan)))
    with pytest.raises(MaskError, match="ends in .nii"):
        write_mask(tmp_path / "m.npy", neck_mask(), volume)
    (tmp_path / "taken").write_text("")
    with pytest.raises(MaskError, match="cannot be written"):
        write_mask(tmp_path / "taken" / "m.nii", neck_mask(), volume)
    assert [p.name for p in tmp_path.iterdir()] == ["taken"]


def test_a_write_that_stops_half_way_keeps_the_old_file(tmp_path, volume, monkeypatch):
    write_mask(tmp_path / "m.nii", neck_mask(), volume)
    before = (tmp_path / "m.nii").read_bytes()

    def full(image, path):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(nifti.nib, "save", full)
    with pytest.raises(MaskError, match="No space left"):
        write_mask(tmp_path / "m.nii", 0 * neck_mask(), volume)
    assert (tmp_path / "m.nii").read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_resampling_does_not_trust_a_header_that_tells_nothing_or_the_reverse(tmp_path, volume):
    mirrored = np.diag([-1, -1, 1, 1]) @ volume.affine
    for name, affine, said in (("identity", np.eye(4), "the identity"), ("mirrored", mirrored, "a mirrored header")):
        path = tmp_path / f"{name}.nii"
        image = nib.Nifti1Image(neck_mask(), affine)
        image.set_sform(affine, code=1)
        nib.save(image, path)
        with pytest.raises(GridMismatch, match=said):
            read_mask(path, volume, resample=True)


def test_an_array_is_no_grid(tmp_path, volume):
    path = write_label_file(tmp_path / "m.nii", neck_mask(), volume)
    with pytest.raises(ParameterError, match="found ndarray; expected a Volume"):
        read_mask(path, volume.hu)
