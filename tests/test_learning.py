"""Two controls of every classifier, on synthetic necks.

Eight easy studies are learned by heart; shuffled labels bring nothing.
"""

import pytest
import torch
from torch.utils.data import Subset, TensorDataset

from cspine_utils import demo, metrics, models, training

SIZE = 48


@pytest.fixture(scope="module")
def studies():
    return demo.easy_studies(32, seed=2022, size=SIZE)


def make(name):
    torch.manual_seed(0)
    return models.create(name, size=SIZE, **({"dim": 64, "depth": 2} if name == "vit3d" else {"frames": 7}))


def fit(name, train, validation, out, **settings):
    model = make(name)
    rates = metrics.base_rates(torch.stack([y for _, y in train]).numpy(), smoothing=0.5)
    generator = torch.Generator().manual_seed(0)
    training.fit(model, train, validation, out=out, base_rates=rates, generator=generator, progress=False, **settings)
    return model, rates


def seen_by(name, studies):
    """2D networks get every fifteenth frame here: the same neck, a fifteenth of the time."""
    x, y = studies.tensors
    return TensorDataset(x if name == "vit3d" else x[:, ::15], y)


def losses(model, rates, dataset):
    y, p = training.predict(model, dataset)
    constant = metrics.constant_predictions(rates, len(y))
    return metrics.plain_bce_per_study(y, p), metrics.plain_bce_per_study(y, constant)


def test_the_easy_studies_are_fractured_at_random(studies):
    y = studies.tensors[1]
    rates = y[:, :7].mean(dim=0)
    assert (rates > 0.15).all() and (rates < 0.85).all()
    assert torch.equal(y[:, 7], y[:, :7].amax(dim=1))


@pytest.mark.parametrize("name", models.NAMES)
def test_eight_easy_studies_are_learned_by_heart(name, studies, tmp_path):
    eight = Subset(seen_by(name, studies), range(8))
    model, rates = fit(name, eight, eight, tmp_path, epochs=60 if name == "vit3d" else 45, learning_rate=1e-3)
    by_heart, constant = losses(model, rates, eight)
    assert constant.mean() > 0.5
    assert by_heart.mean() < 0.25 * constant.mean()
    # What a leak looks like: judged by its own studies, a model does not land at the constant.
    assert not metrics.lands_at_constant(by_heart, constant)


@pytest.mark.parametrize("name", models.NAMES)
def test_shuffled_labels_land_at_the_constant(name, studies, tmp_path):
    x, y = seen_by(name, studies).tensors
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(1))
    shuffled = TensorDataset(x, y[order])
    train, held_out = Subset(shuffled, range(20)), Subset(shuffled, range(20, 32))
    model, rates = fit(name, train, held_out, tmp_path, epochs=4, learning_rate=3e-4)
    assert metrics.lands_at_constant(*losses(model, rates, held_out))


def test_a_leak_does_not_land_at_the_constant(studies, tmp_path):
    """The fixture that must fail the check above: judged by the very studies it was trained on, and long enough."""
    x, y = studies.tensors
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(1))
    leak = Subset(TensorDataset(x, y[order]), range(12))
    model, rates = fit("vit3d", leak, leak, tmp_path, epochs=30, learning_rate=1e-3)
    assert not metrics.lands_at_constant(*losses(model, rates, leak))
