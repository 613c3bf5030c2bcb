"""The numbers of one rung, from predictions on patients that had no part in training."""

from __future__ import annotations

import numpy as np
from scipy.stats import binomtest

from cspine_utils import metrics, ranking
from cspine_utils.errors import ParameterError

#: Columns of data/ladder.csv beside those that say what was trained.
NUMBERS = (
    "auroc", "auroc_low", "auroc_high", "pooled_auroc", "above_own_twin", "twin_low", "twin_high",
    "loss", "constant", "difference", "difference_low", "difference_high", "skill",
    "auroc_before", "loss_before", "auroc_torn", "loss_torn",
)  # fmt: skip


def of_crops(y: np.ndarray, p: np.ndarray, patients: np.ndarray, rng: np.random.Generator) -> dict[str, float]:
    """AUROC within levels with its interval over patients, and how often a broken crop is scored above its own twin.

    Parameters
    ----------
    y, p : `(n, 8)`, a broken crop and its twin in turn, NaN in y for what a crop does not show
    patients : `(n,)`; for the AUROC, crops are compared with those of other patients alone

    Raises ParameterError unless the two of each pair are told for one and the same level, broken first.
    """
    paired = len(y) % 2 == 0 and ((y[0::2] == 1) == (y[1::2] == 0)).all() and (np.nansum(y, axis=1)[0::2] == 1).all()
    if not paired:
        raise ParameterError(
            "y",
            found=f"{len(y)} crops that are not a broken one and its twin in turn",
            expected="pairs, one level told in each, 1 in the first and 0 in the second",
            remedy="pass the rows in the order of crops.TwinCrops.",
        )
    auroc = ranking.bootstrap(ranking.within_level_auroc, y, p, generator=rng, groups=patients)
    told = np.where(np.isnan(y), 0.0, p).sum(axis=1)  # one level a crop is told
    wins = (told[0::2] > told[1::2]).sum() + 0.5 * (told[0::2] == told[1::2]).sum()
    share = binomtest(int(wins), len(told) // 2).proportion_ci(method="wilson")
    return _auroc(auroc) | {
        "pooled_auroc": ranking.pooled_auroc(y, p),
        "above_own_twin": float(wins / (len(told) // 2)), "twin_low": share.low, "twin_high": share.high,
    }  # fmt: skip


def of_necks(y: np.ndarray, p: np.ndarray, rates: np.ndarray, rng: np.random.Generator) -> dict[str, float]:
    """AUROC within levels, plain BCE beside the constant, and the skill.

    Parameters
    ----------
    y, p : `(n, 8)`
    rates : `(8,)`, the constant, from the studies that trained
    """
    losses = metrics.plain_bce_per_study(y, p)
    constant = metrics.plain_bce_per_study(y, metrics.constant_predictions(rates, len(y)))
    difference = metrics.paired_bootstrap(losses, constant, generator=rng)
    auroc = ranking.bootstrap(ranking.within_level_auroc, y, p, generator=rng)
    return _auroc(auroc) | {
        "pooled_auroc": ranking.pooled_auroc(y, p),
        "loss": float(losses.mean()), "constant": float(constant.mean()), "difference": difference.mean,
        "difference_low": difference.low, "difference_high": difference.high, "skill": ranking.skill(losses, constant),
    }  # fmt: skip


def briefly(y: np.ndarray, p: np.ndarray, when: str, patients: np.ndarray | None = None) -> dict[str, float]:
    """AUROC within levels and, of necks, the mean loss of other answers than those that count.

    Parameters
    ----------
    when : "before", the weights that a rung begins with; or "torn", the masks
    patients : of crops, see `of_crops`
    """
    numbers = {f"auroc_{when}": ranking.within_level_auroc(y, p, patients)}
    if patients is None:
        numbers[f"loss_{when}"] = float(metrics.plain_bce_per_study(y, p).mean())
    return numbers


def of_twins(y: np.ndarray, broken: np.ndarray, intact: np.ndarray) -> dict[str, float]:
    """How often a fractured level is scored above the same level of the neck's intact twin.

    Parameters
    ----------
    y, broken : `(n, 8)`, labels of fractured necks and what is said of them
    intact : `(n, 8)`, what is said of their twins, in the same order

    Raises ParameterError for no fractured level, or twins of other necks.
    """
    if not y.shape == broken.shape == intact.shape or not (y[:, :-1] == 1).any():
        raise ParameterError(
            "y, broken, intact",
            found=f"shapes {y.shape}, {broken.shape}, {intact.shape}, {int((y[:, :-1] == 1).sum())} fractured levels",
            expected="one shape, and at least one fractured level",
            remedy="pass fractured necks and their twins in the same order.",
        )
    told = y[:, :-1] == 1
    gap = (broken - intact)[:, :-1][told]
    wins = (gap > 0).sum() + 0.5 * (gap == 0).sum()
    share = binomtest(int(wins), int(told.sum())).proportion_ci(method="wilson")
    return {"above_own_twin": float(wins / told.sum()), "twin_low": share.low, "twin_high": share.high}


def _auroc(estimate: ranking.Estimate) -> dict[str, float]:
    return {"auroc": estimate.value, "auroc_low": estimate.low, "auroc_high": estimate.high}
