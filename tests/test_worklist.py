"""The reading room: formulas by hand and beside published values, simulation beside formulas, what is refused."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from cspine_utils.errors import ParameterError, WorklistError
from cspine_utils.worklist import CLASSES, WARM_UP, Scenario, __main__, simulate, simulation, theory, waits_of
from cspine_utils.worklist.simulation import draw_patients, interval

BASE = {"load": 0.8, "reading_min": 10.0, "prevalence": 0.1, "sensitivity": 0.9, "specificity": 0.9}


# ----------------------------------------------------------------------------------------------------------- formulas


@pytest.mark.parametrize(
    ("radiologists", "fifo", "flagged", "unflagged"),
    [(1, 40.000, 1.6822, 48.4112), (2, 17.7778, 0.2118, 21.6337), (3, 10.7865, 0.0397, 13.1456)],
)
def test_the_published_reference_table(radiologists, fifo, flagged, unflagged):
    """QuCAD's exact theory (Thompson et al. 2024, doi 10.1007/s11134-024-09927-w)."""
    found = theory.waits(Scenario(**BASE, radiologists=radiologists, discipline="preemptive"))
    assert [round(x, 4) for x in found] == [fifo, flagged, unflagged]
    table = theory.table(Scenario(**BASE, radiologists=radiologists, discipline="preemptive"))
    assert table["diseased_min"] == pytest.approx(0.9 * flagged + 0.1 * unflagged, abs=1e-3)
    if radiologists == 1:
        assert (round(table["diseased_min"], 4), round(table["non_diseased_min"], 3)) == (6.3551, 43.738)


def test_erlang_and_the_queues_of_textbooks():
    assert theory.erlang_c(0.8, 1) == pytest.approx(0.8)
    assert theory.erlang_c(1.5, 2) == pytest.approx(2 * 0.75**2 / 1.75)
    a, c = 2.4, 4
    terms = [a**k / math.factorial(k) for k in range(c)]
    last = a**c / math.factorial(c) / (1 - a / c)
    assert theory.erlang_c(a, c) == pytest.approx(last / (sum(terms) + last))
    assert theory.mmc_wait(0.08, 10.0, 1) == pytest.approx(40.0) and theory.mm1_wait(0.08, 10.0) == pytest.approx(40.0)
    assert theory.mg1_wait(0.08, 10.0, 200.0) == pytest.approx(40.0)
    assert theory.mg1_wait(0.08, 10.0, 100.0) == pytest.approx(20.0), "no spread, half the wait"
    assert theory.mmc_longer_than(0.0, 0.08, 10.0, 1) == pytest.approx(0.8)
    assert theory.mmc_longer_than(50.0, 0.08, 10.0, 1) == pytest.approx(0.8 * math.exp(-1))


@pytest.mark.parametrize("radiologists", [1, 2, 5])
@pytest.mark.parametrize("discipline", ["nonpreemptive", "preemptive"])
@pytest.mark.parametrize("share", [1.0, 0.2])
def test_triage_moves_waiting_and_removes_none(radiologists, discipline, share):
    scenario = Scenario(**BASE, radiologists=radiologists, discipline=discipline, share=share)
    found, flagged = theory.waits(scenario), scenario.flagged_share
    assert flagged * found.flagged + (1 - flagged) * found.unflagged == pytest.approx(found.fifo)
    assert found.flagged < found.fifo < found.unflagged


def test_one_class_is_no_class():
    lonely = theory.Class(0.08, 10.0, 200.0)
    nobody = theory.Class(0.0, 10.0, 200.0)
    for way in (theory.nonpreemptive_mg1, theory.preemptive_mg1):
        assert way([lonely])[0] == pytest.approx(40.0) and way([nobody, lonely])[1] == pytest.approx(40.0)
    halves = theory.preemptive_mg1([theory.Class(0.04, 10.0, 200.0)] * 2)
    assert np.mean(halves) == pytest.approx(40.0)


@pytest.mark.parametrize("radiologists", [1, 3])
def test_the_saving_law_follows_from_the_classes(radiologists):
    for changes in ({}, {"share": 0.3, "prevalence": 0.05}, {"sensitivity": 0.2, "specificity": 0.8}):
        scenario = Scenario(**(BASE | changes), radiologists=radiologists, discipline="nonpreemptive")
        found = theory.waits(scenario)
        se = scenario.sensitivity
        saving = found.fifo - se * found.flagged - (1 - se) * found.unflagged
        assert theory.triage_saving(scenario) == pytest.approx(saving)
    assert theory.triage_saving(scenario) == pytest.approx(0.0, abs=1e-12), "Se = 1 - Sp knows nothing"


def test_the_saving_grows_with_youden_and_with_load_and_shrinks_with_latency():
    def saving(**changes):
        return theory.table(Scenario(**(BASE | changes)))["saving_min"]

    for name, values in (("sensitivity", (0.3, 0.6, 0.9)), ("specificity", (0.3, 0.6, 0.9)), ("load", (0.3, 0.6, 0.9))):
        found = [saving(**{name: value}) for value in values]
        assert found == sorted(found) and found[0] < found[-1]
    late = [saving(latency_min=minutes) for minutes in (0.0, 1.0, 20.0, math.inf)]
    assert late == sorted(late, reverse=True) and late[-1] == 0.0
    assert saving(latency_min=20.0) == pytest.approx(saving() * math.exp(-(0.1 - 0.08) * 20))


@pytest.mark.parametrize("radiologists", [1, 3])
@pytest.mark.parametrize("discipline", ["nonpreemptive", "preemptive"])
def test_where_nobody_or_everybody_is_flagged_all_wait_as_without_ai(radiologists, discipline):
    for se, sp, nobody in ((0.0, 1.0, "flagged_min"), (1.0, 0.0, "unflagged_min")):
        room = {"radiologists": radiologists, "discipline": discipline, "sensitivity": se, "specificity": sp}
        table = theory.table(Scenario(**(BASE | room)))
        assert math.isnan(table[nobody])
        for name in set(table) - {nobody, "saving_min"}:
            assert table[name] == pytest.approx(table["fifo_min"])


def test_an_ai_that_never_answers_or_changes_no_order_is_none():
    for changes in ({"latency_min": math.inf, "discipline": "preemptive"}, {"latency_min": 3.0, "discipline": "fifo"}):
        table = theory.table(Scenario(**(BASE | changes)))
        assert table["saving_min"] == 0 and table["flagged_min"] == table["fifo_min"] == pytest.approx(40.0)


def test_where_no_formula_is_exact_none_is_given():
    several = {"radiologists": 2}
    for changes in (
        several | {"reading_law": "lognormal"}, several | {"fractured_factor": 2.0}, {"cap_min": 60.0},
        {"horizon_min": 600.0}, {"day_profile": (1.0,) * 24}, {"operating_points": ((0.9, 0.9),)},
        {"latency_min": 5.0, "discipline": "preemptive"}, {"latency_min": 5.0, "reading_law": "fixed"},
    ):  # fmt: skip
        with pytest.raises(WorklistError, match="simulate it"):
            theory.table(Scenario(**(BASE | changes)))
        assert all(math.isnan(value) for value in theory.table_or_nan(Scenario(**(BASE | changes))).values())
    assert theory.table_or_nan(Scenario(**BASE)) == theory.table(Scenario(**BASE))
    for changes in ({"load": 1.5, "horizon_min": 600.0}, {"cap_min": 60.0}, {"day_profile": (1.0,) * 24}):
        with pytest.raises(WorklistError, match="simulate it"):
            theory.latency_factor(Scenario(**(BASE | changes), latency_min=10.0))
    with pytest.raises(WorklistError, match="the list grows"):
        theory.mm1_wait(0.11, 10.0)
    with pytest.raises(WorklistError, match="the list grows"):
        theory.erlang_c(2.0, 2)


@pytest.mark.parametrize(
    ("ask", "name"),
    [
        (lambda: theory.mmc_wait(0.08, 10.0, 0), "radiologists"), (lambda: theory.erlang_c(0.8, 1.5), "radiologists"),
        (lambda: theory.erlang_c(0.8, 10**9), "radiologists"), (lambda: theory.mm1_wait(-0.08, -10.0), "arrivals"),
        (lambda: theory.mmc_longer_than(-50.0, 0.08, 10.0, 1), "minutes"),
        (lambda: theory.mm1_wait(math.nan, 10.0), "arrivals"), (lambda: theory.mg1_wait(0.08, 10.0, 50.0), "second"),
        (lambda: theory.interruptions(10.0, 1.5), "load"), (lambda: theory.interruptions(-10.0, 0.5), "mean"),
    ],
)  # fmt: skip
def test_formulas_refuse_numbers_that_no_room_has(ask, name):
    with pytest.raises(WorklistError, match=f"^{name}"):
        ask()


# --------------------------------------------------------------------------------------------- simulation and formulas


SCENARIOS = {
    "one, non-preemptive": {},
    "one, preemptive": {"discipline": "preemptive"},
    "one, lognormal": {"reading_law": "lognormal", "reading_cv": 0.7},
    "one, fixed, preemptive": {"reading_law": "fixed", "discipline": "preemptive"},
    "one, fractures take longer": {"fractured_factor": 2.0, "discipline": "preemptive"},
    "one, longer, non-preemptive, part of the list": {"fractured_factor": 1.5, "share": 0.3},
    "three, non-preemptive": {"radiologists": 3},
    "three, preemptive": {"radiologists": 3, "discipline": "preemptive"},
    "three, latency": {"radiologists": 3, "latency_min": 10.0},
    "nothing known": {"sensitivity": 0.3, "specificity": 0.7},
}


@pytest.mark.parametrize("name", SCENARIOS)
def test_simulated_means_are_those_of_theory(name):
    scenario = Scenario(**(BASE | {"load": 0.7} | SCENARIOS[name]))
    result, exact = simulate(scenario, n_exams=12_000, seed=11, replications=20), theory.table(scenario)
    for key, value in (exact | missed(scenario, exact)).items():
        found = result.means[key]
        error = (found.high - found.low) / 2 / 2.093  # of Student's t, 19 degrees of freedom
        assert abs(found.mean - value) <= 3.5 * error + 1e-12, (key, found, value)


def missed(scenario, exact):
    """Where all exams take one kind of reading time, a missed fracture is like any that is not flagged."""
    alike = scenario.fractured_factor == 1
    return {"missed_delay_min": exact["unflagged_min"] - exact["fifo_min"]} if alike else {}


@pytest.mark.parametrize("load", [0.9, 0.95])
@pytest.mark.parametrize("changes", [{}, {"discipline": "preemptive", "radiologists": 3}], ids=str)
def test_simulated_means_are_those_of_theory_in_a_busy_room(changes, load):
    """From .9 on a room needs thousands of exams to settle: 1,480 at .95."""
    scenario = Scenario(**(BASE | changes | {"load": load}))
    result, exact = simulate(scenario, n_exams=30_000, seed=2, replications=24), theory.table(scenario)
    assert result.warning == ""
    for key, value in (exact | missed(scenario, exact)).items():
        found = result.means[key]
        error = (found.high - found.low) / 2 / 2.069  # 23 degrees of freedom
        assert abs(found.mean - value) <= 3.5 * error, (key, found, value)


def test_a_wrong_formula_would_be_noticed():
    scenario = Scenario(**(BASE | {"load": 0.7}))
    found = simulate(scenario, n_exams=12_000, seed=5, replications=20).means["flagged_min"]
    wrong = theory.table(Scenario(**(BASE | {"load": 0.7, "discipline": "preemptive"})))["flagged_min"]
    assert not found.low < wrong < found.high


@pytest.mark.parametrize("radiologists", [1, 3])
@pytest.mark.parametrize("discipline", ["nonpreemptive", "preemptive"])
def test_the_simulated_mean_of_all_stays(discipline, radiologists):
    """On the same patients the order moves waiting alone: what is left is the luck of who is long."""
    scenario = Scenario(**BASE, discipline=discipline, radiologists=radiologists)
    differences = []
    for seed in range(12):
        people = draw_patients(scenario, 20_000, np.random.default_rng(seed))
        waits = [waits_of(people, s).mean() for s in (scenario, replace(scenario, discipline="fifo"))]
        differences.append((waits[0] - waits[1]) / waits[1])
    assert abs(np.mean(differences)) < 3.5 * np.std(differences, ddof=1) / math.sqrt(12)
    assert np.std(differences, ddof=1) < 0.01, "so a change of one per cent would be noticed"


@pytest.mark.parametrize("radiologists", [1, 3])
@pytest.mark.parametrize("discipline", ["nonpreemptive", "preemptive"])
def test_the_simulated_saving_grows_with_youden_and_shrinks_with_latency(discipline, radiologists):
    def saving(**changes):
        scenario = Scenario(**(BASE | changes), discipline=discipline, radiologists=radiologists)
        return simulate(scenario, n_exams=4000, seed=6, replications=3).means["saving_min"].mean

    better = [saving(sensitivity=se, specificity=sp) for se, sp in ((0.3, 0.7), (0.6, 0.7), (0.9, 0.7), (0.9, 0.95))]
    assert better == sorted(better) and better[-1] - better[0] > 1
    later = [saving(latency_min=minutes) for minutes in (0.0, 2.0, 10.0, 60.0, math.inf)]
    assert later == sorted(later, reverse=True) and later[-1] == 0


def test_savings_of_single_exams_by_hand(monkeypatch):
    """Three flagged fractures, one missed, two intact ones; the difference of medians is another number."""
    kind = np.array([0, 0, 0, 1, 3, 3])
    before = np.array([10.0, 20.0, 30.0, 5.0, 1.0, 2.0])
    after = np.array([9.0, 20.0 + 1e-9, 0.0, 8.0, 1.0, 6.0])
    monkeypatch.setattr(simulation, "_replicate", lambda *a: (kind, before, after))
    result = simulate(Scenario(), n_exams=6, seed=0, replications=1)
    found = result.savings["diseased"]
    assert found["mean"] == pytest.approx((1 + 0 + 30 - 3) / 4) and found["median"] == pytest.approx(0.5)
    assert (found["faster"], found["same"], found["slower"]) == (0.5, 0.25, 0.25)
    assert np.median(before[kind < 2]) - np.median(after[kind < 2]) == pytest.approx(15 - 8.5)
    assert result.savings["TN"]["slower"] == 0.5 and result.savings["FN"]["mean"] == -3
    assert result.means["missed_delay_min"].mean == 3 and result.means["saving_min"].mean == pytest.approx(7)
    assert math.isnan(result.savings["FP"]["mean"]) and json.loads(result.to_json())["savings"]["FP"]["slower"] is None


def test_who_knows_nothing_saves_nothing_and_who_is_never_heard_neither():
    nothing = simulate(Scenario(**(BASE | {"sensitivity": 0.3, "specificity": 0.7})), n_exams=5000, seed=1)
    assert nothing.means["saving_min"].low < 0 < nothing.means["saving_min"].high
    for changes in ({"latency_min": math.inf}, {"discipline": "fifo"}, {"sensitivity": 0.0, "specificity": 1.0}):
        result = simulate(Scenario(**(BASE | changes)), n_exams=500, seed=1, replications=2)
        assert result.means["saving_min"].mean == pytest.approx(0.0, abs=1e-9)
        assert result.savings["diseased"]["same"] == 1 and result.savings["diseased"]["slower"] == 0
        arms = result.classes["FN"]
        assert arms["fifo"]["p99"] == pytest.approx(arms["triage"]["p99"])


def test_the_same_seed_gives_the_same_numbers_in_one_process_or_two():
    scenario = Scenario(**BASE)
    one, two = (simulate(scenario, n_exams=2000, seed=3, replications=4, workers=w) for w in (0, 2))
    assert one.to_json() == two.to_json()
    other = simulate(scenario, n_exams=2000, seed=4, replications=4)
    assert other.means["fifo_min"] != one.means["fifo_min"]


def test_classes_are_counted_and_spread_by_hand():
    scenario = Scenario(**(BASE | {"share": 0.5}))
    result = simulate(scenario, n_exams=4000, seed=2, replications=3)
    counts = {name: result.classes[name]["triage"]["n"] for name in CLASSES}
    assert sum(counts.values()) == 3 * (4000 - int(WARM_UP * 4000))
    assert counts["other"] / sum(counts.values()) == pytest.approx(0.5, abs=0.03)
    assert counts["TP"] / (counts["TP"] + counts["FN"]) == pytest.approx(0.9, abs=0.05)
    assert counts["TN"] / (counts["FP"] + counts["TN"]) == pytest.approx(0.9, abs=0.02)
    for arms in result.classes.values():
        for row in arms.values():
            assert row["q25"] <= row["median"] <= row["q75"] <= row["p95"] <= row["p99"] <= row["max"]
    assert result.classes["TP"]["triage"]["mean"] < result.classes["TP"]["fifo"]["mean"]
    assert result.classes["FN"]["triage"]["mean"] > result.classes["FN"]["fifo"]["mean"], "missed ones pay"


def test_intervals_by_hand():
    found = interval([1.0, 2.0, 3.0, math.nan])
    assert found.mean == 2 and found.high - 2 == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)
    assert math.isnan(interval([5.0]).low) and interval([5.0]).mean == 5
    assert math.isnan(interval([math.nan]).mean)


# ------------------------------------------------------------------------------------------------------ who comes when


def test_patients_follow_the_scenario():
    scenario = Scenario(
        load=0.6, radiologists=2, share=0.4, prevalence=0.2, fractured_factor=3.0, reading_law="lognormal",
        reading_cv=0.5,
    )  # fmt: skip
    people = draw_patients(scenario, 200_000, np.random.default_rng(0))
    broken = people.kind < 2
    assert people.reading[broken].mean() == pytest.approx(30, rel=0.02)
    assert people.reading[~broken].mean() == pytest.approx(10, rel=0.01)
    assert people.reading[~broken].std() == pytest.approx(5, rel=0.02)
    assert broken.mean() == pytest.approx(0.08, rel=0.03)
    work = people.reading.sum() / people.arrival[-1] / 2
    assert work == pytest.approx(0.6, rel=0.02), "load counts what fractures take longer"
    fixed = draw_patients(Scenario(reading_law="fixed"), 50, np.random.default_rng(0))
    assert (fixed.reading == 10).all()


def test_a_day_has_its_busy_hours():
    hours = np.ones(24)
    hours[8:18], hours[3] = 3.0, 0.0
    people = draw_patients(Scenario(day_profile=tuple(hours)), 100_000, np.random.default_rng(0))
    hour = (people.arrival // 60 % 24).astype(int)
    counts = np.bincount(hour, minlength=24)
    assert counts[3] == 0 and np.allclose(counts / counts.sum(), hours / hours.sum(), atol=0.004)
    assert (np.diff(people.arrival) >= 0).all()
    even = draw_patients(Scenario(), 100_000, np.random.default_rng(0))
    assert people.arrival[-1] == pytest.approx(even.arrival[-1], rel=0.01), "as many a day as without a profile"


def test_a_horizon_allows_more_work_than_time():
    result = simulate(Scenario(load=1.5, horizon_min=600.0), n_exams=2000, seed=0, replications=5)
    assert result.means["fifo_min"].mean > 50
    short = draw_patients(Scenario(load=1.5, horizon_min=600.0), 2000, np.random.default_rng(0))
    assert short.arrival.max() < 600 and len(short.arrival) == pytest.approx(90, abs=30)


def test_operating_points_are_drawn_for_each_replication():
    points = ((0.2, 0.99), (0.99, 0.5))
    wide = simulate(Scenario(**BASE, operating_points=points), n_exams=3000, seed=0, replications=20)
    one = simulate(Scenario(**BASE), n_exams=3000, seed=0, replications=20)
    width = {name: r.means["flagged_min"].high - r.means["flagged_min"].low for name, r in (("w", wide), ("o", one))}
    assert width["w"] > 2 * width["o"], "replications differ by their points, too"
    fixed = [Scenario(**(BASE | {"sensitivity": se, "specificity": sp})) for se, sp in points]
    low, high = sorted(simulate(one, n_exams=3000, seed=0).means["flagged_min"].mean for one in fixed)
    assert low < wide.means["flagged_min"].mean < high, "the mean over the draws"


def test_a_horizon_that_is_not_reached_is_told_and_nothing_warms_up():
    scenario = Scenario(load=1.5, horizon_min=60_000.0)
    for run in (lambda: draw_patients(scenario, 2000, np.random.default_rng(0)),
                lambda: simulate(scenario, n_exams=2000, seed=0)):  # fmt: skip
        with pytest.raises(WorklistError, match=r"^n_exams: found 2,000.*about 9,000.*take 9,5\d{2}"):
            run()
    # By minute 120 all exams of this day have come: 115 are wanted, not the 10 of an even day.
    early = Scenario(load=0.8, day_profile=(24.0, *[0.0] * 23), horizon_min=120.0)
    with pytest.raises(WorklistError, match=r"about 115.*take 190"):
        simulate(early, n_exams=40, seed=0)
    assert len(draw_patients(early, 190, np.random.default_rng(0)).arrival) == pytest.approx(115, abs=40)
    late = replace(early, day_profile=(*[0.0] * 23, 24.0))
    assert len(draw_patients(late, 10, np.random.default_rng(0)).arrival) == 0, "nobody comes at night, so few will do"
    short = simulate(Scenario(load=1.5, horizon_min=600.0), n_exams=400, seed=0, replications=2)
    assert json.loads(short.to_json())["warm_up"] == 0
    seen = [len(draw_patients(short.scenario, 400, np.random.default_rng(s)).arrival) for s in (1, 2)]
    assert 100 < sum(row["triage"]["n"] for row in short.classes.values()) < 260 and max(seen) < 200


def test_a_room_that_has_not_settled_says_so():
    """At load .99 the relaxation takes .99 / (1 - sqrt(.99))^2 = 39,400 exams."""
    near = simulate(Scenario(load=0.99), n_exams=1000, seed=0, replications=2)
    assert "39,40" in near.warning and "197,0" in near.warning and json.loads(near.to_json())["warning"] == near.warning
    assert simulate(Scenario(load=0.8), n_exams=1000, seed=0, replications=2).warning == ""
    hours = tuple(np.interp(np.arange(24), [0, 5, 11, 19, 24], [0.6, 0.3, 1.1, 1.8, 0.6]))
    day = Scenario(load=0.6, day_profile=hours)
    assert "3 days" in simulate(day, n_exams=1000, seed=0, replications=2).warning, "86 exams a day"
    assert simulate(day, n_exams=1400, seed=0, replications=2).warning == ""
    assert simulate(Scenario(load=0.6), n_exams=60, seed=0, replications=2).warning == ""
    low = simulate(Scenario(load=0.99), n_exams=4000, seed=1, replications=20).means["fifo_min"]
    assert low.high < theory.table(Scenario(load=0.99))["fifo_min"], "it is true: the wait comes out too short"


# --------------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("field", "value"),
    [("load", 1.0), ("load", 0.0), ("load", math.nan), ("load", "much"), ("prevalence", 1.5), ("sensitivity", -0.1),
     ("specificity", True), ("share", math.inf), ("reading_min", -10), ("latency_min", -1.0), ("latency_min", math.nan),
     ("radiologists", 0), ("radiologists", 1.5),
     ("radiologists", 10**9), ("discipline", "random"), ("reading_law", "weibull"), ("cap_min", 0.0),
     ("horizon_min", -3.0), ("day_profile", (1.0,) * 23), ("day_profile", (0.0,) * 24), ("day_profile", "busy"),
     ("operating_points", ((0.9,),)), ("operating_points", ((0.9, 1.2),)), ("operating_points", 0.9),
     ("operating_points", (0.9, 0.9)), ("fractured_factor", 0.0), ("reading_cv", math.inf), ("reading_cv", 1e154),
     ("reading_min", 1e200)],
    ids=str,
)  # fmt: skip
def test_scenarios_that_cannot_be_are_refused(field, value):
    with pytest.raises(WorklistError, match=f"^{field}: found"):
        Scenario(**{field: value})


def test_scenarios_as_json():
    full = Scenario(
        radiologists=3, latency_min=math.inf, cap_min=60.0, day_profile=tuple(range(24)), horizon_min=5000.0,
        operating_points=((0.8, 0.9), (0.7, 0.95)), discipline="preemptive", load=1.2,
    )  # fmt: skip
    assert Scenario.from_json(full.to_json()) == full and Scenario.from_json("{}") == Scenario()
    numpys = Scenario(
        radiologists=np.int64(2), load=np.float32(0.5), day_profile=np.arange(24), operating_points=np.full((2, 2), 0.5)
    )
    assert Scenario.from_json(numpys.to_json()) == numpys
    assert numpys.radiologists == 2 and numpys.day_profile[23] == 23
    for text, said in (('{"lod": 0.5}', "lod"), ("[1]", "object"), ("{", "no JSON"), ('{"load": null}', "load")):
        with pytest.raises(WorklistError, match=said):
            Scenario.from_json(text)


@pytest.mark.parametrize("changes", [{"n_exams": 1}, {"replications": 0}, {"seed": -1}, {"n_exams": 2.5}])
def test_simulations_that_cannot_be_are_refused(changes):
    with pytest.raises(ParameterError, match=next(iter(changes))):
        simulate(Scenario(), **{"n_exams": 10, "seed": 0} | changes)


# ----------------------------------------------------------------------------------------------------- command line


def run(capsys, *arguments):
    code = __main__.main([str(a) for a in arguments])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_theory_on_the_command_line(capsys):
    options = ["--radiologists", 1, "--load", 0.8, "--reading-min", 10, "--prevalence", 0.1, "--sensitivity", 0.9]
    code, out, _ = run(capsys, "theory", *options, "--specificity", 0.9, "--discipline", "preemptive")
    found = json.loads(out)
    wanted = {"fifo_min": 40.0, "flagged_min": 1.6822, "unflagged_min": 48.4112, "diseased_min": 6.3551}
    assert code == 0 and {name: round(found[name], 4) for name in wanted} == wanted and "non_diseased_min" in found


def test_what_nobody_waits_is_null(capsys):
    code, out, _ = run(capsys, "theory", "--sensitivity", 0, "--specificity", 1, "--load", 0.5)
    assert code == 0 and json.loads(out)["flagged_min"] is None and "NaN" not in out
    for options, name in ((["--prevalence", 0], "diseased_min"), (["--share", 0], "non_diseased_min")):
        _, out, _ = run(capsys, "theory", *options)
        assert json.loads(out)[name] is None and json.loads(out)["fifo_min"] == pytest.approx(40)
    _, out, _ = run(capsys, "simulate", "--prevalence", 0, "--exams", 100, "--replications", 2)
    assert json.loads(out)["diseased_min"] is None and type(json.loads(out)["classes"]["TN"]["fifo"]["n"]) is int


def test_the_help_says_what_each_option_is(capsys):
    with pytest.raises(SystemExit):
        __main__.main(["theory", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    for words in ("mean reading time of an exam without fracture (default 10.0)", "24 numbers, arrivals in each hour",
                  "from arrival until the AI has answered", "share of the exams with fracture that the AI flags",
                  "coefficient of variation of lognormal"):  # fmt: skip
        assert words in text
    with pytest.raises(SystemExit):
        __main__.main(["theory", "--day-profile", "1,2,3"])
    assert "'1,2,3' is no JSON list" in capsys.readouterr().err


def test_simulation_on_the_command_line(capsys, tmp_path):
    code, out, _ = run(
        capsys, "simulate", "--load", 0.5, "--exams", 1000, "--seed", 7, "--replications", 3, "--latency-min", 2,
        "--share", 0.5,
    )  # fmt: skip
    found = json.loads(out)
    direct = simulate(Scenario(load=0.5, latency_min=2.0, share=0.5), n_exams=1000, seed=7, replications=3)
    assert code == 0 and out.strip() == direct.to_json()
    assert found["intervals"]["diseased_min"][0] < found["diseased_min"] < found["intervals"]["diseased_min"][1]
    path = tmp_path / "room.json"
    path.write_text(Scenario(load=0.3, cap_min=30.0).to_json())
    code, out, _ = run(capsys, "simulate", "--scenario", path, "--exams", 100, "--load", 0.4)
    assert json.loads(out)["scenario"]["load"] == 0.4 and json.loads(out)["scenario"]["cap_min"] == 30.0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(["theory", "--load", 1.2], "horizon_min"), (["theory", "--prevalence", 2], "probability"),
     (["simulate", "--radiologists", 0], "whole number"), (["theory", "--cap-min", 5], "simulate it"),
     (["simulate", "--exams", 1], "n_exams"), (["theory", "--scenario", "nowhere.json"], "nowhere.json")],
    ids=str,
)  # fmt: skip
def test_the_command_line_says_what_is_wrong(capsys, arguments, said):
    code, out, err = run(capsys, *arguments)
    assert code == 2 and not out and said in err
