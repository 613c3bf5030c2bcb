"""Losses, constants and their intervals, against hand computation, published counts and scikit-learn."""

import math
import warnings

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import log_loss

from cspine_utils import metrics
from cspine_utils.anatomy import TARGETS
from cspine_utils.errors import ParameterError

# RSNA 2022: positives of C1 ... C7, patient_overall among all 2,019 training studies and among the 87 segmented ones.
ALL = 2019, (146, 285, 73, 108, 162, 277, 393, 961)
SEGMENTED = 87, (5, 13, 11, 9, 14, 20, 13, 40)


def labels_with_counts(n, positives):
    """Plain BCE of a constant depends on the counts alone, so which study is positive is free."""
    return (np.arange(n)[:, None] < np.array(positives)).astype(float)


def random_case(n=50, seed=0):
    rng = np.random.default_rng(seed)
    y = (rng.random((n, 8)) < [0.1, 0.3, 0.2, 0.15, 0.25, 0.35, 0.4, 0.5]).astype(int)
    return y, rng.uniform(0.02, 0.98, (n, 8))


def constant_of(y):
    return metrics.constant_predictions(metrics.base_rates(y), len(y))


# ---- plain BCE


def test_the_constant_of_the_published_counts():
    everything, segmented = labels_with_counts(*ALL), labels_with_counts(*SEGMENTED)
    rates = metrics.base_rates(everything)
    np.testing.assert_allclose(rates, np.array(ALL[1]) / 2019)
    assert metrics.plain_bce(everything, constant_of(everything)) == pytest.approx(0.36187, abs=5e-6)
    assert metrics.plain_bce(segmented, constant_of(segmented)) == pytest.approx(0.43072, abs=5e-6)
    elsewhere = metrics.constant_predictions(rates, 87)
    assert metrics.plain_bce(segmented, elsewhere) == pytest.approx(0.45167, abs=5e-6)


def test_the_constant_is_the_mean_binary_entropy():
    y, _ = random_case()
    r = y.mean(axis=0)
    entropy = -(r * np.log(r) + (1 - r) * np.log(1 - r)).mean()
    assert metrics.plain_bce(y, constant_of(y)) == pytest.approx(entropy)


def test_plain_bce_equals_scikit_learn_column_by_column():
    y, p = random_case()
    expected = np.mean([log_loss(y[:, j], p[:, j], labels=[0, 1]) for j in range(8)])
    assert metrics.plain_bce(y, p) == pytest.approx(expected, rel=1e-12)
    assert metrics.plain_bce_per_study(y, p).shape == (50,)
    assert metrics.plain_bce_per_study(y, p)[7] == pytest.approx(metrics.plain_bce(y[7:8], p[7:8]))


def test_a_sure_mistake_costs_what_the_clipping_allows():
    y, p = np.zeros((1, 8)), np.zeros((1, 8))
    assert metrics.plain_bce(y, p) == pytest.approx(1e-7, rel=1e-3)
    p[0, 2] = 1
    assert metrics.plain_bce(y, p) == pytest.approx(-math.log(1e-7) / 8, rel=1e-6)
    y[0, 2], p[0, 2] = 1, 0
    assert metrics.plain_bce(y, p) == pytest.approx(-math.log(1e-7) / 8, rel=1e-6)


# ---- the competition's log loss

# Study 1: C1 and the patient are fractured; study 2: nothing is.
HAND_Y = np.array([[1, 0, 0, 0, 0, 0, 0, 1], [0, 0, 0, 0, 0, 0, 0, 0]])
HAND_P = np.array([[0.25, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.8], [0.5, 0.2, 0.2, 0.2, 0.2, 0.2, 0.2, 0.6]])


def test_two_studies_by_hand():
    # study 1: weights 2 for C1, 1 for six levels, 14 for the patient: 22 together
    first = (2 * 1.386294 + 6 * 0.105361 + 14 * 0.223144) / 22
    # study 2: weights 1 for seven levels, 7 for the patient: 14 together
    second = (1 * 0.693147 + 6 * 0.223144 + 7 * 0.916291) / 14
    assert (first, second) == pytest.approx((0.296762, 0.603290), abs=1e-6)
    assert metrics.competition_log_loss_per_study(HAND_Y, HAND_P) == pytest.approx([first, second], abs=1e-6)
    assert metrics.competition_log_loss(HAND_Y, HAND_P) == pytest.approx(0.450026, abs=1e-6)


def variant(y, p, *, overall=7, doubled=True, pooled=False):
    """The loss with one usual mistake in it."""
    w = np.array([1.0] * 7 + [overall]) * (np.where(y == 1, 2, 1) if doubled else np.ones_like(y))
    losses = -np.log(np.where(y == 1, p, 1 - p))
    return (w * losses).sum() / w.sum() if pooled else ((w * losses).sum(axis=1) / w.sum(axis=1)).mean()


@pytest.mark.parametrize("y, p", [(HAND_Y, HAND_P), random_case()])
def test_each_usual_mistake_would_be_seen(y, p):
    right = metrics.competition_log_loss(y, p)
    assert variant(y, p) == pytest.approx(right, rel=1e-12)
    mistakes = {
        "patient_overall in front": metrics.competition_log_loss(np.roll(y, 1, axis=1), np.roll(p, 1, axis=1)),
        "positives not doubled": variant(y, p, doubled=False),
        "patient weighs 1": variant(y, p, overall=1),
        "normalised over all studies": variant(y, p, pooled=True),
        "plain BCE": metrics.plain_bce(y, p),
    }
    for name, wrong in mistakes.items():
        assert abs(wrong - right) > 3e-4, name


def test_competition_loss_equals_scikit_learn_with_weights():
    y, p = random_case()
    weights = np.array([1, 1, 1, 1, 1, 1, 1, 7]) * np.where(y == 1, 2, 1)
    expected = [log_loss(y[i], p[i], sample_weight=weights[i], labels=[0, 1]) for i in range(50)]
    np.testing.assert_allclose(metrics.competition_log_loss_per_study(y, p), expected, rtol=1e-12)


@pytest.mark.parametrize("counts", [ALL, SEGMENTED])
def test_a_half_everywhere_is_log_2_on_both_scales(counts):
    y = labels_with_counts(*counts)
    half = metrics.constant_predictions([0.5] * 8, len(y))
    assert metrics.competition_log_loss(y, half) == pytest.approx(0.6931, abs=5e-5)
    assert metrics.plain_bce(y, half) == pytest.approx(math.log(2))


# ---- what is refused

LOSSES = [
    metrics.plain_bce, metrics.plain_bce_per_study, metrics.competition_log_loss, metrics.competition_log_loss_per_study
]  # fmt: skip


def spoiled(array, value):
    array = np.array(array, dtype=float)
    array[1, 3] = value
    return array


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(
    "y, p, message",
    [
        (HAND_Y[:, :7], HAND_P, r"metrics\(y\).*\(2, 7\).*\(n, 8\)"),
        (HAND_Y[0], HAND_P[0], r"shape \(8,\)"),
        (HAND_Y[:0], HAND_P[:0], r"shape \(0, 8\)"),
        (HAND_Y, HAND_P[:1], r"1 rows beside 2 of y"),
        (spoiled(HAND_Y, 0.5), HAND_P, r"0\.5 in row 1, C4 .*0 or 1"),
        (spoiled(HAND_Y, np.nan), HAND_P, r"nan in row 1, C4"),
        (HAND_Y, spoiled(HAND_P, 1.01), r"1\.01 in row 1, C4.*\[0, 1\]"),
        (HAND_Y, spoiled(HAND_P, -0.1), r"-0\.1 in row 1, C4"),
        (HAND_Y, spoiled(HAND_P, np.nan), r"nan in row 1, C4"),
        (HAND_Y, [["a"] * 8] * 2, r"no numeric array"),
    ],
)
def test_unusable_input_is_refused(loss, y, p, message):
    with pytest.raises(ParameterError, match=message):
        loss(y, p)


def test_a_table_in_the_order_of_train_csv_is_refused():
    front = pd.DataFrame(np.roll(HAND_Y, 1, axis=1), columns=["patient_overall", *TARGETS[:-1]])
    with pytest.raises(ParameterError, match="columns patient_overall, C1"):
        metrics.plain_bce(front, HAND_P)
    assert metrics.plain_bce(front[list(TARGETS)], HAND_P) == metrics.plain_bce(HAND_Y, HAND_P)


# ---- base rates


def test_smoothing_keeps_an_unseen_level_possible():
    y = labels_with_counts(10, (0, 1, 2, 3, 4, 5, 6, 10))
    np.testing.assert_allclose(metrics.base_rates(y), [0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 1])
    np.testing.assert_allclose(metrics.base_rates(y, smoothing=0.5)[[0, 3, 7]], [0.5 / 11, 3.5 / 11, 10.5 / 11])
    later = labels_with_counts(1, (1,) * 8)  # C1 breaks for the first time after the rates were fitted
    raw = metrics.plain_bce(later, metrics.constant_predictions(metrics.base_rates(y), 1))
    smooth = metrics.plain_bce(later, metrics.constant_predictions(metrics.base_rates(y, smoothing=0.5), 1))
    assert raw > smooth + 1


@pytest.mark.parametrize("smoothing", [-1, np.nan])
def test_negative_smoothing_is_refused(smoothing):
    with pytest.raises(ParameterError, match="smoothing"):
        metrics.base_rates(HAND_Y, smoothing=smoothing)


def test_rates_of_another_length_are_refused():
    with pytest.raises(ParameterError, match=r"metrics\(rates\).*\(7,\)"):
        metrics.constant_predictions([0.1] * 7, 3)


# ---- uncertainty


def test_standard_error_by_hand():
    assert metrics.standard_error([1.0, 2.0, 3.0, 6.0]) == pytest.approx(math.sqrt(14 / 3 / 4))


def test_bootstrap_agrees_with_the_normal_interval():
    rng = np.random.default_rng(0)
    b = rng.normal(0.4, 0.3, 400)
    a = b + rng.normal(-0.05, 0.1, 400)
    got = metrics.paired_bootstrap(a, b, generator=np.random.default_rng(1))
    half = 1.96 * metrics.standard_error(a - b)
    assert got.mean == pytest.approx((a - b).mean())
    assert (got.low, got.high) == pytest.approx((got.mean - half, got.mean + half), abs=0.1 * half)
    narrower = metrics.paired_bootstrap(a, b, generator=np.random.default_rng(1), level=0.5)
    assert got.low < narrower.low < narrower.high < got.high


def test_bootstrap_is_paired_and_repeatable():
    rng = np.random.default_rng(0)
    b = rng.normal(0.4, 0.3, 30)
    shifted = metrics.paired_bootstrap(b + 0.01, b, generator=np.random.default_rng(1))
    assert shifted == pytest.approx((0.01, 0.01, 0.01))  # unpaired, this would drown in a spread of 0.3
    again = [metrics.paired_bootstrap(b**2, b, generator=np.random.default_rng(7), draws=500) for _ in range(2)]
    assert again[0] == again[1]
    other = metrics.paired_bootstrap(b**2, b, generator=np.random.default_rng(8), draws=500)
    assert other.mean == again[0].mean and other.low != again[0].low


def test_the_bootstrap_redraws_whole_studies():
    """Three studies have 27 equally likely redraws; of their sums, 1 is below 1, 3 are 1, 3 are 11 and 1 is above."""
    level = 1 - 2 * 2.5 / 27  # both ends fall in the middle of a tie, where the draws' chance cannot move them
    got = metrics.paired_bootstrap([0.0, 1.0, 5.0], np.zeros(3), generator=np.random.default_rng(0), level=level)
    assert got == pytest.approx((2, 1 / 3, 11 / 3))


@pytest.mark.parametrize(
    "a, b, options, message",
    [
        ([1.0, 2.0], [1.0, 2.0, 3.0], {}, "2 and 3 studies"),
        ([1.0], [1.0], {}, "n at least 2"),
        ([1.0, np.nan], [1.0, 2.0], {}, "not finite"),
        ([[1.0, 2.0]], [[1.0, 2.0]], {}, r"shape \(1, 2\)"),
        ([1.0, 2.0], [1.0, 2.0], {"draws": 0}, "draws=0"),
        ([1.0, 2.0], [1.0, 2.0], {"level": 95}, "level=95"),
    ],
)
def test_unusable_per_study_losses_are_refused(a, b, options, message):
    with pytest.raises(ParameterError, match=message):
        metrics.paired_bootstrap(a, b, generator=np.random.default_rng(0), **options)


def test_lands_at_constant():
    rng = np.random.default_rng(0)
    constant = rng.uniform(0.2, 0.7, 40)
    step = constant.std(ddof=1) / np.sqrt(40)
    noise = rng.normal(0, 0.1, 40)
    noise -= noise.mean()
    for sign in (-1, 1):
        assert metrics.lands_at_constant(constant + noise + sign * 0.9 * step, constant)
        assert not metrics.lands_at_constant(constant + noise + sign * 1.1 * step, constant)
        assert metrics.lands_at_constant(constant + noise + sign * 1.1 * step, constant, standard_errors=1.2)
    assert metrics.lands_at_constant(constant, constant)
    with pytest.raises(ParameterError):
        metrics.lands_at_constant(constant[:-1], constant)


def test_tables_in_another_order_are_not_compared_crosswise():
    y, p = random_case(6, seed=3)
    y, p = (pd.DataFrame(values, index=list("abcdef"), columns=list(TARGETS)) for values in (y, p))
    assert metrics.plain_bce(y, p) == metrics.plain_bce(y.to_numpy(), p.to_numpy())
    with pytest.raises(ParameterError, match="different indices"):
        metrics.plain_bce(y, p.iloc[::-1])
    losses = pd.Series(metrics.plain_bce_per_study(y, p), index=y.index)
    with pytest.raises(ParameterError, match="different indices"):
        metrics.lands_at_constant(losses, losses.iloc[::-1])


def test_rates_that_are_no_probabilities():
    for wrong in (np.nan, 2.0, -0.1):
        with pytest.raises(ParameterError):
            metrics.constant_predictions([wrong] * 8, 3)


# ---- the table


def row(**changes):
    train_y, train_p = random_case(30, seed=1)
    validation_y, validation_p = random_case(12, seed=2)
    arguments = dict(
        model="ViT3D", train_y=train_y, train_p=train_p, validation_y=validation_y, validation_p=validation_p,
        seconds=3, generator=np.random.default_rng(0),
    )  # fmt: skip
    return metrics.loss_row(**{**arguments, **changes})


def test_a_row_holds_the_training_constant_on_the_same_studies():
    train_y, train_p = random_case(30, seed=1)
    validation_y, validation_p = random_case(12, seed=2)
    got = row()
    rates = (train_y.sum(axis=0) + 0.5) / 31

    def constant(y):
        return np.mean([log_loss(y[:, j], np.full(len(y), rates[j]), labels=[0, 1]) for j in range(8)])

    assert tuple(got) == metrics.LOSS_COLUMNS
    assert got["train loss"] == pytest.approx(metrics.plain_bce(train_y, train_p))
    assert got["validation loss"] == pytest.approx(metrics.plain_bce(validation_y, validation_p))
    assert got["train constant"] == pytest.approx(constant(train_y))
    assert got["validation constant"] == pytest.approx(constant(validation_y))
    # fitted on the validation studies instead, it would be another, lower number
    own = metrics.plain_bce(
        validation_y, metrics.constant_predictions(metrics.base_rates(validation_y, smoothing=0.5), 12)
    )
    assert got["validation constant"] > own + 0.01
    assert got["difference"] == pytest.approx(got["validation loss"] - got["validation constant"])
    assert got["95 % low"] < got["difference"] < got["95 % high"]
    assert (got["train studies"], got["validation studies"], got["seconds"]) == (30, 12, 3.0)


def test_the_constant_itself_differs_from_the_constant_by_nothing():
    train_y, _ = random_case(30, seed=1)
    rates = metrics.base_rates(train_y, smoothing=0.5)
    got = row(train_p=metrics.constant_predictions(rates, 30), validation_p=metrics.constant_predictions(rates, 12))
    assert (got["difference"], got["95 % low"], got["95 % high"]) == (0, 0, 0)
    assert got["train loss"] == got["train constant"]


def test_the_table_keeps_rows_and_column_order():
    table = metrics.loss_table([row(), row(model="other")])
    assert list(table.columns) == list(metrics.LOSS_COLUMNS)
    assert list(table["model"]) == ["ViT3D", "other"]


@pytest.mark.parametrize("argument", ["train_y", "train_p", "validation_y", "validation_p", "generator"])
def test_no_row_without_both_sets(argument):
    arguments = dict.fromkeys(["model", "train_y", "train_p", "validation_y", "validation_p", "seconds", "generator"])
    del arguments[argument]
    with pytest.raises(TypeError, match=argument):
        metrics.loss_row(**arguments)


def test_no_table_without_the_constant():
    bare = {k: v for k, v in row().items() if k != "validation constant"}
    with pytest.raises(ParameterError, match=r"rows\[1\].*missing: validation constant; unknown: none"):
        metrics.loss_table([row(), bare])
    with pytest.raises(ParameterError, match="missing: validation constant"):
        metrics.loss_table([row() | {"validation constant": float("nan")}])
    with pytest.raises(ParameterError, match="unknown: competition log loss"):
        metrics.loss_table([row() | {"competition log loss": 0.5}])


def test_nothing_warns():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        metrics.plain_bce(HAND_Y, np.round(HAND_P))
        metrics.competition_log_loss(HAND_Y, np.round(HAND_P))
        row()


def test_accuracy_by_hand_and_beside_the_majority():
    y = np.zeros((4, 8))
    y[0, 6] = y[0, 7] = y[1, 7] = y[2, 7] = 1
    p = np.full((4, 8), 0.2)
    p[0, 6], p[1, 7], p[3, 2] = 0.9, 0.8, 0.7
    wrong = 3  # two patients missed, one level invented
    assert metrics.accuracy(y, p) == pytest.approx(1 - wrong / 32)
    assert metrics.accuracy(y, np.full((4, 8), 0.5)) == pytest.approx(1 - y.sum() / 32), "a tie is a no"


def test_the_row_holds_both_accuracies():
    validation_y, validation_p = random_case(12, seed=2)
    got = row()
    train_y, _ = random_case(30, seed=1)
    majority = (train_y.mean(axis=0) > 0.5).astype(float)
    assert got["accuracy"] == pytest.approx(((validation_p > 0.5) == (validation_y == 1)).mean())
    assert got["majority accuracy"] == pytest.approx((validation_y == majority).mean())
