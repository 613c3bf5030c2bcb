"""From a study tensor to tokens: how a box of frames, rows and columns becomes a vector, and what tells it where it is.

Axes as in `vit3d`: study tensor `b f c h w`, tokens `b n e` in the order (frame, row, column).
"""

from __future__ import annotations

import math

import torch
from einops import rearrange
from torch import Tensor, nn

from cspine_utils.anatomy import CERVICAL_IDS
from cspine_utils.stacks import labels_of

#: Groups of channels that are brought to mean 0 and spread 1 together.
_GROUPS = 4

#: What `ViT3D` takes for `stem` and `position`.
STEMS, POSITIONS = ("linear", "conv"), ("learned", "sincos")


class ConvStem(nn.Module):
    """Small strided convolutions in place of one linear layer on a large box: `(b, f, c, h, w)` -> `(b, n, e)`.

    Each stage halves rows and columns; the second one also joins `frame_patch` frames, and is followed by one more
    convolution that looks at neighbouring groups of frames. A fracture is a thin line in a box of thousands of numbers:
    convolutions look for it at every place with the same few weights, a linear layer has to learn it anew for each
    place. (Xiao et al. 2021, arXiv 2106.14881, found the same for pictures.)

    The last channel is the mask. A label is a name, not an amount, so it comes in as two numbers (`label_codes`).

    Parameters
    ----------
    channels : c, at least 2
    frame_patch, patch : frames, and rows and columns, of one token; `patch` must be a power of two, 4 or more
    dim : e
    """

    def __init__(self, *, channels: int, frame_patch: int, patch: int, dim: int):
        super().__init__()
        stages = int(math.log2(patch))
        self.register_buffer("codes", label_codes(), persistent=False)
        inputs, layers = channels - 1 + self.codes.shape[1], []
        for i in range(stages):
            width = _in_groups(dim >> (stages - 1 - i))
            join = frame_patch if i == 1 else 1
            kernel, padding = ((join, 3, 3), (0, 1, 1)) if i == 1 else ((3, 3, 3), (1, 1, 1))
            layers += _convolution(inputs, width, kernel, stride=(join, 2, 2), padding=padding)
            if i == 1:
                layers += _convolution(width, width, (3, 3, 3), stride=1, padding=1)
            inputs = width
        self.layers = nn.Sequential(*layers).to(memory_format=torch.channels_last_3d)  # twice as fast on CPUs
        self.project = nn.Sequential(nn.Linear(inputs, dim), nn.LayerNorm(dim))

    @staticmethod
    def fits(patch: int) -> bool:
        """Whether halving leads from so many rows to one token, in two stages or more."""
        return patch >= 4 and patch & (patch - 1) == 0

    def forward(self, x: Tensor) -> Tensor:
        x = rearrange(x, "b f c h w -> b f h w c")
        x = torch.cat([x[..., :-1], self.codes[labels_of(x[..., -1])].to(x.dtype)], dim=-1)
        x = self.layers(rearrange(x, "b f h w c -> b c f h w"))  # channels last in memory, as the weights are
        return self.project(rearrange(x, "b c f h w -> b (f h w) c"))


def label_codes() -> Tensor:
    """Two numbers for each label 0-7, `(8, 2)`: is it a vertebra (0, 1), and an even or an odd one (1, -1)?

    Neighbours differ in the second, so a joint is seen to lie between two vertebrae.
    """
    codes = torch.tensor([[1.0, (-1.0) ** label] for label in range(1 + len(CERVICAL_IDS))])
    codes[0] = 0
    return codes


def _convolution(inputs: int, outputs: int, kernel, *, stride, padding) -> list[nn.Module]:
    layer = nn.Conv3d(inputs, outputs, kernel, stride, padding, bias=False)
    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    return [layer, nn.GroupNorm(_GROUPS, outputs), nn.ReLU()]


def _in_groups(width: int) -> int:
    """The next width that `GroupNorm` can divide."""
    return -(-width // _GROUPS) * _GROUPS


def sincos_positions(grid: tuple[int, int, int], dim: int) -> Tensor:
    """Position vectors that are computed, not learned, so that they fit any grid: `(n, dim)`.

    A sixth of the features each are the sine and the cosine of the frame, row and column of a token, at wavelengths
    from 2 pi to about 600 tokens (Vaswani et al. 2017, arXiv 1706.03762, once for each axis). Counted from the middle
    of the grid: so a crop around one vertebra and a whole neck agree about where the middle is. Left-over features
    are 0.
    """
    share = dim // 6
    wavelengths = 100.0 ** (-torch.arange(share, dtype=torch.float64) / max(share, 1))
    axes = [torch.arange(n, dtype=torch.float64) - (n - 1) / 2 for n in grid]
    codes = [axis[:, None] * wavelengths for axis in axes]
    codes = [torch.cat([code.sin(), code.cos()], dim=1) for code in codes]  # (n_axis, 2 share)
    f, h, w = (code.shape[0] for code in codes)
    everywhere = [
        codes[0][:, None, None].expand(f, h, w, -1),
        codes[1][None, :, None].expand(f, h, w, -1),
        codes[2][None, None, :].expand(f, h, w, -1),
    ]
    found = torch.cat(everywhere, dim=-1).reshape(f * h * w, 6 * share)
    return nn.functional.pad(found, (0, dim - 6 * share)).float()
