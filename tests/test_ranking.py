"""AUROC within levels and skill, against brute force and by hand."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from cspine_utils import metrics
from cspine_utils.anatomy import LEVELS, TARGETS
from cspine_utils.errors import ParameterError
from cspine_utils.ranking import aurocs, bootstrap, pooled_auroc, skill, within_level_auroc

#: How often each target is broken here: levels differ as they do in the real set.
RATES = np.array([0.10, 0.16, 0.04, 0.06, 0.09, 0.15, 0.22, 0.48])


def case(n=300, seed=0):
    """Labels by `RATES`, a fifth of them not told, and scores in steps of a tenth, so that there are ties."""
    rng = np.random.default_rng(seed)
    y = (rng.random((n, 8)) < RATES).astype(float)
    scores = np.round(rng.random((n, 8)) + 0.4 * y, 1)
    y[rng.random((n, 8)) < 0.2] = np.nan
    return y, scores


def counted(y, scores) -> float:
    """AUROC by its definition: pairs of a positive and a negative, ties half."""
    positive, negative = scores[y == 1], scores[y == 0]
    pairs = [(p > n) + 0.5 * (p == n) for p in positive for n in negative]
    return sum(pairs) / len(pairs)


def test_by_brute_force():
    y, scores = case()
    by_target = [counted(y[:, k], scores[:, k]) for k in range(8)]
    assert np.allclose(aurocs(y, scores), by_target)
    assert len({round(value, 6) for value in by_target}) == 8, "a fixture in which a column cannot stand for another"
    assert within_level_auroc(y, scores) == pytest.approx(np.mean(by_target[:7]))
    assert pooled_auroc(y, scores) == pytest.approx(counted(y[:, :7].ravel(), scores[:, :7].ravel()))


def test_equals_scikit_learn():
    y, scores = case(500, seed=1)
    for k, found in enumerate(aurocs(y, scores)):
        told = ~np.isnan(y[:, k])
        assert found == pytest.approx(roc_auc_score(y[told, k], scores[told, k]), abs=1e-12)


def test_levels_alone_look_like_learning_only_when_pooled():
    y, _ = case(2000)
    prior = np.tile(RATES, (len(y), 1))
    assert within_level_auroc(y, prior) == 0.5
    assert pooled_auroc(y, prior) > 0.6


def test_what_is_not_told_does_not_count():
    y, scores = case()
    others = np.where(np.isnan(y), 1 - scores, scores)
    assert np.array_equal(aurocs(y, others), aurocs(y, scores))
    assert pooled_auroc(y, np.where(np.isnan(y), np.nan, scores)) == pooled_auroc(y, scores)


def test_a_level_without_both_kinds_is_left_out():
    y, scores = case()
    y[:, 2] = np.where(np.isnan(y[:, 2]), np.nan, 0)
    found = aurocs(y, scores)
    assert np.isnan(found).tolist() == [False, False, True, False, False, False, False, False]
    assert within_level_auroc(y, scores) == pytest.approx(np.delete(found[: len(LEVELS)], 2).mean())
    nothing = np.zeros((4, 8))
    assert np.isnan(within_level_auroc(nothing, nothing)) and np.isnan(pooled_auroc(nothing, nothing))
    assert np.isnan(pooled_auroc(nothing * np.nan, nothing))


def test_patients_are_compared_with_others_alone():
    """Twins that are told apart always, patients never: a coin, and no cohort that is redrawn may say more."""
    rng = np.random.default_rng(2)
    patients = np.repeat(np.arange(30), 2)
    y, scores = np.full((60, 8), np.nan), np.zeros((60, 8))
    y[:, 3] = np.tile([1, 0], 30)
    scores[:, 3] = np.repeat(rng.permutation(30), 2) + 0.1 * y[:, 3]
    pairs = [(scores[i, 3], scores[j, 3]) for i in range(0, 60, 2) for j in range(1, 60, 2) if i // 2 != j // 2]
    by_hand = np.mean([(a > b) + 0.5 * (a == b) for a, b in pairs])
    assert within_level_auroc(y, scores, patients) == pytest.approx(by_hand) == pytest.approx(0.5)
    assert within_level_auroc(y, scores) > 0.515, "with its own twin in it, it looks better"
    draws = {"generator": np.random.default_rng(0), "draws": 200, "groups": patients}
    found = bootstrap(within_level_auroc, y, scores, **draws)
    assert found.value == pytest.approx(0.5) and 0.499 <= found.low <= 0.5 <= found.high < 0.501
    biased = bootstrap(lambda y, s, groups: within_level_auroc(y, s), y, scores, **draws)
    assert biased.low > 0.515, "what this test would not see without the patients"
    own = np.array([0, 0])
    assert np.isnan(within_level_auroc(y[:2], scores[:2], own)), "nobody to compare with"


def mean_score(y, scores) -> float:
    return float(scores[:, 0].mean())


def test_patients_are_redrawn_with_all_their_rows():
    """Sixteen rows, of two patients or of one each: what a redrawn cohort consists of tells whose rows it took."""
    values = np.repeat([0.0, 3.0], 8)
    scores, y = np.tile(values[:, None], (1, 8)), np.zeros((16, 8))
    seen = []

    def watch(y, scores, groups):
        assert np.array_equal(groups, scores[:, 0] / 3), "each row with its own patient"
        seen.append(scores[:, 0])
        return mean_score(y, scores)

    found = bootstrap(watch, y, scores, generator=np.random.default_rng(1), groups=list("a" * 8 + "b" * 8), draws=200)
    assert {tuple(np.unique(rows, return_counts=True)[1]) for rows in seen[:-1]} == {(16,), (8, 8)}
    assert found.value == 1.5 and (found.low, found.high) == (0.0, 3.0)
    alone = bootstrap(mean_score, y, scores, generator=np.random.default_rng(1), draws=200)
    assert 0 < alone.low < 1.5 < alone.high < 3, "rows by themselves pretend to know more"


def test_interval_is_repeatable_and_leaves_out_what_has_no_number():
    y, scores = case(40)
    one, two = (
        bootstrap(within_level_auroc, y, scores, generator=np.random.default_rng(seed), draws=50) for seed in (3, 3)
    )
    assert one == two and one.low < one.value < one.high
    y = np.full((3, 8), np.nan)
    y[:, 0] = [1, 0, 0]  # a redrawn cohort often has no broken C1
    found = bootstrap(within_level_auroc, y, np.eye(3, 8), generator=np.random.default_rng(0), draws=50)
    assert found == (1.0, 1.0, 1.0)
    y[:, 0] = 0
    found = bootstrap(within_level_auroc, y, np.eye(3, 8), generator=np.random.default_rng(0), draws=5)
    assert np.isnan(found).all()


def test_skill_by_hand():
    assert skill([0.1, 0.3], [0.5, 0.3]) == pytest.approx(0.5)
    assert skill([0.5, 0.3], [0.3, 0.5]) == 0
    assert skill([0.8], [0.4]) == -1
    y = (np.random.default_rng(0).random((50, 8)) < RATES).astype(float)
    constant = metrics.plain_bce_per_study(y, metrics.constant_predictions(RATES, len(y)))
    assert skill(metrics.plain_bce_per_study(y, y), constant) > 0.9999


Y, S = (array[:5] for array in case())


@pytest.mark.parametrize(
    ("y", "scores"),
    [
        (Y, S[:4]),
        (Y[:, :7], S[:, :7]),
        (Y[0], S[0]),
        (Y[:0], S[:0]),
        (np.where(np.arange(8) == 3, 0.5, Y), S),
        (np.where(np.arange(8) == 3, 1, Y), np.where(np.arange(8) == 3, np.nan, S)),
    ],
    ids=["other rows", "seven columns", "one row", "no rows", "half broken", "no score"],
)
@pytest.mark.parametrize("function", [aurocs, within_level_auroc, pooled_auroc])
def test_arrays_that_cannot_be_are_refused(function, y, scores):
    with pytest.raises(ParameterError, match=f"{len(TARGETS)}"):
        function(y, scores)


@pytest.mark.parametrize("options", [{"groups": [1, 2, 3]}, {"draws": 0}, {"groups": np.zeros((5, 2))}])
def test_a_bootstrap_that_cannot_be_is_refused(options):
    with pytest.raises(ParameterError, match="patient of each row"):
        bootstrap(mean_score, Y, S, generator=np.random.default_rng(0), **options)


@pytest.mark.parametrize(
    ("losses", "constant"),
    [([0.1], [0.1, 0.2]), ([], []), ([[0.1]], [[0.1]]), ([0.1], [0.0]), ([np.nan], [0.1]), ([0.1], [np.nan])],
)
def test_losses_of_which_there_is_no_skill_are_refused(losses, constant):
    with pytest.raises(ParameterError, match="one loss a study"):
        skill(losses, constant)
