"""Evidence becomes probabilities by two numbers, found on known ones."""

import numpy as np
import pytest
import torch

from cspine_utils import calibration, evidence, stacks, training
from cspine_utils.anatomy import LEVELS
from cspine_utils.errors import ParameterError
from cspine_utils.models.base import noisy_or
from cspine_utils.models.vit3d import ViT3D

PRIOR = np.array([-3.0, -2.0, -3.5, -3.0, -2.5, -2.0, -1.5])


def drawn(n, *, slope, offset, patient, seed=3):
    """Evidence of n studies and labels that follow it with a known scale."""
    rng = np.random.default_rng(seed)
    found = rng.normal(0, 3, (n, len(LEVELS)))
    logits = PRIOR + slope * found + offset
    union = noisy_or(torch.from_numpy(logits)).numpy() + patient
    chances = 1 / (1 + np.exp(-np.column_stack([logits, union])))
    return found, (rng.random(chances.shape) < chances).astype(float)


def test_the_scale_that_drew_the_labels_is_found():
    scale = calibration.fit_scale(*swap(drawn(4000, slope=0.6, offset=1.2, patient=-0.8)))
    assert scale.slope == pytest.approx(0.6, abs=0.03)
    assert scale.offset == pytest.approx(1.2, abs=0.08)
    assert scale.patient == pytest.approx(-0.8, abs=0.12)


def swap(pair):
    found, y = pair
    return found, PRIOR, y


def test_no_other_scale_is_better():
    found, y = drawn(60, slope=0.4, offset=0.5, patient=0.0, seed=8)
    best = calibration.fit_scale(found, PRIOR, y)

    def loss(slope, offset):
        logit = PRIOR + slope * found + offset
        truth = y[:, :-1]
        return (np.logaddexp(0, logit) - truth * logit).mean() + 0.02 / len(y) * (np.log(slope) ** 2 + offset**2)

    least = loss(best.slope, best.offset)
    for step in (0.97, 1.03):
        assert loss(best.slope * step, best.offset) > least
        assert loss(best.slope, best.offset + np.log(step)) > least


def test_a_sample_with_nothing_broken_moves_everything_down_and_stays_finite():
    scale = calibration.fit_scale(drawn(20, slope=1, offset=0, patient=0)[0], PRIOR, np.zeros((20, 8)))
    assert np.isfinite(scale).all() and scale.offset < -1 and scale.patient <= 0


def test_a_perfectly_ranked_sample_keeps_its_numbers_finite():
    y = np.zeros((10, 8))
    y[:3, 2] = y[:3, 7] = 1
    found = np.where(y[:, :7] == 1, 5.0, -5.0)
    scale = calibration.fit_scale(found, PRIOR, y)
    assert np.isfinite(scale).all() and 0 < scale.slope < 100


@pytest.mark.parametrize(
    ("found", "prior", "y"),
    [
        (np.zeros((0, 7)), PRIOR, np.zeros((0, 8))),
        (np.zeros((4, 8)), PRIOR, np.eye(4, 8)),
        (np.zeros((4, 7)), PRIOR[:6], np.eye(4, 8)),
        (np.zeros((4, 7)), PRIOR, np.eye(4, 8) * np.nan),
    ],
)
def test_what_cannot_be_fitted_is_refused(found, prior, y):
    with pytest.raises(ParameterError, match="the same studies"):
        calibration.fit_scale(found, prior, y)


class Necks(torch.utils.data.Dataset):
    """Two vertebrae in noise; of broken ones, the voxels are brighter and marked."""

    def __init__(self, n, seed):
        rng = np.random.default_rng(seed)
        self.x, self.y = [], torch.zeros(n, 8)
        for i in range(n):
            labels = np.zeros((10, 16, 16), np.float32)
            labels[:, 2:14, :8], labels[:, 2:14, 8:] = 2, 5
            stack = np.full((10, 7, 16, 16), 0.0, np.float32)
            stack[:, :5] = rng.normal(0, 0.3, (10, 5, 16, 16))
            for label, share in ((2, 0.15), (5, 0.4)):
                if rng.random() < share:
                    self.y[i, label - 1] = self.y[i, 7] = 1
                    stack[:, :5] += 1.5 * (labels == label)[:, None]
                    stack[:, 6] += labels == label
            stack[:, 5] = stacks.scale_labels(labels)
            self.x.append(torch.from_numpy(stack))

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return self.x[i], self.y[i]


def with_biases(biases):
    torch.manual_seed(0)
    model = ViT3D(
        frames=10, size=16, frame_patch=5, patch=8, dim=24, depth=1, stem="conv", position="sincos", head="mask"
    )
    with torch.no_grad():
        model.head.evidence.weight.normal_(0, 1)
        model.head.bias.copy_(biases)
    return model


def test_a_model_that_calls_too_many_broken_is_put_right():
    model = with_biases(torch.full((8,), 4.0))  # everything is broken
    dataset, objective = Necks(40, seed=1), evidence.objective(frame_patch=5, patch=8)
    rates = (dataset.y.numpy().sum(axis=0) + 0.5) / (len(dataset) + 1)
    y, before = training.predict(model, dataset, 8, objective)
    scale = calibration.calibrate(model, dataset, objective, rates=rates)
    _, after = training.predict(model, dataset, 8, objective)
    assert before[:, :7].mean() > 0.8
    assert after[:, :7].mean() == pytest.approx(y[:, :7].mean(), abs=0.01)
    assert after[:, 7].mean() == pytest.approx(y[:, 7].mean(), abs=0.03)
    # Levels that nobody saw stay at their rates, moved by the common offset.
    prior = np.log(rates[0] / (1 - rates[0]))
    assert after[:, 0] == pytest.approx(1 / (1 + np.exp(-(prior + scale.offset))), abs=1e-5)


def test_a_second_calibration_keeps_the_levels_biases():
    model = with_biases(torch.tensor([-4.0, -1.0, -4.0, -4.0, -0.5, -4.0, -4.0, 0.0]))
    apart = (model.head.bias[4] - model.head.bias[1]).item()
    calibration.calibrate(model, Necks(30, seed=2), evidence.objective(frame_patch=5, patch=8))
    assert (model.head.bias[4] - model.head.bias[1]).item() == pytest.approx(apart, abs=1e-5)
