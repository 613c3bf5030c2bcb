"""What a threshold on a model's probabilities means: sensitivity, specificity, predictive value, net benefit."""

from __future__ import annotations

import numpy as np

from cspine_utils.errors import WorklistError


def operating_point(y, p, threshold: float) -> tuple[float, float]:
    """(sensitivity, specificity) of the answer "p >= threshold".

    Parameters
    ----------
    y, p : `(n,)`, 0 or 1, and probabilities

    Raises WorklistError unless both answers occur in y, and for p that are no probabilities.
    """
    y, p = np.asarray(y), np.asarray(p, dtype=float)
    usable = y.shape == p.shape and y.ndim == 1 and np.isin(y, (0, 1)).all() and len(np.unique(y)) == 2
    if not usable or not ((p >= 0) & (p <= 1)).all():
        raise WorklistError(
            "operating_point(y, p)",
            found=f"shapes {y.shape}, {p.shape}, y of {np.unique(y)[:4].tolist()}, "
            f"{int((~((p >= 0) & (p <= 1))).sum())} of p outside 0 to 1",
            expected="(n,) each, y of 0 and 1, both of them, p from 0 to 1",
            remedy="judge on exams with and without fracture.",
        )
    said = p >= threshold
    return float(said[y == 1].mean()), float((~said)[y == 0].mean())


def drawn_operating_points(y, p, threshold: float, draws: int, generator: np.random.Generator):
    """Operating points that such answers leave possible: draws from Beta(k + 1/2, n - k + 1/2), k right ones of n.

    Where few exams were judged they spread widely, and where all answers were right, too (a bootstrap would call that
    certain). Jeffreys' prior; Brown, Cai, DasGupta 2001, Statistical Science 16:101.

    Returns
    -------
    tuple of `draws` pairs (sensitivity, specificity), for `Scenario(operating_points=...)`
    """
    broken = int(np.sum(np.asarray(y) == 1))
    drawn = []
    for share, n in zip(operating_point(y, p, threshold), (broken, len(y) - broken), strict=True):
        right = round(share * n)
        drawn.append(generator.beta(right + 0.5, n - right + 0.5, draws).tolist())
    return tuple(zip(*drawn, strict=True))


def positive_predictive_value(prevalence, sensitivity: float, specificity: float):
    """Share of the flagged exams that are broken (Bayes), NaN where none is flagged. Prevalence may be an array.

    Raises WorklistError for what is no probability.
    """
    _probabilities(prevalence=prevalence, sensitivity=sensitivity, specificity=specificity)
    prevalence = np.asarray(prevalence, dtype=float)
    flagged = prevalence * sensitivity + (1 - prevalence) * (1 - specificity)
    found = np.divide(prevalence * sensitivity, flagged, out=np.full_like(flagged, np.nan), where=flagged > 0)
    return found[()]


def at_prevalence(p, learned: float, here: float):
    """Probabilities of a model that learned at one prevalence, for a place with another: the odds times their ratio.

    Holds where nothing but the prevalence differs (Saerens et al. 2002, Neural Computation 14:21).

    Raises WorklistError for a prevalence of 0 or 1: there is nothing to ask there.
    """
    for name, value in (("learned", learned), ("here", here)):
        if not 0 < value < 1:
            raise WorklistError(name, found=repr(value), expected="above 0 and below 1", remedy="pass a prevalence.")
    p = np.asarray(p, dtype=float)
    odds = here / (1 - here) / (learned / (1 - learned))
    return p * odds / (p * odds + 1 - p)


def net_benefit(threshold, prevalence: float, sensitivity, specificity):
    """Broken exams found per exam, less the false alarms at the price that the threshold names (Vickers, Elkin 2006).

    NB = pi Se - (1 - pi) (1 - Sp) t / (1 - t); whoever flags everything has Se = 1, Sp = 0, and nothing flagged has 0.

    Raises WorklistError for thresholds from 1 up, at which a false alarm has no price that one could pay, and for what
    is no probability.
    """
    _probabilities(threshold=threshold, prevalence=prevalence, sensitivity=sensitivity, specificity=specificity)
    if not (np.asarray(threshold) < 1).all():
        raise WorklistError(
            "threshold", found=repr(threshold), expected="below 1", remedy="leave out the threshold of 1."
        )
    price = threshold / (1 - threshold)
    return prevalence * sensitivity - (1 - prevalence) * (1 - specificity) * price


def _probabilities(**values) -> None:
    for name, value in values.items():
        value = np.asarray(value, dtype=float)
        if not ((value >= 0) & (value <= 1)).all():
            raise WorklistError(
                name, found=repr(value.tolist()), expected="from 0 to 1", remedy="pass shares, not percentages."
            )
