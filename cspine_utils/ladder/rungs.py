"""The rungs: what each trains, from which weights, and on whom it is judged."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch.utils.data import Subset

from cspine_utils import calibration, crops, evidence, metrics, necks, ranking, stacks, training
from cspine_utils.augment import Augment
from cspine_utils.errors import ParameterError, TrainingError
from cspine_utils.models.vit3d import ViT3D

from . import judge
from .profiles import Profile

#: Frames, and rows and columns, of a token.
FRAME_PATCH, PATCH = 5, 8
#: What is seen of a crop in training: frames, and rows and columns.
CLOSER = (25, 40)
#: Share of the studies with boxes in the RSNA-2022 data: 235 of 2,019.
BOX_SHARE = 235 / 2019
#: Studies that calibrate a model before it learns from them.
_CALIBRATE = 48
#: Seeds of the phantom. Sets of one rung take different necks of it.
CROPS_SEED, NECKS_SEED = 11, 12
#: Number of the first neck of the sets that choose an epoch, and that judge.
CHOOSE, JUDGE = 100_002, 100_100


@dataclass(frozen=True)
class Rung:
    """One step.

    Attributes
    ----------
    kind : "crops" or "necks"
    difficulty, prevalence : of the phantom
    start : rung whose weights it begins with, None from scratch
    trains : False judges the start's model as it is
    first : number of the first neck that it learns from
    boxes : share of the studies whose boxes are told
    """

    kind: str
    difficulty: str
    prevalence: str = ""
    start: str | None = None
    trains: bool = True
    first: int = 0
    boxes: float = 1.0


RUNGS = {
    "crops-easy": Rung("crops", "easy"),
    "crops-standard": Rung("crops", "standard", start="crops-easy"),
    "crops-hard": Rung("crops", "hard", start="crops-standard", trains=False),
    "necks-balanced": Rung("necks", "easy", "balanced", start="crops-easy"),
    "necks-easy": Rung("necks", "easy", "rsna", start="necks-balanced", first=20_000),
    "necks-standard": Rung("necks", "standard", "rsna", start="necks-easy", first=40_000),
    "few-boxes": Rung("necks", "easy", "rsna", start="necks-balanced", first=20_000, boxes=BOX_SHARE),
}


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
    _check(out, rungs, profile, seed)
    rows = []
    for name in rungs:
        path = _row_file(out, seed, name)
        if not path.exists():
            row = _climb_one(out, name, profile, seed, workers, progress)
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
            temporary.write_text(json.dumps(row, indent=2) + "\n")
            os.replace(temporary, path)
        rows.append(json.loads(path.read_text()))
    return pd.DataFrame(rows)


def sets(rung: Rung, profile: Profile) -> dict[str, range]:
    """Numbers of the necks that teach, that choose the epoch, and that judge."""
    if rung.kind == "crops":
        counts = profile.crop_pairs * rung.trains, profile.crop_choose * rung.trains, profile.crop_judge
    else:
        counts = profile.necks, profile.necks_choose, profile.necks_judge
    firsts = (rung.first, rung.first + CHOOSE, rung.first + JUDGE)
    return {
        name: range(first, first + count)
        for name, first, count in zip(("teach", "choose", "judge"), firsts, counts, strict=True)
    }


def _check(out: Path, names: list[str], profile: Profile, seed: int) -> None:
    """Raise ParameterError for what `climb` cannot do, before it does anything."""
    for place, name in enumerate(names):
        if name not in RUNGS:
            raise ParameterError("rungs", found=repr(name), expected=", ".join(RUNGS), remedy="name some of these.")
        start, path = RUNGS[name].start, _row_file(out, seed, name)
        if start is not None and start not in names[:place] and not _row_file(out, seed, start).exists():
            raise ParameterError(
                f"rung {name}",
                found=f"no finished rung {start} in {out / str(seed)}",
                expected=f"the weights of {start}, which it begins with",
                remedy=f"climb {start} first, or name it before {name}.",
            )
        if path.exists():
            _check_same_profile(path, RUNGS[name].kind, profile)
        shared = _shared(name, profile)
        if shared:
            raise ParameterError(
                "profile",
                found=f"{len(shared)} necks that judge {name} and had a part in its training, the first {min(shared)}",
                expected=f"at most {JUDGE - CHOOSE} that choose, and at most {RUNGS['necks-easy'].first} that teach",
                remedy="take fewer.",
            )


def _check_same_profile(path: Path, kind: str, profile: Profile) -> None:
    """Raise ParameterError if a finished rung was climbed with other settings, of those that matter to its kind."""
    of_others = ("lever", "neck") if kind == "crops" else ("lever", "crop")
    there, here = json.loads(path.read_text())["profile"], asdict(profile)
    matter = [key for key in there if key in here and not key.startswith(of_others)]
    other = [key for key in matter if there[key] != here[key]]
    if other:
        raise ParameterError(
            path,
            found="a rung climbed with " + ", ".join(f"{key}={there[key]}" for key in other),
            expected=", ".join(f"{key}={here[key]}" for key in other),
            remedy="name another out, or the profile that climbed it.",
        )


def _shared(name: str, profile: Profile) -> set[int]:
    """Necks that judge a rung, and that taught it or a rung it comes from, or chose an epoch there."""
    judging = {(RUNGS[name].kind, number) for number in sets(RUNGS[name], profile)["judge"]}
    seen: set[tuple[str, int]] = set()
    step: str | None = name
    while step is not None:
        numbers = sets(RUNGS[step], profile)
        seen |= {(RUNGS[step].kind, number) for part in ("teach", "choose") for number in numbers[part]}
        step = RUNGS[step].start
    return {number for _, number in judging & seen}


def _row_file(out: Path, seed: int, name: str) -> Path:
    """A finished rung's row of the table."""
    return out / str(seed) / name / "row.json"


def _climb_one(out: Path, name: str, profile: Profile, seed: int, workers: int, progress: bool) -> dict:
    rung, begun = RUNGS[name], time.perf_counter()
    model = _model(profile, seed)
    if rung.start is not None:
        _start(model, out / str(seed) / _trained(rung.start) / "best.pt")
    kind = _Crops if rung.kind == "crops" else _Necks
    work = kind(out / "data", rung, profile, workers, progress)
    rendered = time.perf_counter() - begun
    seconds = 0.0
    if rung.trains:
        seconds = work.train(model, out / str(seed) / name, seed).seconds
    numbers = work.judge(model.eval(), np.random.default_rng(seed))
    return {
        "rung": name, "seed": seed, "start": rung.start or "scratch", "difficulty": rung.difficulty,
        "prevalence": rung.prevalence, "boxes": rung.boxes, "learned_from": work.learned_from if rung.trains else 0,
        "judged_on": work.judged_on, **dict.fromkeys(judge.NUMBERS), **numbers,
        "train_seconds": round(seconds, 1), "render_seconds": round(rendered, 1),
        "threads": torch.get_num_threads(), "profile": asdict(profile),
    }  # fmt: skip


def _start(model: ViT3D, path: Path) -> None:
    """Begin with a checkpoint's weights, all of them: a part left at random would look like a rung that resists."""
    loaded = training.load_matching(model, path)
    if loaded.kept or loaded.unused:
        raise TrainingError(
            path,
            found=str(loaded),
            expected="every weight of the model, and no other",
            remedy="climb all rungs with one profile.",
        )


def _trained(name: str) -> str:
    """The rung itself, or the one whose weights it only judges."""
    while not RUNGS[name].trains:
        name = RUNGS[name].start
    return name


def _model(profile: Profile, seed: int) -> ViT3D:
    torch.manual_seed(seed)
    return ViT3D(
        size=necks.NeckForm.size, frame_patch=FRAME_PATCH, patch=PATCH, dim=profile.dim, depth=profile.depth,
        stem="conv", position="sincos", head="mask",
    )  # fmt: skip


def validation_auroc(y: np.ndarray, logits: np.ndarray) -> dict[str, float]:
    """A column of the history, see `training.fit(measure=...)`."""
    return {"validation_auroc": ranking.within_level_auroc(y, logits)}


class _Crops:
    """Vertebrae beside their twins."""

    def __init__(self, data: Path, rung: Rung, profile: Profile, workers: int, progress: bool):
        form = replace(crops.CropForm(), study_size=profile.study_size)
        folder = data / f"crops-{rung.difficulty}"
        numbers = sets(rung, profile)
        for part in numbers.values():
            crops.render_crops(
                folder, len(part), difficulty=rung.difficulty, seed=CROPS_SEED, first=part.start, form=form,
                workers=workers, progress=progress,
            )  # fmt: skip
        self.taught = crops.TwinCrops(folder, numbers["teach"], closer=CLOSER)
        self.choose, self.held_out = (crops.TwinCrops(folder, numbers[part]) for part in ("choose", "judge"))
        self.profile, self.progress = profile, progress
        self.learned_from, self.judged_on = profile.crop_pairs, profile.crop_judge

    def train(self, model: ViT3D, out: Path, seed: int) -> training.TrainingResult:
        return training.fit(
            model, self.taught, self.choose, out=out, epochs=self.profile.crop_epochs,
            batch_size=self.profile.crop_batch, learning_rate=self.profile.crop_rate, schedule="linear",
            warmup_steps=warmup(self.taught, self.profile.crop_batch), weight_decay=0.01, train_sample=64,
            precision=self.profile.precision, generator=torch.Generator().manual_seed(seed), objective=_objective(),
            measure=validation_auroc, progress=self.progress,
        )  # fmt: skip

    def judge(self, model: ViT3D, rng: np.random.Generator) -> dict[str, float]:
        y, p = training.predict(model, self.held_out, batch_size=14, objective=_objective())
        return judge.of_crops(y, p, self.held_out.patients, rng)


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
        told = labels[0].index[: round(rung.boxes * len(labels[0]))]
        self.taught = necks.FewBoxes(stacks.StackDataset(store, labels[0], evidence=True), told)
        self.choose, self.held_out = (stacks.StackDataset(store, part, evidence=True) for part in labels[1:])
        first = labels[2].iloc[: profile.necks_twins]  # of those that judge: their twins are rendered, too
        self.broken = first[first["patient_overall"] == 1]
        self.twins = stacks.StackDataset(
            store, (self.broken * 0).rename(index=lambda study: f"{study}.twin"), evidence=True
        )
        self.profile, self.progress = profile, progress
        self.learned_from, self.judged_on = profile.necks, profile.necks_judge

    def train(self, model: ViT3D, out: Path, seed: int) -> training.TrainingResult:
        # The weights come from other base rates: first on studies that they have not seen, and after training, whose
        # studies they then know too well, on those that choose the epoch.
        some = Subset(self.taught, range(min(_CALIBRATE, len(self.taught))))
        calibration.calibrate(model, some, _objective(), rates=self.rates)
        result = training.fit(
            model, self.taught, self.choose, out=out, epochs=self.profile.neck_epochs,
            batch_size=self.profile.neck_batch, learning_rate=self.profile.neck_rate, schedule="linear",
            warmup_steps=warmup(self.taught, self.profile.neck_batch), weight_decay=0.01, train_sample=64,
            precision=self.profile.precision, best_by="validation_bce",
            generator=torch.Generator().manual_seed(seed), objective=_objective(), measure=validation_auroc,
            augment=Augment(rotate_deg=0.0, scale=0.0), progress=self.progress,
        )  # fmt: skip
        calibration.calibrate(model, self.choose, _objective())
        return result

    def judge(self, model: ViT3D, rng: np.random.Generator) -> dict[str, float]:
        y, p = training.predict(model, self.held_out, batch_size=4, objective=_objective())
        numbers = judge.of_necks(y, p, self.rates, rng)
        if self.broken.empty:
            return numbers
        broken = [self.held_out.studies.index(study) for study in self.broken.index]
        _, intact = training.predict(model, self.twins, batch_size=4, objective=_objective())
        return numbers | judge.of_twins(y[broken], p[broken], intact)


def warmup(taught, batch: int) -> int:
    """Steps of half an epoch, at most 50."""
    return min(50, len(taught) // batch // 2)


def _objective():
    return evidence.objective(frame_patch=FRAME_PATCH, patch=PATCH)
