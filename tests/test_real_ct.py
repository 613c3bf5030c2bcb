"""A real scanner's series and another tool's label map walk the same way as the synthetic cohort."""

from itertools import permutations, product

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from conftest import REAL_CT, needs_real_ct

from cspine_utils.dicom import read_series
from cspine_utils.models.vit3d import ViT3D
from cspine_utils.nifti import read_mask
from cspine_utils.stacks import normalise, six_channel

FOLDER = REAL_CT / "t11-t12-jpeg2000"
T11, T12 = 33, 32  # ids of the tool that made the labels

pytestmark = needs_real_ct("t11-t12-jpeg2000")


@pytest.fixture(scope="module")
def study():
    volume = read_series(FOLDER / "dicom")
    return volume, read_mask(FOLDER / "labels.nii.gz", volume)


def test_geometry_comes_from_the_positions(study):
    volume, _ = study
    assert volume.shape == (20, 512, 512)
    assert volume.spacing_mm == pytest.approx((2.0, 0.9765625, 0.9765625)), "SliceThickness says 3"


def test_simpleitk_reads_the_same_values_at_the_same_places(study):
    volume, _ = study
    for index, name in enumerate(volume.file_names):
        image = sitk.ReadImage(str(FOLDER / "dicom" / name))
        assert np.array_equal(sitk.GetArrayFromImage(image)[0], volume.hu[index])
        lps = image.TransformIndexToPhysicalPoint((5, 9, 0))
        assert volume.position_mm((index, 9, 5)) == pytest.approx((-lps[0], -lps[1], lps[2]), abs=1e-3)


def test_bone_is_brighter_under_the_placed_labels_than_under_any_wrong_placing(study):
    """All ways to flip or transpose the label map that keep its shape: 16, of which 15 are wrong."""
    volume, mask = study
    means = {}
    for order in permutations(range(3)):
        for flips in product((False, True), repeat=3):
            axes = tuple(axis for axis, flip in enumerate(flips) if flip)
            placed = np.flip(mask.transpose(order), axes)
            if placed.shape == volume.shape:
                name = f"axes {order}, reversed {axes}"
                means[name] = [volume.hu[placed == label].mean() for label in (T11, T12)]
    right = means.pop("axes (0, 1, 2), reversed ()")
    print(f"\nmean HU under T11, T12: as placed by the affine {right[0]:.0f}, {right[1]:.0f}")
    for name, (t11, t12) in means.items():
        print(f"  {name:<38} {t11:7.0f} {t12:7.0f}")
    assert len(means) == 15
    assert all(right[0] > t11 and right[1] > t12 for t11, t12 in means.values())


def test_six_channels_go_through_the_model(study):
    """The cut shows two thoracic vertebrae: they take the ids of C6 and C7 here, all else is left out."""
    volume, mask = study
    relabelled = np.select([mask == T11, mask == T12], [6, 7], 0).astype(np.uint8)
    stack = six_channel(volume, relabelled, size=64)
    assert stack.shape == (105, 6, 64, 64) and set(np.unique(stack[:, 5])) == {0, 6, 7}
    bone, elsewhere = stack[:, 2][stack[:, 5] > 0].mean(), stack[:, 2][stack[:, 5] == 0].mean()
    assert bone > 150 > elsewhere
    torch.manual_seed(0)
    model = ViT3D(size=64, dim=32, depth=1, heads=2).eval()
    torch.nn.init.normal_(model.head.weight)  # it starts at zero, where the input could not be seen in the answer
    x = torch.from_numpy(normalise(stack))[None]
    with torch.no_grad():
        logits, blank = model(x), model(torch.zeros_like(x))
    assert logits.shape == (1, 8) and torch.isfinite(logits).all()
    assert (logits - blank).abs().max() > 1e-3
