"""Studies dealt out to parts and folds: deterministic, with like shares of fractures, and no study on both sides.

Splits are by study, since all slices of a study show the same patient and carry the same label.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd

from cspine_utils.anatomy import LEVELS
from cspine_utils.errors import ParameterError

from .cohort import usable

#: Sizes of the students' project that this course grew from.
_PROJECT = {"train": 70, "validation": 14, "test": 2}


def check_disjoint(parts: Mapping[str, Iterable] | Iterable[Iterable], *, study_of: Callable | None = None) -> None:
    """The leakage gate: no study may have items in two parts.

    Parameters
    ----------
    parts : name -> items, or parts without names
    study_of : the study of an item. By default an item is a study id, or a tuple that begins with one, such as
        (study, slice).

    Raises
    ------
    ParameterError : names the first study found in two parts, and the number of such studies
    """
    parts = dict(parts) if isinstance(parts, Mapping) else {f"part {i}": part for i, part in enumerate(parts)}
    where: dict = {}
    shared: dict = {}
    for name, items in parts.items():
        for study in {(study_of or _study_of)(item) for item in items}:
            if where.setdefault(study, name) != name:
                shared[study] = (where[study], name)
    if shared:
        study, (first, second) = min(shared.items(), key=lambda pair: str(pair[0]))
        raise ParameterError(
            "parts",
            found=f"study {study} in {first} and in {second}" + _and_others(len(shared) - 1),
            expected="all slices of a study in one part: they show one patient and carry one label",
            remedy="split study ids first, and take the slices of each part afterwards.",
        )


def _and_others(count: int) -> str:
    return f", and {count} more studies in two parts" if count else ""


def _study_of(item):
    if isinstance(item, tuple) and item and isinstance(item[0], str):
        return item[0]
    if isinstance(item, str):
        return item
    raise ParameterError(
        "study_of",
        found=f"an item {item!r}",
        expected="study ids, or tuples that begin with one",
        remedy="say whose item it is: study_of=lambda item: ...",
    )


def split(studies, labels: pd.DataFrame, *, sizes: dict[str, int], generator: np.random.Generator) -> dict:
    """Deal studies out to named parts, each study to one part, with like shares of fractured studies.

    Parameters
    ----------
    studies : ids, each once
    labels : DataFrame indexed by study with the column `patient_overall`
    sizes : part -> number of studies, e.g. {"train": 70, "validation": 14, "test": 2}; studies that are
        left over are in no part

    Returns
    -------
    dict part -> list of ids. Fractured and intact studies are shuffled apart and then interleaved in
    proportion, so that each part gets its share of both.

    Raises
    ------
    ParameterError : a study appears twice or has no labels, or the sizes ask for more studies than there are
    """
    studies = _checked_studies(studies, labels, generator)
    whole = all(isinstance(size, int | np.integer) and size >= 1 for size in sizes.values())
    if not sizes or not whole or sum(sizes.values()) > len(studies):
        raise ParameterError(
            "sizes",
            found=f"{sizes} for {len(studies)} studies",
            expected=f"parts of at least one study that add up to at most {len(studies)}",
            remedy="ask for smaller parts, or make a larger cohort.",
        )
    overall = _zeros_and_ones(labels, studies, ["patient_overall"]).ravel()
    place = np.empty(len(studies))
    for value in (0, 1):
        members = np.flatnonzero(overall == value)
        # Members of each class sit evenly along 0 ... 1, so any run of the line holds both in proportion.
        place[generator.permutation(members)] = (np.arange(len(members)) + generator.random()) / max(len(members), 1)
    line = [studies[i] for i in np.argsort(place, kind="stable")]
    parts, start = {}, 0
    for part, size in sizes.items():
        parts[part] = line[start : start + size]
        start += size
    check_disjoint(parts)
    return parts


def folds(studies, labels: pd.DataFrame, *, k: int, generator: np.random.Generator) -> list[dict]:
    """Divide studies into k folds, each of which validates once what the others train.

    Fractured studies are dealt out by chance, then intact ones: of both, each fold has the same number or one more.
    After that, fractured studies are exchanged between folds until every level is spread as evenly as such exchanges
    can make it, as a rule to within one study.

    Parameters
    ----------
    studies : ids, each once
    labels : DataFrame indexed by study with the columns `anatomy.TARGETS`
    k : folds, from 2 to the number of studies

    Returns
    -------
    list of k dicts {"train": ids, "validation": ids}, ids in the order of `studies`

    Raises
    ------
    ParameterError : a study appears twice or has no labels, or k does not fit
    """
    studies = _checked_studies(studies, labels, generator)
    if not isinstance(k, int | np.integer) or isinstance(k, bool) or not 2 <= k <= len(studies):
        raise ParameterError(
            "k",
            found=f"{k!r} for {len(studies)} studies",
            expected=f"a number of folds from 2 to {len(studies)}",
            remedy="ask for fewer folds, or make a larger cohort.",
        )
    table = labels.loc[studies]
    broken = _zeros_and_ones(labels, studies, list(LEVELS)).astype(int)
    fractured = table["patient_overall"].to_numpy() == 1
    fold_of, dealt = np.empty(len(studies), int), 0
    for members in (np.flatnonzero(fractured), np.flatnonzero(~fractured)):  # like cards, one pack after the other
        fold_of[generator.permutation(members)] = (dealt + np.arange(len(members))) % k
        dealt += len(members)
    _level_out(fold_of, broken, fractured, k)
    return _as_parts(studies, fold_of, k)


def _level_out(fold_of: np.ndarray, broken: np.ndarray, fractured: np.ndarray, k: int) -> None:
    """Exchange fractured studies between two folds, one for one, while that evens out the levels.

    Each exchange lowers the sum of the squares of all (k, 7) numbers, so this comes to an end. Two folds that differ by
    at most one in every level cannot be improved.
    """
    has = np.array([broken[fold_of == fold].sum(axis=0) for fold in range(k)])
    changed = True
    while changed:
        changed = False
        for a, b in combinations(range(k), 2):
            while np.abs(has[a] - has[b]).max() > 1:
                ours, theirs = (np.flatnonzero((fold_of == fold) & fractured) for fold in (a, b))
                moved = broken[ours][:, None] - broken[theirs]
                change = (moved * (moved - (has[a] - has[b]))).sum(axis=-1)
                if not change.size or change.min() >= 0:
                    break
                i, j = np.unravel_index(change.argmin(), change.shape)
                fold_of[ours[i]], fold_of[theirs[j]] = b, a
                has[a] -= moved[i, j]
                has[b] += moved[i, j]
                changed = True


def _as_parts(studies: list, fold_of: np.ndarray, k: int) -> list[dict]:
    held_out = [[s for s, f in zip(studies, fold_of, strict=True) if f == fold] for fold in range(k)]
    check_disjoint(held_out)
    result = []
    for own in held_out:
        inside = set(own)
        result.append({"train": [s for s in studies if s not in inside], "validation": own})
        check_disjoint(result[-1])
    return result


@dataclass(frozen=True)
class ReproductionSplit:
    """The split of the students' project that this course grew from, on these studies.

    Attributes
    ----------
    parts : "train", "validation", "test" -> ids
    left_over : ids in no part
    note : how it differs from the project's, and what it cannot show
    """

    parts: dict[str, list[str]]
    left_over: list[str]
    note: str


def reproduction_split(studies, labels: pd.DataFrame, *, generator: np.random.Generator) -> ReproductionSplit:
    """Studies with a label map -> 70 for training, 14 for validation, 2 for testing, as the students' project did.

    Parameters
    ----------
    studies : a survey (its studies that are usable with a label map are taken), or ids, each once
    labels : DataFrame indexed by study with the column `patient_overall`
    generator : the same one gives the same split

    Returns
    -------
    ReproductionSplit. From 86 studies on the sizes are 70, 14 and 2; what is more is left over, chosen by lot: 87 real
    studies have a label map, the project used 86, and no reason is known. Fewer studies are divided in the same
    proportions, with two for testing.

    Raises
    ------
    ParameterError : a study appears twice or has no labels, or there are fewer than four
    DatasetError : no study of the survey is usable with a label map
    """
    studies = usable(studies, with_mask=True) if isinstance(studies, pd.DataFrame) else studies
    studies = _checked_studies(studies, labels, generator)
    wanted = sum(_PROJECT.values())
    if len(studies) < 4:
        raise ParameterError(
            "studies",
            found=f"{len(studies)} with a label map",
            expected="at least four: two to test, one to validate and one to train on",
            remedy="use a larger cohort.",
        )
    if len(studies) >= wanted:
        sizes, note = dict(_PROJECT), "70, 14 and 2 studies, as in the students' project"
    else:
        validation = max(1, round(len(studies) * _PROJECT["validation"] / wanted))
        sizes = {"train": len(studies) - validation - 2, "validation": validation, "test": 2}
        note = (
            f"{len(studies)} studies instead of {wanted}: {sizes['train']}, {validation} and 2 instead of 70, 14 and 2"
        )
    parts = split(studies, labels, sizes=sizes, generator=generator)
    dealt = {study for part in parts.values() for study in part}
    left_over = [study for study in studies if study not in dealt]
    if left_over:
        note += f"; {len(left_over)} left over, chosen by lot"
    note += (
        ". Two test studies show next to nothing: if both are right, the true rate lies between 16 and 100 % (95 %)."
    )
    return ReproductionSplit(parts, left_over, note)


def _zeros_and_ones(labels: pd.DataFrame, studies: list, columns: list[str]) -> np.ndarray:
    """Labels of the studies as an array; anything but 0 and 1 would be dealt out in no order at all."""
    absent = [column for column in columns if column not in labels.columns]
    values = labels.loc[studies, [column for column in columns if column not in absent]].to_numpy()
    numbers = values.dtype.kind in "biuf"
    if absent or not numbers or not np.isin(values, (0, 1)).all():
        raise ParameterError(
            "labels",
            found=f"no column {absent[0]}"
            if absent
            else "other labels"
            if numbers
            else f"labels of type {values.dtype}",
            expected=f"0 or 1 for every study in {', '.join(columns)}",
            remedy="take dataset.labels, or convert the table to whole numbers.",
        )
    return values


def _checked_studies(studies, labels: pd.DataFrame, generator) -> list:
    """The studies as a list. Raises ParameterError if one appears twice, here or in the labels, or has no labels."""
    studies = list(studies)
    if not isinstance(generator, np.random.Generator):
        raise ParameterError(
            "generator",
            found=type(generator).__name__,
            expected="a numpy Generator, so that the same split can be made again",
            remedy="pass np.random.default_rng(seed).",
        )
    if not labels.index.is_unique:
        raise ParameterError(
            "labels",
            found=f"study {labels.index[labels.index.duplicated()][0]} more than once",
            expected="one row a study",
            remedy="take them from dataset.labels.",
        )
    if len(set(studies)) != len(studies):
        twice = next(s for s in studies if studies.count(s) > 1)
        raise ParameterError(
            "studies",
            found=f"study {twice} more than once",
            expected="each study once, or one patient could be on both sides of the split",
            remedy="pass study ids, not slices; remove repeats.",
        )
    unknown = [study for study in studies if study not in labels.index]
    if unknown:
        raise ParameterError(
            "studies",
            found=f"study {unknown[0]}, which has no labels",
            expected="studies of the label table",
            remedy="take them from dataset.studies.",
        )
    return studies
