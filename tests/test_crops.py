"""Crops of vertebrae: what lies where, what differs between twins, what an epoch shows."""

import errno
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from cspine_utils import crops, phantom, stacks
from cspine_utils.anatomy import LABEL_IDS, LEVELS
from cspine_utils.crops import BROKEN, ENOUGH_VOXELS, INTACT, CropForm, TwinCrops, View, crop_of, render_crops
from cspine_utils.errors import ParameterError, StackError
from cspine_utils.mask_jitter import MaskJitter

#: About 4 MB and a third of a second a pair.
FORM = CropForm(frames=20, size=32, frame_mm=1.8, pixel_mm=1.7, study_size=80)
SETTINGS = {"difficulty": "easy", "seed": 5, "form": FORM, "progress": False}
FIRST, COUNT = 8, 3  # C2, C3, C4
NUMBERS = range(FIRST, FIRST + COUNT)
CLOSER = (9, 14)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return render_crops(tmp_path_factory.mktemp("crops"), COUNT, first=FIRST, **SETTINGS)


def stored(folder, number):
    with np.load(folder / f"{number}.npz") as file:
        return file["hu"], file["labels"], file["altered"]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


# --------------------------------------------------------------------------------------------------- what is rendered


def test_twins_differ_at_the_fracture_alone(folder):
    for number in NUMBERS:
        hu, labels, altered = stored(folder, number)
        assert hu.shape == labels.shape == (2, 2 * FORM.frames, FORM.size, FORM.size)
        assert altered.shape == (FORM.frames, FORM.size, FORM.size)
        different = hu[BROKEN] != hu[INTACT]
        # Interpolation and the scanner's blur carry a change a few voxels on; nothing else changes, noise included.
        f, r, c = np.nonzero(altered)
        inside = np.zeros_like(different)
        inside[max(0, 2 * f.min() - 12) : 2 * f.max() + 13, max(0, r.min() - 6) : r.max() + 7,
               max(0, c.min() - 6) : c.max() + 7] = True  # fmt: skip
        assert different[inside].any() and not different[~inside].any()
        own = LABEL_IDS[LEVELS[number % 7]]
        assert (labels[:, ::2][:, altered] == own).mean() > 0.5, "it is this level that is broken"
        assert (np.abs(hu[BROKEN, ::2].astype(int) - hu[INTACT, ::2])[altered] > 20).mean() > 0.5


def test_crop_of_takes_the_middle_voxel_for_voxel():
    """At the volume's own spacing a crop is the middle itself; where the middle lies between voxels, halfway."""
    rng = np.random.default_rng(0)
    shape = (16, 13, 15)
    rendered = phantom.Rendered(
        hu=rng.integers(-1000, 2000, shape).astype(np.int16),
        labels=rng.integers(0, 9, shape).astype(np.uint8),
        altered=rng.random(shape) < 0.3,
        affine=np.array([[0, 0, -1.5, 9], [0, -1.5, 0, 5.0], [-0.8, 0, 0, 3], [0, 0, 0, 1]]),
        boxes=(), fractures=(),
    )  # fmt: skip
    hu, labels, altered = crop_of(rendered, CropForm(frames=3, size=7, frame_mm=1.6, pixel_mm=1.5))
    middle = slice(5, 11), slice(3, 10), slice(4, 11)
    assert hu.dtype == np.int16 and np.array_equal(hu, rendered.hu[middle])
    assert np.array_equal(labels, rendered.labels[middle])
    assert np.array_equal(altered, rendered.altered[middle][::2])
    coarse, labels, _ = crop_of(rendered, CropForm(frames=3, size=3, frame_mm=1.6, pixel_mm=3.0))
    every_other = slice(5, 11), slice(4, 9, 2), slice(5, 10, 2)
    assert np.array_equal(coarse, rendered.hu[every_other]) and np.array_equal(labels, rendered.labels[every_other])
    even, _, _ = crop_of(rendered, CropForm(frames=3, size=6, frame_mm=1.6, pixel_mm=1.5))
    rows = rendered.hu[5:11].astype(float)[:, 3:10, 4:11]
    assert np.abs(even - (rows[:, 1:, 1:] + rows[:, 1:, :-1] + rows[:, :-1, 1:] + rows[:, :-1, :-1]) / 4).max() <= 0.5


def test_a_stored_pair_is_the_vertebra_of_its_plan(folder):
    number = FIRST + 1
    plan = phantom.draw_plan(5, number, size=80, difficulty="easy", levels=("C3",))
    pair = phantom.render_vertebra_pair(plan, "C3", box_mm=FORM.box_mm)
    hu, labels, altered = stored(folder, number)
    for side in (BROKEN, INTACT):
        expected = crop_of(pair[side], FORM)
        assert np.array_equal(hu[side], expected[0]) and np.array_equal(labels[side], expected[1])
    assert np.array_equal(altered, crop_of(pair[BROKEN], FORM)[2]) and altered.any()
    spare = np.array(pair[0].hu.shape) * np.linalg.norm(pair[0].affine[:3, :3], axis=0)
    assert (spare >= np.array([FORM.frames * FORM.frame_mm, *2 * [FORM.size * FORM.pixel_mm]])).all()


def test_a_killed_run_goes_on_where_it_was(folder, tmp_path, monkeypatch):
    half = tmp_path / "half"
    shutil.copytree(folder, half)
    (half / f"{FIRST + 1}.npz").unlink()
    (half / f".{FIRST + 1}.npz.1.part").write_bytes(b"half a file")
    before = {path.name: path.stat().st_mtime_ns for path in half.glob("*.npz")}
    made = []
    original = crops._render_one
    monkeypatch.setattr(crops, "_render_one", lambda *a: made.append(a[-1]) or original(*a))
    render_crops(half, COUNT, first=FIRST, **SETTINGS)
    assert made == [FIRST + 1]
    assert all((half / name).stat().st_mtime_ns == time for name, time in before.items())
    for there, here in zip(stored(folder, FIRST + 1), stored(half, FIRST + 1), strict=True):
        assert np.array_equal(there, here)


@pytest.mark.parametrize("other", [{"difficulty": "hard"}, {"seed": 6}, {"form": replace(FORM, pixel_mm=1.0)}], ids=str)
def test_a_folder_of_other_crops_is_refused(folder, other):
    before = (folder / "crops.json").read_text()
    with pytest.raises(ParameterError, match="another folder"):
        render_crops(folder, 1, **SETTINGS | other)
    assert (folder / "crops.json").read_text() == before


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"count": -1}, "count"),
        ({"count": 2.0}, "count"),
        ({"first": -7}, "first"),
        ({"difficulty": "brutal"}, "difficulty"),
        ({"seed": -1}, "seed"),
    ],
    ids=str,
)
def test_crops_that_cannot_be_are_refused_before_a_folder_is_made(tmp_path, wrong, said):
    with pytest.raises(ParameterError, match=said):
        render_crops(tmp_path / "new", **{"count": 1, **SETTINGS, **wrong})
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("wrong", [{"frames": 0}, {"size": 3.5}, {"frame_mm": 0}, {"pixel_mm": "1"}], ids=str)
def test_forms_that_cannot_be_are_refused(wrong):
    with pytest.raises(ParameterError, match=next(iter(wrong))):
        CropForm(**wrong)


def test_a_pair_that_cannot_be_rendered_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(crops, "_render_one", lambda *a: 1 / 0)
    with pytest.raises(StackError, match=r"4\.npz.*ZeroDivisionError"):
        render_crops(tmp_path, 1, first=4, **SETTINGS)


def test_a_full_disk_is_told(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device", "name of a patient")

    monkeypatch.setattr(crops.np, "savez", full)
    with pytest.raises(StackError, match=r"4\.npz.*No space left on device") as told:
        render_crops(tmp_path, 1, first=4, **SETTINGS)
    assert "patient" not in str(told.value)
    assert [path.name for path in tmp_path.iterdir()] == ["crops.json"], "nothing half-written"


# ------------------------------------------------------------------------------------------------------- what is seen


@pytest.mark.parametrize("window", ["bone", "soft"])
def test_whole_crops_equal_the_stack_of_their_slices(folder, window):
    samples = TwinCrops(folder, NUMBERS, window=window)
    for index in (0, 1, 4):
        hu, labels, altered = stored(folder, FIRST + index // 2)
        x, _ = samples[index]
        expected = stacks.normalise(stacks.gather_six(hu[index % 2], labels[index % 2]), window)
        assert x.shape == (FORM.frames, 7, FORM.size, FORM.size)
        assert np.abs(x[:, :6].numpy() - expected).max() < 1e-5
        assert np.array_equal(x[:, 6].numpy(), labels[BROKEN, ::2] * altered * (index % 2 == BROKEN))


@pytest.mark.parametrize("corner", [(6, 9, 3), (0, 0, 18), (11, 18, 0)], ids=["middle", "head", "feet"])
def test_a_piece_is_that_part_of_the_whole(folder, corner):
    """Slices beside a piece's first and last frames are those of the crop; only the crop's own ends are repeated."""
    samples = TwinCrops(folder, NUMBERS)
    view = View(corner, *CLOSER)
    place = view.place
    assert [part.stop - part.start for part in place] == [9, 14, 14] and tuple(p.start for p in place) == corner
    for index in (2, 3):
        whole, _ = samples[index]
        samples.views = {1: view}
        piece, _ = samples[index]
        samples.views = {}
        assert torch.equal(piece, whole[place[0], :, place[1], place[2]])


def test_mirror_images_are_mirrored_with_their_marks(folder):
    samples = TwinCrops(folder, NUMBERS)
    plain = samples[0][0]
    samples.views = {0: View((0, 0, 0), FORM.frames, FORM.size, mirrored=True)}
    mirrored = samples[0][0]
    assert torch.equal(mirrored, plain.flip(-1)) and not torch.equal(mirrored[:, 6], plain[:, 6])
    marked = mirrored[:, 6] > 0
    labels = stacks.labels_of(mirrored[:, 5])
    assert (labels[marked] == LABEL_IDS["C2"]).float().mean() > 0.5, "marks lie on the broken vertebra"


def test_torn_masks_are_torn_alike_in_twins_and_marks_keep_their_names(folder):
    jitter = MaskJitter(clean=0.0)
    samples, plain = TwinCrops(folder, NUMBERS, jitter=jitter), TwinCrops(folder, NUMBERS)
    assert torch.equal(samples[0][0], plain[0][0]), "whole crops are as they are"
    samples.epoch_order(torch.Generator().manual_seed(2))
    assert len({samples.views[pair].torn for pair in range(len(NUMBERS))}) == len(NUMBERS)
    for pair in range(len(NUMBERS)):
        view = replace(samples.views[pair], corner=(3, 4, 5), frames=12, size=20, gain=1.0, offset=0.0, mirrored=False)
        samples.views = samples.views | {pair: view}
        plain.views = {pair: replace(view, torn=None)}
        _, labels, _ = stored(folder, FIRST + pair)
        for index in (2 * pair, 2 * pair + 1):
            (x, y), (clean, told) = samples[index], plain[index]
            whole = jitter(torch.from_numpy(labels[index % 2, ::2]), view.torn)
            assert torch.equal(stacks.labels_of(x[:, 5]), whole[view.place].long())
            assert not torch.equal(x[:, 5], clean[:, 5])
            assert torch.equal(x[:, :5], clean[:, :5]) and torch.equal(x[:, 6], clean[:, 6])
            assert torch.equal(y.nan_to_num(9), told.nan_to_num(9))


def test_brightness_is_of_hu(folder):
    samples = TwinCrops(folder, NUMBERS)
    plain = samples[0][0]
    samples.views = {0: View((0, 0, 0), FORM.frames, FORM.size, gain=1.05, offset=-30.0)}
    changed = samples[0][0]
    hu, labels, _ = stored(folder, FIRST)
    expected = stacks.normalise(stacks.gather_six(hu[BROKEN] * 1.05 - 30.0, labels[BROKEN]))
    assert np.abs(changed[:, :6].numpy() - expected).max() < 1e-5
    assert torch.equal(changed[:, 5:], plain[:, 5:]) and not torch.equal(changed[:, :5], plain[:, :5])


def test_without_voxels_nothing_is_said_of_where(folder):
    x, y = TwinCrops(folder, NUMBERS, voxels=False)[0]
    assert x[:, 6].isnan().all() and not x[:, :6].isnan().any() and y[1] == 1


def test_only_the_crops_own_level_is_told(folder):
    samples = TwinCrops(folder, NUMBERS)
    for index in range(len(samples)):
        _, y = samples[index]
        level = (FIRST + index // 2) % 7
        assert y[level] == (index % 2 == BROKEN)
        assert y.isnan().sum() == 7 and samples.levels[index] == level and samples.patients[index] == FIRST + index // 2


def told(folder, seen: int, total: int, side=BROKEN, level_shown=True) -> float:
    """What is told of a piece that shows `seen` of `total` altered voxels."""
    altered = np.zeros((20, 32, 32), dtype=bool)
    altered[3].flat[:seen] = True
    altered[15].flat[: total - seen] = True
    labels = np.zeros((40, 32, 32), dtype=np.uint8)
    labels[6 if level_shown else 20, 2, 5] = LABEL_IDS["C2"]
    labels[7, 2, 6] = LABEL_IDS["C2"]  # between the centre slices: nobody sees it
    return TwinCrops(folder, NUMBERS)._told(side, altered, labels, FIRST, View((2, 0, 0), 4, 32))


def test_what_a_piece_tells(folder):
    assert told(folder, ENOUGH_VOXELS, 100) == 1
    assert np.isnan(told(folder, ENOUGH_VOXELS - 1, 100)), "too little to see"
    assert told(folder, 7, 7) == 1, "a small fracture, all of it"
    assert np.isnan(told(folder, 6, 7))
    assert np.isnan(told(folder, 0, 0)), "nothing to see at all"
    assert told(folder, 50, 100, side=INTACT) == 0
    assert np.isnan(told(folder, 50, 100, side=INTACT, level_shown=False)), "nothing of the vertebra, nothing to say"


# ------------------------------------------------------------------------------------------------ what an epoch shows


def test_an_epoch_is_drawn_from_its_generator(folder):
    samples, again = (TwinCrops(folder, NUMBERS, closer=CLOSER) for _ in range(2))
    state = generator(3)
    order, views = samples.epoch_order(state), samples.views
    assert again.epoch_order(generator(3)) == order and again.views == views
    assert samples.epoch_order(state) != order or samples.views != views, "the next epoch is another one"
    assert sorted(order) == list(range(2 * COUNT)) and len(views) == COUNT


def test_twins_stand_side_by_side_with_one_view(folder):
    samples = TwinCrops(folder, NUMBERS, closer=CLOSER)
    orders = [samples.epoch_order(generator(seed)) for seed in range(6)]
    assert all(order[0::2] == [i - 1 for i in order[1::2]] and all(i % 2 == 0 for i in order[0::2]) for order in orders)
    assert len({tuple(order) for order in orders}) > 1
    broken, intact = samples[2][0], samples[3][0]
    alike = (broken[:, :5] == intact[:, :5]).float().mean()
    assert 0.5 < alike < 1 and intact[:, :5].std() > 0.5, "the same piece, mirrored alike, noise included"
    apart = TwinCrops(folder, NUMBERS, closer=CLOSER, twins=False)
    orders = [apart.epoch_order(generator(seed)) for seed in range(6)]
    assert all(sorted(order) == list(range(2 * COUNT)) for order in orders)
    assert any(order[0::2] != [i - 1 for i in order[1::2]] for order in orders)


def test_pieces_show_the_vertebra_and_half_of_them_the_break(folder):
    samples = TwinCrops(folder, NUMBERS, closer=CLOSER)
    shown, broken, views = [], [], []
    for seed in range(40):
        samples.epoch_order(generator(seed))
        for pair, view in samples.views.items():
            _, labels, altered = stored(folder, FIRST + pair)
            own = labels[INTACT, ::2] == LABEL_IDS[LEVELS[(FIRST + pair) % 7]]
            shown.append((own | altered)[view.place].any())
            broken.append(altered[view.place].any())
            views.append(view)
    # Every piece is drawn around a voxel of one or the other, at most a third of its extent from the middle.
    assert all(shown) and 0.5 <= np.mean(broken) < 1
    corners = np.array([view.corner for view in views])
    assert (corners >= 0).all() and (corners <= np.array([11, 18, 18])).all()
    assert (corners.std(axis=0) > 0.5).all()
    assert 0.3 < np.mean([view.mirrored for view in views]) < 0.7
    gains, offsets = ([getattr(view, name) for view in views] for name in ("gain", "offset"))
    assert 0.93 <= min(gains) < 0.95 and 1.05 < max(gains) <= 1.07
    assert -40 <= min(offsets) < -25 and 25 < max(offsets) <= 40


@pytest.mark.parametrize("broken_at", [(10, 15, 16), (0, 31, 0), (19, 0, 31)], ids=["inside", "head", "feet"])
def test_a_piece_contains_the_voxel_that_it_was_drawn_around(folder, monkeypatch, broken_at):
    """One broken voxel, and one of the vertebra far from it: a piece shows one of them, either as often."""
    own_at = (15, 26, 4) if broken_at[0] < 10 else (2, 4, 27)
    altered, labels = np.zeros((20, 32, 32), dtype=bool), np.zeros((2, 40, 32, 32), dtype=np.uint8)
    altered[broken_at] = True
    labels[INTACT, 2 * own_at[0], own_at[1], own_at[2]] = LABEL_IDS["C2"]
    samples = TwinCrops(folder, NUMBERS[:1], closer=CLOSER)
    there = {"labels": labels, "altered": altered}
    monkeypatch.setattr(samples, "_read", lambda pair, *names: [there[name] for name in names])
    shown = []
    for seed in range(200):
        samples.epoch_order(generator(seed))
        place = samples.views[0].place
        shown.append((altered[place].any(), labels[INTACT, ::2][place].any()))
    broken, own = np.transpose(shown)
    assert (broken ^ own).all() and 0.35 < broken.mean() < 0.65


def test_without_pieces_whole_crops_are_seen(folder):
    samples = TwinCrops(folder, NUMBERS)
    samples.epoch_order(generator())
    assert all((v.corner, v.frames, v.size) == ((0, 0, 0), FORM.frames, FORM.size) for v in samples.views.values())


def test_equal_fingerprints_mean_equal_data(folder, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(folder, moved)
    one = TwinCrops(folder, NUMBERS).fingerprint
    assert TwinCrops(moved, list(NUMBERS)).fingerprint == one
    facts = json.loads((moved / "crops.json").read_text())
    (moved / "crops.json").write_text(json.dumps(facts | {"seed": 6}))
    others = [TwinCrops(moved, NUMBERS), TwinCrops(folder, NUMBERS[:2]), TwinCrops(folder, NUMBERS, window="soft"),
              TwinCrops(folder, NUMBERS, closer=CLOSER), TwinCrops(folder, NUMBERS, twins=False),
              TwinCrops(folder, NUMBERS, voxels=False), TwinCrops(folder, NUMBERS, jitter=MaskJitter()),
              TwinCrops(folder, NUMBERS, jitter=MaskJitter(shift=1.0))]  # fmt: skip
    assert len({one, *(other.fingerprint for other in others)}) == 1 + len(others)


def test_sets_that_cannot_be_are_refused(folder):
    with pytest.raises(StackError, match="2 pairs missing, the first 11"):
        TwinCrops(folder, range(FIRST, 13))
    with pytest.raises(StackError, match="window"):
        TwinCrops(folder, NUMBERS, window="bones")
    for closer in [(21, 14), (9, 33), (0, 14), (9, 14.0), 40, (9, 14, 14)]:
        with pytest.raises(ParameterError, match="closer"):
            TwinCrops(folder, NUMBERS, closer=closer)
    assert len(TwinCrops(folder, NUMBERS, closer=(20, 32))) == 2 * COUNT
