"""Evidence -> probabilities: one slope and one offset for all levels, and one offset for the patient.

A model that learned from crops, half of them broken, ranks vertebrae of whole necks well but calls far too many of them
broken: there are other base rates, and more tokens to find something in. How often each level breaks is known from the
labels; what is left are two numbers for all seven levels together (Platt 1999, "Probabilistic outputs for support
vector machines"), so a few dozen studies are enough. They must not be those that judge.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import minimize

from cspine_utils import training
from cspine_utils.anatomy import LEVELS
from cspine_utils.errors import ParameterError
from cspine_utils.metrics import EPSILON
from cspine_utils.models.base import noisy_or
from cspine_utils.models.vit3d import ViT3D
from cspine_utils.objectives import Objective

#: Pull of the slope's logarithm and of both offsets towards 0, in nats for the whole sample, squared. A sample that is
#: perfectly ranked, or in which nothing is broken, would ask for infinity.
_PULL = 0.02


class Scale(NamedTuple):
    """A level's logit is `prior + slope * evidence + offset`; the patient's their noisy-or, moved by `patient`."""

    slope: float
    offset: float
    patient: float


def fit_scale(evidence, prior, y) -> Scale:
    """The scale with the lowest binary cross-entropy.

    Parameters
    ----------
    evidence : `(n, 7)`, logits of C1-C7 without their bias
    prior : `(7,)`, logit of each level where there is no evidence
    y : `(n, 8)` in the order of `anatomy.TARGETS`

    Raises
    ------
    ParameterError : other shapes, or y that are not 0 and 1
    """
    evidence, prior, y = (np.asarray(a, dtype=np.float64) for a in (evidence, prior, y))
    n, levels = len(y), len(LEVELS)
    shapes = evidence.shape, prior.shape, y.shape
    if shapes != ((n, levels), (levels,), (n, levels + 1)) or not n or not np.isin(y, (0, 1)).all():
        raise ParameterError(
            "fit_scale(evidence, prior, y)",
            found=f"shapes {', '.join(map(str, shapes))}, y of {np.unique(y)[:4].tolist()}",
            expected=f"(n, {levels}), ({levels},), (n, {levels + 1}); y of 0 and 1",
            remedy="pass evidence, prior and labels of the same studies.",
        )

    def loss(logit, truth):
        return (np.logaddexp(0.0, logit) - truth * logit).mean()

    def of_levels(values):
        logit = prior + np.exp(values[0]) * evidence + values[1]
        return loss(logit, y[:, :levels]) + _PULL / n * (values**2).sum()

    exact = {"method": "Nelder-Mead", "options": {"xatol": 1e-6, "fatol": 1e-10}}
    log_slope, offset = minimize(of_levels, np.zeros(2), **exact).x
    union = noisy_or(torch.from_numpy(prior + np.exp(log_slope) * evidence + offset)).numpy()

    def of_patient(shift):
        return loss(union + shift[0], y[:, -1]) + _PULL / n * shift[0] ** 2

    patient = minimize(of_patient, np.zeros(1), **exact).x
    return Scale(float(np.exp(log_slope)), float(offset), float(patient[0]))


def calibrate(model: ViT3D, dataset, objective: Objective, *, rates=None, batch_size: int = 4) -> Scale:
    """Fit the scale on a dataset and put it into the model's head ("mask").

    Parameters
    ----------
    rates : `(8,)` or `(7,)` base rates, for the prior of each level; None keeps the biases that the model has

    Returns
    -------
    the scale that was applied
    """
    y, p = training.predict(model, dataset, batch_size=batch_size, objective=objective)
    p = np.clip(p[:, : len(LEVELS)], EPSILON, 1 - EPSILON)
    head = model.head
    bias = head.bias[:-1].detach().double().cpu().numpy()
    prior = bias
    if rates is not None:
        rates = np.asarray(rates, dtype=np.float64)[: len(LEVELS)]
        prior = np.log(rates) - np.log1p(-rates)
    scale = fit_scale(np.log(p) - np.log1p(-p) - bias, prior, y)
    with torch.no_grad():
        head.gain.mul_(scale.slope)
        head.bias.copy_(torch.from_numpy(np.append(prior + scale.offset, scale.patient)))
    return scale
