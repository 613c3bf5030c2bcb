"""The climb: each rung renders its sets, trains, and is judged."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Iterable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch.utils.data import Subset

from cspine_utils import calibration, checkpoints, crops, evidence, files, metrics, necks, ranking, stacks, training
from cspine_utils.augment import Augment
from cspine_utils.errors import TrainingError
from cspine_utils.mask_jitter import MaskJitter, Torn
from cspine_utils.models.vit3d import ViT3D

from . import judge, masks
from .plan import (
    CROPS_SEED,
    GENEROUS,
    NECKS_SEED,
    RUNGS,
    Rung,
    check,
    row_file,
    segmenter_folder,
    sets,
    trained,
    weights_file,
)
from .profiles import Profile, warmup

#: Frames, and rows and columns, of a token.
FRAME_PATCH, PATCH = 5, 8
#: What is seen of a crop in training: frames, and rows and columns.
CLOSER = (25, 40)
#: How masks are torn in training: those of a real reader come from a network.
JITTER = MaskJitter()
#: And where a model is judged with torn masks: all of them are.
ALL_TORN = replace(JITTER, clean=0.0)
#: Studies that calibrate a model before it learns from them.
_CALIBRATE = 48


def climb(
    out,
    profile: Profile,
    *,
    rungs: Iterable[str] = tuple(RUNGS),
    seed: int = 0,
    workers: int = 0,
    progress: bool = True,
) -> pd.DataFrame:
    """Train and judge rungs in order; what is finished in `out` is not done again.

    Parameters
    ----------
    out : folder: `data/` the rendered sets, `<seed>/<rung>/` the runs
    profile : how much of everything
    rungs : names; a rung's start must come before it among them, or be finished in `out`
    seed : of weights, order and augmentation
    workers : processes that render, 0 for none but this one

    Returns
    -------
    DataFrame, one row a rung: what was trained, and the numbers of `judge`

    Raises
    ------
    ParameterError : names that there are not, a start that is missing, a profile whose sets would share patients or
        with which another profile's rung in `out` was climbed; nothing is rendered then
    """
    out, rungs = Path(out), list(rungs)
    check(out, rungs, profile, seed)
    rows = []
    for name in rungs:
        path = row_file(out, seed, name)
        if not path.exists():
            row = _climb_one(out, name, profile, seed, workers, progress)
            path.parent.mkdir(parents=True, exist_ok=True)
            files.write_text(path, json.dumps(row, indent=2) + "\n", shared=True)
        rows.append(json.loads(path.read_text()))
    return pd.DataFrame(rows)


def _climb_one(out: Path, name: str, profile: Profile, seed: int, workers: int, progress: bool) -> dict:
    rung, begun = RUNGS[name], time.perf_counter()
    starts = [weights_file(out, seed, trained(start)) for start in rung.start]
    model = _started(profile, seed, starts)
    kind = _Crops if rung.kind == "crops" else _Necks
    work = kind(out / "data", rung, profile, workers, progress)
    rendered = time.perf_counter() - begun
    if rung.drawn:
        work.draw_masks(segmenter_folder(out, seed, name), seed)
    alone = [work.auroc(_started(profile, seed, [start])) for start in starts] if len(starts) > 1 else []
    seconds = 0.0
    if rung.trains:
        seconds = work.train(model, out / str(seed) / name, seed).seconds
        checkpoints.save(model, weights_file(out, seed, name))
    numbers = work.judge(model.eval(), np.random.default_rng(seed))
    return {
        "rung": name, "seed": seed, **rung.facts, "learned_from": work.learned_from if rung.trains else 0,
        "judged_on": work.judged_on, "kept": work.kept, "alone": " + ".join(f"{auroc:.4f}" for auroc in alone),
        **dict.fromkeys(judge.NUMBERS), **numbers,
        "train_seconds": round(seconds, 1), "render_seconds": round(rendered, 1),
        "threads": torch.get_num_threads(), "precision": _precision(profile), "profile": asdict(profile),
    }  # fmt: skip


def _precision(profile: Profile) -> str:
    return training.fast_precision(torch.device("cpu")) if profile.precision == "auto" else profile.precision


def _started(profile: Profile, seed: int, paths: list[Path]) -> ViT3D:
    """A model with a checkpoint's weights, all of them: a part left at random would look like a rung that resists.

    Of several checkpoints it is the mean of their weights, of none they are random.
    """
    model, found = new_model(profile, seed), []
    for path in paths:
        loaded = training.load_matching(model, path)
        if loaded.kept or loaded.unused:
            raise TrainingError(
                path,
                found=str(loaded),
                expected="every weight of the model, and no other",
                remedy="climb all rungs with one profile.",
            )
        found.append(copy.deepcopy(model.state_dict()))
    if len(found) > 1:
        model.load_state_dict({name: torch.stack([one[name] for one in found]).mean(dim=0) for name in found[0]})
    return model.eval()


def new_model(profile: Profile, seed: int) -> ViT3D:
    """The transformer of all rungs, at random."""
    torch.manual_seed(seed)
    return ViT3D(
        size=necks.NeckForm.size, frame_patch=FRAME_PATCH, patch=PATCH, dim=profile.dim, depth=profile.depth,
        stem="conv", position="sincos", head="mask",
    )  # fmt: skip


def validation_auroc(y: np.ndarray, logits: np.ndarray) -> dict[str, float]:
    """A column of the history, see `training.fit(measure=...)`.

    Of crops it counts the comparison with the own twin, too, which `judge.of_crops` leaves out.
    """
    return {"validation_auroc": ranking.within_level_auroc(y, logits)}


class _Crops:
    """Vertebrae beside their twins."""

    kept = ""  # the best epoch, with nothing to choose between

    def __init__(self, data: Path, rung: Rung, profile: Profile, workers: int, progress: bool):
        form = replace(crops.CropForm(), study_size=profile.study_size)
        folder = data / f"crops-{rung.difficulty}"
        numbers = sets(rung, profile)
        for part in numbers.values():
            crops.render_crops(
                folder, len(part), difficulty=rung.difficulty, seed=CROPS_SEED, first=part.start, form=form,
                workers=workers, progress=progress,
            )  # fmt: skip
        self.taught = crops.TwinCrops(folder, numbers["teach"], closer=CLOSER, jitter=JITTER if rung.torn else None)
        self.choose, self.held_out = (crops.TwinCrops(folder, numbers[part]) for part in ("choose", "judge"))
        if rung.torn:
            self.choose = Torn(self.choose, JITTER, alike=2)
        self.rate = profile.crop_rate_again if rung.start else profile.crop_rate
        self.again = rung.again
        self.profile, self.progress = profile, progress
        self.learned_from, self.judged_on = profile.crop_pairs, profile.crop_judge

    def train(self, model: ViT3D, out: Path, seed: int) -> training.TrainingResult:
        return training.fit(
            model, self.taught, self.choose, out=out, epochs=self.profile.crop_epochs,
            batch_size=self.profile.crop_batch, learning_rate=self.rate, schedule="linear",
            warmup_steps=warmup(self.taught, self.profile.crop_batch), weight_decay=0.01, train_sample=64,
            precision=self.profile.precision, generator=torch.Generator().manual_seed(seed + self.again),
            objective=_objective(), measure=validation_auroc, progress=self.progress,
        )  # fmt: skip

    def auroc(self, model: ViT3D) -> float:
        """Within levels, on those that judge."""
        y, p = training.predict(model, self.held_out, batch_size=14, objective=_objective())
        return ranking.within_level_auroc(y, p, self.held_out.patients)

    def judge(self, model: ViT3D, rng: np.random.Generator) -> dict[str, float]:
        y, p = training.predict(model, self.held_out, batch_size=14, objective=_objective())
        torn = Torn(self.held_out, ALL_TORN, alike=2)
        _, with_torn = training.predict(model, torn, batch_size=14, objective=_objective())
        patients = self.held_out.patients
        return judge.of_crops(y, p, patients, rng) | judge.briefly(y, with_torn, "torn", patients)


class _Necks:
    """Whole studies."""

    def __init__(self, data: Path, rung: Rung, profile: Profile, workers: int, progress: bool):
        form = replace(necks.NeckForm(), study_size=profile.study_size)
        store = data / f"necks-{rung.difficulty}-{rung.prevalence}"
        numbers = sets(rung, profile)
        settings = {
            "seed": NECKS_SEED, "difficulty": rung.difficulty, "prevalence": rung.prevalence, "form": form,
            "workers": workers, "progress": progress,
        }  # fmt: skip
        labels = [necks.render_necks(store, len(n), first=n.start, **settings) for n in numbers.values()]
        necks.render_necks(store, profile.necks_twins, first=numbers["judge"].start, twins=True, **settings)
        self.rates = metrics.base_rates(labels[0], smoothing=metrics.SMOOTHING)
        broken = labels[0].index[labels[0]["patient_overall"] == 1]
        told = broken[: round(rung.boxes * len(labels[0]))]
        #: Those that teach, choose and judge as they are stored, with all boxes and the masks of their label maps.
        self.stored = [stacks.StackDataset(store, part, evidence=True) for part in labels]
        teach, choose, self.held_out = self.stored
        self.taught, self.choose = necks.FewBoxes(teach, told), Torn(choose, JITTER)
        self.maps = 0
        first = labels[2].iloc[: profile.necks_twins]  # of those that judge: their twins are rendered, too
        self.broken = first[first["patient_overall"] == 1]
        self.twins = stacks.StackDataset(
            store, (self.broken * 0).rename(index=lambda study: f"{study}.twin"), evidence=True
        )
        self.profile, self.progress = profile, progress
        of_crops = any(RUNGS[start].kind == "crops" for start in rung.start)
        self.rate = profile.neck_rate if of_crops else profile.neck_rate_again
        self.again = rung.again
        self.learned_from, self.judged_on = profile.necks, profile.necks_judge
        self.before: dict[str, float] = {}
        self.kept = ""

    def draw_masks(self, folder: Path, seed: int) -> None:
        """Masks are those of a network from now on, but for the necks with label maps that it learns from."""
        teach, choose, judge_ = self.stored
        net = masks.train(teach, choose, folder, self.profile, seed, self.progress)
        drawn = partial(masks.Drawn, net=net, folder=folder, odds=GENEROUS)
        self.maps = self.profile.mask_necks
        self.taught = drawn(self.taught, teach, maps=teach.studies[: self.maps])
        self.choose, self.held_out, self.twins = (drawn(one, one) for one in (choose, judge_, self.twins))

    def train(self, model: ViT3D, out: Path, seed: int) -> training.TrainingResult:
        # The weights come from other base rates: first on studies that they have not seen, and after training, whose
        # studies they then know too well, on those that choose the epoch.
        some = Torn(Subset(self.taught, range(self.maps, len(self.taught))[:_CALIBRATE]), JITTER)
        calibration.calibrate(model, some, _objective(), rates=self.rates)
        self.before = judge.briefly(*ask(model, self.held_out), "before")
        start = copy.deepcopy(model.state_dict())
        result = training.fit(
            model, self.taught, self.choose, out=out, epochs=self.profile.neck_epochs,
            batch_size=self.profile.neck_batch, learning_rate=self.rate, schedule="linear",
            warmup_steps=warmup(self.taught, self.profile.neck_batch), weight_decay=0.01, train_sample=64,
            precision=self.profile.precision, best_by="validation_bce",
            generator=torch.Generator().manual_seed(seed + self.again), objective=_objective(),
            measure=validation_auroc, augment=Augment(rotate_deg=0.0, scale=0.0, mask=JITTER), progress=self.progress,
        )  # fmt: skip
        self.kept = self._keep_the_better(model, start)
        return result

    def _keep_the_better(self, model: ViT3D, start: dict) -> str:
        """Calibrate what was learned, and what it began with, on the necks that choose; keep what has the lower loss
        there, and say which. A few hundred necks with few fractures can also teach nothing."""
        found, losses = {"trained": copy.deepcopy(model.state_dict()), "start": start}, {}
        for name, weights in found.items():
            model.load_state_dict(weights)
            calibration.calibrate(model, self.choose, _objective())
            found[name] = copy.deepcopy(model.state_dict())
            losses[name] = metrics.plain_bce_per_study(*ask(model, self.choose)).mean()
        kept = min(losses, key=losses.get)
        model.load_state_dict(found[kept])
        return kept

    def auroc(self, model: ViT3D) -> float:
        """Within levels, on those that judge."""
        return ranking.within_level_auroc(*ask(model, self.held_out))

    def judge(self, model: ViT3D, rng: np.random.Generator) -> dict[str, float]:
        y, p = ask(model, self.held_out)
        torn = judge.briefly(*ask(model, Torn(self.stored[-1], ALL_TORN)), "torn")
        numbers = judge.of_necks(y, p, self.rates, rng) | self.before | torn
        if self.broken.empty:
            return numbers
        broken = [self.stored[-1].studies.index(study) for study in self.broken.index]
        _, intact = ask(model, self.twins)
        return numbers | judge.of_twins(y[broken], p[broken], intact)


def necks_of(out: Path, name: str, profile: Profile, workers: int, progress: bool):
    """(necks that judge a rung, `(8,)` base rates of those that taught it, those, and those that chose the epoch); they
    are rendered if they are not there."""
    work = _Necks(out / "data", RUNGS[name], profile, workers, progress)
    teach, choose, held_out = work.stored
    return held_out, work.rates, teach, choose


def ask(model: ViT3D, necks_: torch.utils.data.Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Labels and predictions of whole necks, `(n, 8)` each."""
    return training.predict(model, necks_, batch_size=4, objective=_objective())


def _objective():
    return evidence.objective(frame_patch=FRAME_PATCH, patch=PATCH)
