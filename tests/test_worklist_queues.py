"""Who waits how long: exam by exam equal to simpy, and invariants that any reading room keeps."""

import numpy as np
import pytest
from simpy_room import by_simpy

from cspine_utils.errors import WorklistError
from cspine_utils.worklist import CLASSES, Scenario, draw_patients, queues, theory, waits_of

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
    # Preemptive: exam 0 is interrupted after a minute. It, and exam 1, go before those who wait once they have waited
    # 15 min; exam 3 is being read then and goes on, exam 4 comes after them.
    assert queues.preemptive(arrival, reading, ready).tolist() == [30, 39.5, 0, 9, 18]
    assert queues.preemptive(arrival, reading, ready, cap=15.0).tolist() == [20, 29.5, 0, 9, 29]


@pytest.mark.parametrize("cap", [9.5, 12.0])
def test_being_read_is_not_waiting(cap):
    """Exam 1 has waited 9 min and been read for 5 when a flagged one comes: its cap is not reached."""
    arrival, reading, ready = np.array([0.0, 1.0, 15.0]), np.array([10.0, 20.0, 4.0]), np.array([INF, INF, 15.0])
    assert queues.preemptive(arrival, reading, ready, 1, cap).tolist() == [0, 13, 0]


@pytest.mark.parametrize("radiologists", [1, 3])
@pytest.mark.parametrize("discipline", ["nonpreemptive", "preemptive"])
def test_a_cap_without_any_flag_changes_nothing(discipline, radiologists):
    people, _ = patients(n=4000, radiologists=radiologists)
    nobody = np.full(len(people.arrival), INF)
    waits = getattr(queues, discipline)(people.arrival, people.reading, nobody, radiologists, 20.0)
    assert np.abs(waits - queues.fifo(people.arrival, people.reading, radiologists)).max() < 1e-9


def by_definition(arrival, reading, ready, radiologists, cap=INF):
    """Preemptive, rule by rule. Slow: everybody in the room is looked at whenever anything happens.

    Who gets free takes the first that has waited for the cap, else the first that is flagged, else the first. While a
    flagged exam waits, the latest one being read that is neither flagged nor has waited for the cap makes room for it.
    """
    left, waited, gone = reading.copy(), np.zeros(len(arrival)), np.full(len(arrival), np.nan)
    read, capped = set(), set()
    events = np.unique(np.concatenate([arrival, ready[np.isfinite(ready)], [INF]]))
    now = arrival[0]
    while np.isnan(gone).any():
        waiting = [k for k in range(len(arrival)) if arrival[k] <= now and np.isnan(gone[k]) and k not in read]
        capped |= {k for k in waiting if waited[k] >= cap - 1e-9}
        waiting.sort(key=lambda k: (0 if k in capped else 1 if ready[k] <= now else 2, k))
        while waiting and len(read) < radiologists:
            read.add(waiting.pop(0))
        flagged = [k for k in waiting if ready[k] <= now]
        ordinary = sorted(k for k in read if k not in capped and ready[k] > now)
        while flagged and ordinary:
            read.remove(ordinary[-1])
            waiting.append(ordinary.pop())
            waiting.remove(flagged[0])
            read.add(flagged.pop(0))
        caps = [now + cap - waited[k] for k in waiting if k not in capped]
        then = min([events[events > now][0], *(now + left[k] for k in read), *caps])
        for k in waiting:
            waited[k] += then - now
        for k in list(read):
            left[k] -= then - now
            if left[k] <= 1e-9:
                gone[k] = then
                read.remove(k)
        now = then
    return gone - arrival - reading


@pytest.mark.parametrize("cap", [INF, 25.0, 8.0])
@pytest.mark.parametrize("latency", [0.0, 6.0, 15.0])
@pytest.mark.parametrize("radiologists", [1, 2, 3])
def test_preemptive_with_latency_and_cap_is_its_definition(radiologists, latency, cap):
    people, _ = patients(n=250, radiologists=radiologists, prevalence=0.3, load=0.9)
    ready = np.where(people.flagged, people.arrival + latency, INF)
    waits = queues.preemptive(people.arrival, people.reading, ready, radiologists, cap)
    slow = by_definition(people.arrival, people.reading, ready, radiologists, cap)
    assert np.abs(waits - slow).max() < 1e-6
    for other in ((ready + 3.0, radiologists, cap), (ready, radiologists, 2.0 if cap == INF else 60.0)):
        slow = by_definition(people.arrival, people.reading, *other)
        assert np.abs(waits - slow).max() > 1, "another latency or cap would be noticed"


def test_a_cap_interrupts_nobody():
    """Exam 2 has waited 18 min when a flagged one comes, which takes the place of exam 1. It goes next when that one is
    done; exam 1 goes on after it."""
    arrival, reading = np.array([0.0, 1.0, 2.0, 20.0]), np.array([100.0, 100.0, 10.0, 5.0])
    ready = np.array([INF, INF, INF, 20.0])
    assert queues.preemptive(arrival, reading, ready, 2, 15.0).tolist() == [0, 15, 23, 0]
    assert queues.preemptive(arrival, reading, ready, 2).tolist() == [0, 5, 98, 0]


def by_choosing(arrival, reading, ready, radiologists, cap):
    """Non-preemptive: whoever gets free looks at all who wait."""
    starts, free = np.full(len(arrival), np.nan), np.zeros(radiologists)
    while np.isnan(starts).any():
        who = int(free.argmin())
        now = max(free[who], arrival[np.isnan(starts)].min())
        waiting = [k for k in range(len(arrival)) if arrival[k] <= now and np.isnan(starts[k])]
        flagged = [k for k in waiting if ready[k] <= now]
        k = flagged[0] if flagged and now - arrival[waiting[0]] < cap else waiting[0]
        starts[k], free[who] = now, now + reading[k]
    return starts - arrival


@pytest.mark.parametrize(("latency", "cap"), [(0.0, INF), (6.0, INF), (0.0, 25.0), (6.0, 25.0)])
@pytest.mark.parametrize("radiologists", [1, 3])
def test_nonpreemptive_with_latency_and_cap_is_its_definition(radiologists, latency, cap):
    people, _ = patients(n=400, radiologists=radiologists, prevalence=0.3, load=0.9)
    ready = np.where(people.flagged, people.arrival + latency, INF)
    waits = queues.nonpreemptive(people.arrival, people.reading, ready, radiologists, cap)
    slow = by_choosing(people.arrival, people.reading, ready, radiologists, cap)
    assert np.abs(waits - slow).max() < 1e-9
    assert np.abs(slow - by_choosing(people.arrival, people.reading, ready, radiologists, 12.0)).max() > 1


@pytest.mark.parametrize("discipline", ["nonpreemptive", "preemptive"])
def test_flags_that_overtake_each_other_are_refused(discipline):
    arrival, reading = np.arange(4.0), np.array([10.0, 5, 5, 5])
    with pytest.raises(WorklistError, match="the same latency"):
        getattr(queues, discipline)(arrival, reading, np.array([INF, INF, 20.0, 4.0]))


@pytest.mark.parametrize(("radiologists", "seed"), [(1, 0), (1, 1), (1, 2), (3, 3), (2, 4)])
@pytest.mark.parametrize("discipline", ["nonpreemptive", "preemptive"])
def test_a_huge_cap_and_a_huge_latency_change_nothing(discipline, radiologists, seed):
    people, scenario = patients(n=3000, seed=seed, discipline=discipline, radiologists=radiologists)
    way = getattr(queues, discipline)
    ready = np.where(people.flagged, people.arrival, INF)
    plain = way(people.arrival, people.reading, ready, radiologists)
    assert np.abs(way(people.arrival, people.reading, ready, radiologists, 1e12) - plain).max() < 1e-9
    late = way(people.arrival, people.reading, ready + 1e9, radiologists)
    assert np.abs(late - queues.fifo(people.arrival, people.reading, radiologists)).max() < 1e-9
    soon = way(people.arrival, people.reading, ready + 1e-12, radiologists)
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
    if discipline != "preemptive":  # read in one piece: see who is being read between any two events
        starts, ends = people.arrival + waits, people.arrival + waits + people.reading
        events = np.unique(np.concatenate([people.arrival, starts, ends]))
        between = ((events[:-1] + events[1:]) / 2)[np.diff(events) > 1e-6]
        there, begun, gone = (np.searchsorted(np.sort(t), between) for t in (people.arrival, starts, ends))
        assert np.array_equal(begun - gone, np.minimum(radiologists, there - gone)) and (there > begun).any()


@pytest.mark.parametrize("discipline", ["fifo", "nonpreemptive", "preemptive"])
def test_littles_law(discipline):
    """How many are in the room, looked at at random moments, is the rate of arrivals times the stay of the formula."""
    people, scenario = patients(n=200_000, discipline=discipline, radiologists=2, load=0.7)
    leaves = np.sort(people.arrival + waits_of(people, scenario) + people.reading)
    looks = np.random.default_rng(0).uniform(people.arrival[2000], people.arrival[-1], 200_000)
    there = np.searchsorted(people.arrival, looks) - np.searchsorted(leaves, looks)
    exact = theory.table(scenario)
    share = scenario.flagged_share
    wait = share * exact["flagged_min"] + (1 - share) * exact["unflagged_min"]
    assert there.mean() == pytest.approx(scenario.arrivals_per_min * (wait + scenario.reading_min), rel=0.03)
    # A law that forgets those who are being read would be noticed.
    assert not np.isclose(there.mean(), scenario.arrivals_per_min * wait, rtol=0.2)


def test_flags_are_drawn_so_that_a_better_ai_flags_all_that_a_worse_one_finds():
    few, _ = patients(sensitivity=0.6, specificity=0.9)
    more, _ = patients(sensitivity=0.9, specificity=0.9)
    assert np.array_equal(few.arrival, more.arrival) and np.array_equal(few.reading, more.reading)
    assert (few.kind <= 1).sum() == (more.kind <= 1).sum() and more.flagged[few.flagged].all()
    assert [name for name in CLASSES if (more.kind == CLASSES.index(name)).any()] == ["TP", "FN", "FP", "TN"]
