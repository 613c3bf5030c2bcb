"""Masks drawn by a network on whole necks: what a reader of the real data has for all but 87 studies.

A small 3D U-Net learns from the first of the necks that teach a rung, with their true masks, and draws those of others.
The part of the scan around C1-C7 was cut out by the true mask; what is inside is the network's own.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from cspine_utils import files, metrics, segment, stacks, training
from cspine_utils.models.segmentation import Segmenter, UNet3D
from cspine_utils.objectives import SEGMENTATION
from cspine_utils.volume import Volume

from .profiles import Profile, warmup

#: Grid of the network, mm, and what it sees at once, 128 mm along each axis: more than a stack shows.
SPACING_MM, PATCH = 2.0, (64, 64, 64)
_RATE, _BATCH = 2e-3, 1


def volume_of(stored: stacks.Stored) -> Volume:
    """The stack's slices as a volume with their true distances; where in the patient it lies is left out."""
    geometry = stored.facts["geometry"]
    affine = np.zeros((4, 4))
    affine[2, 0], affine[1, 1], affine[0, 2] = -geometry["slice_mm"], *(-mm for mm in geometry["pixel_mm"])
    affine[3, 3] = 1
    return Volume(np.array(stored.hu), affine)


def train(
    teach: stacks.StackDataset, choose: stacks.StackDataset, out: Path, profile: Profile, seed: int, progress: bool
) -> Segmenter:
    """A network that has learned to draw masks; a finished training in `out` is not done again.

    Parameters
    ----------
    teach : necks; the first `profile.mask_necks` of them are learned from
    choose : necks by whose loss the epoch is chosen, the first eight
    out : folder of the run
    """
    torch.manual_seed(seed)
    net = UNet3D(spacing_mm=SPACING_MM, patch=PATCH)
    sets = []
    for dataset, count in ((teach, profile.mask_necks), (choose, 8)):
        studies = [stacks.open_study(dataset.store, study) for study in dataset.studies[:count]]
        cases = [segment.make_case(volume_of(one), np.array(one.labels), SPACING_MM) for one in studies]
        sets.append(segment.PatchDataset(cases, net, length=len(cases), fixed=dataset is choose))
    training.fit(
        net, *sets, out=out, epochs=profile.mask_epochs, batch_size=_BATCH, learning_rate=_RATE, schedule="linear",
        warmup_steps=warmup(sets[0], _BATCH), train_sample=8, objective=SEGMENTATION,
        generator=torch.Generator().manual_seed(seed), progress=progress,
    )  # fmt: skip
    return net.eval()


def draw(net: Segmenter, stored: stacks.Stored, odds: float) -> np.ndarray:
    """The mask that the network draws on a stack, of the centre slices: uint8 `(f, h, w)`, 0-7."""
    return segment.predict_mask(net, volume_of(stored), background_odds=odds)[::2]


class Drawn(Dataset):
    """Necks with the masks that a network draws on them; slices and evidence stay.

    Parameters
    ----------
    dataset : of (x, y), x `(f, 6 or more, h, w)` as networks get it; item i is study i of `stored`
    stored : a `StackDataset`: what the network reads
    net, folder : the network, and where its masks are kept, so that each is drawn once
    odds : of the background, see `segment.predict_mask`
    maps : studies that keep the mask of their label map
    """

    def __init__(
        self, dataset: Dataset, stored: stacks.StackDataset, *, net: Segmenter, folder: Path, odds: float, maps=()
    ):
        self.dataset, self.stored, self.net, self.odds, self.maps = dataset, stored, net, odds, set(maps)
        weights = b"".join(value.numpy().tobytes() for value in net.state_dict().values())
        # Masks of another network, or drawn more generously, are not these.
        self.name = f"{hashlib.sha256(weights).hexdigest()[:16]}-{odds:g}"
        self.folder = Path(folder) / f"masks-{self.name}"

    def __len__(self) -> int:
        return len(self.dataset)

    @property
    def fingerprint(self) -> str:
        """Equal means equal data."""
        facts = [self.dataset.fingerprint, self.stored.fingerprint, self.name, sorted(self.maps)]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]

    def __getitem__(self, index: int):
        x, y = self.dataset[index]
        return self.show(x, index), y

    def show(self, x: Tensor, index: int) -> Tensor:
        """A copy of study `index` with the mask that it has here."""
        x = x.clone()
        if self.stored.studies[index] not in self.maps:
            mask = self._mask(self.stored.studies[index]).astype(np.float32)
            x[:, stacks.CHANNELS - 1] = torch.from_numpy(stacks.scale_labels(mask))
        return x

    def _mask(self, study: str) -> np.ndarray:
        path = self.folder / f"{study}.npz"
        if not path.exists():
            mask = draw(self.net, stacks.open_study(self.stored.store, study), self.odds)
            self.folder.mkdir(parents=True, exist_ok=True)
            with files.replacing(path, shared=True) as temporary, open(temporary, "wb") as file:
                np.savez_compressed(file, mask=mask)
        with np.load(path) as file:
            return file["mask"]


def dice(true: np.ndarray, shown: np.ndarray) -> float:
    """Mean Dice of C1-C7 of two masks `(f, h, w)`; levels that neither has are left out."""
    return float(np.nanmean(metrics.dice_per_level(true, shown)))
