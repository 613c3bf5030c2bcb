"""HU and label ids -> what a network gets, and the way back."""

from __future__ import annotations

import torch

from cspine_utils.anatomy import CERVICAL_IDS
from cspine_utils.errors import StackError

#: (level, width) in HU, as radiologists name a window.
WINDOWS = {"bone": (400, 1800), "soft": (40, 400), "wide": (500, 3000)}

#: Mean and standard deviation of a slice in the bone window (0 ... 1) and of label / 7 over the synthetic cohort.
#: Constants for all data: what a study looks like must not decide how it is scaled. Without them the sparse mask
#: channel hardly reaches the network (eight studies took several times as long to learn by heart).
SLICE_SCALE = (0.15, 0.16)
MASK_SCALE = (0.012, 0.093)


def apply_window(hu, level: float, width: float):
    """HU -> 0 ... 1, clipped; `level` is the HU in the middle, `width` the HU from black to white."""
    return ((hu - (level - width / 2)) / width).clip(0, 1)


def scale_hu(hu, window: str = "bone"):
    """HU of any shape -> windowed to 0 ... 1, then mean 0 and spread 1 by the course's constants.

    Raises StackError for a window that there is not.
    """
    if window not in WINDOWS:
        raise StackError("window", found=repr(window), expected=", ".join(WINDOWS), remedy="choose one of these.")
    return _scaled(apply_window(hu, *WINDOWS[window]), SLICE_SCALE)


def scale_labels(labels):
    """Label ids of any shape, float -> id / 7 for C1-C7 and 0 for others, then mean 0 and spread 1 as `scale_hu`."""
    return _scaled(labels * (labels <= CERVICAL_IDS[-1]) / CERVICAL_IDS[-1], MASK_SCALE)


def normalise(stack, window: str = "bone"):
    """What a network gets: HU windowed to 0 ... 1, labels 1-7 divided by 7 (others 0), both with mean 0 and spread 1.

    One fixed window and fixed constants for all studies: minimum-maximum scaling per slice would let a tooth
    filling decide the contrast of the bone beside it. Takes and gives `(f, 6, h, w)` (array or tensor).
    """
    out = stack.clone() if isinstance(stack, torch.Tensor) else stack.copy()
    out[:, :-1] = scale_hu(stack[:, :-1], window)
    out[:, -1] = scale_labels(stack[:, -1])
    return out


def labels_of(channel: torch.Tensor) -> torch.Tensor:
    """Label ids 0-7 from a mask channel as `scale_labels` gives it, int64 of the same shape."""
    mean, spread = MASK_SCALE
    return torch.round((channel * spread + mean) * CERVICAL_IDS[-1]).long().clamp_(0, CERVICAL_IDS[-1])


def _scaled(values, scale: tuple[float, float]):
    mean, spread = scale
    return (values - mean) / spread
