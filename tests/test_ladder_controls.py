"""Controls of a model of whole necks: each change by hand, and a table that can tell who cheats."""

import numpy as np
import pytest
import torch

from cspine_utils import stacks
from cspine_utils.errors import ParameterError
from cspine_utils.ladder import PROFILES, controls, masks, plan
from cspine_utils.ladder.controls import CONTROLS, MARGIN, Changed, Held

FRAMES, SIDE = 24, 30
SHAPE = (FRAMES, SIDE, SIDE)
#: Label 3 is a block, label 5 another one, smaller.
BLOCKS = {3: (slice(3, 8), slice(8, 20), slice(6, 18)), 5: (slice(14, 19), slice(10, 20), slice(8, 18))}


class Necks(torch.utils.data.Dataset):
    """Necks whose every slice shows its own number as HU; `broken` levels are marked in a corner of their block."""

    window = "bone"

    def __init__(self, broken):
        self.broken = broken
        self.targets = torch.zeros(len(broken), 8)
        for row, levels in zip(self.targets, broken, strict=True):
            for label in levels:
                row[label - 1] = row[-1] = 1

    def __len__(self):
        return len(self.broken)

    def __getitem__(self, index):
        labels, marked = np.zeros(SHAPE, np.uint8), np.zeros(SHAPE, np.float32)
        for label, block in BLOCKS.items():
            labels[block] = label
        for label in self.broken[index]:
            corner = tuple(slice(s.start, s.start + 2) for s in BLOCKS[label])
            marked[corner] = 1
        hu = np.broadcast_to(np.arange(2 * FRAMES, dtype=np.float32)[:, None, None], (2 * FRAMES, SIDE, SIDE))
        x = np.empty((FRAMES, 7, SIDE, SIDE), np.float32)
        x[:, :5] = stacks.scale_hu(hu, self.window)[stacks.shown_slices(2 * FRAMES)]
        x[:, 5] = stacks.scale_labels(labels.astype(np.float32))
        x[:, 6] = marked
        return torch.from_numpy(x), self.targets[index]


@pytest.fixture
def held():
    return Held(Necks([(3,), (), (3, 5)]), seed=4)


def labels_in(x):
    return stacks.labels_of(x[:, 5]).numpy()


@pytest.mark.parametrize("by", [1, 3])
def test_a_moved_mask_lies_beside_and_nothing_comes_in_from_the_other_end(held, by):
    sides = set()
    for index in range(3):
        x, _ = held.dataset[index]
        before = x.clone()
        moved = controls.mask_moved(x, held, index, by)
        assert torch.equal(x, before) and torch.equal(moved[:, :5], x[:, :5]) and torch.equal(moved[:, 6], x[:, 6])
        (a, b) = (np.argwhere(labels_in(z) == 3) for z in (x, moved))
        assert len(a) == len(b), "nothing of the block left the stack"
        step = (b - a)[0]
        assert (b - a == step).all() and (np.abs(step) == by).all()
        sides.add(tuple(step))
        again = controls.mask_moved(x, held, index, by)
        assert torch.equal(moved, again), "the same side every time"
    assert len(sides) > 1
    full = held.dataset[0][0]
    full[:, 5] = float(stacks.scale_labels(np.array([7.0], np.float32))[0])
    moved = labels_in(controls.mask_moved(full, held, 0, by))
    assert (moved == 7).sum() == np.prod([n - by for n in SHAPE]) and set(np.unique(moved)) == {0, 7}


def test_a_wider_and_a_narrower_mask_by_hand(held):
    x, _ = held.dataset[0]
    wider, narrower = (controls.mask_wider(x, held, 0, by) for by in (1, -1))
    for label, block in BLOCKS.items():
        a, b, c = (s.stop - s.start for s in block)
        assert (labels_in(wider) == label).sum() == a * b * c + 2 * (a * b + b * c + a * c), "a layer on each face"
        core = np.zeros(SHAPE, bool)
        core[tuple(slice(s.start + 1, s.stop - 1) for s in block)] = True
        assert np.array_equal(labels_in(narrower) == label, core) and (labels_in(wider)[block] == label).all()
    for changed in (wider, narrower):
        assert torch.equal(changed[:, :5], x[:, :5]) and torch.equal(changed[:, 6], x[:, 6])
    assert CONTROLS["mask 1 voxel wider"].options == (1,) and CONTROLS["mask 1 voxel narrower"].options == (-1,)


class Lower(Necks):
    """In the first neck, everything lies two frames lower."""

    def __getitem__(self, index):
        x, y = super().__getitem__(index)
        x[:, 5] = torch.roll(x[:, 5], 2 * (index == 0), dims=0)
        return x, y


def test_no_mask_and_the_mask_of_another():
    held = Held(Lower([(3,), (), (3, 5)]), seed=4)
    x, _ = held.dataset[2]
    none = controls.no_mask(x, held, 2)
    assert not labels_in(none).any() and torch.equal(none[:, :5], x[:, :5])
    strange = controls.mask_of_another(x, held, 2)
    assert np.array_equal(labels_in(strange)[2:], labels_in(x)[:-2]) and torch.equal(strange[:, :5], x[:, :5])


def test_a_predicted_mask_is_the_one_drawn_on_the_same_neck(monkeypatch, tmp_path):
    data = Lower([(3,), (), (3, 5)])
    data.store, data.studies = "there", ["a", "b", "c"]
    nets = {"patient": torch.nn.Linear(2, 1), "hasty": torch.nn.Linear(2, 1)}
    nets["generous"] = nets["patient"]
    held = Held(
        data,
        seed=4,
        drawn={
            by: masks.Drawn(data, data, net=net, folder=tmp_path, odds=controls.DRAWERS[by][1])
            for by, net in nets.items()
        },
    )
    monkeypatch.setattr(masks.stacks, "open_study", lambda store, study: (store, study))
    drawn, asked = np.zeros(SHAPE, np.uint8), []
    drawn[2:5, 3, 4:9], drawn[7, 6, 5] = 3, 7

    def draw(net, stored, odds):
        asked.append((net, *stored, odds))
        return drawn + (net is nets["hasty"]) + (odds > 1)

    monkeypatch.setattr(masks, "draw", draw)
    x, _ = data[2]
    for name, by, more in (("", "patient", 0), (" in haste", "hasty", 1), (" generously", "generous", 1)):
        one = CONTROLS["mask predicted" + name]
        shown = one.change(x, held, 2, *one.options)
        assert asked.pop() == (nets[by], "there", "c", controls.DRAWERS[by][1]) and not asked
        assert np.array_equal(labels_in(shown), (drawn + more) * (drawn + more <= 7))
        assert torch.equal(shown[:, :5], x[:, :5]) and torch.equal(shown[:, 6], x[:, 6])
    assert controls.DRAWERS == {"patient": (1, 1), "hasty": (5, 1), "generous": (1, plan.GENEROUS)}
    assert plan.GENEROUS > 1


def test_dark_voxels_are_left_out_of_the_mask(held):
    """A block of 800 HU with a gap of 50 HU, three voxels wide: the gap's middle is dark, its sides are half bone."""
    x, _ = held.dataset[0]
    bone, gap = (float(stacks.scale_hu(np.array([hu], np.float32), "bone")[0]) for hu in (800.0, 50.0))
    x[:, :5] = gap
    x[2:10, :5, 6:22, 4:20] = bone  # one voxel more than the block on every side
    x[2:10, :5, 6:22, 10:13] = gap
    left = labels_in(controls.mask_without_dark(x, held, 0)) == 3
    before = labels_in(x) == 3
    assert before[BLOCKS[3]].all() and not (left & ~before).any()
    gone = (before & ~left).nonzero()
    assert set(gone[2]) == {11}, "the mean at the gap's sides is (2 * 50 + 800) / 3 = 300 HU"
    assert len(gone[0]) == 5 * 12, "all of the middle"
    changed = controls.mask_without_dark(x, held, 0)
    assert torch.equal(changed[:, :5], x[:, :5]) and torch.equal(changed[:, 6], x[:, 6])
    x[:, 2] = gap  # the centre slice counts
    assert not labels_in(controls.mask_without_dark(x, held, 0)).any()


def test_dice_of_the_masks_that_were_shown(held):
    found = {}
    for name in ("as it is", "mask 3 voxels beside", "no mask", "breaks filled"):
        changed = Changed(held, CONTROLS[name])
        assert changed.dice == {}
        x, _ = changed[2]
        found[name] = changed.dice.pop(2)
        assert not changed.dice
        if name == "mask 3 voxels beside":  # blocks of 5 frames that moved by 3 along each axis
            sizes = [[s.stop - s.start for s in block] for block in BLOCKS.values()]
            by_hand = np.mean([np.prod([n - 3 for n in size]) / np.prod(size) for size in sizes])
            assert found.pop(name) == pytest.approx(by_hand)
    assert found == {"as it is": 1, "no mask": 0, "breaks filled": 1}


def test_breaks_are_filled_and_as_much_of_intact_vertebrae(held):
    soft = float(stacks.scale_hu(np.array([controls.FILL_HU], np.float32), "bone")[0])
    holes = {}
    for index in range(3):
        x, _ = held.dataset[index]
        filled = controls.breaks_filled(x, held, index)
        assert torch.equal(filled[:, 5:], x[:, 5:])
        changed = (filled[:, :5] != x[:, :5]).numpy()
        assert (filled[:, :5].numpy()[changed] == soft).all()
        holes[index] = (filled[:, :5] == soft).numpy()
    # Broken or not, there is a hole in the same corner of every vertebra: a hole tells nothing.
    assert np.array_equal(holes[0], holes[1]) and np.array_equal(holes[0], holes[2])
    centre = holes[1][:, 2]
    for block in BLOCKS.values():
        corner = tuple(slice(max(0, s.start - MARGIN), s.start + 2 + MARGIN) for s in block)
        assert centre[corner].all()
        centre[corner] = False
    assert not centre.any()


def test_a_slice_is_filled_in_every_channel_that_shows_it(held):
    x, _ = held.dataset[0]
    filled = controls.breaks_filled(x, held, 0)
    shown = stacks.shown_slices(2 * FRAMES)
    seen = {}
    for frame in range(FRAMES):
        for channel in range(5):
            plane = filled[frame, channel]
            assert torch.equal(plane, seen.setdefault(int(shown[frame, channel]), plane))


def test_labels_of_other_necks_are_shuffled_and_the_others_are_not():
    data = Necks([(3,), (), (3, 5), (), (5,), (), ()])
    held = Held(data, seed=1)
    assert torch.equal(Changed(held, CONTROLS["no mask"]).targets, data.targets)
    shuffled = Changed(held, CONTROLS["labels of other necks"])
    assert not torch.equal(shuffled.targets, data.targets)
    assert sorted(map(tuple, shuffled.targets.tolist())) == sorted(map(tuple, data.targets.tolist()))
    x, y = shuffled[2]
    assert torch.equal(x, data[2][0]) and torch.equal(y, shuffled.targets[2])


def knows(x):
    """A reader who sees HU of 1000 in a vertebra as broken: C3 and C5 alone can be."""
    bright = (x[:, :5].amax(dim=1) > float(stacks.scale_hu(np.array([900.0], np.float32), "bone")[0])).numpy()
    labels = labels_in(x)
    told = np.array([bright[labels == label].any() if (labels == label).any() else False for label in range(1, 8)])
    return np.append(told, told.any())


class Bright(Necks):
    """Broken corners are bright."""

    def __getitem__(self, index):
        x, y = super().__getitem__(index)
        value = float(stacks.scale_hu(np.array([1000.0], np.float32), "bone")[0])
        x[:, :5][(x[:, 6:] > 0).expand(-1, 5, -1, -1)] = value
        return x, y


@pytest.mark.parametrize(
    ("name", "right"),
    [("as it is", 1.0), ("mask 1 voxel beside", 1.0), ("no mask", 0.0), ("breaks filled", 0.0)],
)
def test_who_sees_breaks_is_blind_where_there_is_nothing_to_see(name, right):
    broken = [(3,), (), (3, 5), (5,)]
    changed = Changed(Held(Bright(broken), seed=0), CONTROLS[name])
    found = [knows(changed[index][0])[[2, 4]] for index in range(4)]
    truth = changed.targets[:, [2, 4]].numpy() == 1
    assert (np.array(found)[truth] == bool(right)).all() and not np.array(found)[~truth].any()


def test_a_reader_who_knows_the_holes_would_be_noticed():
    """A filling that only broken vertebrae get tells the label: the comparison above must see that."""
    data = Bright([(3,), ()])
    held = Held(data, seed=0)
    held._holes = {label: [] for label in range(1, 8)}  # nothing for the intact
    soft = [(controls.breaks_filled(data[i][0], held, i)[:, 2] != data[i][0][:, 2]).any() for i in range(2)]
    assert soft == [True, False]


def test_a_rung_that_cannot_be_judged_is_refused(tmp_path):
    for rung in ("crops-easy", "necks-easy"):
        with pytest.raises(ParameterError, match="finished"):
            controls.control(tmp_path, PROFILES["tiny"], rung=rung)
    assert not list(tmp_path.iterdir())
