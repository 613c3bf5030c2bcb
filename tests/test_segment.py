"""Segmenters: grids and patches by hand, masks back on the volume's grid, and learning where it is quick."""

import numpy as np
import pytest
import torch
from conftest import neck_mask, patient_volume
from torch import nn

from cspine_utils import metrics, models, phantom, training
from cspine_utils.errors import MaskError, ModelError, ParameterError, StackError, TrainingError
from cspine_utils.objectives import CLASSES, SEGMENTATION, dice_loss
from cspine_utils.segment import Case, PatchDataset, lay_over, make_case, predict_mask, through_grid, to_grid
from cspine_utils.stacks import scale_hu
from cspine_utils.volume import Volume

SMALL_2D = {"encoder": "mobilenetv4_conv_small_050", "decoder": (16, 12, 8, 8, 8), "patch": (32, 64)}
SMALL_3D = {"channels": (4, 8, 8, 8, 8), "patch": (32, 16, 48)}


def small(name, **changes):
    torch.manual_seed(0)
    return models.create_segmenter(name, **{**(SMALL_2D if name == "unet2d" else SMALL_3D), **changes})


#: Scaled HU from one label to the next, small enough that label 7 is inside the window.
STEP = 0.7


class Reader(nn.Module):
    """No network: class = value of the middle slice / STEP, so that a mask can be followed through the room."""

    def __init__(self, neighbours):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.neighbours = neighbours

    def forward(self, x):
        middle = x[:, self.neighbours // 2]
        classes = torch.arange(CLASSES, dtype=x.dtype).view(-1, *[1] * (middle.ndim - 1))
        return -10 * (middle[:, None] - STEP * classes).abs() * self.weight


def reading(name, **changes):
    """A segmenter of the course whose network is replaced by `Reader`."""
    segmenter = small(name, **changes)
    segmenter.net = Reader(segmenter.neighbours)
    return segmenter


def painted(mask, spacing_mm=(2.0, 2.0, 2.0)) -> Volume:
    """A volume whose scaled HU are the labels of the mask, times STEP."""
    volume = patient_volume(mask.shape, spacing_mm)
    scale = float(scale_hu(np.float32(1))) - float(scale_hu(np.float32(0)))
    zero = float(scale_hu(np.float32(0)))
    return Volume(np.rint((STEP * mask.astype(np.float32) - zero) / scale).astype(np.int16), volume.affine)


# ---- networks


@pytest.mark.parametrize("preset", ["laptop", "gpu"])
@pytest.mark.parametrize("name", models.SEGMENTERS)
def test_both_presets_are_built(name, preset):
    net = models.create_segmenter(name, preset=preset)
    assert net.input_shape == (net.neighbours, *net.patch)
    assert type(net)(**net.config).input_shape == net.input_shape
    if name == "unet2d":
        assert net.encoder.startswith("tf_efficientnetv2")


@pytest.mark.parametrize("name", models.SEGMENTERS)
def test_gradients_reach_every_parameter_and_every_class(name):
    net = small(name)
    x = torch.randn(2, *net.input_shape, generator=torch.Generator().manual_seed(1))
    logits = net(x)
    assert logits.shape == (2, CLASSES, *net.patch)
    (logits * torch.randn_like(logits)).sum().backward()
    # A bias in front of a normalisation over space is subtracted again: MONAI's network keeps such biases.
    untouched = [n for n, p in net.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert untouched == []


def test_every_neighbour_matters():
    net = small("unet2d").eval()
    x = torch.randn(1, *net.input_shape, generator=torch.Generator().manual_seed(1))
    for channel in range(5):
        without = x.clone()
        without[:, channel] = 0
        assert (net(x) - net(without)).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("unet4d", {}, "one of unet2d, unet3d"),
        ("unet2d", {"encodr": "x"}, "did you mean 'encoder'"),
        ("unet2d", {"encoder": "efficientnetv9"}, "a network of timm"),
        ("unet2d", {"patch": (96, 90)}, "multiple of 32"),
        ("unet2d", {"neighbours": 4}, "odd number"),
        ("unet2d", {"plane": "coronal"}, "'sagittal' or 'axial'"),
        ("unet3d", {"patch": (48, 32)}, "3 sides in voxels"),
        ("unet3d", {"spacing_mm": 0}, "millimetres, above 0"),
        ("unet3d", {"spacing_mm": float("inf")}, "millimetres, above 0"),
        ("unet3d", {"patch": 96}, "3 sides in voxels"),
        ("unet3d", {"channels": 12}, "5 positive integers"),
        ("unet2d", {"decoder": (64, 32, 16)}, "5 positive integers"),
        ("unet2d", {"encoder": None}, "a network of timm"),
        ("unet2d", {"encoder": "test_vit"}, "UNet2D can be built with"),
        ("unet3d", {"channels": (4, 8)}, "5 positive integers"),
    ],
)
def test_impossible_segmenters_are_refused(name, arguments, message):
    with pytest.raises(ModelError, match=message):
        models.create_segmenter(name, **arguments)


def test_another_shape_is_refused():
    with pytest.raises(ModelError, match=r"\(1, 5, 33, 64\).*multiples of 32"):
        small("unet2d")(torch.zeros(1, 5, 33, 64))
    with pytest.raises(ModelError, match=r"\(b, 1, d, h, w\)"):
        small("unet3d")(torch.zeros(1, 2, 32, 16, 48))


# ---- grids


def test_a_volume_on_its_own_grid_is_only_scaled():
    volume = patient_volume((5, 6, 7), (2.0, 2.0, 2.0))
    assert np.allclose(to_grid(volume, 2.0), scale_hu(volume.hu.astype(np.float32)), atol=1e-5)


def test_a_ramp_stays_a_ramp_and_keeps_its_millimetres():
    """HU that rise by a fixed number a millimetre along each axis, on another grid."""
    shape, spacing = (20, 24, 30), (1.5, 0.8, 1.2)
    d, h, w = np.meshgrid(*[(np.arange(n) + 0.5) * s for n, s in zip(shape, spacing, strict=True)], indexing="ij")
    volume = Volume(np.rint(4 * d + 9 * h - 6 * w).astype(np.int16), patient_volume(shape, spacing).affine)
    grid = to_grid(volume, 2.4)
    sides = [n * s for n, s in zip(shape, spacing, strict=True)]
    assert grid.shape == tuple(round(side / 2.4) for side in sides)
    D, H, W = np.meshgrid(
        *[(np.arange(n) + 0.5) * side / n for n, side in zip(grid.shape, sides, strict=True)], indexing="ij"
    )
    wanted = scale_hu((4 * D + 9 * H - 6 * W).astype(np.float32))
    inner = (slice(1, -1),) * 3  # at the borders an antialiased mean has fewer neighbours
    assert np.abs(grid.numpy() - wanted)[inner].max() < 0.02


def test_thin_bone_is_not_skipped_on_the_way_to_a_coarse_grid():
    hu = np.full((4, 6, 100), -1000, np.int16)
    hu[:, :, 41] = 1200  # one voxel of cortex, 0.5 mm
    grid = to_grid(Volume(hu, patient_volume(hu.shape, (3.0, 3.0, 0.5)).affine), 3.0)
    air = float(scale_hu(np.float32(-1000)))
    assert (grid.numpy().max(axis=2) > air + 0.5).all()


def test_labels_go_to_the_grid_without_being_mixed_and_thoracic_ones_become_background():
    mask = np.zeros((8, 8, 8), np.uint8)
    mask[:4, 2:6, 2:6], mask[4:6, 2:6, 2:6], mask[6:, 2:6, 2:6] = 3, 7, 8
    case = make_case(patient_volume(mask.shape, (1.0, 1.0, 1.0)), mask, 2.0)
    assert case.labels.dtype == torch.int64
    assert case.labels[:, 1, 2].tolist() == [3, 3, 7, 0] and case.labels[:, 0, 0].tolist() == [0] * 4


@pytest.mark.parametrize(
    ("name", "changes"), [("unet2d", {"plane": "sagittal"}), ("unet2d", {"plane": "axial"}), ("unet3d", {})]
)
def test_a_mask_comes_back_where_it_was(name, changes):
    """A network that reads the labels off the image: whatever the room does around it must not move them."""
    mask = neck_mask((37, 21, 29)) * (neck_mask((37, 21, 29)) < 8)
    assert (predict_mask(reading(name, spacing_mm=2.0, **changes), painted(mask)) == mask).all()


def test_a_finer_volume_gets_a_mask_of_its_own_grid():
    mask = np.zeros((40, 48, 36), np.uint8)
    mask[8:21, 12:36, 4:17] = 1
    got = predict_mask(reading("unet2d", spacing_mm=2.0), painted(mask, (1.0, 1.0, 1.0)))
    assert got.shape == mask.shape and got.dtype == np.uint8
    assert metrics.dice_per_level(mask, got)[0] > 0.9
    assert np.abs(np.argwhere(got).mean(axis=0) - np.argwhere(mask).mean(axis=0)).max() < 0.3, "in voxels of 1 mm"


@pytest.mark.parametrize("name", models.SEGMENTERS)
def test_doubtful_voxels_are_drawn_at_the_odds_that_are_named(name):
    """HU a third of the way from background to C1: of `Reader`, background is exp(10 / 3 * STEP) = 10 times as likely.
    Next to C7 it is C7 that comes in, and what is surely air stays out."""
    volume = painted(np.zeros((12, 40, 40), np.uint8))
    volume.hu[2:6, 5:20, 5:20] = painted(np.ones((1, 1, 1), np.uint8)).hu * 0.34 + volume.hu[0, 0, 0] * 0.66
    volume.hu[8:10, 5:20, 5:20] = painted(np.full((1, 1, 1), 7, np.uint8)).hu
    net, doubtful = reading(name, spacing_mm=2.0), np.s_[3:5, 8:17, 8:17]
    found = {odds: predict_mask(net, volume, background_odds=odds) for odds in (0.5, 1.0, 8.0, 12.0)}
    assert np.array_equal(found[1.0], predict_mask(net, volume))
    assert not any(found[odds][doubtful].any() for odds in (0.5, 1.0, 8.0)) and (found[12.0][doubtful] == 1).all()
    for mask in found.values():
        assert (mask[8:10, 8:17, 8:17] == 7).all() and not mask[:, 25:, 25:].any()
    for odds in (0, -1, float("inf"), float("nan")):
        with pytest.raises(ParameterError, match="background_odds"):
            predict_mask(net, volume, background_odds=odds)


@pytest.mark.parametrize("name", models.SEGMENTERS)
def test_prediction_leaves_the_model_as_it_was(name):
    net = small(name).train()
    volume = patient_volume((9, 10, 11), (3.0, 3.0, 3.0))
    first = predict_mask(net, volume)
    assert net.training and (predict_mask(net, volume) == first).all(), "eval mode inside: the same answer twice"
    with pytest.raises(ModelError, match="models.create_segmenter"):
        predict_mask(nn.Identity(), volume)


# ---- patches


def numbered_case() -> Case:
    """Every voxel has a value of its own; the label is 1 to 7 by height, in a box."""
    hu = torch.arange(30 * 20 * 25, dtype=torch.float32).reshape(30, 20, 25)
    labels = torch.zeros(30, 20, 25, dtype=torch.int64)
    for level in range(1, 8):
        labels[4 * level - 3 : 4 * level, 5:12, 9:17] = level
    return Case(hu, labels)


@pytest.mark.parametrize("plane", ["sagittal", "axial"])
def test_patches_show_neighbours_as_channels_and_the_labels_of_the_middle_one(plane):
    case, net = numbered_case(), small("unet2d", plane=plane)
    dataset = PatchDataset([case], net, length=40, fixed=True)
    for x, y in (dataset[i] for i in range(40)):
        assert x.shape == (5, 32, 64) and y.shape == (32, 64)
        inside = torch.nonzero((x[2] >= 0) & (x[2] == x[2].round()))
        for r, c in inside[:: max(1, len(inside) // 5)].tolist():
            d, h, w = np.unravel_index(int(x[2, r, c]), case.hu.shape)
            assert y[r, c] == case.labels[d, h, w]
            step = {"sagittal": (0, 0, 1), "axial": (1, 0, 0)}[plane]
            after = tuple(np.add((d, h, w), step))
            if all(i < n for i, n in zip(after, case.hu.shape, strict=True)):
                assert x[3, r, c] == case.hu[after]


def test_patches_of_volumes_and_what_is_beyond():
    case = numbered_case()
    dataset = PatchDataset([case], small("unet3d"), length=20, fixed=True)
    air = float(scale_hu(np.float32(-1000)))
    for x, y in (dataset[i] for i in range(20)):
        assert x.shape == (1, 32, 16, 48) and y.shape == (32, 16, 48)
        outside = x[0] == air
        assert outside.any(), "48 columns are more than the case has"
        assert (y[outside] == 0).all()
        d, h, w = np.unravel_index(x[0][~outside].long().numpy(), case.hu.shape)
        assert (case.labels[d, h, w] == y[~outside]).all()


def test_most_patches_show_a_vertebra_and_fixed_ones_stay():
    case, net = numbered_case(), small("unet3d", patch=(16, 16, 16))
    dataset = PatchDataset([case, case], net, length=60)
    torch.manual_seed(0)
    drawn = [y for _, y in (dataset[i] for i in range(60))]
    assert 0.7 < np.mean([(y > 0).any() for y in drawn]) and len({y.sum().item() for y in drawn}) > 8
    torch.manual_seed(0)
    assert all(torch.equal(dataset[i][1], drawn[i]) for i in range(3))
    fixed = PatchDataset([case], net, length=5, fixed=True)
    assert torch.equal(fixed[3][0], fixed[3][0]) and not torch.equal(fixed[3][0], fixed[4][0])
    assert PatchDataset([case], net, length=5).fingerprint != fixed.fingerprint


def test_a_dataset_of_patches_ends_and_is_never_empty():
    case, net = numbered_case(), small("unet3d")
    assert len(list(PatchDataset([case], net, length=3))) == 3
    with pytest.raises(TrainingError, match="at least one"):
        PatchDataset([], net, length=3)
    flat = Case(case.hu.reshape(20, 30, 25), case.labels.reshape(20, 30, 25))
    assert PatchDataset([case], net, length=3).fingerprint != PatchDataset([flat], net, length=3).fingerprint


def test_a_mask_of_another_shape_is_refused():
    volume = patient_volume((8, 9, 10))
    for shape in ((7, 9, 10), (10, 9, 8)):
        with pytest.raises(StackError, match="places it on the volume's grid"):
            make_case(volume, np.ones(shape, np.uint8), 2.0)


def test_through_a_grid_and_back_costs_edges_only():
    mask = neck_mask((37, 21, 29))
    volume = patient_volume(mask.shape, (1.0, 1.0, 1.0))
    levels = mask * (mask < 8)
    assert (through_grid(volume, mask, 1.0) == levels).all()
    coarse = metrics.dice_per_level(levels, through_grid(volume, mask, 2.0))
    assert (coarse > 0.3).all() and coarse.max() < 1


# ---- losses and Dice


def test_dice_loss_by_hand():
    labels = torch.tensor([[[1, 1, 0, 2]]])
    p = torch.zeros(1, CLASSES, 1, 4)
    p[0, 1, 0], p[0, 2, 0] = torch.tensor([0.9, 0.4, 0.2, 0.1]), torch.tensor([0.05, 0.2, 0.1, 0.8])
    p[0, 0] = 1 - p[0, 1:].sum(dim=0)
    one = 2 * (0.9 + 0.4) / (0.9 + 0.4 + 0.2 + 0.1 + 2)
    two = 2 * 0.8 / (0.05 + 0.2 + 0.1 + 0.8 + 1)
    assert dice_loss(p.clamp_min(1e-30).log(), labels).item() == pytest.approx(1 - (one + two) / 2, abs=1e-5)
    assert dice_loss(p.clamp_min(1e-30).log(), torch.zeros_like(labels)).item() == 0


def test_dice_per_level_equals_monai():
    from monai.metrics import compute_dice

    rng = np.random.default_rng(0)
    truth, predicted = rng.integers(0, 7, (2, 5, 6, 7))  # no C7 anywhere
    predicted[truth == 2] = 2
    ours = metrics.dice_per_level(truth, predicted)
    one_hot = [torch.nn.functional.one_hot(torch.tensor(m), CLASSES).movedim(-1, 0)[None] for m in (predicted, truth)]
    theirs = compute_dice(*one_hot, include_background=False)[0]
    assert np.allclose(ours, theirs, equal_nan=True) and np.isnan(ours[6]) and ours[1] > ours[0]
    with pytest.raises(ParameterError, match="two masks on one grid"):
        metrics.dice_per_level(truth, predicted[1:])


def test_another_necks_mask_fills_the_box():
    mask, other = neck_mask((37, 21, 29)), neck_mask((25, 30, 20))
    laid = lay_over(other, mask)
    where, there = np.argwhere((mask > 0) & (mask < 8)), np.argwhere(laid > 0)
    assert (there.min(axis=0) == where.min(axis=0)).all() and (there.max(axis=0) == where.max(axis=0)).all()
    assert (np.diff([np.argwhere(laid == level)[:, 0].mean() for level in range(1, 8)]) > 0).all() and laid.max() == 7
    assert (lay_over(mask, mask)[(mask > 0) & (mask < 8)] > 0).all()
    assert np.nanmean(metrics.dice_per_level(mask, lay_over(mask, mask))) == 1
    with pytest.raises(MaskError, match="no label from C1 to C7"):
        lay_over(np.zeros_like(mask), mask)


TARGETS = torch.zeros(4, 4), torch.full((4, 4), 8), torch.full((4, 4), -1), torch.zeros(4, dtype=torch.int64)
REFUSED = [(y, r"target of dataset\[0\].*whole numbers from 0 to 7") for y in TARGETS]
REFUSED += [(torch.zeros(32, 32).long(), r"logits of shape \(1, 8, 32, 64\); expected \(1, 8, 32, 32\)")]


@pytest.mark.parametrize(("y", "message"), REFUSED)
def test_targets_that_are_no_labels_of_this_grid_are_refused(y, message, tmp_path):
    data, generator = [(torch.zeros(5, 32, 64), y)], torch.Generator()
    settings = {"out": tmp_path, "epochs": 1, "objective": SEGMENTATION, "progress": False, "generator": generator}
    with pytest.raises(TrainingError, match=message):
        training.fit(small("unet2d"), data, data, **settings)


# ---- learning


def test_one_neck_is_learned_by_heart_and_a_run_resumes(tmp_path):
    """One phantom, coarse. Notebook 08 trains both networks for longer and checks them on other necks."""
    study = phantom.render(phantom.draw_plan(3, 0, size=64, difficulty="easy", prevalence="balanced"))
    volume = Volume(study.hu, study.affine)
    net = small("unet3d", spacing_mm=3.0, patch=(48, 32, 32))
    case = make_case(volume, study.labels, 3.0)
    train, held_out = PatchDataset([case], net, length=24), PatchDataset([case], net, length=4, fixed=True)
    settings = {"out": tmp_path, "batch_size": 2, "learning_rate": 3e-3, "objective": SEGMENTATION, "progress": False}

    def fit(epochs):
        return training.fit(net, train, held_out, epochs=epochs, generator=torch.Generator().manual_seed(0), **settings)

    result = fit(8)
    assert result.history["validation_loss"].iloc[-1] < 0.6 * result.history["validation_loss"].iloc[0]
    bone = np.isin(study.labels, range(1, 8))
    found = predict_mask(net, volume) > 0
    dice = 2 * (bone & found).sum() / (bone.sum() + found.sum())
    assert dice > 0.5
    assert fit(8).resumed_from == 8
