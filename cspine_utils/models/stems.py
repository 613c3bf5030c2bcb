"""From a study tensor to tokens: how a box of frames, rows and columns becomes a vector, and what tells it where it is.

Axes as in `vit3d`: study tensor `b f c h w`, tokens `b n e` in the order (frame, row, column).
"""

from __future__ import annotations

import math

import torch
from einops import rearrange
from torch import Tensor, nn

#: What `ViT3D` takes for `stem` and `position`.
STEMS, POSITIONS = ("linear", "conv"), ("learned", "sincos")


class ConvStem(nn.Module):
    """Small strided convolutions in place of one linear layer on a large box: `(b, f, c, h, w)` -> `(b, n, e)`.

    Each stage halves rows and columns; the second one also joins `frame_patch` frames, the others
    look one frame up and down (behind the second: one group of frames). A fracture is a thin line in
    a box of thousands of numbers: convolutions look for it at every place with the same few weights, a linear layer has
    to learn it anew for each place. (Xiao et al. 2021, arXiv 2106.14881, found the same for pictures.)

    Parameters
    ----------
    channels : c
    frame_patch, patch : frames, and rows and columns, of one token; `patch` must be a power of two, 4 or more
    dim : e
    """

    def __init__(self, *, channels: int, frame_patch: int, patch: int, dim: int):
        super().__init__()
        stages = int(math.log2(patch))
        widths = [channels, *(max(8, dim >> (stages - 1 - i + (i == 0))) for i in range(stages - 1)), dim]
        layers: list[nn.Module] = []
        for i, (a, b) in enumerate(zip(widths, widths[1:], strict=False)):
            depth = frame_patch if i == 1 else 1
            kernel = (depth if i == 1 else 3, 3, 3)
            layers += [nn.Conv3d(a, b, kernel, (depth, 2, 2), (0 if i == 1 else 1, 1, 1))]
            layers += [nn.GELU()] if i < stages - 1 else []
        self.layers = nn.Sequential(*layers).to(memory_format=torch.channels_last_3d)  # twice as fast on CPUs

    @staticmethod
    def fits(patch: int) -> bool:
        """Whether halving leads from so many rows to one token, in two stages or more."""
        return patch >= 4 and patch & (patch - 1) == 0

    def forward(self, x: Tensor) -> Tensor:
        x = rearrange(x, "b f c h w -> b c f h w").contiguous(memory_format=torch.channels_last_3d)
        return rearrange(self.layers(x), "b e f h w -> b (f h w) e")


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
