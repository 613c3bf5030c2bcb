"""How wrong a prediction is, and beside what that must be read.

`y` and `p` are `(n, 8)`: one row a study, columns in the order of `anatomy.TARGETS`; `y` is 0 or 1, `p` a
probability. Losses are in nats, computed in float64. Everything is per study first: one study is one patient, and
means, standard errors and bootstraps go over studies.

Two losses live here and never share a column. Plain BCE is the mean over studies and targets. The competition's log
loss weighs targets and positives; on it a constant that knows nothing scores about 0.56, on plain BCE about 0.36.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd

from cspine_utils.anatomy import CERVICAL_IDS, LEVELS, TARGETS
from cspine_utils.errors import ParameterError

#: Probabilities are clipped to [EPSILON, 1 - EPSILON], so one confident mistake costs at most 16.1 nats, not infinity.
EPSILON = 1e-7

#: Studies added to each side when a constant is fitted for a table (half a positive, half a negative).
SMOOTHING = 0.5

#: Competition weight of each target; a positive counts twice as much (RSNA 2022, see `competition_log_loss`).
COMPETITION_WEIGHTS = np.array([1.0] * len(LEVELS) + [7.0])

LOSS_COLUMNS = (
    "model",
    "train loss",
    "train constant",
    "validation loss",
    "validation constant",
    "difference",
    "95 % low",
    "95 % high",
    "accuracy",
    "majority accuracy",
    "train studies",
    "validation studies",
    "seconds",
)


class Difference(NamedTuple):
    """A mean difference of per-study losses with its bootstrap interval."""

    mean: float
    low: float
    high: float


def plain_bce_per_study(y, p) -> np.ndarray:
    """Binary cross-entropy of each study, mean over its 8 targets: `(n, 8)`, `(n, 8)` -> `(n,)`, in nats.

    Raises ParameterError for other shapes, `y` not 0 or 1, `p` outside [0, 1] or NaN.
    """
    return _cross_entropy(*_checked(y, p)).mean(axis=1)


def plain_bce(y, p) -> float:
    """Binary cross-entropy, mean over studies and targets; arguments and errors as in `plain_bce_per_study`."""
    return float(plain_bce_per_study(y, p).mean())


def competition_log_loss_per_study(y, p) -> np.ndarray:
    """The competition's weighted log loss of each study: `(n, 8)`, `(n, 8)` -> `(n,)`, in nats.

    A level weighs 1, patient_overall 7, and a positive twice that. A study's loss is the weighted mean of its eight
    cross-entropies, so a study with many fractures counts no more than one without.
    Raises as `plain_bce_per_study`.
    """
    y, p = _checked(y, p)
    weights = COMPETITION_WEIGHTS * np.where(y == 1, 2.0, 1.0)  # (n, 8)
    return (weights * _cross_entropy(y, p)).sum(axis=1) / weights.sum(axis=1)


def competition_log_loss(y, p) -> float:
    """Mean over studies of `competition_log_loss_per_study`.

    Source: the metric of the RSNA 2022 Cervical Spine Fracture Detection competition, weights 1, 2, 7 and 14,
    normalised within each study before the mean.
    """
    return float(competition_log_loss_per_study(y, p).mean())


def base_rates(y, smoothing: float = 0.0) -> np.ndarray:
    """How often each target is positive: `(n, 8)` -> `(8,)`, (positives + smoothing) / (studies + 2 smoothing).

    In a small training set a rare level may never occur (C3 breaks in 3.6 % of studies: with 20 of them, about every
    second set has none). Its raw rate is then 0, the constant calls a fracture there impossible, and the first one
    in validation costs as much as the clipping allows; its logit is infinite besides. A smoothing of 0.5 keeps every
    rate inside (0, 1) and fades as the set grows.
    """
    y = _checked_labels(y)
    if not np.isfinite(smoothing) or smoothing < 0:
        raise _refused("smoothing", found=repr(smoothing), expected="a number of studies, 0 or more")
    return (y.sum(axis=0) + smoothing) / (len(y) + 2 * smoothing)


def constant_predictions(rates, n: int) -> np.ndarray:
    """The same `(8,)` rates for each of n studies: `(n, 8)`."""
    rates = np.asarray(rates, dtype=np.float64)
    if rates.shape != (len(TARGETS),):
        raise _refused("rates", found=f"shape {rates.shape}", expected=f"({len(TARGETS)},), one rate a target")
    if not ((rates >= 0) & (rates <= 1)).all():
        raise _refused("rates", found=str(rates.tolist()), expected="probabilities in [0, 1]")
    return np.tile(rates, (n, 1))


def standard_error(per_study) -> float:
    """Standard error of the mean over studies: `(n,)` -> sample standard deviation / sqrt(n), n at least 2."""
    values = _checked_per_study(per_study, "per_study")
    return float(values.std(ddof=1) / np.sqrt(len(values)))


def paired_bootstrap(a, b, *, generator: np.random.Generator, draws: int = 10_000, level: float = 0.95) -> Difference:
    """Mean of a - b over studies, with a percentile interval from redrawing the studies.

    Parameters
    ----------
    a, b : `(n,)` per-study losses of two predictions **of the same studies in the same order**. Pairing matters: easy
        and hard studies move both losses together, and only what is left after subtraction is compared.
    generator : source of the draws
    draws : number of redrawn cohorts
    level : share of the redrawn means inside the interval

    With few studies (below about 20) the interval is too narrow: it knows only the studies it was given.
    """
    if draws < 1 or not 0 < level < 1:
        found = f"draws={draws!r}, level={level!r}"
        raise _refused("draws, level", found=found, expected="draws of at least 1 and a level between 0 and 1")
    differences = _paired(a, b)
    n = len(differences)
    chunk = max(1, 2_000_000 // n)  # a full draws x n table would need 160 MB for the 2,019 studies
    means = np.concatenate(
        [
            differences[generator.integers(n, size=(min(chunk, draws - start), n))].mean(axis=1)
            for start in range(0, draws, chunk)
        ]
    )
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Difference(float(differences.mean()), float(low), float(high))


def lands_at_constant(per_study_model, per_study_constant, *, standard_errors: float = 1.0) -> bool:
    """Is the model's mean loss within the standard error of the constant's mean loss?

    The control of shuffled labels: when labels say nothing about images, a model must end here. If it ends clearly
    below, labels of the judged studies came in by another door (the choice of the epoch, a mistake in the evaluation);
    if it ends far above, it was trained so long that what it memorised of its own studies spoils its guesses for
    others. One standard error of few studies is much: look at the interval of the paired difference, too.

    Parameters
    ----------
    per_study_model, per_study_constant : `(n,)` losses of the same studies in the same order
    standard_errors : how many standard errors of the constant's mean are allowed
    """
    distance = abs(_paired(per_study_model, per_study_constant).mean())
    return bool(distance <= standard_errors * standard_error(per_study_constant))


def accuracy(y, p) -> float:
    """Share of the study-target pairs that are on the right side of one half; `(n, 8)`, `(n, 8)` as elsewhere.

    Read it beside `accuracy(y, constant)`: where most targets are negative, "nothing is ever broken" is right often.
    """
    y, p = _checked(y, p)
    return float(((p > 0.5) == (y == 1)).mean())


def dice_per_level(truth, predicted) -> np.ndarray:
    """Dice of each level between two masks of one volume: `(7,)`, C1-C7, NaN where neither mask has the level.

    2 |A and B| / (|A| + |B|): 1 = the same voxels, 0 = none in common.

    Raises ParameterError for masks of different shapes.
    """
    truth, predicted = np.asarray(truth), np.asarray(predicted)
    if truth.shape != predicted.shape:
        raise ParameterError(
            "dice_per_level(truth, predicted)",
            found=f"shapes {truth.shape} and {predicted.shape}",
            expected="two masks on one grid",
            remedy="predict the mask on the volume's own grid with segment.predict_mask",
        )
    dice = []
    for label in CERVICAL_IDS:
        a, b = truth == label, predicted == label
        total = np.count_nonzero(a) + np.count_nonzero(b)
        dice.append(2 * np.count_nonzero(a & b) / total if total else np.nan)
    return np.array(dice)


def loss_row(
    *, model: str, train_y, train_p, validation_y, validation_p, seconds: float, generator: np.random.Generator
) -> dict:
    """One row of the project's loss table: a model's plain BCE beside the constant's on the same studies.

    Parameters
    ----------
    model : name shown in the table
    train_y, train_p, validation_y, validation_p : labels and predictions `(n, 8)` of the two sets
    seconds : what the training cost
    generator : source of the bootstrap's draws

    The constant is the base rate of the **training** studies alone (smoothing 0.5), evaluated on each set, so it knows
    as much of the validation studies as the model does. `difference` is validation loss minus validation constant
    with a 95 % interval over validation studies: the model learned something if the whole interval is below 0.
    `accuracy` is the model's on the validation studies, `majority accuracy` the constant's.
    """
    train_model = plain_bce_per_study(train_y, train_p)
    validation_model = plain_bce_per_study(validation_y, validation_p)
    rates = base_rates(train_y, smoothing=SMOOTHING)
    train_constant = plain_bce_per_study(train_y, constant_predictions(rates, len(train_model)))
    constant = constant_predictions(rates, len(validation_model))
    validation_constant = plain_bce_per_study(validation_y, constant)
    difference = paired_bootstrap(validation_model, validation_constant, generator=generator)
    losses = [float(v.mean()) for v in (train_model, train_constant, validation_model, validation_constant)]
    right = [accuracy(validation_y, validation_p), accuracy(validation_y, constant)]
    counts = [len(train_model), len(validation_model)]
    return dict(zip(LOSS_COLUMNS, [str(model), *losses, *difference, *right, *counts, float(seconds)], strict=True))


def loss_table(rows: Iterable[Mapping]) -> pd.DataFrame:
    """Rows of `loss_row` as a DataFrame with the columns `LOSS_COLUMNS`.

    Raises ParameterError for a row with other columns or an empty number: no loss is shown without its constant.
    """
    rows = list(rows)
    for i, row in enumerate(rows):
        absent = [c for c in LOSS_COLUMNS if c not in row or pd.isna(row[c])]
        surplus = [str(c) for c in row if c not in LOSS_COLUMNS]
        if absent or surplus:
            raise ParameterError(
                f"loss_table(rows[{i}])",
                found=f"missing: {', '.join(absent) or 'none'}; unknown: {', '.join(surplus) or 'none'}",
                expected=f"exactly the columns {', '.join(LOSS_COLUMNS)}",
                remedy="make each row with metrics.loss_row, which computes the constant on the same studies",
            )
    return pd.DataFrame(rows, columns=list(LOSS_COLUMNS))


def _cross_entropy(y: np.ndarray, p: np.ndarray) -> np.ndarray:
    p = np.clip(p, EPSILON, 1 - EPSILON)
    return -np.where(y == 1, np.log(p), np.log1p(-p))  # (n, 8)


def _checked(y, p) -> tuple[np.ndarray, np.ndarray]:
    _check_same_studies(y, p)
    y, p = _checked_labels(y), _table(p, "p")
    if y.shape != p.shape:
        raise _refused("p", found=f"{len(p)} rows beside {len(y)} of y", expected="one row for each study of y")
    bad = ~((p >= 0) & (p <= 1))  # written so that NaN is bad, too
    if bad.any():
        raise _refused("p", found=_first(p, bad), expected="probabilities in [0, 1] (apply a sigmoid to logits)")
    return y, p


def _check_same_studies(a, b) -> None:
    """Two tables of pandas know their studies: the same in another order would be compared crosswise."""
    first, second = getattr(a, "index", None), getattr(b, "index", None)
    if isinstance(first, pd.Index) and isinstance(second, pd.Index) and not first.equals(second):
        raise _refused("y, p", found="tables with different indices", expected="the same studies in the same order")


def _checked_labels(y) -> np.ndarray:
    y = _table(y, "y")
    bad = (y != 0) & (y != 1)
    if bad.any():
        raise _refused("y", found=_first(y, bad), expected="labels that are 0 or 1")
    return y


def _table(values, name: str) -> np.ndarray:
    """A float64 array `(n, 8)`, n at least 1. A DataFrame must have its columns in our order: train.csv has not."""
    columns = getattr(values, "columns", None)
    if columns is not None and tuple(columns) != TARGETS:
        raise _refused(name, found=f"columns {', '.join(map(str, columns))}", expected=", ".join(TARGETS))
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise _refused(name, found=f"no numeric array ({error})", expected=f"(n, {len(TARGETS)}) numbers") from error
    if array.ndim != 2 or array.shape[1] != len(TARGETS) or len(array) == 0:
        raise _refused(name, found=f"shape {array.shape}", expected=f"(n, {len(TARGETS)}) with n at least 1")
    return array


def _checked_per_study(values, name: str) -> np.ndarray:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or len(array) < 2 or not np.isfinite(array).all():
        found = f"shape {array.shape}" + ("" if np.isfinite(array).all() else " with values that are not finite")
        raise _refused(name, found=found, expected="one finite loss a study, (n,) with n at least 2")
    return array


def _paired(a, b) -> np.ndarray:
    _check_same_studies(a, b)
    a, b = _checked_per_study(a, "a"), _checked_per_study(b, "b")
    if len(a) != len(b):
        raise _refused("a, b", found=f"{len(a)} and {len(b)} studies", expected="the same studies in the same order")
    return a - b


def _first(values: np.ndarray, bad: np.ndarray) -> str:
    row, column = np.argwhere(bad)[0]
    return f"{values[row, column]} in row {row}, {TARGETS[column]} ({int(bad.sum())} such values)"


def _refused(name: str, *, found: str, expected: str) -> ParameterError:
    remedy = f"pass such a {name}; tables are (studies, 8) in the order of anatomy.TARGETS"
    return ParameterError(f"metrics({name})", found=found, expected=expected, remedy=remedy)
