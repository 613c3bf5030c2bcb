"""Thresholds, predictive values and net benefit by hand; the stages of our own pipeline."""

import numpy as np
import pytest
import torch

from cspine_utils import phantom, stacks, worklist
from cspine_utils.errors import WorklistError
from cspine_utils.rsna import RsnaDataset

Y = np.array([1, 1, 1, 0, 0, 0, 0])
P = np.array([0.9, 0.5, 0.2, 0.6, 0.5, 0.1, 0.0])


@pytest.mark.parametrize(
    ("threshold", "found"), [(0.5, (2 / 3, 2 / 4)), (0.51, (1 / 3, 3 / 4)), (0.0, (1.0, 0.0)), (0.95, (0.0, 1.0))]
)
def test_operating_points_by_hand(threshold, found):
    assert worklist.operating_point(Y, P, threshold) == pytest.approx(found)


@pytest.mark.parametrize(("y", "p"), [(np.ones(3), P[:3]), (Y, P[:3]), (Y * 2, P), (Y[None], P[None])])
def test_who_is_judged_on_one_kind_alone_has_no_operating_point(y, p):
    with pytest.raises(WorklistError, match="operating_point"):
        worklist.operating_point(y, p, 0.5)


def test_drawn_points_spread_as_few_exams_do():
    y = np.repeat([1, 0], [40, 160])
    p = np.concatenate([np.linspace(0.3, 1, 40), np.linspace(0, 0.6, 160)])
    se, sp = worklist.operating_point(y, p, 0.5)
    drawn = np.array(worklist.drawn_operating_points(y, p, 0.5, 4000, np.random.default_rng(0)))
    assert drawn.mean(axis=0) == pytest.approx([se, sp], abs=0.005)
    wanted = [np.sqrt(se * (1 - se) / 40), np.sqrt(sp * (1 - sp) / 160)]
    assert drawn.std(axis=0) == pytest.approx(wanted, rel=0.05)
    worklist.Scenario(operating_points=tuple(map(tuple, drawn)))  # it takes them
    all_right = np.array(worklist.drawn_operating_points(y, y * 1.0, 0.5, 4000, np.random.default_rng(0)))
    # Of 40 none was missed: the rule of three allows 3 / 40, Jeffreys' upper end for one side is 1.9 / 40.
    assert 0.94 < np.quantile(all_right[:, 0], 0.05) < 0.96, "all right is not certain"


def test_predictive_values_that_are_published():
    """Se = Sp = 0.9: .89 at the prevalence of the RSNA-2022 data, .32 and .083 at 5 and 1 %."""
    found = worklist.positive_predictive_value(np.array([0.48, 0.07, 0.05, 0.03, 0.01]), 0.9, 0.9)
    assert found.round(3).tolist() == [0.893, 0.404, 0.321, 0.218, 0.083]
    assert np.isnan(worklist.positive_predictive_value(0.05, 0.0, 1.0)), "nobody is flagged"
    assert worklist.positive_predictive_value(0.05, 1.0, 1.0) == 1


def test_net_benefit_counts_false_alarms_at_their_price():
    """100 exams, 20 broken, 15 found, 8 false alarms; one false alarm costs a quarter of a find at t = 0.2."""
    assert worklist.net_benefit(0.2, 0.2, 15 / 20, 72 / 80) == pytest.approx((15 - 8 / 4) / 100)
    assert worklist.net_benefit(0.2, 0.2, 1.0, 0.0) == pytest.approx(0.2 - 0.8 / 4), "flag everything"
    assert worklist.net_benefit(0.2, 0.2, 0.0, 1.0) == 0
    with pytest.raises(WorklistError, match="threshold"):
        worklist.net_benefit(np.array([0.5, 1.0]), 0.2, 0.9, 0.9)


@pytest.mark.parametrize(
    "ask",
    [
        lambda: worklist.positive_predictive_value(1.5, 0.9, 0.9), lambda: worklist.net_benefit(0.1, 5.0, 0.9, 0.9),
        lambda: worklist.net_benefit(-0.1, 0.05, 0.9, 0.9),
        lambda: worklist.operating_point([0, 1], [0.2, np.nan], 0.5),
        lambda: worklist.operating_point([0, 1], [0.2, 1.7], 0.5),
    ],
)  # fmt: skip
def test_what_is_no_probability_is_refused(ask):
    with pytest.raises(WorklistError, match="0 to 1"):
        ask()


def test_another_prevalence_moves_the_odds_alone():
    p = np.array([0.0, 0.2, 0.5, 1.0])
    moved = worklist.at_prevalence(p, learned=0.5, here=0.1)
    assert moved == pytest.approx([0.0, 0.25 / 9 / (1 + 0.25 / 9), 0.1, 1.0])
    assert worklist.at_prevalence(moved, learned=0.1, here=0.5) == pytest.approx(p)
    for wrong in ({"learned": 0.0, "here": 0.1}, {"learned": 0.5, "here": 1.0}):
        with pytest.raises(WorklistError, match="below 1"):
            worklist.at_prevalence(p, **wrong)
    # A calibrated model stays calibrated: two kinds of exams, seen at 50 %, then at 10 %.
    among_broken, among_intact = np.array([0.8, 0.2]), np.array([0.3, 0.7])
    there, here = (pi * among_broken / (pi * among_broken + (1 - pi) * among_intact) for pi in (0.5, 0.1))
    assert worklist.at_prevalence(there, 0.5, 0.1) == pytest.approx(here)


def test_every_stage_of_the_pipeline_is_timed(tmp_path):
    phantom.write_cohort(tmp_path, studies=2, seed=1, size=48, difficulty="easy", prevalence="rsna")
    dataset, seen = RsnaDataset(tmp_path), []

    def model(x):
        seen.append(x)
        return torch.zeros(1, 8)

    studies = [study for study in dataset.studies if dataset.mask_path(study) is not None]
    found = worklist.stage_seconds(dataset, studies, model, size=40, field_mm=108.0)
    assert found["stage"].tolist() == list(worklist.STAGES) * len(studies) and (found["seconds"] > 0).all()
    assert found["study"].unique().tolist() == studies and len(seen) == len(studies) > 0
    assert seen[0].shape == (1, stacks.FRAMES, 6, 40, 40) and seen[0].std() > 0.5
