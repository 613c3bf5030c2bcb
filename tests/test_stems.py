"""From boxes to tokens: who sees what, and where a token is."""

import math

import pytest
import torch
import torch.nn.functional as F

from cspine_utils.models.stems import ConvStem, sincos_positions

# frames 6 in groups of 3, rows 16 and columns 24 in eights: a grid of 2 x 2 x 3 tokens
FORM = dict(channels=5, frame_patch=3, patch=8, dim=24)


def stem(seed=0, **changes) -> ConvStem:
    torch.manual_seed(seed)
    return ConvStem(**{**FORM, **changes})


def study(seed=1):
    return torch.randn(2, 6, 5, 16, 24, generator=torch.Generator().manual_seed(seed))


def by_frames(x, layer, joined: int, reach: int):
    """A 3D convolution as a sum of 2D ones: x `(b, f, c, h, w)`, `joined` frames become one, seeing `reach` beyond."""
    frames = x.shape[1]
    out = []
    for first in range(0, frames, joined):
        parts = [
            F.conv2d(x[:, f], layer.weight[:, :, f - first + reach], stride=2, padding=1)
            for f in range(first - reach, first + joined + reach)
            if 0 <= f < frames
        ]
        out.append(sum(parts) + layer.bias[:, None, None])
    return torch.stack(out, dim=1)


def test_equals_2d_convolutions_written_out():
    net, x = stem(), study()
    maps = F.gelu(by_frames(x, net.layers[0], 1, 1))
    maps = F.gelu(by_frames(maps, net.layers[2], 3, 0))
    maps = by_frames(maps, net.layers[4], 1, 1)  # (2, 2, 24, 2, 3)
    expected = torch.stack([maps[:, f, :, h, w] for f in range(2) for h in range(2) for w in range(3)], dim=1)
    torch.testing.assert_close(net(x), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("token", [0, 16, 29])
def test_a_token_sees_its_box_and_its_surroundings(token):
    x = torch.randn(2, 15, 5, 16, 24, generator=torch.Generator().manual_seed(1)).requires_grad_()
    stem()(x)[1, token].sum().backward()
    group, row, column = token // 6, token // 3 % 2, token % 3
    assert not x.grad[0].any(), "another study"
    seen = x.grad[1].abs().sum(dim=1) > 0  # (f, h, w)
    frames, rows, columns = (seen.any(a).any(b).nonzero().flatten() for a, b in ((1, 1), (0, 1), (0, 0)))
    assert (frames.min(), frames.max()) == (max(0, 3 * group - 4), min(14, 3 * group + 6)), "one group and one frame on"
    # Each of three strided convolutions reaches one further back: 1 + 2 + 4 pixels in front of the box, none behind.
    assert (rows.min(), rows.max()) == (max(0, 8 * row - 7), 8 * row + 7)
    assert (columns.min(), columns.max()) == (max(0, 8 * column - 7), 8 * column + 7)
    assert (x.grad[1].abs().sum(dim=(0, 2, 3)) > 0).all(), "every channel"


@pytest.mark.parametrize(
    ("patch", "dim", "widths"), [(4, 24, [8, 24]), (8, 96, [12, 48, 96]), (16, 48, [8, 12, 24, 48])]
)
def test_widths_grow_to_dim(patch, dim, widths):
    net = stem(patch=patch, dim=dim)
    assert [layer.out_channels for layer in net.layers if hasattr(layer, "out_channels")] == widths
    assert net(torch.zeros(1, 6, 5, 16, 16)).shape == (1, 2 * (16 // patch) ** 2, dim)


def test_which_patches_it_fits():
    assert [p for p in range(1, 40) if ConvStem.fits(p)] == [4, 8, 16, 32]


def test_positions_by_the_formula():
    found = sincos_positions((3, 4, 5), 20)  # a sixth of 20 is 3: 18 features and 2 left over
    assert found.shape == (60, 20) and not found[:, 18:].any()
    for f, h, w in ((0, 0, 0), (2, 1, 4), (1, 3, 2)):
        expected = []
        for place, count in ((f, 3), (h, 4), (w, 5)):
            offset = place - (count - 1) / 2
            angles = [offset / 100 ** (i / 3) for i in range(3)]
            expected += [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
        torch.testing.assert_close(found[(f * 4 + h) * 5 + w, :18], torch.tensor(expected), atol=1e-6, rtol=1e-6)


def test_no_two_places_have_one_position():
    found = sincos_positions((7, 4, 12), 24)
    distance = torch.cdist(found, found) + 10 * torch.eye(len(found))
    assert distance.min() > 0.1


def test_likeness_depends_on_how_far_apart_two_places_are():
    found = sincos_positions((4, 5, 6), 24)
    likeness = (found @ found.T).reshape(4, 5, 6, 4, 5, 6)
    torch.testing.assert_close(likeness[0, 1, 2, 1, 3, 5], likeness[2, 1, 0, 3, 3, 3], atol=1e-5, rtol=1e-5)
    row = likeness[0, 0, 0, 0, 0]
    assert (row[:4].diff() < 0).all(), "nearer is more alike"


def test_a_smaller_grid_is_the_middle_of_a_larger_one():
    small = sincos_positions((3, 5, 5), 24).reshape(3, 5, 5, 24)
    large = sincos_positions((7, 9, 7), 24).reshape(7, 9, 7, 24)
    torch.testing.assert_close(small, large[2:5, 2:7, 1:6])
