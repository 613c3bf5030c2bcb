"""The reading room in time: who waits how long, exam by exam.

Every function takes the same patients: `arrival`, in order, and `reading`, both `(n,)` in minutes; and, with triage,
`ready`, when an exam gets ahead of the others: its arrival plus the AI's latency if it is flagged, infinity if not.
Until then it waits in the order of arrival like everyone. The answer is the wait of each exam in minutes: from arrival
to the end of reading, less the time that it was read. An interruption counts as waiting.

Two exams of one class are read in the order of arrival, so flags must come in that order, too; ties, which have
probability zero, go to the earlier one.
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush, heapreplace

import numpy as np

from cspine_utils.errors import WorklistError

#: Exams that `fifo` sums up before it starts from zero again: sums over a long day lose digits.
_BLOCK = 1 << 15


def fifo(arrival: np.ndarray, reading: np.ndarray, radiologists: int = 1) -> np.ndarray:
    """First in, first out.

    One radiologist: Lindley's recursion (1952), W[k+1] = max(0, W[k] + S[k] - (A[k+1] - A[k])), written with cumulative
    sums and minima. Several: the next exam goes to whoever is free first (Kiefer and Wolfowitz 1955).
    """
    if radiologists == 1:
        return _lindley(np.diff(arrival), reading)
    free, waits = [0.0] * radiologists, np.empty(len(arrival))
    for k, (a, s) in enumerate(zip(arrival.tolist(), reading.tolist(), strict=True)):
        start = free[0]
        if start < a:
            start = a
        heapreplace(free, start + s)
        waits[k] = start - a
    return waits


def _lindley(gaps: np.ndarray, reading: np.ndarray) -> np.ndarray:
    """Waits from the times between arrivals `(n - 1,)` and what is read meanwhile `(n,)`."""
    waits = np.zeros(len(reading))
    steps = reading[:-1] - gaps
    for first in range(0, len(steps), _BLOCK):
        walk = np.cumsum(steps[first : first + _BLOCK])
        walk += waits[first]
        lowest = np.minimum.accumulate(walk)
        np.minimum(lowest, 0.0, out=lowest)
        np.subtract(walk, lowest, out=waits[first + 1 : first + 1 + len(walk)])
    return waits


def nonpreemptive(
    arrival: np.ndarray, reading: np.ndarray, ready: np.ndarray, radiologists: int = 1, cap: float = np.inf
) -> np.ndarray:
    """Whoever gets free takes the exam that is flagged; what is being read is read to its end.

    Parameters
    ----------
    cap : minutes; an exam that has waited so long goes before the flagged ones

    Raises WorklistError for flags that overtake each other.
    """
    flagged = _in_order(ready)
    ahead = [*ready[flagged].tolist(), np.inf]  # when the next flagged exam is ready
    number = [*flagged.tolist(), len(arrival)]
    comes, takes = [*arrival.tolist(), np.inf], reading.tolist()
    started = bytearray(len(arrival) + 1)
    starts, free = np.empty(len(arrival)), [0.0] * radiologists
    first = head = 0  # the earliest exam that nobody has started, and the earliest flagged one
    for _ in range(len(arrival)):
        while started[first]:
            first += 1
        while started[number[head]]:
            head += 1
        now = free[0]
        if now < comes[first]:
            now = comes[first]  # nobody waits
        k = number[head] if ahead[head] <= now < comes[first] + cap else first
        started[k] = 1
        starts[k] = now
        heapreplace(free, now + takes[k])
    return starts - arrival


def preemptive(
    arrival: np.ndarray, reading: np.ndarray, ready: np.ndarray, radiologists: int = 1, cap: float = np.inf
) -> np.ndarray:
    """A flagged exam interrupts one that is not, the latest of those being read; that one is read on where it was left.

    Parameters
    ----------
    cap : minutes; an exam that has waited so long goes before the flagged ones that wait when a reader gets free, and
        is not interrupted any more. It interrupts nobody itself: who is interrupted makes room for the flagged exam
        that came. Time in which it was read is not waiting

    Raises WorklistError for flags that overtake each other.
    """
    _in_order(ready)
    at_once = np.isinf(ready) | (ready == arrival)
    if radiologists == 1 and at_once.all() and np.isinf(cap):
        return _interrupted_by(arrival, reading, np.isfinite(ready))
    return _Room(arrival, reading, ready, radiologists, cap).waits()


def _in_order(ready: np.ndarray) -> np.ndarray:
    """Numbers of the flagged exams."""
    flagged = np.flatnonzero(np.isfinite(ready))
    if (np.diff(ready[flagged]) < 0).any():
        raise WorklistError(
            "ready",
            found="an exam that is flagged before an earlier one",
            expected="flags in the order of arrival",
            remedy="give all exams the same latency.",
        )
    return flagged


def _interrupted_by(arrival: np.ndarray, reading: np.ndarray, flagged: np.ndarray) -> np.ndarray:
    """One radiologist, no latency: flagged exams see no others, and the others see a clock that stands still meanwhile.

    On the clock "time in which no flagged exam was there", the others are a queue of their own, first in, first out.
    """
    waits = np.empty(len(arrival))
    a, s = arrival[flagged], reading[flagged]
    waits[flagged] = _lindley(np.diff(a), s)
    if flagged.all():
        return waits
    begins, ends = a + waits[flagged], a + waits[flagged] + s
    idle_before = begins - np.concatenate([[0.0], np.cumsum(s)[:-1]])  # idle time when each flagged exam begins
    b, r = arrival[~flagged], reading[~flagged]
    done = np.searchsorted(begins, b, side="right")  # flagged exams begun until then
    busy = np.concatenate([[0.0], np.cumsum(s)])
    left = np.where(done > 0, np.maximum(ends[done - 1] - b, 0.0), 0.0) if len(a) else np.zeros(len(b))
    clock = b - busy[done] + left
    idle_end = clock + _lindley(np.diff(clock), r) + r
    waits[~flagged] = idle_end + busy[np.searchsorted(idle_before, idle_end, side="left")] - b - r
    return waits


class _Room:
    """Several radiologists, or a latency: event by event."""

    def __init__(self, arrival, reading, ready, radiologists: int, cap: float):
        self.arrival, self.left = arrival.tolist(), reading.tolist()
        self.ready, self.cap = ready.tolist(), cap
        self.free = radiologists
        self.ahead = bytearray(len(arrival))  # flagged, or has waited too long: nobody interrupts it
        self.urgent: list[int] = []
        self.waiting: list[int] = []
        self.reading: dict[int, float] = {}  # exam -> when its reading (went on) began
        self.done = np.empty(len(arrival))
        self.total = reading
        self.finish: list[tuple[float, int, float]] = []  # time, exam, since when: stale if that has changed
        self.alarms = [(t, k, False) for k, t in enumerate(self.ready) if self.arrival[k] < t < np.inf]  # True: a cap
        heapify(self.alarms)

    def waits(self) -> np.ndarray:
        # Millions of turns: what is looked up in every one of them is a local name.
        finish, alarms, reading, done, inf = self.finish, self.alarms, self.reading, self.done, np.inf
        comes, coming = [*self.arrival, inf], 0
        left = len(self.arrival)
        while left:
            while finish and reading.get(finish[0][1]) != finish[0][2]:
                heappop(finish)
            end = finish[0][0] if finish else inf
            alarm = alarms[0][0] if alarms else inf
            come = comes[coming]
            if end <= come and end <= alarm:
                _, k, _ = heappop(finish)
                del reading[k]
                done[k] = end
                self.left[k] = 0.0
                self.free += 1
                left -= 1
                self._next(end)
            elif come <= alarm:
                self._arrive(coming, come)
                coming += 1
            else:
                _, k, of_the_cap = heappop(alarms)
                (self._has_waited if of_the_cap else self._flag)(k, alarm)
        return done - np.asarray(self.arrival) - self.total

    def _arrive(self, k: int, now: float) -> None:
        if self.ready[k] <= now:  # flagged, and the AI took no time
            self.ahead[k] = 1
        if self.free:  # so nobody waits
            self._take(k, now)
        elif self.ahead[k]:
            self._squeeze_in(k, now)
        else:
            heappush(self.waiting, k)
            if self.cap < np.inf:
                heappush(self.alarms, (now + self.cap, k, True))

    def _next(self, now: float) -> None:
        """Whoever is free takes the first exam that is ahead, else the first of the others."""
        waiting, urgent, ahead = self.waiting, self.urgent, self.ahead
        while self.free:
            # What is ahead has left this queue, and an urgent one may have interrupted its way to a reader.
            while waiting and ahead[waiting[0]]:
                heappop(waiting)
            while urgent and (urgent[0] in self.reading or self.left[urgent[0]] == 0.0):
                heappop(urgent)
            queue = urgent or waiting
            if not queue:
                return
            self._take(heappop(queue), now)

    def _take(self, k: int, now: float) -> None:
        self.free -= 1
        self.reading[k] = now
        heappush(self.finish, (now + self.left[k], k, now))

    def _flag(self, k: int, now: float) -> None:
        """The AI has answered."""
        if self.left[k] == 0.0:
            return
        waited_long, self.ahead[k] = self.ahead[k], 1
        if k not in self.reading:  # so nobody is free
            self._squeeze_in(k, now, queued=bool(waited_long))

    def _has_waited(self, k: int, now: float) -> None:
        """An exam may have waited too long; being read is not waiting, and who is interrupted gets a new alarm."""
        if self.left[k] == 0.0 or self.ahead[k] or k in self.reading:
            return
        waited = now - self.arrival[k] - (self.total[k] - self.left[k])
        if waited < self.cap - 1e-9:  # it was read for a while: its cap comes later
            heappush(self.alarms, (now + self.cap - waited, k, True))
            return
        self.ahead[k] = 1
        heappush(self.urgent, k)

    def _squeeze_in(self, k: int, now: float, *, queued: bool = False) -> None:
        """A flagged exam takes the place of the latest one being read that is not ahead, or waits with the urgent."""
        latest = max((other for other in self.reading if not self.ahead[other]), default=None)
        if latest is None:
            if not queued:
                heappush(self.urgent, k)
            return
        self.left[latest] -= now - self.reading.pop(latest)
        heappush(self.waiting, latest)
        if self.cap < np.inf:
            waited = now - self.arrival[latest] - (self.total[latest] - self.left[latest])
            heappush(self.alarms, (now + max(0.0, self.cap - waited), latest, True))
        self.free += 1
        self._take(k, now)
