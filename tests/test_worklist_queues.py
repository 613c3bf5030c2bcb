"""Who waits how long: exam by exam equal to simpy, and invariants that any reading room keeps."""

import numpy as np
import pytest
from simpy_room import by_simpy

from cspine_utils.worklist import CLASSES, Scenario, draw_patients, queues, waits_of

INF = float("inf")


def patients(n=20_000, seed=0, **changes):
    scenario = Scenario(**{"prevalence": 0.1, "load": 0.85} | changes)
    return draw_patients(scenario, n, np.random.default_rng(seed)), scenario


# ------------------------------------------------------------------------------------------------------- beside simpy


@pytest.mark.parametrize("radiologists", [1, 3])
@pytest.mark.parametrize("discipline", ["fifo", "nonpreemptive", "preemptive"])
def test_equal_to_simpy_exam_by_exam(discipline, radiologists):
    people, scenario = patients(discipline=discipline, radiologists=radiologists, reading_law="lognormal")
    ours = waits_of(people, scenario)
    theirs = by_simpy(people.arrival, people.reading, people.flagged, radiologists, discipline)
    assert np.abs(ours - theirs).max() <= 1e-9
    assert ours.mean() > 5, "somebody waits"


def test_simpy_would_notice_another_discipline():
    people, scenario = patients(n=2000, discipline="nonpreemptive")
    theirs = by_simpy(people.arrival, people.reading, people.flagged, 1, "preemptive")
    assert np.abs(waits_of(people, scenario) - theirs).max() > 1


# ------------------------------------------------------------------------------------------- by hand, and two ways


def test_three_exams_by_hand():
    """A long exam is being read when an intact and then a broken one come."""
    arrival, reading = np.array([0.0, 1.0, 2.0]), np.array([10.0, 5.0, 4.0])
    ready = np.array([INF, INF, 2.0])
    assert queues.fifo(arrival, reading).tolist() == [0, 9, 13]
    assert queues.nonpreemptive(arrival, reading, ready).tolist() == [0, 13, 8]
    assert queues.preemptive(arrival, reading, ready).tolist() == [4, 13, 0]
    assert queues.fifo(arrival, reading, 2).tolist() == [0, 0, 4]
    assert queues.nonpreemptive(arrival, reading, ready, 2).tolist() == [0, 0, 4]
    assert queues.preemptive(arrival, reading, ready, 2).tolist() == [0, 4, 0], "the later one is interrupted"


def test_latency_by_hand():
    """The AI answers at 5: before that, the flagged exam waits in its turn."""
    arrival, reading = np.array([0.0, 1.0, 2.0, 2.5]), np.array([4.0, 5.0, 3.0, 1.0])
    ready = np.array([INF, INF, INF, 5.0])
    assert queues.nonpreemptive(arrival, reading, ready).tolist() == [0, 3, 8, 6.5]
    assert queues.preemptive(arrival, reading, ready).tolist() == [0, 4, 8, 2.5]
    ready[3] = 2.5
    assert queues.nonpreemptive(arrival, reading, ready).tolist() == [0, 4, 8, 1.5]


def test_a_cap_lets_those_first_who_have_waited_too_long():
    arrival, reading = np.array([0.0, 0.5, 1.0, 2.0, 3.0]), np.array([10.0, 2.0, 10.0, 10.0, 10.0])
    ready = np.where([False, False, True, True, True], arrival, INF)
    assert queues.nonpreemptive(arrival, reading, ready).tolist()[1] == 39.5
    assert queues.nonpreemptive(arrival, reading, ready, cap=15.0).tolist()[1] == 19.5
    assert queues.nonpreemptive(arrival, reading, ready, cap=9.0).tolist()[1] == 9.5
    # Preemptive: exam 0 is interrupted after a minute. It, and exam 1, count as flagged once they have waited 15 min;
    # exam 3 is being read then and goes on, exam 4 comes after them.
    assert queues.preemptive(arrival, reading, ready).tolist() == [30, 39.5, 0, 9, 18]
    assert queues.preemptive(arrival, reading, ready, cap=15.0).tolist() == [20, 29.5, 0, 9, 29]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("discipline", ["nonpreemptive", "preemptive"])
def test_a_huge_cap_and_a_huge_latency_change_nothing(discipline, seed):
    people, scenario = patients(n=3000, seed=seed, discipline=discipline)
    way = getattr(queues, discipline)
    ready = np.where(people.flagged, people.arrival, INF)
    plain = way(people.arrival, people.reading, ready)
    assert np.abs(way(people.arrival, people.reading, ready, 1, 1e12) - plain).max() < 1e-9
    late = way(people.arrival, people.reading, ready + 1e9)
    assert np.abs(late - queues.fifo(people.arrival, people.reading)).max() < 1e-9
    soon = way(people.arrival, people.reading, ready + 1e-12)
    assert np.abs(soon - plain).max() < 1e-6


@pytest.mark.parametrize("radiologists", [1, 2, 3])
def test_several_ways_to_one_answer(radiologists):
    """One radiologist has shortcuts (Lindley; a clock that stands still): they equal the way of many."""
    people, _ = patients(n=5000, seed=3)
    ready = np.where(people.flagged, people.arrival, INF)
    nobody = np.full(len(ready), INF)
    for way in (queues.nonpreemptive, lambda *a: queues._Room(*a, INF).waits()):
        waits = way(people.arrival, people.reading, nobody, radiologists)
        assert np.abs(waits - queues.fifo(people.arrival, people.reading, radiologists)).max() < 1e-9
    general = queues._Room(people.arrival, people.reading, ready, radiologists, INF).waits()
    assert np.abs(general - queues.preemptive(people.arrival, people.reading, ready, radiologists)).max() < 1e-8


@pytest.mark.parametrize("length", [1, 2, queues._BLOCK, queues._BLOCK + 1, 3 * queues._BLOCK + 7])
def test_long_queues_are_summed_in_blocks(length):
    people, _ = patients(n=length, seed=1, load=0.95)
    waits, now = [], 0.0
    for a, s in zip(people.arrival, people.reading, strict=True):
        begins = max(now, a)
        waits.append(begins - a)
        now = begins + s
    assert np.abs(queues.fifo(people.arrival, people.reading) - waits).max() < 1e-7


# --------------------------------------------------------------------------------------------------------- invariants


@pytest.mark.parametrize("discipline", ["nonpreemptive", "preemptive"])
@pytest.mark.parametrize("radiologists", [1, 3])
def test_no_latency_is_priority_and_an_endless_one_is_no_ai_bit_for_bit(discipline, radiologists):
    people, scenario = patients(discipline=discipline, radiologists=radiologists, n=5000)
    way = getattr(queues, discipline)
    ready = np.where(people.flagged, people.arrival, INF)
    assert np.array_equal(waits_of(people, scenario), way(people.arrival, people.reading, ready, radiologists))
    _, never = patients(discipline=discipline, radiologists=radiologists, latency_min=INF, n=1)
    none = waits_of(people, patients(discipline="fifo", radiologists=radiologists, n=1)[1])
    assert np.array_equal(waits_of(people, never), none)


@pytest.mark.parametrize("latency", [0.0, 7.0])
@pytest.mark.parametrize("discipline", ["fifo", "nonpreemptive", "preemptive"])
@pytest.mark.parametrize("radiologists", [1, 2, 4])
def test_the_room_is_never_idle_while_somebody_waits(radiologists, discipline, latency):
    """At every moment min(c, exams in the room) radiologists read: any order finishes the same work."""
    people, scenario = patients(n=4000, radiologists=radiologists, discipline=discipline, latency_min=latency)
    waits = waits_of(people, scenario)
    assert waits.min() > -1e-9
    leaves = np.sort(people.arrival + waits + people.reading)
    first = np.sort(people.arrival + queues.fifo(people.arrival, people.reading, radiologists) + people.reading)
    if radiologists == 1:
        # Work that is left at any moment is the same, so the room gets empty at the same moments.
        empty = leaves[:-1] < people.arrival[1:]
        assert np.array_equal(empty, first[:-1] < people.arrival[1:]) and empty.any()
        assert np.allclose(leaves[:-1][empty], first[:-1][empty], atol=1e-8)
    in_room = np.searchsorted(people.arrival, leaves, side="right") - np.arange(1, len(leaves) + 1)
    assert in_room.min() >= 0


@pytest.mark.parametrize("discipline", ["fifo", "nonpreemptive", "preemptive"])
def test_littles_law(discipline):
    """Area under the number of exams in the room = sum of their times in it, counted another way."""
    people, scenario = patients(n=5000, discipline=discipline, radiologists=2)
    stay = waits_of(people, scenario) + people.reading
    times = np.concatenate([people.arrival, people.arrival + stay])
    change = np.concatenate([np.ones(len(stay)), -np.ones(len(stay))])
    order = np.argsort(times, kind="stable")
    there = np.cumsum(change[order])[:-1]
    assert (there * np.diff(times[order])).sum() == pytest.approx(stay.sum(), rel=1e-9)


def test_flags_are_drawn_so_that_a_better_ai_flags_all_that_a_worse_one_finds():
    few, _ = patients(sensitivity=0.6, specificity=0.9)
    more, _ = patients(sensitivity=0.9, specificity=0.9)
    assert np.array_equal(few.arrival, more.arrival) and np.array_equal(few.reading, more.reading)
    assert (few.kind <= 1).sum() == (more.kind <= 1).sum() and more.flagged[few.flagged].all()
    assert [name for name in CLASSES if (more.kind == CLASSES.index(name)).any()] == ["TP", "FN", "FP", "TN"]
