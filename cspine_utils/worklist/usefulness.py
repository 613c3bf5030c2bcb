"""What a threshold on a model's probabilities means: sensitivity, specificity, predictive value, net benefit."""

from __future__ import annotations

import numpy as np

from cspine_utils.errors import WorklistError


def operating_point(y, p, threshold: float) -> tuple[float, float]:
    """(sensitivity, specificity) of the answer "p >= threshold".

    Parameters
    ----------
    y, p : `(n,)`, 0 or 1, and probabilities

    Raises WorklistError unless both answers occur in y.
    """
    y, p = np.asarray(y), np.asarray(p, dtype=float)
    if y.shape != p.shape or y.ndim != 1 or not np.isin(y, (0, 1)).all() or len(np.unique(y)) != 2:
        raise WorklistError(
            "operating_point(y, p)",
            found=f"shapes {y.shape}, {p.shape}, y of {np.unique(y)[:4].tolist()}",
            expected="(n,) each, y of 0 and 1, both of them",
            remedy="judge on exams with and without fracture.",
        )
    said = p >= threshold
    return float(said[y == 1].mean()), float((~said)[y == 0].mean())


def drawn_operating_points(y, p, threshold: float, draws: int, generator: np.random.Generator):
    """As `operating_point`, of exams drawn with replacement, broken and intact apart: what few exams leave open.

    Returns
    -------
    tuple of `draws` pairs (sensitivity, specificity), for `Scenario(operating_points=...)`
    """
    sensitivity, specificity = operating_point(y, p, threshold)
    broken = int(np.sum(np.asarray(y) == 1))
    found = generator.binomial(broken, sensitivity, draws) / broken
    spared = generator.binomial(len(y) - broken, specificity, draws) / (len(y) - broken)
    return tuple(zip(found.tolist(), spared.tolist(), strict=True))


def positive_predictive_value(prevalence, sensitivity: float, specificity: float):
    """Share of the flagged exams that are broken (Bayes). Prevalence may be an array."""
    flagged = prevalence * sensitivity + (1 - prevalence) * (1 - specificity)
    return prevalence * sensitivity / flagged


def at_prevalence(p, learned: float, here: float):
    """Probabilities of a model that learned at one prevalence, for a place with another: the odds times their ratio.

    Holds where nothing but the prevalence differs (Saerens et al. 2002, Neural Computation 14:21).
    """
    p = np.asarray(p, dtype=float)
    odds = here / (1 - here) / (learned / (1 - learned))
    return p * odds / (p * odds + 1 - p)


def net_benefit(threshold, prevalence: float, sensitivity, specificity):
    """Broken exams found per exam, less the false alarms at the price that the threshold names (Vickers, Elkin 2006).

    NB = pi Se - (1 - pi) (1 - Sp) t / (1 - t); whoever flags everything has Se = 1, Sp = 0, and nothing flagged has 0.
    """
    price = threshold / (1 - threshold)
    return prevalence * sensitivity - (1 - prevalence) * (1 - specificity) * price
