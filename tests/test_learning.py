"""The two controls on synthetic necks: eight easy studies are learned by heart, shuffled labels bring nothing."""

import pytest
import torch
from torch.utils.data import Subset, TensorDataset

from cspine_utils import demo, metrics, training
from cspine_utils.models.vit3d import ViT3D

SIZE = 48


@pytest.fixture(scope="module")
def studies():
    return demo.easy_studies(32, seed=2022, size=SIZE)


def fit(train, validation, out, **settings):
    torch.manual_seed(0)
    model = ViT3D(size=SIZE, dim=64, depth=2)
    rates = metrics.base_rates(torch.stack([y for _, y in train]).numpy(), smoothing=0.5)
    generator = torch.Generator().manual_seed(0)
    training.fit(model, train, validation, out=out, base_rates=rates, generator=generator, progress=False, **settings)
    return model, rates


def losses(model, rates, dataset):
    y, p = training.predict(model, dataset)
    constant = metrics.constant_predictions(rates, len(y))
    return metrics.plain_bce_per_study(y, p), metrics.plain_bce_per_study(y, constant)


def test_the_easy_studies_are_fractured_at_random(studies):
    y = studies.tensors[1]
    rates = y[:, :7].mean(dim=0)
    assert (rates > 0.15).all() and (rates < 0.85).all()
    assert torch.equal(y[:, 7], y[:, :7].amax(dim=1))


def test_eight_easy_studies_are_learned_by_heart(studies, tmp_path):
    eight = Subset(studies, range(8))
    model, rates = fit(eight, eight, tmp_path, epochs=60, learning_rate=1e-3)
    by_heart, constant = losses(model, rates, eight)
    assert constant.mean() > 0.5
    assert by_heart.mean() < 0.25 * constant.mean()


def test_shuffled_labels_land_at_the_constant_and_a_leak_does_not(studies, tmp_path):
    x, y = studies.tensors
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(1))
    shuffled = TensorDataset(x, y[order])
    train, held_out = Subset(shuffled, range(20)), Subset(shuffled, range(20, 32))
    settings = {"epochs": 4, "learning_rate": 3e-4}
    model, rates = fit(train, held_out, tmp_path / "fair", **settings)
    assert metrics.lands_at_constant(*losses(model, rates, held_out))
    # The fixture that must fail: judged by the very studies it was trained on, and trained long enough.
    leak = Subset(shuffled, range(12))
    model, rates = fit(leak, leak, tmp_path / "leak", epochs=30, learning_rate=1e-3)
    assert not metrics.lands_at_constant(*losses(model, rates, leak))
