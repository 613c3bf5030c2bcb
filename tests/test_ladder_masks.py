"""Masks drawn by a network on stacks: the stack as a volume, a network that learns, what it draws."""

from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch

from cspine_utils import stacks
from cspine_utils.anatomy import TARGETS
from cspine_utils.ladder import PROFILES, masks
from cspine_utils.volume import Volume

#: A stack of 48 slices, and its frames.
COUNT, SIDE = 48, 24
PROFILE = replace(PROFILES["tiny"], mask_necks=8, mask_epochs=30)


def neck(store, name, seed):
    """C2-C4 as blocks below each other, each brighter than the one above, 27 slices in all; voxels of 2 x 1.5 x 1 mm.

    A stack lies around its mask, so that its middle says nothing; the borders and the widths are each neck's own.
    """
    rng = np.random.default_rng(seed)
    mask = np.zeros((30, 40, 50), np.uint8)
    borders = [2, *rng.integers((6, 17), (15, 26)), 29]
    for label, above, below in zip((2, 3, 4), borders, borders[1:], strict=False):
        rows, columns = rng.integers((4, 6), (13, 20))
        mask[above:below, 20 - rows : 20 + rows, 25 - columns : 25 + columns] = label
    hu = np.where(mask > 0, 250 * mask.astype(float), -100) + rng.normal(0, 20, mask.shape)
    affine = np.zeros((4, 4))
    affine[2, 0], affine[1, 1], affine[0, 2], affine[3, 3] = -2, -1.5, -1, 1
    volume = Volume(hu.astype(np.int16), affine)
    layout = stacks.lay_out(volume, mask, COUNT, SIDE, 48.0)
    stacks.store_study(
        store, name, volume, mask, layout, boxes=np.zeros((0, 5)), boxes_known=True, source=name, settings={}
    )


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stacks")
    for number in range(13):
        neck(folder, f"n{number}", seed=number)
    return folder


def dataset(store, numbers):
    return stacks.StackDataset(store, pd.DataFrame(0, index=[f"n{n}" for n in numbers], columns=list(TARGETS)))


def test_a_stack_as_a_volume_keeps_its_slices_and_their_distances(store):
    stored = stacks.open_study(store, "n0")
    volume = masks.volume_of(stored)
    assert np.array_equal(volume.hu, stored.hu) and volume.shape == (COUNT, SIDE, SIDE)
    levels = np.flatnonzero((stored.labels > 0).any(axis=(1, 2)))
    assert volume.spacing_mm[1:] == pytest.approx((2.0, 2.0)), "48 mm on 24 pixels"
    assert volume.spacing_mm[0] * (levels[-1] - levels[0]) == pytest.approx(26 * 2.0, abs=1.5), "27 slices of 2 mm"
    assert volume.affine[2, 0] == -volume.spacing_mm[0], "the first slice is the highest"


def test_a_stack_as_a_volume_keeps_rows_and_columns_apart(tmp_path):
    volume = Volume(
        np.zeros((6, 8, 10), np.int16), np.array([[0, 0, -1, 0], [0, -1.5, 0, 0], [-2, 0, 0, 0], [0, 0, 0, 1.0]])
    )
    mask = np.ones(volume.shape, np.uint8)
    stacks.store_study(
        tmp_path, "s", volume, mask, stacks.lay_out(volume, mask, 12), boxes=np.zeros((0, 5)), boxes_known=True,
        source="s", settings={},
    )  # fmt: skip
    assert masks.volume_of(stacks.open_study(tmp_path, "s")).spacing_mm == pytest.approx((2 * 5 / 11, 1.5, 1.0))


def test_what_is_drawn_lies_on_the_centre_slices(store, monkeypatch):
    stored = stacks.open_study(store, "n3")
    of_slice = np.broadcast_to(np.arange(COUNT, dtype=np.uint8)[:, None, None], (COUNT, SIDE, SIDE))
    monkeypatch.setattr(masks.segment, "predict_mask", lambda net, volume, background_odds: of_slice + background_odds)
    drawn = masks.draw(None, stored, 4)
    assert np.array_equal(drawn[:, 0, 0], stacks.shown_slices(COUNT)[:, 2] + 4)


@pytest.fixture(scope="module")
def trained(store, tmp_path_factory):
    patch = pytest.MonkeyPatch()
    patch.setattr(masks, "SPACING_MM", 3.0)
    patch.setattr(masks, "PATCH", (32, 16, 16))
    out = tmp_path_factory.mktemp("run")
    net = masks.train(dataset(store, range(8)), dataset(store, [8]), out, PROFILE, 0, False)
    yield net, out
    patch.undo()


def test_it_draws_the_masks_of_necks_that_it_has_not_seen(store, trained):
    """Better than the masks that it has learned from, each laid over them: those know where a neck lies in a stack."""
    net, _ = trained
    torch.manual_seed(1)
    untrained = type(net)(**net.config).eval()
    seen = [stacks.open_study(store, f"n{n}").labels[::2] for n in range(8)]
    rows = []
    for number in range(9, 13):
        stored = stacks.open_study(store, f"n{number}")
        drawn, true = masks.draw(net, stored, 1), stored.labels[::2]
        assert drawn.shape == (COUNT // 2, SIDE, SIDE) and drawn.dtype == np.uint8
        others = np.mean([masks.dice(true, other) for other in seen])
        rows.append([masks.dice(true, drawn), others, masks.dice(true, masks.draw(untrained, stored, 1))])
    of_net, of_others, of_untrained = np.mean(rows, axis=0)
    assert of_net > of_others + 0.1 > of_untrained + 0.4


def test_a_finished_training_is_not_done_again_and_learns_from_as_many_as_it_may(store, trained, monkeypatch):
    net, out = trained
    before = (out / "best.pt").stat().st_mtime_ns
    again = masks.train(dataset(store, range(8)), dataset(store, [8]), out, PROFILE, 0, False)
    assert (out / "best.pt").stat().st_mtime_ns == before
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), again.parameters(), strict=True))
    seen = []
    monkeypatch.setattr(masks.training, "fit", lambda net, *sets, **_: seen.extend(len(one.cases) for one in sets))
    masks.train(dataset(store, range(6)), dataset(store, [6]), out, replace(PROFILE, mask_necks=2), 0, False)
    assert seen == [2, 1]


def test_drawn_masks_take_the_place_of_the_others_and_are_drawn_once(store, trained, monkeypatch, tmp_path):
    net, _ = trained
    data, asked = dataset(store, [9, 10, 11]), []
    draw = masks.draw
    monkeypatch.setattr(masks, "draw", lambda net, *of: asked.append(of) or draw(net, *of))
    shown = masks.Drawn(data, data, net=net, folder=tmp_path, odds=1.0, maps=["n10"])
    for _ in range(2):
        for index, number in enumerate((9, 10, 11)):
            (x, y), (before, told) = shown[index], data[index]
            own = draw(net, stacks.open_study(store, f"n{number}"), 1.0)
            labels = stacks.labels_of(x[:, 5]).numpy()
            assert torch.equal(x[:, :5], before[:, :5]) and torch.equal(y, told)
            assert np.array_equal(labels, stacks.labels_of(before[:, 5]).numpy() if number == 10 else own)
            assert number == 10 or 0 < masks.dice(stacks.labels_of(before[:, 5]).numpy(), labels) < 1
    assert sorted(path.stem for path in tmp_path.rglob("*.npz")) == ["n11", "n9"]
    assert len(asked) == 2


def test_masks_of_another_network_or_of_other_odds_are_not_taken_for_its_own(store, trained, tmp_path):
    net, _ = trained
    other = type(net)(**net.config).eval()
    data = dataset(store, [9, 10])
    drawn = partial(masks.Drawn, data, data, folder=tmp_path)
    shown, by_other, generous = drawn(net=net, odds=1.0), drawn(net=other, odds=1.0), drawn(net=net, odds=20.0)
    first, of_other, wider = (one[0][0] for one in (shown, by_other, generous))
    assert torch.equal(first, drawn(net=net, odds=1.0)[0][0]) and not torch.equal(first, of_other)
    labels, wide = (stacks.labels_of(x[:, 5]).numpy() for x in (first, wider))
    assert (wide > 0).sum() > (labels > 0).sum() and (wide[labels > 0] > 0).all(), "more is drawn, and nothing is lost"
    all_of = [shown, by_other, generous, drawn(net=net, odds=1.0, maps=["n9"])]
    assert len({one.fingerprint for one in all_of}) == 4 and len(shown) == 2
    elsewhere = masks.Drawn(data, data, net=net, odds=1.0, folder="elsewhere")
    assert shown.fingerprint == elsewhere.fingerprint


def test_dice_by_hand():
    true, shown = np.zeros((2, 4, 4), np.uint8), np.zeros((2, 4, 4), np.uint8)
    true[0, 0] = shown[0, 0] = 1  # C1: the same
    true[0, 1], shown[0, 1, :2] = 2, 2  # C2: 2 of 4
    shown[1, 1] = 5  # C5 is nowhere
    assert masks.dice(true, shown) == pytest.approx((1 + 4 / 6 + 0) / 3)
    assert masks.dice(true, true) == 1 and masks.dice(true, 0 * true) == 0
