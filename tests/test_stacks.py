import numpy as np
import pytest
import torch

from cspine_utils import demo, stacks
from cspine_utils.errors import StackError
from cspine_utils.stacks.layout import what_is_missing
from cspine_utils.stacks.slices import slices_at
from cspine_utils.volume import Volume


def tall(slices, h=6, w=8, seed=1):
    """A volume of random HU and a mask that shows C1-C7 from slice 3 to the third last."""
    generator = np.random.default_rng(seed)
    volume = Volume(generator.integers(-1000, 2000, (slices, h, w), dtype=np.int16), np.eye(4))
    mask = np.zeros(volume.shape, np.uint8)
    for i in range(3, slices - 3):
        mask[i, 1:4, 2:6] = 1 + (i - 3) * 7 // (slices - 6)
    mask[slices - 2 :] = 8  # T1: must not count
    mask[slices - 3, 0, 0] = 9
    return volume, mask


def test_slices_span_c1_to_c7_only():
    _, mask = tall(50)
    positions = stacks.cervical_slices(mask)
    assert positions.shape == (210,) and positions[0] == 3 and positions[-1] == 46
    assert np.allclose(np.diff(positions), 43 / 209)
    assert stacks.cervical_slices(mask, count=44).tolist() == list(range(3, 47))


@pytest.mark.parametrize("labels", [[], [8, 9], [3]])
def test_masks_without_an_extent(labels):
    mask = np.zeros((9, 4, 5), np.uint8)
    for i, label in enumerate(labels):
        mask[4 + i, 1, 2] = label
    with pytest.raises(StackError, match="C1"):
        stacks.cervical_slices(mask)


def the_seeds_frames(hu, mask, first, last):
    """The seed's recipe in its own numbering: files count from 1, every odd file n gives one six-channel array."""
    frames = []
    for n in range(1, last - first + 2, 2):
        channels = []
        for neighbour in (n - 2, n - 1, n, n + 1, n + 2):
            neighbour = min(max(neighbour, 1), last - first + 1)
            channels.append(hu[first + neighbour - 1].astype(np.float32))
        channels.append(mask[first + n - 1].astype(np.float32))
        frames.append(channels)
    return np.array(frames)


def test_frames_equal_the_seeds_where_the_neck_has_210_slices():
    volume, mask = tall(216)
    stack = stacks.six_channel(volume, mask)
    assert stack.dtype == np.float32 and stack.shape == (105, 6, 6, 8)
    assert np.array_equal(stack, the_seeds_frames(volume.hu, mask, 3, 212))


def test_borders_repeat_and_never_wrap():
    volume, mask = tall(216)
    volume.hu[212] = 1999  # the last slice of the neck: index -1 of the 210
    stack = stacks.six_channel(volume, mask)
    first, last = stack[0], stack[-1]
    assert np.array_equal(first[0], volume.hu[3]) and np.array_equal(first[1], volume.hu[3])
    assert np.array_equal(first[3], volume.hu[4])
    assert (last[3] == 1999).all() and (last[4] == 1999).all() and not (last[2] == 1999).any()
    assert not (stack[:103] == 1999).all(axis=(2, 3)).any(), "only frames at the border may show the last slice"


def test_few_slices_are_interpolated_between_neighbours():
    volume, mask = tall(20)
    hu, labels = stacks.resample_slices(volume, mask)
    position = stacks.cervical_slices(mask)
    i = 100
    below, share = int(position[i]), position[i] % 1
    expected = volume.hu[below] * (1 - share) + volume.hu[below + 1] * share
    assert np.abs(hu[i] - expected).max() <= 0.51
    assert np.array_equal(labels[i], mask[int(position[i] + 0.5)])
    assert set(np.unique(labels)) <= set(np.unique(mask))


def test_in_plane_resize_keeps_places_and_invents_no_label():
    hu = np.zeros((12, 40, 60), np.int16)
    mask = np.zeros((12, 40, 60), np.uint8)
    hu[:, 8:16, 30:45] = 1000  # rows 1/5 to 2/5, columns 1/2 to 3/4
    mask[2:10, 8:16, 30:45] = np.arange(1, 9)[:, None, None].clip(max=7)
    stack = stacks.six_channel(Volume(hu, np.eye(4)), mask, frames=4, size=(20, 30))
    assert stack.shape == (4, 6, 20, 30)
    assert (
        (stack[:, 2, 5:7, 17:21] == 1000).all()
        and (stack[:, 2, 11:, :] == 0).all()
        and (stack[:, 2, :, :13] == 0).all()
    )
    assert (stack[0, 5] == 1).sum() == 4 * 7
    rows, columns = np.nonzero(stack[0, 5])
    assert (rows.min(), rows.max()) == (4, 7) and columns.min() == 15
    assert set(np.unique(stack[:, 5])) <= set(range(8))


def test_mask_of_another_shape():
    volume, mask = tall(30)
    with pytest.raises(StackError, match=r"\(29, 6, 8\).*\(30, 6, 8\)"):
        stacks.six_channel(volume, mask[:-1])


@pytest.mark.parametrize("size", [0, -4, 16.0, (8, 8, 8), "64", (8, 0)])
def test_sizes_that_cannot_be(size):
    with pytest.raises(StackError, match="size: found"):
        stacks.six_channel(*tall(30), size=size)


def test_counts_and_windows_that_cannot_be():
    volume, mask = tall(30)
    for frames in (0, -1, 2.5):
        with pytest.raises(StackError, match="frames: found"):
            stacks.six_channel(volume, mask, frames=frames)
    for count in (0, 1, 2.0):
        with pytest.raises(StackError, match="count: found"):
            stacks.cervical_slices(mask, count=count)
    with pytest.raises(StackError, match="'lung'; expected bone, soft, wide"):
        stacks.normalise(stacks.six_channel(volume, mask, frames=2), window="lung")
    assert stacks.six_channel(volume, mask, frames=1, size=np.int64(5)).shape == (1, 6, 5, 5)


def test_windows_in_numbers():
    hu = np.array([-500, 400, 850, 1300, 3000], float)
    assert stacks.apply_window(hu, 400, 1800).tolist() == [0, 0.5, 0.75, 1, 1]


@pytest.mark.parametrize("kind", [np.array, torch.tensor])
def test_normalise_windows_hu_and_scales_labels(kind):
    stack = np.zeros((1, 6, 1, 3), np.float32)
    stack[0, :5] = [-900, 400, 1300]
    stack[0, 5] = [0, 7, 9]
    out = np.asarray(stacks.normalise(kind(stack)))
    for channel in (0, 4):
        assert out[0, channel, 0] == pytest.approx((np.array([0, 0.5, 1]) - 0.15) / 0.16, abs=1e-5)
    expected = (np.array([0, 1, 0]) - 0.012) / 0.093
    assert out[0, 5, 0] == pytest.approx(expected, abs=1e-5), "C7 is 1 before scaling, thoracic labels are 0"
    assert stack[0, 0, 0].tolist() == [-900, 400, 1300], "the input stays as it is"


def test_scaling_constants_are_those_of_the_synthetic_cohort():
    x = demo.easy_studies(3, seed=7, size=64).tensors[0]
    slices, masks = x[:, :, :5], x[:, :, 5]
    assert abs(float(slices.mean())) < 0.3 and 0.8 < float(slices.std()) < 1.25
    assert abs(float(masks.mean())) < 0.3 and 0.7 < float(masks.std()) < 1.3


# ---------------------------------------------------------------------------- a square of some mm around the neck


def ramp(shape, affine, at=(0.0, 0.0)):
    """HU that grow linearly along the patient's axes, and a mask of C1-C7 around a place off the middle."""
    volume = Volume(np.zeros(shape, np.int16), affine)
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    x, y, z = np.moveaxis(volume.position_mm(index), -1, 0)
    mask = np.zeros(shape, np.uint8)
    h, w = at
    for d in range(2, shape[0] - 2):
        mask[d, h : h + 9, w : w + 5] = 1 + (d - 2) * 7 // (shape[0] - 4)
    return Volume(np.rint(7 * x - 11 * y + 3 * z).astype(np.int16), affine), mask


AFFINE = np.array([[0, 0, -0.6, 21.0], [0, -0.45, 0, 8.0], [-1.3, 0, 0, 50.0], [0, 0, 0, 1.0]])


def test_a_square_shows_the_patient_where_it_says():
    """Linear HU stay linear under any right interpolation, so each pixel tells where in the patient it lies."""
    volume, mask = ramp((16, 90, 70), AFFINE, at=(40, 38))
    size, field_mm = 11, 16.5
    hu, labels = stacks.resample_slices(volume, mask, count=10, size=size, field_mm=field_mm)
    positions = stacks.cervical_slices(mask, 10)
    middle = volume.position_mm([0, 40 + 4, 38 + 2])  # of 9 rows from 40 on, of 5 columns from 38 on
    off = (np.arange(size) + 0.5) * field_mm / size - field_mm / 2  # mm from the middle, toward back and left
    z = 50.0 - 1.3 * positions
    expected = 7 * (middle[0] - off)[None, None] - 11 * (middle[1] - off)[None, :, None] + 3 * z[:, None, None]
    assert np.abs(hu - expected).max() <= 1.01  # HU were rounded before and after
    pixel = np.floor(off / np.array([[0.45], [0.6]]) + np.array([[44.5], [40.5]])).astype(int)
    nearest = np.floor(positions + 0.5).astype(int)
    assert np.array_equal(labels, mask[nearest][:, pixel[0]][:, :, pixel[1]])
    assert 0 < (labels > 0).mean() < 0.5 and labels.dtype == np.uint8 and hu.dtype == np.int16
    stack = stacks.six_channel(volume, mask, frames=5, size=size, field_mm=field_mm)
    assert np.array_equal(stack[2, 3], hu[5]) and np.array_equal(stack[2, 5], labels[4])


@pytest.mark.parametrize(("pixels", "source"), [(16, 41), (41, 41), (60, 41), (5, 77)])
def test_a_square_is_antialiased_as_torch_does_it(pixels, source):
    volume = Volume(np.random.default_rng(3).integers(-1000, 2000, (2, source, source), dtype=np.int16), np.eye(4))
    step = source / pixels
    other = stacks.Axis(source, 1e-12, step, pixels)  # the same pixels, as if they were a part
    ours = slices_at(volume, stacks.Layout(np.array([0.0, 1.0]), other, other))
    torchs = torch.nn.functional.interpolate(
        torch.from_numpy(volume.hu)[:, None].float(), size=(pixels, pixels), mode="bilinear", antialias=True
    )[:, 0]
    beside = int(np.ceil(max(1, step) / step))  # at its borders torch sees no air
    inner = slice(beside, pixels - beside)
    assert np.abs(ours - torchs.numpy())[:, inner, inner].max() <= 0.51
    if source == pixels:
        assert np.array_equal(ours, volume.hu)


def test_a_square_beyond_the_scan_is_air():
    volume, mask = ramp((12, 30, 40), AFFINE, at=(1, 30))  # at the front, on the left
    volume.hu[:] = 500
    mask[mask > 0] = 2
    hu, labels = stacks.resample_slices(volume, mask, count=6, size=60, field_mm=27.0)  # pixels of 0.45 mm
    front = round(27.0 / 2 / 0.45 - 1 - 4.5)  # rows before the first one of the scan
    assert (hu[:, :front] == -1024).all() and (labels[:, :front] == 0).all()
    assert (hu[:, front + 1 : 50, :24] == 500).all(), "the scan is where it was"
    left = 27.0 / 2 + (40 - 32.5) * 0.6  # mm from the square's right edge to the scan's left edge
    assert (hu[:, :, int(left / 0.45) + 2 :] == -1024).all() and (labels[:, :, int(left / 0.45) + 1 :] == 0).all()
    assert (hu[:, 40, : int(left / 0.45) - 1] == 500).all()
    assert {0, 2} == set(np.unique(labels))


def test_fields_that_cannot_be():
    volume, mask = tall(30)
    for field_mm in (0, -3.0, np.nan, "104", True):
        with pytest.raises(StackError, match="field_mm: found"):
            stacks.six_channel(volume, mask, size=8, field_mm=field_mm)
    for size in (None, (8, 9)):
        with pytest.raises(StackError, match="size: found"):
            stacks.six_channel(volume, mask, size=size, field_mm=5.0)
    assert stacks.six_channel(volume, mask, frames=2, size=(7, 7), field_mm=5.0).shape == (2, 6, 7, 7)


def test_what_a_mask_does_not_show_is_said():
    _, mask = tall(50)
    assert what_is_missing(mask) == []
    cut = mask[8:].copy()  # the scan begins within C1
    cut[cut == 7] = 0
    assert what_is_missing(cut) == ["the label map shows no C7", "the scan begins within C1"]
    low = mask[: np.flatnonzero((mask == 6).any(axis=(1, 2)))[-1]]
    low = np.where(low <= 2, 0, low)
    assert what_is_missing(low) == ["the label map shows no C1, C2, C7", "the scan ends within C6"]
