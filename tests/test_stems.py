"""From boxes to tokens: who sees what, and where a token is."""

import math

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from cspine_utils.models.stems import ConvStem, label_codes, sincos_positions
from cspine_utils.stacks import MASK_SCALE

# frames 6 in groups of 3, rows 16 and columns 24 in eights: a grid of 2 x 2 x 3 tokens
FORM = dict(channels=5, frame_patch=3, patch=8, dim=24)


def stem(seed=0, **changes) -> ConvStem:
    torch.manual_seed(seed)
    return ConvStem(**{**FORM, **changes})


#: Labels of the two studies `(b, f, h, w)`: slabs of C1-C5 along h, each study another order.
LABELS = torch.zeros(2, 6, 16, 24, dtype=torch.long)
for _k in range(1, 6):
    LABELS[0, :, 3 * _k - 2 : 3 * _k, 4:9], LABELS[1, _k, 2:9, 3 * _k : 3 * _k + 4] = _k, 6 - _k
#: patch, dim and the widths of the convolutions: the last of them has dim, each before half of it, in fours.
WIDTHS = [(4, 24, [12, 24, 24]), (8, 96, [24, 48, 48, 96]), (16, 36, [4, 12, 12, 20, 36])]


def as_channel(labels):
    return (labels / 7 - MASK_SCALE[0]) / MASK_SCALE[1]


def study(seed=1):
    x = torch.randn(2, 6, 5, 16, 24, generator=torch.Generator().manual_seed(seed))
    x[:, :, -1] = as_channel(LABELS)
    return x


def convolved(x, layer, norm, joined: int, reach: int, stride: int):
    """A 3D convolution as a sum of 2D ones, then groups of channels to mean 0 and spread 1, then no negative numbers.

    x `(b, f, c, h, w)`: `joined` frames become one, which sees `reach` frames beyond.
    """
    frames, out = x.shape[1], []
    for first in range(0, frames, joined):
        parts = [
            F.conv2d(x[:, f], layer.weight[:, :, f - first + reach], stride=stride, padding=1)
            for f in range(first - reach, first + joined + reach)
            if 0 <= f < frames
        ]
        out.append(sum(parts))
    out = torch.stack(out, dim=1)
    groups = rearrange(out, "b f (groups c) h w -> b groups (f c h w)", groups=4)
    groups = (groups - groups.mean(-1, keepdim=True)) / (groups.var(-1, keepdim=True, correction=0) + 1e-5).sqrt()
    b, f, c, h, w = out.shape
    out = rearrange(groups, "b groups (f c h w) -> b f (groups c) h w", f=f, h=h, w=w)
    return (out * norm.weight[:, None, None] + norm.bias[:, None, None]).relu()


def test_equals_2d_convolutions_written_out():
    net, x = stem(), study()
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    names = torch.tensor([[0.0, 0.0], *([1.0, -1.0] if k % 2 else [1.0, 1.0] for k in range(1, 8))])
    maps = torch.cat([x[:, :, :-1], names[LABELS].permute(0, 1, 4, 2, 3)], dim=2)
    maps = convolved(maps, net.layers[0], net.layers[1], joined=1, reach=1, stride=2)
    maps = convolved(maps, net.layers[3], net.layers[4], joined=3, reach=0, stride=2)
    maps = convolved(maps, net.layers[6], net.layers[7], joined=1, reach=1, stride=1)
    maps = convolved(maps, net.layers[9], net.layers[10], joined=1, reach=1, stride=2)  # (2, 2, 24, 2, 3)
    vectors = torch.stack([maps[:, f, :, h, w] for f in range(2) for h in range(2) for w in range(3)], dim=1)
    linear, norm = net.project
    expected = F.layer_norm(vectors @ linear.weight.T + linear.bias, (24,), norm.weight, norm.bias)
    torch.testing.assert_close(net(x), expected, atol=1e-4, rtol=1e-4)


def without_norms(net: ConvStem) -> ConvStem:
    """The norms look at the whole study; without them a token sees its surroundings alone."""
    for i, layer in enumerate(net.layers):
        if not isinstance(layer, nn.Conv3d):
            net.layers[i] = nn.Identity()
    return net


@pytest.mark.parametrize("token", [0, 16, 29])
def test_a_token_sees_its_box_and_its_surroundings(token):
    x = torch.randn(2, 15, 5, 16, 24, generator=torch.Generator().manual_seed(1)).requires_grad_()
    weights = torch.randn(24, generator=torch.Generator().manual_seed(2))  # a norm's sum would not depend on anything
    (without_norms(stem())(x)[1, token] * weights).sum().backward()
    group, row, column = token // 6, token // 3 % 2, token % 3
    assert not x.grad[0].any(), "another study"
    seen = x.grad[1].abs().sum(dim=1) > 0  # (f, h, w)
    frames, rows, columns = (seen.any(a).any(b).nonzero().flatten() for a, b in ((1, 1), (0, 1), (0, 0)))
    assert (frames.min(), frames.max()) == (max(0, 3 * group - 7), min(14, 3 * group + 9)), "two groups and a frame on"
    # Three strided convolutions reach 1, 2 and 4 pixels further back; the one between them 4 to either side.
    assert (rows.min(), rows.max()) == (max(0, 8 * row - 11), min(15, 8 * row + 11))
    assert (columns.min(), columns.max()) == (max(0, 8 * column - 11), min(23, 8 * column + 11))
    channels = x.grad[1].abs().sum(dim=(0, 2, 3)) > 0
    assert channels.tolist() == [True] * 4 + [False], "labels are names: one cannot be a little more C3"


def test_every_channel_and_every_label_matters():
    net, x = stem(), study()
    with torch.no_grad():
        before = net(x)
        for channel in range(4):
            changed = x.clone()
            changed[:, :, channel] = 0
            assert (net(changed) - before).abs().max() > 1e-3
        for old, new in ((0, 1), (3, 4), (5, 0)):
            changed = x.clone()
            changed[:, :, -1] = as_channel(torch.where(LABELS == old, new, LABELS))
            assert (net(changed) - before).abs().max() > 1e-3, (old, new)


def test_labels_as_names():
    codes = label_codes()
    assert codes[0].tolist() == [0, 0] and codes[1:, 0].tolist() == [1] * 7
    assert all(codes[k, 1] == -codes[k + 1, 1] != 0 for k in range(1, 7)), "neighbours differ"


@pytest.mark.parametrize(("patch", "dim", "widths"), WIDTHS)
def test_widths_grow_to_dim(patch, dim, widths):
    net = stem(patch=patch, dim=dim)
    assert [layer.out_channels for layer in net.layers if isinstance(layer, nn.Conv3d)] == widths
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
