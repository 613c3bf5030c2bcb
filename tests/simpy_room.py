"""The reading room told in simpy, an independent simulation: what ours is compared with."""

import numpy as np
import simpy


def by_simpy(arrival, reading, flagged, radiologists, discipline) -> np.ndarray:
    """The same room, told as processes that ask for a radiologist."""
    room = simpy.Environment()
    if discipline == "preemptive":
        staff = simpy.PreemptiveResource(room, radiologists)
    else:
        staff = simpy.PriorityResource(room, radiologists)
    waits = np.empty(len(arrival))

    def exam(k):
        yield room.timeout(arrival[k] - room.now)
        left, ahead = reading[k], bool(flagged[k]) and discipline != "fifo"
        while left > 0:
            # A pair as priority keeps an interrupted exam in its place among the others.
            priority = (0 if ahead else 1, k)
            asked = (
                staff.request(priority=priority, preempt=ahead)
                if discipline == "preemptive"
                else staff.request(priority=priority)
            )
            with asked as request:
                yield request
                begun = room.now
                try:
                    yield room.timeout(left)
                    left = 0.0
                except simpy.Interrupt:
                    left -= room.now - begun
        waits[k] = room.now - arrival[k] - reading[k]

    def come():
        for k in range(len(arrival)):
            room.process(exam(k))
            yield room.timeout(0)

    room.process(come())
    room.run()
    return waits
