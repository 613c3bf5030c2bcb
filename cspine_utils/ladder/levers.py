"""What makes a small transformer see: one change after the other, from the students' recipe to ours.

Every step trains on the same crops, all but one for as many epochs, and is judged on the same patients.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch.utils.data import Dataset

from cspine_utils import crops, evidence, stacks, training
from cspine_utils.models.vit3d import ViT3D

from . import judge
from .plan import CROPS_SEED, Rung, sets
from .profiles import Profile
from .rungs import CLOSER, FRAME_PATCH, PATCH, validation_auroc, warmup


@dataclass(frozen=True)
class Lever:
    """One recipe.

    Attributes
    ----------
    head, stem : of the model
    twins : a broken crop and its intact twin in one batch
    token_weight : of the tokens' targets; 0 trains with one label a crop
    closer : look at pieces of crops
    rate : learning rate; with the convolutions' normalisation it may be higher
    times : how many times as many epochs
    shuffled : a coin says which of a crop and its twin is called broken
    """

    head: str = "mean"
    stem: str = "linear"
    twins: bool = False
    token_weight: float = 0.0
    closer: bool = False
    rate: float = 5e-4
    times: int = 1
    shuffled: bool = False


#: Each adds one thing to the one before. A piece costs less than two fifths of a crop, so the last but one gives pieces
#: about the time of whole crops. The last one is a control: with it, there is nothing to learn.
LEVERS = {
    "one label a crop, mean of tokens": Lever(),
    "+ evidence pooled by vertebra": Lever(head="mask"),
    "+ twins in one batch": Lever(head="mask", twins=True),
    "+ a target for every token": Lever(head="mask", twins=True, token_weight=5.0),
    "+ small convolutions first": Lever(head="mask", twins=True, token_weight=5.0, stem="conv", rate=2e-3),
    "+ closer pieces": Lever(head="mask", twins=True, token_weight=5.0, stem="conv", rate=2e-3, closer=True),
    "closer pieces for as long": Lever(
        head="mask", twins=True, token_weight=5.0, stem="conv", rate=2e-3, closer=True, times=3
    ),
    "closer pieces, labels shuffled": Lever(
        head="mask", twins=True, token_weight=5.0, stem="conv", rate=2e-3, closer=True, shuffled=True
    ),
}


class Shuffled(Dataset):
    """Pairs of crops with the labels, and what is marked, of the other one in every second pair, drawn by a seed."""

    def __init__(self, pairs: crops.TwinCrops, seed: int):
        self.pairs, self.seed = pairs, seed
        self.swapped = np.random.default_rng(seed).permutation(len(pairs) // 2) % 2 == 0

    def __len__(self) -> int:
        return len(self.pairs)

    @property
    def fingerprint(self) -> str:
        """Equal means equal data."""
        return f"{self.pairs.fingerprint} shuffled {self.seed}"

    def epoch_order(self, generator: torch.Generator) -> list[int]:
        return self.pairs.epoch_order(generator)

    def __getitem__(self, index: int):
        x, y = self.pairs[index]
        if self.swapped[index // 2]:
            other, _ = self.pairs[index ^ 1]
            x = torch.cat([other[:, : stacks.CHANNELS], x[:, stacks.CHANNELS :]], dim=1)
        return x, y


def pull(
    out, profile: Profile, *, names=tuple(LEVERS), difficulty: str = "easy", seed: int = 0, progress: bool = True
) -> pd.DataFrame:
    """Train with each recipe and judge it; what is finished in `out` is not done again.

    Returns
    -------
    DataFrame, one row a recipe and epoch: lever, seed, the columns of the history, and in the last row of each recipe
    the numbers of `judge.of_crops`
    """
    out = Path(out)
    folder = out / "data" / f"crops-{difficulty}"
    form = replace(crops.CropForm(), study_size=profile.study_size)
    numbers = sets(Rung("crops", difficulty), profile)
    for part in numbers.values():
        crops.render_crops(
            folder, len(part), difficulty=difficulty, seed=CROPS_SEED, first=part.start, form=form, progress=progress
        )
    choose, held_out = (crops.TwinCrops(folder, numbers[part]) for part in ("choose", "judge"))
    parts = []
    for number, name in enumerate(names):
        lever = LEVERS[name]
        closer = CLOSER if lever.closer else None
        taught = crops.TwinCrops(folder, numbers["teach"][: profile.lever_pairs], closer=closer, twins=lever.twins)
        if lever.shuffled:
            taught = Shuffled(taught, seed)
        model, objective = _model(lever, profile, seed), _objective(lever)
        result = training.fit(
            model, taught, choose, out=out / str(seed) / f"lever-{list(LEVERS).index(name)}",
            epochs=profile.lever_epochs * lever.times, batch_size=profile.lever_batch, learning_rate=lever.rate,
            schedule="linear", warmup_steps=warmup(taught, profile.lever_batch), weight_decay=0.01,
            precision=profile.precision, generator=torch.Generator().manual_seed(seed),
            objective=objective, train_sample=64, measure=validation_auroc, progress=progress,
        )  # fmt: skip
        y, p = training.predict(model, held_out, batch_size=14, objective=objective)
        judged = judge.of_crops(y, p, held_out.patients, np.random.default_rng(seed))
        history = result.history.drop(columns=["memory_mb"]).assign(lever=name, seed=seed, number=number)
        for column, value in judged.items():
            history.loc[history.index[-1], column] = value
        parts.append(history)
    return pd.concat(parts, ignore_index=True)


def _model(lever: Lever, profile: Profile, seed: int) -> ViT3D:
    torch.manual_seed(seed)
    form = crops.CropForm()
    return ViT3D(
        frames=form.frames, size=form.size, frame_patch=FRAME_PATCH, patch=PATCH, dim=profile.dim, depth=profile.depth,
        stem=lever.stem, position="sincos", head=lever.head,
    )  # fmt: skip


def _objective(lever: Lever):
    settings = {"frame_patch": FRAME_PATCH, "patch": PATCH, "token_weight": lever.token_weight}
    return evidence.objective(**settings)
