"""Is the phantom fit to learn from? One table: what was measured, what is wanted, passed or not.

    python -m cspine_utils.phantom.acceptance [--quick] [--only name,...] [--studies N] [--seed S] [--out CSV]

The exit code is 1 if anything fails. Every check is a function of arrays or tables in a module of its own, and every
one is shown to fail on a broken phantom in `tests/test_phantom_acceptance.py`. The full form takes about ten
minutes on one thread, `--quick` about one and proves little: with few people and studies only gross faults show, and
the network is left out.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from cspine_utils.anatomy import LEVELS
from cspine_utils.errors import CSpineError, ParameterError

from ..export import draw_storage
from ..rendering import render, render_pair
from ..study import Stage, StudyPlan, draw_plan, stream
from .bytes_check import bytes_rows
from .detector import detector_rows
from .image_quality import noise_patches, noise_power, noise_rows, noise_sds, tissue_hu, tissue_rows
from .label_statistics import drawn_labels, label_statistics_rows
from .morphometry import measure_study, morphometry_rows
from .report import Row, as_text, table
from .shortcuts import image_features, image_rows, metadata_rows, mimic_rows
from .truth_checks import Case, label_rows, label_shortcut_rows, oracle_rows, slit_rows, twin_rows


@dataclass(frozen=True)
class Amounts:
    """How much is drawn: intact people and their pixels, people with noise, twin studies and their pixels, small
    studies for image statistics, plans for numbers beside the images, label sets, studies of the bytes check."""

    people: int
    people_size: int
    noisy: int
    cases: int
    cases_size: int
    images: int
    images_size: int
    plans: int
    labels: int
    bytes: int


FULL = Amounts(40, 192, 16, 28, 128, 400, 64, 2000, 5000, 6)
QUICK = Amounts(6, 112, 2, 5, 96, 30, 48, 600, 5000, 2)


def scaled(amounts: Amounts, people: int) -> Amounts:
    """Another number of intact people; twin and image studies in proportion, at least four of each."""
    factor = people / amounts.people
    numbers = {name: max(4, round(getattr(amounts, name) * factor)) for name in ("noisy", "cases", "images")}
    return Amounts(**{**vars(amounts), **numbers, "people": people})


def mixed_plan(seed: int, index: int, size: int) -> StudyPlan:
    """Every second study has about half of its levels broken, the others one level, in turn."""
    if index % 2:
        return draw_plan(seed, index, size=size, levels=(LEVELS[index // 2 % len(LEVELS)],))
    return draw_plan(seed, index, size=size, prevalence="balanced")


def make_case(plan: StudyPlan) -> Case:
    """A study and its intact twin without noise, and the study with noise."""
    broken, intact = render_pair(plan, noise=False)
    return Case(plan.levels, broken, intact, render(plan), plan.grid.spacing_mm)


class Phantom:
    """What the checks measure, drawn once, when a check first asks for it.

    Parameters
    ----------
    amounts, seed, progress : how much, from which seed, with progress bars or not
    """

    def __init__(self, amounts: Amounts, seed: int, *, quick: bool = False, progress: bool = True):
        self.amounts, self.seed, self.quick, self.progress = amounts, seed, quick, progress

    def bar(self, count: int, name: str):
        return tqdm(range(count), desc=name, unit="study", disable=not self.progress)

    def rng(self, number: int) -> np.random.Generator:
        return np.random.default_rng((self.seed, number))

    @cached_property
    def people(self) -> tuple[pd.DataFrame, list, list]:
        """Intact people: a table of lengths (mm) and HU, noise SDs and noise spectra of some of them."""
        rows, sds, spectra = [], [], []
        for index in self.bar(self.amounts.people, "intact people"):
            plan = draw_plan(self.seed, index, size=self.amounts.people_size, levels=())
            clean, marks = render(plan, noise=False), plan.landmarks()
            person = {"sex": plan.patient.sex, "age_years": plan.patient.age_years}
            lengths = measure_study(clean.labels, clean.affine, marks)
            rows.append(person | lengths | tissue_hu(clean, marks))
            if index < self.amounts.noisy:
                noisy = render(plan)
                sds.append((plan.scan.kernel, *noise_sds(noisy, clean, marks)))
                patches = noise_patches(noisy, clean, marks)
                if len(patches):
                    spectra.append((plan.scan.kernel, *noise_power(patches, plan.grid.pixel_mm)))
        return pd.DataFrame(rows), sds, spectra

    @cached_property
    def cases(self) -> list[Case]:
        """Studies with their intact twins."""
        size = self.amounts.cases_size
        return [make_case(mixed_plan(self.seed + 1, i, size)) for i in self.bar(self.amounts.cases, "twins")]

    @cached_property
    def plans(self) -> list[StudyPlan]:
        """Plans of a cohort like the real one."""
        return [draw_plan(self.seed + 2, i) for i in self.bar(self.amounts.plans, "plans")]

    def images(self):
        """Simple numbers of the pictures of small studies, and whether they are fractured."""
        for index in self.bar(self.amounts.images, "image statistics"):
            plan = draw_plan(self.seed + 3, index, size=self.amounts.images_size)
            yield image_features(render(plan)), bool(plan.levels)


def _metadata(phantom: Phantom) -> list[Row]:
    storages = draw_storage(len(phantom.plans), stream(phantom.seed + 2, 0, Stage.STORAGE), 0.75)
    return metadata_rows(phantom.plans, storages, phantom.rng(1))


def _detector(phantom: Phantom) -> list[Row]:
    return [] if phantom.quick else detector_rows(seed=phantom.seed, progress=phantom.progress)


def _bytes(phantom: Phantom) -> list[Row]:
    return bytes_rows(phantom.amounts.bytes, phantom.seed)


CHECKS: dict[str, Callable[[Phantom], list[Row]]] = {
    "rates": lambda p: label_statistics_rows(drawn_labels(p.amounts.labels, p.seed)),
    "metadata": _metadata,
    "mimics": lambda p: mimic_rows(p.plans),
    "morphometry": lambda p: morphometry_rows(p.people[0]),
    "hu": lambda p: tissue_rows(p.people[0]),
    "noise": lambda p: noise_rows(*p.people[1:]),
    "labels": lambda p: label_rows(case.broken.labels for case in p.cases),
    "slit": lambda p: slit_rows(p.cases, exact=not p.quick),
    "label_map": lambda p: label_shortcut_rows(p.cases, p.rng(3)),
    "twins": lambda p: twin_rows(p.cases),
    "oracle": lambda p: oracle_rows(p.cases),
    "images": lambda p: image_rows(p.images(), p.rng(2)),
    "bytes": _bytes,
    "detector": _detector,
}


def accept(phantom: Phantom, names: list[str] | None = None) -> list[Row]:
    """Run the named checks, or all.

    Raises
    ------
    ParameterError : an unknown name
    """
    names = list(CHECKS) if names is None else names
    unknown = [name for name in names if name not in CHECKS]
    if unknown:
        raise ParameterError("only", found=", ".join(unknown), expected=", ".join(CHECKS), remedy="name one of these")
    return [row for name in names for row in CHECKS[name](phantom)]


def main(arguments: list[str] | None = None) -> int:
    """Run the command line: 0 all passed, 1 something failed, 2 it was called wrongly."""
    parser = argparse.ArgumentParser(
        prog="python -m cspine_utils.phantom.acceptance", description="Is the phantom fit to learn from?"
    )
    parser.add_argument("--quick", action="store_true", help="one minute: gross faults only")
    parser.add_argument("--only", help="some checks, with commas: " + ", ".join(CHECKS))
    parser.add_argument("--studies", type=int, help="intact people to measure; twin and image studies in proportion")
    parser.add_argument("--seed", type=int, default=2026)
    parser.add_argument("--out", type=Path, help="write the table as CSV, too")
    args = parser.parse_args(arguments)
    amounts = QUICK if args.quick else FULL
    torch.set_num_threads(1)
    try:
        if args.studies is not None and args.studies < 2:
            raise ParameterError("studies", found=str(args.studies), expected="2 or more", remedy="measure more people")
        if args.studies is not None:
            amounts = scaled(amounts, args.studies)
        names = args.only.split(",") if args.only else None
        rows = accept(Phantom(amounts, args.seed, quick=args.quick), names)
        if args.out:
            table(rows).to_csv(args.out, index=False)
    except (CSpineError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(as_text(rows))
    failed = [row for row in rows if not row.passed]
    print(f"{len(rows)} numbers, {len(failed)} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
