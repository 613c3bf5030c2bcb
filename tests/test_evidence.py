"""Targets of tokens by brute force, and the loss by hand."""

import numpy as np
import pytest
import torch

from cspine_utils.errors import ParameterError, TrainingError
from cspine_utils.evidence import cross_entropy, objective, token_targets
from cspine_utils.models.vit3d import ViT3D
from cspine_utils.stacks import scale_labels

FRAME_PATCH, PATCH = 2, 4
FORM = {"frame_patch": FRAME_PATCH, "patch": PATCH}
NAN = float("nan")


def batch(labels, marked) -> torch.Tensor:
    """x `(b, f, 7, h, w)` with these labels and marks, and noise for slices."""
    x = torch.randn(*labels.shape[:2], 7, *labels.shape[2:], generator=torch.Generator().manual_seed(0))
    x[:, :, 5] = scale_labels(torch.as_tensor(labels, dtype=torch.float32))
    x[:, :, 6] = torch.as_tensor(marked, dtype=torch.float32)
    return x


def random_batch(seed=0, b=2, f=4, h=8, w=12) -> tuple[np.ndarray, np.ndarray]:
    """Labels that change within tokens, some thoracic, many tokens nearly empty; marks everywhere, most of them with
    the name of the voxel's own vertebra, some with that of another, as where a mask was torn."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 9, (b, f, h, w)) * (rng.random((b, f, h, w)) < 0.7)
    empty = rng.random((b, f // FRAME_PATCH, h // PATCH, w // PATCH)) < 0.25
    labels[empty.repeat(FRAME_PATCH, 1).repeat(PATCH, 2).repeat(PATCH, 3)] = 0
    names = np.where(rng.random(labels.shape) < 0.8, labels, rng.integers(1, 8, labels.shape))
    return labels, np.where(rng.random(labels.shape) < 0.55, names, 0).astype(np.float32)


def by_brute_force(labels, marked, least) -> list[list[float]]:
    rows = []
    for study, marks in zip(labels, marked, strict=True):
        row = []
        for i in range(0, study.shape[0], FRAME_PATCH):
            for j in range(0, study.shape[1], PATCH):
                for k in range(0, study.shape[2], PATCH):
                    box = slice(i, i + FRAME_PATCH), slice(j, j + PATCH), slice(k, k + PATCH)
                    counts = [int((study[box] == level).sum()) for level in range(1, 8)]
                    owner = 1 + counts.index(max(counts))
                    broken = int((marks[box] == owner).sum()) >= least
                    row.append(float(broken) if max(counts) >= 4 else NAN)
        rows.append(row)
    return rows


def test_targets_of_tokens_by_brute_force():
    labels, marked = random_batch()
    found = token_targets(batch(labels, marked), **FORM, least=3).numpy()
    expected = np.array(by_brute_force(labels, marked, 3))
    assert np.array_equal(found, expected, equal_nan=True)
    assert {0.0, 1.0} == set(np.unique(expected[~np.isnan(expected)])) and np.isnan(expected).any()
    # Rows or columns or frames in another order are other targets, so this fixture would show it.
    for axis in (1, 2, 3):
        other = by_brute_force(np.flip(labels, axis), np.flip(marked, axis), 3)
        assert not np.array_equal(found, np.array(other), equal_nan=True)


def test_marks_in_another_vertebra_of_the_token_do_not_count():
    labels, marked = np.zeros((1, 2, 4, 8)), np.zeros((1, 2, 4, 8))
    labels[..., :4] = 3
    labels[0, 0, :2, :4] = 4  # 8 voxels of C4 in a token of C3
    marked[0, 0, :2, :4] = 4
    found = token_targets(batch(labels, marked), **FORM, least=6)
    assert found[0, 0] == 0 and found[0, 1].isnan()
    marked[0, 1, :2, :3] = 3  # 6 of C3
    assert token_targets(batch(labels, marked), **FORM, least=6)[0, 0] == 1
    assert token_targets(batch(labels, marked), **FORM, least=7)[0, 0] == 0


def test_where_nobody_said_where_nothing_is_known():
    labels, marked = random_batch(1)
    marked[1] = np.nan
    found = token_targets(batch(labels, marked), **FORM, least=3)
    assert found[1].isnan().all() and not found[0].isnan().all()


def test_the_marks_are_taken_off_and_follow_the_targets():
    labels, marked = random_batch(2)
    x, y = batch(labels, marked), torch.arange(16.0).view(2, 8)
    seen, targets = objective(**FORM, least=3).prepare(x, y)
    assert torch.equal(seen, x[:, :, :6])
    assert torch.equal(targets[:, :8], y)
    assert np.array_equal(targets[:, 8:].numpy(), np.array(by_brute_force(labels, marked, 3)), equal_nan=True)


def test_loss_by_hand():
    """Two studies: three of the eight targets told in all, four tokens told in all."""
    logits, y = torch.zeros(2, 8 + 3), torch.full((2, 8 + 3), NAN)
    logits[0, 0], y[0, 0] = 2.0, 1.0
    logits[0, 7], y[0, 7] = -1.0, 1.0
    logits[1, 4], y[1, 4] = 0.5, 0.0
    logits[0, 1] = 30.0  # not told: whatever is said of it is no mistake
    tokens = [(0, 8, 1.5, 1.0), (0, 9, -0.5, 0.0), (1, 8, -2.0, 1.0), (1, 10, 3.0, 0.0)]
    for study, place, logit, target in tokens:
        logits[study, place], y[study, place] = logit, target

    def bce(logit, target):
        p = 1 / (1 + np.exp(-logit))
        return -np.log(p if target else 1 - p)

    image = (bce(2, 1) + bce(-1, 1) + bce(0.5, 0)) / 3
    of_tokens = sum((4 if target else 1) * bce(logit, target) for _, _, logit, target in tokens) / 4
    found = objective(**FORM, token_weight=3.0, positive_weight=4.0)
    assert found.loss(logits, y).item() == pytest.approx(image + 3 * of_tokens, rel=1e-6)
    assert found.report["bce"](logits, y).item() == pytest.approx(image, rel=1e-6)
    assert objective(**FORM, token_weight=0).loss(logits, y).item() == pytest.approx(image, rel=1e-6)


def test_nothing_told_is_no_loss_and_no_nan():
    logits = torch.randn(2, 11, generator=torch.Generator().manual_seed(0), requires_grad=True)
    loss = objective(**FORM).loss(logits, torch.full((2, 11), NAN))
    loss.backward()
    assert loss.item() == 0 and torch.equal(logits.grad, torch.zeros(2, 11))
    assert cross_entropy(torch.zeros(0), torch.zeros(0)).item() == 0


def test_a_model_learns_from_what_is_told_alone():
    """Gradients are finite and the same whatever stands where nothing is told."""
    labels, marked = random_batch(3)
    marked[1] = np.nan
    torch.manual_seed(0)
    model = ViT3D(frames=4, size=(8, 12), **FORM, dim=12, depth=1, heads=2, position="sincos", head="mask")
    chosen = objective(**FORM, least=3)
    y = torch.full((2, 8), NAN)
    y[0, 2] = 1.0
    x, y = chosen.prepare(batch(labels, marked), y)
    logits = chosen.answer(model, x)
    assert logits.shape == chosen.logits_shape(y) == (2, 8 + 2 * 2 * 3)
    chosen.loss(logits, y).backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert gradients and all(g.isfinite().all() for g in gradients) and any(g.abs().sum() > 0 for g in gradients)


def test_targets_of_a_study_may_be_unknown_but_not_anything():
    target = objective(**FORM).target
    row = [0, 1, NAN, 0.25, 0, 0, 0, 1]
    assert torch.equal(target(row, 0).nan_to_num(9), torch.tensor(row).nan_to_num(9))
    for wrong in (row[:7], [*row[:7], 1.5], [-0.1, *row[1:]], [row]):
        with pytest.raises(TrainingError, match=r"dataset\[3\].*not told"):
            target(wrong, 3)


def test_smoothing_leaves_tokens_and_the_unknown_alone():
    y = torch.tensor([[0.0, 1, NAN, 0, 0, 0, 0, 1, 1, 0, NAN]])
    found = objective(**FORM).smooth(y, 0.2)
    assert torch.allclose(found[0, [0, 1, 7]], torch.tensor([0.1, 0.9, 0.9]))
    assert found[0, 2].isnan() and torch.equal(found[0, 8:10], y[0, 8:10]) and found[0, 10].isnan()


@pytest.mark.parametrize("wrong", [{"frame_patch": 7}, {"patch": 5}])
def test_tokens_that_do_not_divide_a_batch_are_refused(wrong):
    x, y = torch.zeros(1, 10, 7, 16, 24), torch.zeros(1, 8)
    objective(frame_patch=5, patch=8).prepare(x, y)
    with pytest.raises(TrainingError, match=r"10 frames of 16 x 24.*those of the model"):
        objective(**{"frame_patch": 5, "patch": 8} | wrong).prepare(x, y)


def test_a_batch_without_marks_is_refused():
    with pytest.raises(TrainingError, match="evidence=True"):
        objective(**FORM).prepare(torch.zeros(1, 4, 6, 8, 12), torch.zeros(1, 8))


@pytest.mark.parametrize(
    "wrong", [{"least": 0}, {"token_weight": -1}, {"token_weight": NAN}, {"positive_weight": 0}], ids=str
)
def test_weights_that_cannot_be_are_refused(wrong):
    with pytest.raises(ParameterError, match="least from 1 up"):
        objective(**FORM, **wrong)


def test_other_weights_are_another_objective():
    """The name goes into a run's settings: a run with other weights is not taken up."""
    names = {objective(**FORM, **options).name for options in ({}, {"least": 5}, {"token_weight": 4.0})}
    assert len(names) == 3


def test_without_token_weight_any_model_is_asked_for_the_study_alone():
    class Plain(torch.nn.Module):
        def forward(self, x):
            return x[:, :, 2].mean(dim=(1, 2, 3))[:, None] * torch.arange(8.0)

    labels, marked = random_batch()
    x, y = batch(labels, marked), torch.zeros(2, 8)
    alone = objective(**FORM, token_weight=0)
    six, told = alone.prepare(x, y)
    assert torch.equal(six, x[:, :, :6]) and torch.equal(told, y)
    logits = alone.answer(Plain(), six)
    assert torch.equal(logits, Plain()(six))
    expected = torch.nn.functional.binary_cross_entropy_with_logits(logits, y)
    assert alone.loss(logits, told) == pytest.approx(expected.item(), rel=1e-6)
