"""AUROC with an interval, and small cross-validated models, without a library for them.

How AUROCs are judged: a feature that knows nothing has .5, and must stay within `FREE`. With n in the thousands the
number itself is judged. With a few hundred, chance alone passes .58 in one of some twenty features, so there a check
fails only if the whole 95 % interval lies outside `FREE`; the note says whether the interval lies inside, so that a
pass that proves little can be told from one that does.
"""

from __future__ import annotations

import numpy as np
from scipy import stats

from .report import Row

FREE = (0.42, 0.58)


def auroc(score: np.ndarray, truth: np.ndarray) -> float:
    """Share of (true, false) pairs in which the true one scores higher, ties half; NaN if a class is empty."""
    truth = np.asarray(truth, dtype=bool)
    positives, n = int(truth.sum()), len(truth)
    if positives in (0, n):
        return float("nan")
    ranks = stats.rankdata(score)
    return float((ranks[truth].sum() - positives * (positives + 1) / 2) / (positives * (n - positives)))


def auroc_interval(score: np.ndarray, truth: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """Interval after DeLong (Biometrics 44:837, 1988), clipped to 0-1.

    For a feature without spread the interval is that of the exact null (Mann-Whitney), so that it is never a point.
    """
    truth = np.asarray(truth, dtype=bool)
    value = auroc(score, truth)
    a, b = np.asarray(score, dtype=float)[truth], np.asarray(score, dtype=float)[~truth]
    if not np.isfinite(value) or min(len(a), len(b)) < 2:
        return 0.0, 1.0
    everyone = stats.rankdata(np.r_[a, b])
    of_a = (everyone[: len(a)] - stats.rankdata(a)) / len(b)
    of_b = 1.0 - (everyone[len(a) :] - stats.rankdata(b)) / len(a)
    error = np.sqrt(of_a.var(ddof=1) / len(a) + of_b.var(ddof=1) / len(b))
    reach = stats.norm.ppf(0.5 + level / 2) * error
    return float(max(0.0, value - reach)), float(min(1.0, value + reach))


def null_error(truth: np.ndarray) -> float:
    """Standard error of the AUROC of a continuous score that knows nothing (Mann-Whitney)."""
    a = int(np.sum(truth))
    b = len(truth) - a
    return float(np.sqrt((a + b + 1) / (12 * a * b))) if a and b else float("nan")


def auroc_row(check: str, what: str, score, truth, *, note: str = "", exact: bool = False) -> Row:
    """A row for an AUROC that must stay within `FREE`.

    exact : judge the number itself; otherwise a row fails only if the whole interval lies outside (see above)
    """
    value = auroc(score, truth)
    low, high = auroc_interval(score, truth)
    inside = FREE[0] <= low and high <= FREE[1]
    text = f"95 % {low:.3f} .. {high:.3f} {'inside' if inside else 'reaches beyond'} {note}".rstrip()
    if exact or not np.isfinite(value):
        return Row(check, what, value, *FREE, len(truth), text)
    meets = low <= FREE[1] and high >= FREE[0]
    return Row(check, what, value, *FREE, len(truth), f"or met by {text}", verdict=bool(meets))


def within_group_ranks(values: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Ranks within each group, scaled to 0-1."""
    ranks = np.zeros(len(values))
    for name in np.unique(group):
        own = group == name
        ranks[own] = stats.rankdata(values[own]) / (own.sum() + 1)
    return ranks


def rate_z(flag: np.ndarray, truth: np.ndarray) -> float:
    """How many standard errors the rate of a flag differs between true and false (pooled two-proportion test)."""
    flag, truth = np.asarray(flag, dtype=float), np.asarray(truth, dtype=bool)
    a, b, p = truth.sum(), (~truth).sum(), flag.mean()
    if not a or not b or p in (0.0, 1.0):
        return 0.0
    return float((flag[truth].mean() - flag[~truth].mean()) / np.sqrt(p * (1 - p) * (1 / a + 1 / b)))


def z_limit(tests: int, chance: float = 0.001) -> float:
    """|z| that chance passes in any of so many tests with probability `chance` (Bonferroni)."""
    return float(stats.norm.isf(chance / 2 / max(1, tests)))


# ------------------------------------------------------------------------------------------------------ small models


def standardised(train: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both sets with the mean and spread of the training set taken out, and a column of ones."""
    centre, spread = train.mean(axis=0), train.std(axis=0)
    spread = np.where(spread > 1e-12, spread, 1.0)
    return tuple(np.c_[np.clip((x - centre) / spread, -6, 6), np.ones(len(x))] for x in (train, other))


def logistic(x: np.ndarray, y: np.ndarray, other: np.ndarray, ridge: float = 3.0) -> np.ndarray:
    """Scores of `other` after a ridge logistic regression on `x` `(n, k)`, `y` `(n,)`; Newton's method."""
    x, other = standardised(x, other)
    w = np.zeros(x.shape[1])
    penalty = np.r_[np.full(len(w) - 1, ridge), 1e-6]
    for _ in range(12):
        p = 1 / (1 + np.exp(-x @ w))
        hessian = (x * (p * (1 - p))[:, None]).T @ x + np.diag(penalty)
        step = np.linalg.solve(hessian, x.T @ (y - p) - penalty * w)
        w += step
        if np.abs(step).max() < 1e-6:
            break
    return other @ w


def boosted_trees(x, y, other, *, rounds: int = 40, rate: float = 0.15, bins: int = 16) -> np.ndarray:
    """Scores of `other` after gradient boosting with trees of two splits deep on binned features."""
    edges = [np.unique(np.quantile(column, np.linspace(0, 1, bins + 1)[1:-1])) for column in x.T]
    codes = np.stack([np.searchsorted(e, c, side="left") for e, c in zip(edges, x.T, strict=True)], 1)
    others = np.stack([np.searchsorted(e, c, side="left") for e, c in zip(edges, other.T, strict=True)], 1)
    f, g = np.zeros(len(x)), np.zeros(len(other))
    for _ in range(rounds):
        p = 1 / (1 + np.exp(-f))
        slope, weight = y - p, p * (1 - p)
        column, cut = _best_split(codes, slope, weight, bins)
        for side, other_side in (
            (codes[:, column] <= cut, others[:, column] <= cut),
            (codes[:, column] > cut, others[:, column] > cut),
        ):
            if side.sum() < 10:
                continue
            inner, at = _best_split(codes[side], slope[side], weight[side], bins)
            for low in (True, False):
                leaf = side & ((codes[:, inner] <= at) == low)
                if leaf.any():
                    value = rate * slope[leaf].sum() / (weight[leaf].sum() + 5.0)
                    f[leaf] += value
                    g[other_side & ((others[:, inner] <= at) == low)] += value
    return g


def _best_split(codes: np.ndarray, slope: np.ndarray, weight: np.ndarray, bins: int) -> tuple[int, int]:
    """Column and bin after which to split, by the gain of the squared slope."""
    n, k = codes.shape
    place = (codes + bins * np.arange(k)).ravel()
    s = np.bincount(place, np.repeat(slope, k), bins * k).reshape(k, bins).cumsum(axis=1)
    w = np.bincount(place, np.repeat(weight, k), bins * k).reshape(k, bins).cumsum(axis=1)
    gain = s**2 / (w + 5.0) + (s[:, -1:] - s) ** 2 / (w[:, -1:] - w + 5.0)
    return tuple(int(i) for i in np.unravel_index(gain.argmax(), gain.shape))


MODELS = {"linear model": logistic, "boosted trees": boosted_trees}


def cross_validated(model, x: np.ndarray, y: np.ndarray, rng: np.random.Generator, folds: int = 5) -> np.ndarray:
    """A score for every row from a model that has not seen it, ranked within its fold so that folds can be pooled."""
    fold = rng.permutation(len(y)) % folds
    scores = np.zeros(len(y))
    for k in range(folds):
        here = fold == k
        scores[here] = stats.rankdata(model(x[~here], y[~here].astype(float), x[here])) / here.sum()
    return scores
