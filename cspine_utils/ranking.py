"""Does a model see fractures, or does it only know which levels break often?

AUROC: how often a fractured vertebra gets a higher score than an intact one, 0.5 for a coin. It is computed **within
each level and then averaged**. Pooled over levels, a constant that knows only that C7 breaks more often than C3 ranks
pairs of different levels right and scores about 0.65, which looks like learning.

`y` and `scores` are `(n, 8)` in the order of `anatomy.TARGETS`; NaN in `y` means "not told" (a crop shows one
vertebra). Every function raises ParameterError for arrays that cannot be these.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.stats import rankdata

from cspine_utils.anatomy import LEVELS, TARGETS
from cspine_utils.errors import ParameterError


class Estimate(NamedTuple):
    """A number with the interval that redrawing the studies gives it."""

    value: float
    low: float
    high: float


def aurocs(y, scores, patients=None) -> np.ndarray:
    """AUROC of each target: `(n, 8)`, `(n, 8)` -> `(8,)`, NaN for a target without both a positive and a negative.

    `patients` `(n,)`: only rows of unlike patients are compared. A crop and its twin are told apart far more easily
    than two patients; in a redrawn cohort, where a patient comes twice, the comparison with itself comes four times.
    """
    y, scores = _checked(y, scores)
    found = np.full(len(TARGETS), np.nan)
    for k in range(len(TARGETS)):
        found[k] = _auroc(y[:, k], scores[:, k], patients)
    return found


def within_level_auroc(y, scores, patients=None) -> float:
    """Mean of the AUROCs of C1 ... C7 (levels without both a positive and a negative are left out); NaN if none has.

    `patients` as in `aurocs`.
    """
    levels = aurocs(y, scores, patients)[: len(LEVELS)]
    return float(np.nanmean(levels)) if not np.isnan(levels).all() else float("nan")


def pooled_auroc(y, scores) -> float:
    """AUROC over all vertebrae of all levels together: inflated by what the levels alone tell; for comparison only.

    NaN without both a positive and a negative.
    """
    return _auroc(*(a[:, : len(LEVELS)].ravel() for a in _checked(y, scores)))


def bootstrap(statistic, y, scores, *, generator: np.random.Generator, groups=None, draws: int = 1000) -> Estimate:
    """`statistic(y, scores)` with a 95 % percentile interval from redrawing the studies.

    Parameters
    ----------
    statistic : e.g. `within_level_auroc`; it gets the groups of its rows as a third argument, if there are groups
    groups : patient of each row, where one patient has several (a crop and its twin); by default each row is one
    draws : redrawn cohorts; those for which the statistic is NaN are left out, and without any other the interval is
        NaN
    """
    y, scores = _checked(y, scores)
    rows_alone = groups is None
    groups = np.arange(len(y)) if rows_alone else np.asarray(groups)
    if groups.shape != (len(y),) or draws < 1:
        raise ParameterError(
            "groups, draws",
            found=f"groups of shape {groups.shape}, {draws} draws",
            expected=f"({len(y)},), the patient of each row, and at least one draw",
            remedy="pass the patients of the same rows in the same order.",
        )
    _, member = np.unique(groups, return_inverse=True)
    rows = [np.flatnonzero(member == g) for g in range(member.max() + 1)]
    told_of = (y, scores) if rows_alone else (y, scores, member)
    values = []
    for _ in range(draws):
        drawn = np.concatenate([rows[g] for g in generator.integers(len(rows), size=len(rows))])
        values.append(statistic(*(part[drawn] for part in told_of)))
    told = np.array(values)[~np.isnan(values)]
    low, high = np.quantile(told, [0.025, 0.975]) if len(told) else (np.nan, np.nan)
    return Estimate(float(statistic(*told_of)), float(low), float(high))


def skill(losses, constant) -> float:
    """Share of the constant's loss that a model takes away: 1 - mean loss / mean loss of the constant.

    1 = never wrong, 0 = the constant, below 0 = worse than knowing nothing. `(n,)` losses of the same studies.
    """
    losses, constant = np.asarray(losses, dtype=np.float64), np.asarray(constant, dtype=np.float64)
    alike = losses.shape == constant.shape and losses.ndim == 1 and len(losses) > 0
    if not alike or not np.isfinite([losses, constant]).all() or not constant.sum() > 0:
        raise ParameterError(
            "skill(losses, constant)",
            found=f"shapes {losses.shape} and {constant.shape}, sums {losses.sum():.3g} and {constant.sum():.3g}",
            expected="one loss a study from both, in the same order, finite, the constant's mean above 0",
            remedy="compute both with metrics.plain_bce_per_study on the same studies.",
        )
    return float(1 - losses.mean() / constant.mean())


def _auroc(y: np.ndarray, scores: np.ndarray, patients=None) -> float:
    """`(n,)`, `(n,)` -> AUROC of what is told, NaN without both a positive and a negative.

    By ranks (Mann and Whitney 1947), ties half: an interval takes thousands of these. With patients, by the pairs.
    """
    told = ~np.isnan(y)
    positive = y[told] == 1
    if patients is not None:
        scores, patients = scores[told], np.asarray(patients)[told]
        gaps = np.subtract.outer(scores[positive], scores[~positive])
        wins = np.heaviside(gaps, 0.5)[np.not_equal.outer(patients[positive], patients[~positive])]
        return float(wins.mean()) if wins.size else float("nan")
    broken, intact = np.count_nonzero(positive), np.count_nonzero(~positive)
    if not broken or not intact:
        return float("nan")
    return float((rankdata(scores[told])[positive].sum() - broken * (broken + 1) / 2) / (broken * intact))


def _checked(y, scores) -> tuple[np.ndarray, np.ndarray]:
    y, scores = np.asarray(y, dtype=np.float64), np.asarray(scores, dtype=np.float64)
    good = y.ndim == 2 and y.shape == scores.shape and y.shape[1] == len(TARGETS) and len(y) > 0
    if not good or not np.isin(y[~np.isnan(y)], (0, 1)).all() or np.isnan(scores[~np.isnan(y)]).any():
        raise ParameterError(
            "y, scores",
            found=f"shapes {y.shape} and {scores.shape}, y of {np.unique(y)[:5].tolist()}",
            expected=f"(n, {len(TARGETS)}) each, n from 1 up; y of 0, 1 and NaN; a score wherever y is told",
            remedy="pass labels and predictions of the same studies in the order of anatomy.TARGETS.",
        )
    return y, scores
