"""A torn mask: how far it may be from the true one, measured, and what never happens to it."""

import numpy as np
import pytest
import torch
from scipy.ndimage import distance_transform_edt

from cspine_utils.augment import Augment
from cspine_utils.errors import ParameterError
from cspine_utils.mask_jitter import MaskJitter, Torn, tear_mask
from cspine_utils.stacks import labels_of, scale_labels

SHAPE = (30, 40, 50)
STILL = {"shift": 0.0, "warp": 0.0, "coarse": 1, "clean": 0.0}


def lumps() -> torch.Tensor:
    """Seven lumps of unlike size, none of which is its own mirror image."""
    labels = torch.zeros(SHAPE, dtype=torch.uint8)
    for level in range(1, 8):
        labels[4 * level - 3 : 4 * level, 8 : 20 + level, 10 : 30 - level] = level
        labels[4 * level - 2, 20:30, 30 : 33 + level] = level
    return labels


def brick() -> torch.Tensor:
    """One lump well inside, so that no part of it can leave."""
    labels = torch.zeros(SHAPE, dtype=torch.uint8)
    labels[9:20, 8:24, 12:38] = 3
    return labels


def middle(labels: torch.Tensor) -> np.ndarray:
    return np.argwhere(labels.numpy() > 0).mean(axis=0)


def test_no_strength_changes_nothing_and_clean_leaves_a_share():
    labels = lumps()
    assert torch.equal(MaskJitter(**STILL)(labels, 3), labels)
    jitter = MaskJitter(shift=3.0, clean=0.3)
    same = np.mean([torch.equal(jitter(labels, seed), labels) for seed in range(300)])
    assert 0.22 < same < 0.38


def test_a_shift_moves_the_whole_mask_up_to_so_far_to_every_side():
    labels, jitter = brick(), MaskJitter(**STILL | {"shift": 3.0})
    moves = []
    for seed in range(200):
        torn = jitter(labels, seed)
        move = np.rint(middle(labels) - middle(torn)).astype(int)
        moves.append(move)
        assert torch.equal(torn, torch.roll(labels, [int(-m) for m in move], dims=(0, 1, 2)))
    moves = np.array(moves)
    assert (np.abs(moves) <= 3).all() and (moves.min(axis=0) == -3).all() and (moves.max(axis=0) == 3).all()
    assert np.abs(np.corrcoef(moves.T) - np.eye(3)).max() < 0.25, "each axis for itself"


def test_a_warp_moves_parts_by_themselves_by_the_distance_that_is_named():
    jitter = MaskJitter(**STILL | {"warp": 4.0, "knots": 10})
    own = torch.stack(torch.meshgrid(*(torch.arange(n) for n in SHAPE), indexing="ij"))
    far, ends = [], []
    for seed in range(60):
        moved = (jitter.places(SHAPE, seed) - own).float()[:, 8:-8, 8:-8, 8:-8]
        far.append(moved.std())
        ends.append([moved[1, 0, 0, 0], moved[1, 0, -1, 0]])  # 23 voxels, over two knots, away
        assert (moved.diff(dim=3).abs() <= 4).all(), "neighbours move nearly alike"
    # Uniform strengths up to 4, and between its knots a line has about .6 of the spread that it has on them.
    assert 0.8 < np.mean(far) < 1.7
    assert abs(np.corrcoef(np.array(ends).T)[0, 1]) < 0.35, "far parts move independently"


def test_a_coarse_mask_is_made_of_cubes_and_lies_where_it_lay():
    labels, jitter = brick(), MaskJitter(**STILL | {"coarse": 4})
    steps, moves = set(), []
    for seed in range(80):
        torn = jitter(labels, seed)
        places = jitter.places(SHAPE, seed)[2, 0, 0]
        steps.add(int(np.bincount(places.numpy())[10:40].max()))
        moves.append(middle(labels) - middle(torn))
    assert steps == {1, 2, 3, 4}
    assert np.abs(np.mean(moves, axis=0)).max() < 0.35


@pytest.mark.parametrize("seed", range(8))
def test_a_torn_mask_has_no_new_label_and_stays_near(seed):
    labels, jitter = lumps(), MaskJitter(clean=0.0)
    torn = jitter(labels, seed)
    assert torn.dtype == labels.dtype and torn.shape == labels.shape
    assert set(torn.unique().tolist()) <= set(labels.unique().tolist()) and not torch.equal(torn, labels)
    for level in range(1, 8):
        away = distance_transform_edt(labels.numpy() != level)
        assert away[torn.numpy() == level].max() < 9 and (torn == level).sum() > 0.3 * (labels == level).sum()


def test_equal_seeds_tear_alike_and_others_do_not():
    labels, jitter = lumps(), MaskJitter(clean=0.0)
    other = labels.roll(2, dims=2)
    assert torch.equal(jitter(labels, 5), jitter(labels, 5))
    assert not torch.equal(jitter(labels, 5), jitter(labels, 6))
    assert torch.equal(jitter.places(SHAPE, 5), jitter.places(other.shape, 5)), "twins are torn alike"


def test_of_a_study_the_mask_alone_is_torn_and_what_is_marked_keeps_its_name():
    labels = lumps()[:, :40, :40]
    study = torch.randn(SHAPE[0], 7, 40, 40, generator=torch.Generator().manual_seed(0))
    study[:, 5], study[:, 6] = scale_labels(labels.float()), labels * (torch.rand(labels.shape) < 0.2)
    jitter = MaskJitter(clean=0.0)
    torn = tear_mask(study, jitter, 4)
    assert torch.equal(torn[:, :5], study[:, :5]) and torch.equal(torn[:, 6], study[:, 6])
    assert torch.equal(labels_of(torn[:, 5]), jitter(labels, 4).long()) and not torch.equal(torn[:, 5], study[:, 5])
    still = {name: 0 for name in ("flip", "rotate_deg", "scale", "shift_px", "frames_shift", "noise_hu")}
    augment = Augment(**still, hu_jitter=(0.0, 0.0), mask=jitter)
    batch = augment(study[None].repeat(2, 1, 1, 1, 1), torch.Generator().manual_seed(1))
    assert torch.equal(batch[:, :, :5], study[None, :, :5].expand_as(batch[:, :, :5]))
    assert not torch.equal(batch[0, :, 5], batch[1, :, 5]), "each study of a batch for itself"


def test_brightness_does_not_tell_where_the_mask_went():
    """Two things that are drawn for one study must be drawn for themselves."""
    study = torch.zeros(SHAPE[0], 6, *SHAPE[1:])  # grey within the window, so that HU show
    study[:, 5] = scale_labels(brick().float())
    still = {name: 0 for name in ("flip", "rotate_deg", "scale", "shift_px", "frames_shift", "noise_hu")}
    augment = Augment(**still, hu_jitter=(0.2, 100.0), mask=MaskJitter(**STILL | {"shift": 4.0}))
    generator, seen = torch.Generator().manual_seed(0), []
    for _ in range(80):
        (changed,) = augment(study[None], generator)
        seen.append([changed[0, 0, 0, 0], *middle(labels_of(changed[:, 5]))])
    assert np.ptp(seen, axis=0).min() > 0.1, "brightness and mask change"
    assert np.abs(np.corrcoef(np.array(seen).T)[0, 1:]).max() < 0.35


class Rows:
    """Samples that are all alike but for their slices."""

    fingerprint = "rows"

    def __len__(self):
        return 6

    def __getitem__(self, index):
        x = torch.full((SHAPE[0], 7, *SHAPE[1:]), float(index))
        x[:, 5] = scale_labels(lumps().float())
        return x, torch.tensor(index)


def test_samples_are_torn_the_same_way_every_time_and_twins_alike():
    jitter = MaskJitter(clean=0.0)
    torn = Torn(Rows(), jitter, seed=7, alike=2)
    masks = [torn[i][0][:, 5] for i in range(len(torn))]
    assert len(masks) == 6 and torn[4][1] == 4
    assert torch.equal(masks[3], torn[3][0][:, 5]), "always in the same way"
    for i in range(6):
        assert torch.equal(labels_of(masks[i]), jitter(lumps(), 7 + i // 2).long())
        assert torch.equal(torn[i][0][:, [0, 1, 2, 3, 4, 6]], Rows()[i][0][:, [0, 1, 2, 3, 4, 6]])
    assert not torch.equal(masks[1], masks[2])
    others = [Torn(Rows(), jitter, seed=8, alike=2), Torn(Rows(), jitter, seed=7), Torn(Rows(), MaskJitter(), seed=7)]
    assert len({torn.fingerprint, *(other.fingerprint for other in others)}) == 4


@pytest.mark.parametrize(
    "wrong",
    [{"shift": -1.0}, {"warp": float("nan")}, {"knots": 1}, {"knots": 6.0}, {"coarse": 0}, {"coarse": True},
     {"clean": 1.5}, {"shift": "2"}],
)  # fmt: skip
def test_strengths_that_cannot_be(wrong):
    with pytest.raises(ParameterError, match=f"MaskJitter: {next(iter(wrong))}"):
        MaskJitter(**wrong)
