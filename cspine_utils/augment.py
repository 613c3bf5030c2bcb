"""One change for all frames and channels of a study, another one for each study of a batch.

Everything here takes and gives batches as networks get them: x float `(b, f, c, h, w)` after `stacks.normalise`,
channels 0-4 slices n-2 ... n+2, channel 5 the mask, later ones evidence. A voxel that moves takes its label with it:
slices are interpolated linearly, channels from 5 on take the nearest pixel, so no label is invented. Slices that a
change brings in from outside are air without a label; evidence that is not known (NaN) stays so.

The five slices of a frame are seen again in the frames beside it. What is added to a slice (noise, a cut-out) is
therefore drawn for the slice, not for the channel.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from cspine_utils.errors import ParameterError
from cspine_utils.mask_jitter import MaskJitter, tear_mask
from cspine_utils.stacks import CHANNELS, MASK_SCALE, SLICE_SCALE, WINDOWS, shown_slices

_SLICES = CHANNELS - 1
#: Air and "no label" as a network gets them: 0 before they are scaled.
AIR = -SLICE_SCALE[0] / SLICE_SCALE[1]
NO_LABEL = -MASK_SCALE[0] / MASK_SCALE[1]


@dataclass(frozen=True)
class Augment:
    """How far a batch is changed. What has strength 0 is not done.

    Attributes
    ----------
    flip : probability that left and right change places
    rotate_deg : turns in plane by up to so many degrees either way
    scale : in plane larger or smaller by up to this share
    shift_px : rows and columns move by up to so many pixels
    frames_shift : frames move along the neck by up to so many
    hu_jitter : (gain, offset in HU): HU times 1 +- gain, plus or minus the offset
    noise_hu : Gaussian noise of a standard deviation of up to so many HU, drawn for every slice
    cutout : a block of half to all of this share of the slices, rows and columns turns to air
    mask : how masks are torn, `MaskJitter()` say; None leaves them as they are. Evidence stays where it is
    window : the one that x is in (a key of `stacks.WINDOWS`): what a HU means

    Raises
    ------
    ParameterError : a strength that cannot be
    """

    flip: float = 0.5
    rotate_deg: float = 8.0
    scale: float = 0.1
    shift_px: float = 4.0
    frames_shift: int = 4
    hu_jitter: tuple[float, float] = (0.05, 30.0)
    noise_hu: float = 15.0
    cutout: float = 0.0
    mask: MaskJitter | None = None
    window: str = "bone"

    def __post_init__(self):
        limits = {"flip": 1, "rotate_deg": 180, "scale": 0.9, "shift_px": 1e4, "frames_shift": 1e4, "noise_hu": 1e4,
                  "cutout": 1}  # fmt: skip
        for name, most in limits.items():
            _check(name, getattr(self, name), most)
        if not isinstance(self.hu_jitter, tuple | list) or len(self.hu_jitter) != 2:
            raise _refusal("hu_jitter", self.hu_jitter, "(gain, offset in HU)")
        _check("hu_jitter[0]", self.hu_jitter[0], 0.9)
        _check("hu_jitter[1]", self.hu_jitter[1], 1e4)
        if self.mask is not None and not isinstance(self.mask, MaskJitter):
            raise _refusal("mask", self.mask, "a MaskJitter, or None")
        if self.window not in WINDOWS:
            raise _refusal("window", self.window, ", ".join(WINDOWS))

    def __call__(self, x: Tensor, generator: Generator) -> Tensor:
        """A changed copy of x `(b, f, c, h, w)`, on its device.

        `generator` (on the CPU) gives one seed a study, so what happens to a study does not depend on its neighbours
        in the batch. The same state gives the same result on the same device.
        """
        if x.ndim != 5 or x.shape[2] < CHANNELS:
            raise ParameterError(
                "augment: x",
                found=f"shape {tuple(x.shape)}",
                expected="a batch (b, f, c, h, w) of at least six channels",
                remedy="one study is a batch of one: x[None].",
            )
        seeds = torch.randint(2**62, (len(x),), generator=generator).tolist()
        return torch.stack([self._study(study, seed) for study, seed in zip(x, seeds, strict=True)])

    def _study(self, study: Tensor, seed: int) -> Tensor:
        """One study `(f, c, h, w)`. Every number is drawn, used or not: a strength of 0 does not shift the others."""
        generator = torch.Generator().manual_seed(seed)
        flip, *draws = torch.rand(16, generator=generator, dtype=torch.float64).tolist()
        turn, scale, down, right, along, gain, offset, noise = (2 * draw - 1 for draw in draws[:8])
        out = flip_left_right(study) if flip < self.flip else study
        out = move_in_plane(
            out,
            degrees=turn * self.rotate_deg,
            scale=(1 + self.scale) ** scale,
            shift_px=(down * self.shift_px, right * self.shift_px),
        )
        # A seed of its own: the jitter's first numbers from this one would be those above, brightness would tell where
        # the mask went.
        torn = int(torch.randint(2**62, (1,), generator=generator))
        out = tear_mask(out, self.mask, torn) if self.mask else out
        out = jitter_hu(out, 1 + gain * self.hu_jitter[0], offset * self.hu_jitter[1], self.window)
        out = add_noise(out, abs(noise) * self.noise_hu, seed, self.window)
        if self.cutout:
            out = cut_out(out, draws[8:11], [(1 + share) / 2 * self.cutout for share in draws[11:14]])
        return shift_frames(out, round(along * self.frames_shift))


def flip_left_right(study: Tensor) -> Tensor:
    """The mirror image: `(f, c, h, w)`, columns reversed. Levels stay what they are: C4 of a mirrored neck is C4."""
    return study.flip(-1)


def move_in_plane(study: Tensor, *, degrees: float = 0.0, scale: float = 1.0, shift_px=(0.0, 0.0)) -> Tensor:
    """Every frame turned, made larger and moved in the same way.

    Parameters
    ----------
    study : `(f, c, h, w)`
    degrees : from the columns' direction toward the rows': clockwise as shown
    scale : above 1 makes the neck larger
    shift_px : (down, to the right)
    """
    if degrees == 0 and scale == 1 and not any(shift_px):
        return study
    rows, columns = _sources(study.shape[-2:], degrees, scale, shift_px, study.device)
    slices = _linear(study[:, :_SLICES], rows, columns)
    return torch.cat([slices, _nearest(study[:, _SLICES:], rows, columns)], dim=1)


def shift_frames(study: Tensor, frames: int) -> Tensor:
    """The neck moved along itself: frame i shows what frame i + `frames` showed.

    Borders are repeated; an index that wrapped would put the chest above the skull.
    """
    if frames == 0:
        return study
    last = len(study) - 1
    return study[(torch.arange(len(study), device=study.device) + frames).clamp(0, last)]


def jitter_hu(study: Tensor, gain: float, offset_hu: float, window: str = "bone") -> Tensor:
    """HU times `gain` plus `offset_hu`, as between scanners and tube voltages; the mask stays."""
    if gain == 1 and offset_hu == 0:
        return study
    level, width = WINDOWS[window]
    low = level - width / 2
    shown = _unscaled(study[:, :_SLICES])
    changed = (gain * (low + width * shown) + offset_hu - low) / width
    return _with_slices(study, _within_window(shown, changed))


def add_noise(study: Tensor, sd_hu: float, seed: int, window: str = "bone") -> Tensor:
    """Gaussian noise of `sd_hu` HU on every slice, the same wherever the slice is seen; the mask stays.

    `seed` draws it on the study's own device.
    """
    if sd_hu == 0:
        return study
    frames, _, *plane = study.shape
    generator = torch.Generator(device=study.device).manual_seed(seed)
    noise = torch.randn((2 * frames, *plane), generator=generator, device=study.device, dtype=study.dtype)
    share = sd_hu / WINDOWS[window][1]
    shown = _unscaled(study[:, :_SLICES])
    return _with_slices(study, _within_window(shown, shown + share * noise[_shown(study)]))


def cut_out(study: Tensor, where, size) -> Tensor:
    """A block of air: what is there cannot be seen, and there is no evidence in it. The mask stays.

    Parameters
    ----------
    where : three shares of slices, rows and columns: 0 puts the block at the beginning, 1 at the end
    size : three shares of slices, rows and columns
    """
    frames, channels, *plane = study.shape
    inside = []
    for length, at, share in zip((2 * frames, *plane), where, size, strict=True):
        cells = round(share * length)
        first = round(at * (length - cells))
        place = torch.arange(length, device=study.device)
        inside.append((place >= first) & (place < first + cells))
    block = inside[1][:, None] & inside[2]
    out = study.clone()
    out[:, :_SLICES] = study[:, :_SLICES].masked_fill(inside[0][_shown(study)][..., None, None] & block, AIR)
    if channels > CHANNELS:
        gone = inside[0][::2, None, None, None] & block & ~study[:, CHANNELS:].isnan()
        out[:, CHANNELS:] = study[:, CHANNELS:].masked_fill(gone, 0)
    return out


def wrong_upside_down(study: Tensor) -> Tensor:
    """WRONG for a neck, shown in notebook 04 only: head and feet change places, labels and targets do not.

    In plane a mirror image of a neck is a neck. Along it there is an order: counting from the skull is how anyone,
    a network included, tells C3 from C4. Now the skull lies below C7, and "C1 is fractured" points at the lowest one.
    """
    return torch.cat([study[:, :_SLICES].flip(0, 1), study[:, _SLICES:].flip(0)], dim=1)


def wrong_scale_each_slice(study: Tensor) -> Tensor:
    """WRONG for CT, shown in notebook 04 only: every slice from its own minimum to its own maximum.

    HU are absolute. Scaled like this, the same bone is bright in one slice and dark in the next, which has a tooth in
    it, and neighbouring channels no longer show the same thing.
    """
    slices = study[:, :_SLICES]
    low, high = slices.amin(dim=(-2, -1), keepdim=True), slices.amax(dim=(-2, -1), keepdim=True)
    shown = (slices - low) / (high - low).clamp(min=1e-6)
    return _with_slices(study, shown)


def _shown(study: Tensor) -> Tensor:
    """Which of the 2 f slices are channels 0-4 of each frame: `(f, 5)`."""
    return torch.from_numpy(shown_slices(2 * len(study))).to(study.device)


def _unscaled(slices: Tensor) -> Tensor:
    """Slices as a network gets them -> 0 ... 1 of the window."""
    # Rounding must not make the window's own black and white a little less than that.
    shown = slices * SLICE_SCALE[1] + SLICE_SCALE[0]
    return torch.where(shown < 1e-6, 0.0, torch.where(shown > 1 - 1e-6, 1.0, shown))


def _within_window(shown: Tensor, changed: Tensor) -> Tensor:
    """`changed`, clipped to 0 ... 1. What the window had cut off may have had any HU beyond it, so it stays."""
    return torch.where((shown > 0) & (shown < 1), changed.clamp(0, 1), shown)


def _with_slices(study: Tensor, shown: Tensor) -> Tensor:
    """The study with other slices, given as 0 ... 1 of the window."""
    return torch.cat([(shown - SLICE_SCALE[0]) / SLICE_SCALE[1], study[:, _SLICES:]], dim=1)


def _sources(plane, degrees: float, scale: float, shift_px, device) -> tuple[Tensor, Tensor]:
    """Where each pixel comes from: rows and columns `(h, w)`, counted from the centre of the first pixel."""
    height, width = plane
    angle, (down, right) = math.radians(degrees), shift_px
    row = torch.arange(height, device=device, dtype=torch.float64)[:, None] - (height - 1) / 2 - down
    column = torch.arange(width, device=device, dtype=torch.float64) - (width - 1) / 2 - right
    cosine, sine = math.cos(angle) / scale, math.sin(angle) / scale
    return cosine * row - sine * column + (height - 1) / 2, sine * row + cosine * column + (width - 1) / 2


def _linear(slices: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Slices `(f, 5, h, w)` at the places, air where they lie outside."""
    height, width = slices.shape[-2:]
    # grid_sample counts from -1 to 1, from edge to edge, column before row; what lies outside it takes for 0.
    grid = torch.stack([(2 * columns + 1) / width - 1, (2 * rows + 1) / height - 1], dim=-1)
    planes = (slices - AIR).flatten(0, 1)[None]
    moved = F.grid_sample(planes, grid[None].to(slices.dtype), mode="bilinear", align_corners=False)
    return moved[0].unflatten(0, slices.shape[:2]) + AIR


def _nearest(channels: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Channels `(f, c, h, w)` from 5 on at the places: no label outside, no evidence where it is known."""
    height, width = channels.shape[-2:]
    row, column = torch.floor(rows + 0.5).long(), torch.floor(columns + 0.5).long()
    outside = (row < 0) | (row >= height) | (column < 0) | (column >= width)
    moved = channels[..., row.clamp(0, height - 1), column.clamp(0, width - 1)]
    fill = torch.zeros(channels.shape[1], device=channels.device, dtype=channels.dtype)
    fill[0] = NO_LABEL
    fill[channels.isnan().any(dim=-1).any(dim=-1).any(dim=0)] = torch.nan
    return torch.where(outside, fill[:, None, None], moved)


def _check(name: str, value, most: float) -> None:
    if not isinstance(value, Real) or isinstance(value, bool) or not 0 <= value <= most:
        raise _refusal(name, value, f"a number from 0 to {most:g}")


def _refusal(name: str, value, expected: str) -> ParameterError:
    return ParameterError(f"augment: {name}", found=repr(value), expected=expected, remedy="0 leaves a change out.")
