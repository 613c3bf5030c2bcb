"""Image and mask move together, labels stay labels, frames agree on what they share, and nothing wraps."""

import numpy as np
import pytest
import torch

from cspine_utils import augment, stacks
from cspine_utils.augment import Augment
from cspine_utils.errors import ParameterError

ALL = Augment(flip=0.5, rotate_deg=20, scale=0.2, shift_px=3, frames_shift=2, hu_jitter=(0.1, 50.0), noise_hu=30,
              cutout=0.4)  # fmt: skip
STRENGTHS = {"flip": 1.0, "rotate_deg": 15, "scale": 0.2, "shift_px": 4, "frames_shift": 3, "hu_jitter": (0.1, 60.0),
             "noise_hu": 40, "cutout": 0.5}  # fmt: skip
NOTHING = {"flip": 0, "rotate_deg": 0, "scale": 0, "shift_px": 0, "frames_shift": 0, "hu_jitter": (0, 0),
           "noise_hu": 0, "cutout": 0}  # fmt: skip


def generator(seed=5):
    return torch.Generator().manual_seed(seed)


def neck(frames=6, h=24, w=30, seed=0, evidence=True):
    """HU that are different in every slice, labels off the middle, evidence in a corner of one of them: `(f, 7, h, w)`.

    The slices are smooth, so that linear interpolation can be judged.
    """
    row, column = np.meshgrid(np.arange(h), np.arange(w), indexing="ij")
    d = np.arange(2 * frames)[:, None, None]
    hu = (60 * d + 9 * row - 6 * column + 40 * seed).astype(np.int16)
    labels = np.zeros(hu.shape, np.uint8)
    for i in range(2 * frames):
        labels[i, 8:17, 5:19] = 1 + i * 7 // (2 * frames)
    x = torch.from_numpy(stacks.normalise(stacks.gather_six(hu, labels)))
    broken = torch.zeros(frames, 1, h, w)
    broken[2, 0, 8:12, 5:9] = 1
    return torch.cat([x, broken], dim=1) if evidence else x


def labels_of(study):
    """Label ids back from the mask channel, floats: whole numbers if it is a mask still."""
    return 7 * (study[:, 5] * stacks.MASK_SCALE[1] + stacks.MASK_SCALE[0])


def hu_of(study, channel=2):
    """HU of a channel where the bone window shows them."""
    return (study[:, channel] * stacks.SLICE_SCALE[1] + stacks.SLICE_SCALE[0]) * 1800 - 500


def test_masks_stay_masks_and_evidence_stays_yes_or_no():
    x = torch.stack([neck(seed=s) for s in range(6)])
    out = ALL(x, generator())
    assert out.shape == x.shape and out.dtype == x.dtype
    for before, after in zip(x, out, strict=True):
        labels = labels_of(after)
        assert torch.allclose(labels, labels.round(), atol=1e-4)
        assert set(labels.round().unique().tolist()) <= set(range(8)) and labels.round().max() > 0
        assert set(after[:, 6].unique().tolist()) <= {0.0, 1.0}
        assert not torch.equal(before, after)


@pytest.mark.parametrize(("degrees", "scale", "shift"), [(0, 1, (3, -2)), (12, 1, (0, 0)), (-7, 1.15, (2.5, 1))])
def test_image_and_mask_move_together(degrees, scale, shift):
    """Where a pixel comes from can be read off linear HU; its label must be the one of that very place."""
    study = neck()
    moved = augment.move_in_plane(study, degrees=degrees, scale=scale, shift_px=shift)
    inner = (slice(None), slice(5, 19), slice(6, 24))
    row, column = np.meshgrid(np.arange(24.0), np.arange(30.0), indexing="ij")
    angle = np.radians(degrees)
    down, right = row - 11.5 - shift[0], column - 14.5 - shift[1]
    source_row = (np.cos(angle) * down - np.sin(angle) * right) / scale + 11.5
    source_column = (np.sin(angle) * down + np.cos(angle) * right) / scale + 14.5
    for frame in range(6):
        for channel, slice_index in enumerate(stacks.shown_slices(12)[frame]):
            expected = 60 * slice_index + 9 * source_row - 6 * source_column
            assert np.abs(hu_of(moved, channel)[frame].numpy() - expected)[inner[1:]].max() < 0.5
        nearest = np.floor([source_row + 0.5, source_column + 0.5]).astype(int)
        expected = labels_of(study)[frame].numpy()[nearest[0].clip(0, 23), nearest[1].clip(0, 29)]
        assert np.allclose(labels_of(moved)[frame].numpy()[inner[1:]], expected[inner[1:]], atol=1e-4)
    assert (moved[2, 6] == 1).sum() > 4
    assert ((moved[:, 6] == 1) <= (labels_of(moved).round() > 0)).all(), "evidence stays in its vertebra"


def test_turns_are_clockwise_and_what_comes_in_is_air_without_a_label():
    study = neck(h=20, w=20)
    turned = augment.move_in_plane(study, degrees=90)
    assert torch.allclose(turned, study.rot90(-1, dims=(-2, -1)), atol=1e-4)
    moved = augment.move_in_plane(study, shift_px=(6, 0))
    assert torch.allclose(hu_of(moved)[:, :6], torch.tensor(-500.0), atol=0.01) and not moved[:, 6, :6].any()
    assert torch.allclose(labels_of(moved)[:, :6], torch.tensor(0.0), atol=1e-5)
    assert torch.allclose(moved[:, :, 6:], study[:, :, :-6], atol=1e-4)
    larger = augment.move_in_plane(study, scale=1.5)
    assert (labels_of(larger).round() > 0).sum() > 1.7 * (labels_of(study).round() > 0).sum()


def test_flipping_twice_changes_nothing_and_once_mirrors_left_and_right():
    study = neck()
    assert torch.equal(augment.flip_left_right(augment.flip_left_right(study)), study)
    assert torch.equal(augment.flip_left_right(study)[3, 5, 8], study[3, 5, 8].flip(0))
    assert labels_of(augment.flip_left_right(study))[0].max() == labels_of(study)[0].max(), "C1 stays C1"


def test_frames_repeat_at_the_border_and_never_wrap():
    study = neck()
    later, earlier = augment.shift_frames(study, 2), augment.shift_frames(study, -2)
    assert torch.equal(later[:4], study[2:]) and torch.equal(later[4], study[5]) and torch.equal(later[5], study[5])
    assert torch.equal(earlier[2:], study[:4]) and torch.equal(earlier[0], study[0])
    assert torch.equal(augment.shift_frames(study, 99)[0], study[5])


def same_slices_agree(study):
    """Whether every slice looks the same in all frames and channels that show it."""
    shown, seen = stacks.shown_slices(2 * len(study)), {}
    for frame, slices in enumerate(shown):
        for channel, slice_index in enumerate(slices):
            if not torch.equal(seen.setdefault(slice_index, study[frame, channel]), study[frame, channel]):
                return False
    return True


def test_frames_agree_on_the_slices_that_they_share():
    study = neck()
    changed = augment.add_noise(study, 40, seed=3)
    changed = augment.cut_out(changed, (0.3, 0.6, 0.2), (0.4, 0.3, 0.3))
    changed = augment.move_in_plane(augment.jitter_hu(changed, 1.1, -30), degrees=9)
    assert same_slices_agree(changed)
    drawn_for_channels = study.clone()
    drawn_for_channels[:, :5] += torch.randn(study[:, :5].shape, generator=generator())
    assert same_slices_agree(study) and not same_slices_agree(drawn_for_channels)


def test_noise_and_jitter_are_in_hu_and_leave_the_mask():
    study = neck(h=60, w=80)
    shown = (hu_of(study) > -300) & (hu_of(study) < 1100)
    noise = (hu_of(augment.add_noise(study, 40, seed=1)) - hu_of(study))[shown]
    assert abs(float(noise.std()) - 40) < 2 and abs(float(noise.mean())) < 2
    jittered = augment.jitter_hu(study, 1.1, -30)
    assert torch.allclose(hu_of(jittered)[shown], 1.1 * hu_of(study)[shown] - 30, atol=0.05)
    soft = torch.zeros(1, 6, 1, 3)
    soft[:, :5] = stacks.scale_hu(torch.tensor([-200.0, 60.0, 300.0]), "soft")
    soft = (augment.jitter_hu(soft, 1.0, 20.0, "soft") * 0.16 + 0.15)[0, 2, 0]
    assert torch.allclose(soft, torch.tensor([0.0, 0.6, 1.0]), atol=1e-5), "beyond the window it stays black or white"
    for changed in (jittered, augment.add_noise(study, 40, seed=1)):
        assert torch.equal(changed[:, 5:], study[:, 5:])


def test_a_cut_out_hides_what_is_in_it():
    study = neck()
    out = augment.cut_out(study, (0.5, 0.0, 1.0), (0.5, 0.5, 0.4))  # slices 3 to 8, the upper half, right columns
    gone = hu_of(out) < -499.9
    assert gone[2:5, :12, 18:].all() and torch.equal(out[0, 2], study[0, 2]) and torch.equal(out[5, 2], study[5, 2])
    assert torch.equal(out[1, 4], out[2, 2]), "slice 4 is channel 4 of frame 1"
    assert torch.equal(out[:, 5], study[:, 5])
    study[:, 6] = 1
    known = augment.cut_out(study, (0.5, 0.0, 1.0), (0.5, 0.5, 0.4))[:, 6]
    assert torch.equal(known == 0, gone & (torch.arange(30) >= 18) & (torch.arange(24) < 12)[:, None])
    assert known[[0, 1, 5]].all() and not known[2:5, :12, 18:].any()


def test_unknown_evidence_stays_unknown():
    x = torch.stack([neck(), neck(seed=1)])
    x[0, :, 6] = torch.nan
    out = ALL(x, generator())
    assert out[0, :, 6].isnan().all() and not out[1].isnan().any() and not out[0, :, :6].isnan().any()


def test_the_same_state_gives_the_same_batch_and_neighbours_do_not_matter():
    x = torch.stack([neck(seed=s) for s in range(4)])
    out = ALL(x, generator())
    assert torch.equal(out, ALL(x, generator())) and not torch.equal(out, ALL(x, generator(6)))
    others = x.clone()
    others[1:] = others[1:].flip(0) + 1
    assert torch.equal(ALL(others, generator())[0], out[0])
    assert torch.equal(ALL(x[:2], generator()), out[:2])
    alike = ALL(x[:1].expand(3, -1, -1, -1, -1), generator())
    assert not torch.equal(alike[0], alike[1]) and not torch.equal(alike[1], alike[2])


@pytest.mark.parametrize("name", STRENGTHS)
def test_each_change_can_be_had_alone(name):
    x = torch.stack([neck(), neck(seed=1)])
    out = Augment(**NOTHING | {name: STRENGTHS[name]})(x, generator())
    assert all(not torch.equal(before, after) for before, after in zip(x, out, strict=True))
    assert torch.equal(Augment(**NOTHING)(x, generator()), x)
    if name in ("hu_jitter", "noise_hu", "cutout"):
        assert torch.equal(out[:, :, 5], x[:, :, 5])
    if name == "flip":
        assert torch.equal(out, x.flip(-1))


def test_a_strength_of_zero_does_not_shift_the_others():
    x = neck()[None]
    parts = Augment(**NOTHING | {"flip": 1.0, "frames_shift": 3})(x, generator())
    shift = Augment(**NOTHING | {"frames_shift": 3})(x, generator())
    assert torch.equal(parts, shift.flip(-1)) and not torch.equal(shift, x)


@pytest.mark.parametrize(
    "bad",
    [{"flip": 1.5}, {"rotate_deg": -1}, {"scale": "0.1"}, {"noise_hu": np.nan}, {"hu_jitter": 0.1},
     {"hu_jitter": (0.1, -5)}, {"cutout": True}, {"window": "lung"}, {"mask": True}],
)  # fmt: skip
def test_strengths_that_cannot_be(bad):
    with pytest.raises(ParameterError, match=next(iter(bad))):
        Augment(**bad)


def test_a_batch_that_is_none():
    for x in (neck(), neck()[None, :, :5]):
        with pytest.raises(ParameterError, match="b, f, c, h, w"):
            ALL(x, generator())


def test_what_the_wrong_ones_destroy():
    study = neck(evidence=False)
    order = [int(frame.max().round()) for frame in labels_of(study)]
    turned = [int(frame.max().round()) for frame in labels_of(augment.wrong_upside_down(study))]
    assert order == sorted(order) and turned == order[::-1] and order != turned
    assert same_slices_agree(augment.wrong_upside_down(study).flip(0)[:, [4, 3, 2, 1, 0, 5]])
    study[2, 2, 0, 0] = stacks.scale_hu(torch.tensor(3000.0))  # a tooth filling in one channel of one frame
    scaled = augment.wrong_scale_each_slice(study)
    factor = (scaled[2, 2, 9, 9] - scaled[2, 2, 8, 9]) / (study[2, 2, 9, 9] - study[2, 2, 8, 9])
    beside = (scaled[2, 1, 9, 9] - scaled[2, 1, 8, 9]) / (study[2, 1, 9, 9] - study[2, 1, 8, 9])
    assert factor < 0.5 * beside, "the contrast of the same bone now depends on the brightest thing in its slice"


def test_one_study_is_no_batch():
    with pytest.raises(ParameterError, match=r"shape \(10, 6, 8, 8\).*x\[None\]"):
        Augment()(torch.zeros(10, 6, 8, 8), torch.Generator())
