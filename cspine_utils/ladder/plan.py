"""The rungs: what each trains, from which weights, and which necks teach, choose and judge."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from cspine_utils.errors import ParameterError

from .profiles import Profile

#: Share of the studies with boxes in the RSNA-2022 data: 235 of 2,019 (all 235 are fractured, 961 in all are).
BOX_SHARE = 235 / 2019
#: Seeds of the phantom. Sets of one rung take different necks of it.
CROPS_SEED, NECKS_SEED = 11, 12
#: Number of the first neck of the sets that choose an epoch, and that judge.
CHOOSE, JUDGE = 100_002, 100_100
#: Odds of the background below which a voxel of a mask is drawn, see `segment.predict_mask`: a hole can hide the break
#: in it. Tried for necks-easy on the first 70 teaching necks of which the network for masks has not learned, odds of 1,
#: e, e^2 and e^3 gave losses of .235, .221, .214 and .219.
GENEROUS = 7.0
#: The rungs whose weights `make ladder` puts into data/weights.
PUBLISHED = ("crops-easy", "crops-torn", "necks-easy")


@dataclass(frozen=True)
class Rung:
    """One step.

    Attributes
    ----------
    kind : "crops" or "necks"
    difficulty, prevalence : of the phantom
    start : rungs whose weights it begins with: none from scratch, of two their mean (Wortsman et al. 2022, "Model
        soups", arXiv 2203.05482: meant for networks that come from the same weights, as here from crops-torn)
    trains : False judges the start's model as it is
    first : number of the first neck that it learns from
    boxes : share of the studies whose boxes are told: those of the first broken ones, 1 of all
    torn : masks are torn in training, and of those that choose the epoch
    drawn : masks are drawn by a network, of all necks but those that it learned from: the first `Profile.mask_necks` of
        those that teach. What is told of a vertebra is placed by its true mask even then
    again : added to the seed of order and augmentation, for a rung that learns from what its start has learned from
    """

    kind: str
    difficulty: str
    prevalence: str = ""
    start: tuple[str, ...] = ()
    trains: bool = True
    first: int = 0
    boxes: float = 1.0
    torn: bool = True
    drawn: bool = False
    again: int = 0

    @property
    def facts(self) -> dict:
        """What a row of the table tells of it. A finished rung of other facts is not the rung that is asked for."""
        return {
            "start": " + ".join(self.start) or "scratch", "difficulty": self.difficulty,
            "prevalence": self.prevalence, "boxes": self.boxes,
            "masks": f"drawn, odds {GENEROUS:g}" if self.drawn else "true",
        }  # fmt: skip


RUNGS = {
    "crops-easy": Rung("crops", "easy", torn=False),
    "crops-torn": Rung("crops", "easy", start=("crops-easy",)),
    "crops-standard": Rung("crops", "standard", start=("crops-torn",)),
    "crops-longer": Rung("crops", "standard", start=("crops-standard",), again=1000),
    "crops-hard": Rung("crops", "hard", start=("crops-longer",), trains=False),
    "necks-balanced": Rung("necks", "easy", "balanced", start=("crops-torn",)),
    "necks-easy": Rung("necks", "easy", "rsna", start=("necks-balanced",), first=20_000),
    "necks-standard": Rung("necks", "standard", "rsna", start=("necks-easy", "crops-longer"), first=40_000),
    "few-boxes": Rung("necks", "easy", "rsna", start=("crops-torn",), first=20_000, boxes=BOX_SHARE),
    "few-maps": Rung(
        "necks", "easy", "rsna", start=("crops-torn",), first=20_000, boxes=BOX_SHARE, drawn=True,
    ),
}  # fmt: skip


def trained(name: str) -> str:
    """The rung itself, or the one whose weights it only judges."""
    while not RUNGS[name].trains:
        (name,) = RUNGS[name].start
    return name


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


def check(out: Path, names: list[str], profile: Profile, seed: int) -> None:
    """Raise ParameterError for what `climb` cannot do, before it does anything."""
    for place, name in enumerate(names):
        if name not in RUNGS:
            raise ParameterError("rungs", found=repr(name), expected=", ".join(RUNGS), remedy="name some of these.")
        for start in RUNGS[name].start:
            if start in names[:place] or weights_file(out, seed, trained(start)).exists():
                continue
            shipped = ", or --begin data/weights" if trained(start) in PUBLISHED and seed == 0 else ""
            raise ParameterError(
                f"rung {name}",
                found=f"no finished rung {trained(start)} in {out / str(seed)}",
                expected=f"the weights of {trained(start)}, which it begins with",
                remedy=f"climb {start} first, name it before {name}{shipped}.",
            )
        path = row_file(out, seed, name)
        if path.exists():
            check_same(path, name, profile)
        if RUNGS[name].drawn and profile.mask_necks >= profile.necks:
            raise ParameterError(
                "profile",
                found=f"{profile.mask_necks} mask_necks, {profile.necks} necks",
                expected=f"more necks that teach {name} than have a label map",
                remedy="take fewer mask_necks.",
            )
        shared = _shared(name, profile)
        if shared:
            raise ParameterError(
                "profile",
                found=f"{len(shared)} necks that judge {name} and had a part in its training, the first {min(shared)}",
                expected=f"at most {JUDGE - CHOOSE} that choose, and at most {RUNGS['necks-easy'].first} that teach",
                remedy="take fewer.",
            )


def check_same(path: Path, name: str, profile: Profile) -> None:
    """Raise ParameterError if a finished rung was climbed with other settings, of those that matter to its kind, or by
    another plan."""
    rung, row = RUNGS[name], json.loads(path.read_text())
    of_others = ("lever", "neck" if rung.kind == "crops" else "crop") + (() if rung.drawn else ("mask",))
    matter = {key: value for key, value in asdict(profile).items() if not key.startswith(of_others)}
    _refuse_other(path, row["profile"], matter, "name another out, or the profile that climbed it.")
    _refuse_other(path, row, rung.facts, "move its folder away, and it is climbed again.")


def _refuse_other(path: Path, there: dict, here: dict, remedy: str) -> None:
    other = [key for key in here if key in there and there[key] != here[key]]
    if other:
        raise ParameterError(
            path,
            found="a rung climbed with " + ", ".join(f"{key}={there[key]}" for key in other),
            expected=", ".join(f"{key}={here[key]}" for key in other),
            remedy=remedy,
        )


def _shared(name: str, profile: Profile) -> set[int]:
    """Necks that judge a rung, and that taught it or a rung it comes from, or chose an epoch there."""
    judging = {(RUNGS[name].kind, number) for number in sets(RUNGS[name], profile)["judge"]}
    seen: set[tuple[str, int]] = set()
    steps = [name]
    for step in steps:  # and those that they come from, which are added on the way
        numbers = sets(RUNGS[step], profile)
        seen |= {(RUNGS[step].kind, number) for part in ("teach", "choose") for number in numbers[part]}
        steps.extend(RUNGS[step].start)
    return {number for _, number in judging & seen}


def row_file(out: Path, seed: int, name: str) -> Path:
    """A finished rung's row of the table."""
    return out / str(seed) / name / "row.json"


def segmenter_folder(out: Path, seed: int, name: str) -> Path:
    """Where the network lies that draws masks for a rung; rungs that learn from the same necks share it."""
    return out / str(seed) / f"segmenter-{RUNGS[name].difficulty}-{RUNGS[name].prevalence}"


def weights_file(out: Path, seed: int, name: str) -> Path:
    """The weights of a trained rung as they were judged: of the best epoch, and calibrated where that is done."""
    return out / str(seed) / name / "judged.pt"
