"""Controls of a model of whole necks: what must take its answers away, and what it should bear.

The held-out necks are shown once as they are and once for each control. With the labels of other necks or with every
break filled up there is nothing to tell; without a mask the break is there, but the head does not know whose it is; a
mask that is a little wrong, and one that a network has drawn, should cost little.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy.ndimage import distance_transform_edt
from torch import Tensor
from torch.utils.data import Dataset

from cspine_utils import checkpoints, stacks
from cspine_utils.anatomy import CERVICAL_IDS, TARGETS
from cspine_utils.augment import NO_LABEL
from cspine_utils.errors import ParameterError
from cspine_utils.mask_jitter import tear_mask

from . import judge, masks
from .plan import GENEROUS, PUBLISHED, RUNGS, check_same, row_file, segmenter_folder, weights_file
from .profiles import Profile
from .rungs import ALL_TORN, ask, necks_of, new_model

_MASK = stacks.CHANNELS - 1
#: Voxels (of about 1 mm) beyond the marked ones that a filling covers.
MARGIN = 4
#: What breaks are filled with: soft tissue.
FILL_HU = 50.0
#: What is darker, in the mean over 3 x 3 x 3 voxels, looks like no bone.
DARK_HU = 250.0
#: Who draws masks: a network that learns for `Profile.mask_epochs` divided by so many, with these odds of the
#: background (see `segment.predict_mask`).
DRAWERS = {"patient": (1, 1.0), "hasty": (5, 1.0), "generous": (1, GENEROUS)}


class Held:
    """The held-out necks of a rung, and what the controls need beside the one at hand: the others, and the same with
    masks that networks have drawn, by a key of `DRAWERS`."""

    def __init__(self, dataset: stacks.StackDataset, seed: int, drawn: dict[str, masks.Drawn] | None = None):
        self.dataset, self.seed, self.drawn = dataset, seed, drawn or {}
        self._holes: dict[int, list[np.ndarray]] | None = None

    def generator(self, index: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, index])

    @property
    def holes(self) -> dict[int, list[np.ndarray]]:
        """Marked voxels of every broken vertebra, int `(n, 3)` from the middle of the vertebra, by label."""
        if self._holes is None:
            self._holes = {label: [] for label in CERVICAL_IDS}
            for index in np.flatnonzero(self.dataset.targets[:, -1].numpy()):
                x, _ = self.dataset[int(index)]
                labels, marked = stacks.labels_of(x[:, _MASK]).numpy(), x[:, -1].numpy() > 0
                for label in CERVICAL_IDS:
                    places = np.argwhere(marked & (labels == label))
                    if len(places):
                        self._holes[label].append(places - _middle(labels, label))
        return self._holes


def as_it_is(x: Tensor, held: Held, index: int) -> Tensor:
    return x


def mask_moved(x: Tensor, held: Held, index: int, by: int) -> Tensor:
    """The mask lies beside its place by `by` voxels along each axis, to a side that is drawn for each neck."""
    steps = [int(side) * by for side in held.generator(index).choice([-1, 1], 3)]
    mask = torch.roll(x[:, _MASK], steps, dims=(0, 1, 2))
    for axis, step in enumerate(steps):  # what came in at the other end is nobody's
        came_in = mask.narrow(axis, 0, step) if step > 0 else mask.narrow(axis, mask.shape[axis] + step, -step)
        came_in.fill_(NO_LABEL)
    return _with_mask(x, mask)


def mask_torn(x: Tensor, held: Held, index: int) -> Tensor:
    """As in training, but every one."""
    return tear_mask(x, ALL_TORN, held.seed + index)


def mask_wider(x: Tensor, held: Held, index: int, by: int) -> Tensor:
    """So many voxels more on every side, each of the nearest vertebra; below 0, so many less."""
    labels = stacks.labels_of(x[:, _MASK]).numpy()
    if by > 0:
        far, nearest = distance_transform_edt(labels == 0, return_indices=True)
        labels = np.where(far <= by, labels[tuple(nearest)], 0)
    else:
        labels = np.where(distance_transform_edt(labels > 0) > -by, labels, 0)
    return _with_mask(x, torch.from_numpy(stacks.scale_labels(labels.astype(np.float32))))


def mask_predicted(x: Tensor, held: Held, index: int, by: str) -> Tensor:
    """As a network draws it that has seen necks which teach."""
    return held.drawn[by].show(x, index)


def mask_without_dark(x: Tensor, held: Held, index: int) -> Tensor:
    """What does not look like bone is left out; the phantom's label maps name much of the gap of a break bone."""
    middle = x[:, len(stacks.NEIGHBOURS) // 2][None, None]
    near = torch.nn.functional.avg_pool3d(middle, 3, stride=1, padding=1, count_include_pad=False)[0, 0]
    dark = near < float(stacks.scale_hu(np.array([DARK_HU], np.float32), held.dataset.window)[0])
    return _with_mask(x, x[:, _MASK].masked_fill(dark, NO_LABEL))


def mask_of_another(x: Tensor, held: Held, index: int) -> Tensor:
    other, _ = held.dataset[(index + 1) % len(held.dataset)]
    return _with_mask(x, other[:, _MASK])


def no_mask(x: Tensor, held: Held, index: int) -> Tensor:
    return _with_mask(x, torch.full_like(x[:, _MASK], NO_LABEL))


def breaks_filled(x: Tensor, held: Held, index: int) -> Tensor:
    """Soft tissue where a vertebra is broken, and in every intact one where the same vertebra of another neck is."""
    labels, marked = stacks.labels_of(x[:, _MASK]).numpy(), x[:, -1].numpy() > 0
    rng, holes = held.generator(index), held.holes
    hole = marked.copy()
    for label in CERVICAL_IDS:
        if holes[label] and (labels == label).any() and not (marked & (labels == label)).any():
            places = _middle(labels, label) + holes[label][rng.integers(len(holes[label]))]
            inside = ((places >= 0) & (places < labels.shape)).all(axis=1)
            hole[tuple(places[inside].T)] = True
    wide = torch.from_numpy(hole).float()[None, None]
    for axis in range(3):  # a cube, one axis after the other
        kernel = [1, 1, 1]
        kernel[axis] = 2 * MARGIN + 1
        wide = torch.nn.functional.max_pool3d(wide, kernel, stride=1, padding=[k // 2 for k in kernel])
    by_slice = wide[0, 0].bool().repeat_interleave(2, dim=0)  # frame n shows slices 2 n - 2 ... 2 n + 2
    filled = by_slice[torch.from_numpy(stacks.shown_slices(len(by_slice)))]
    soft = float(stacks.scale_hu(np.array([FILL_HU], np.float32), held.dataset.window)[0])
    x = x.clone()
    x[:, :_MASK][filled] = soft
    return x


@dataclass(frozen=True)
class Control:
    """One: what is done to a neck, and whether it then is told of another neck's labels."""

    change: Callable[..., Tensor]
    options: tuple = ()
    labels_of_others: bool = False


CONTROLS = {
    "as it is": Control(as_it_is),
    "mask 1 voxel beside": Control(mask_moved, (1,)),
    "mask 3 voxels beside": Control(mask_moved, (3,)),
    "mask 1 voxel wider": Control(mask_wider, (1,)),
    "mask 1 voxel narrower": Control(mask_wider, (-1,)),
    "mask torn": Control(mask_torn),
    "mask predicted": Control(mask_predicted, ("patient",)),
    "mask predicted generously": Control(mask_predicted, ("generous",)),
    "mask predicted in haste": Control(mask_predicted, ("hasty",)),
    "mask without dark voxels": Control(mask_without_dark),
    "mask of another neck": Control(mask_of_another),
    "no mask": Control(no_mask),
    "breaks filled": Control(breaks_filled),
    "labels of other necks": Control(as_it_is, labels_of_others=True),
}


class Changed(Dataset):
    """The held-out necks after one control: x `(f, 7, h, w)`, y `(8,)`.

    Attributes
    ----------
    dice : of each neck that was asked for, the mean Dice of C1-C7 of the mask that it shows with the true one
    """

    def __init__(self, held: Held, control: Control):
        self.held, self.control, self.dice = held, control, {}
        self.targets = held.dataset.targets
        if control.labels_of_others:
            order = np.random.default_rng(held.seed).permutation(len(self.targets))
            self.targets = self.targets[torch.from_numpy(order)]

    def __len__(self) -> int:
        return len(self.held.dataset)

    def __getitem__(self, index: int):
        x, _ = self.held.dataset[index]
        changed = self.control.change(x, self.held, index, *self.control.options)
        self.dice[index] = masks.dice(*(stacks.labels_of(z[:, _MASK]).numpy() for z in (x, changed)))
        return changed, self.targets[index]


def check(out: Path, profile: Profile, rung: str, seed: int) -> None:
    """Raise ParameterError for a rung of crops, or one without weights in `out`, or of another profile."""
    of_necks = [name for name in RUNGS if RUNGS[name].kind == "necks"]
    if rung not in of_necks or not weights_file(out, seed, rung).exists():
        shipped = [name for name in PUBLISHED if name in of_necks]
        raise ParameterError(
            "rung",
            found=f"no weights of {rung}, seed {seed}, in {out}",
            expected=f"those of a finished rung of whole necks: {', '.join(of_necks)}",
            remedy=f"climb it first, or --begin data/weights, which has {', '.join(shipped)} of seed 0.",
        )
    if row_file(out, seed, rung).exists():
        check_same(row_file(out, seed, rung), rung, profile)


def control(
    out, profile: Profile, *, rung: str = "necks-easy", names=tuple(CONTROLS), seed: int = 0, workers: int = 0,
    progress: bool = True,
) -> tuple[pd.DataFrame, pd.DataFrame]:  # fmt: skip
    """Judge a finished rung of necks under every control.

    Returns
    -------
    (numbers, predictions) : one row a control: control, rung, seed, judged_on, dice (mean of `Changed.dice`), and the
        numbers of `judge.of_necks`; one row a neck: rung, seed, study, then of every target <target> (0 or 1) and
        p_<target>, the necks as they are

    Raises ParameterError for a rung of crops, or one without weights in `out`, or of another profile.
    """
    out = Path(out)
    check(out, profile, rung, seed)
    held_out, rates, teach, choose = necks_of(out, rung, profile, workers, progress)
    drawn = {}
    for by in [by for by in DRAWERS if any(CONTROLS[name].options == (by,) for name in names)]:
        shorter, odds = DRAWERS[by]
        folder = segmenter_folder(out, seed, rung) / ("" if shorter == 1 else by)
        epochs = max(1, profile.mask_epochs // shorter)
        net = masks.train(teach, choose, folder, replace(profile, mask_epochs=epochs), seed, progress)
        drawn[by] = masks.Drawn(held_out, held_out, net=net, folder=folder, odds=odds)
    model = checkpoints.load(new_model(profile, seed), weights_file(out, seed, rung))
    held, rows = Held(held_out, seed, drawn), []
    y, p = ask(model, held_out)
    said = pd.DataFrame({"rung": rung, "seed": seed, "study": held_out.studies})
    for k, target in enumerate(TARGETS):
        said[target], said[f"p_{target}"] = y[:, k].astype(int), p[:, k]
    for name in names:
        changed = Changed(held, CONTROLS[name])
        # What is said of necks as they are does not depend on the labels that it is compared with.
        y_, p_, dice = changed.targets.numpy(), p, 1.0
        if CONTROLS[name].change is not as_it_is:
            y_, p_ = ask(model, changed)
            dice = float(np.mean(list(changed.dice.values())))
        numbers = judge.of_necks(y_, p_, rates, np.random.default_rng(seed))
        rows.append({"control": name, "rung": rung, "seed": seed, "judged_on": len(y), "dice": dice, **numbers})
    return pd.DataFrame(rows), said


def _middle(labels: np.ndarray, label: int) -> np.ndarray:
    return np.rint(np.argwhere(labels == label).mean(axis=0)).astype(int)


def _with_mask(x: Tensor, mask: Tensor) -> Tensor:
    x = x.clone()
    x[:, _MASK] = mask
    return x
