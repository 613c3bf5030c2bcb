"""The worklist of a reading room with and without an AI that flags fractures: simulation and closed forms.

    python -m cspine_utils.worklist theory --load 0.8 --discipline preemptive
    python -m cspine_utils.worklist simulate --load 0.8 --exams 20000

It answers one question: how long does an exam wait until it is read? Triage moves waiting from flagged exams to all
others, it never removes any. What a radiologist sees, and what happens to the patient, is not in it.

`scenario` says what happens, `queues` lets exams wait, `simulation` replicates and compares on the same patients,
`theory` has the formulas.
"""

from . import queues, theory
from .scenario import DISCIPLINES, READING_LAWS, Scenario
from .simulation import CLASSES, WARM_UP, Interval, Patients, Result, draw_patients, simulate, waits_of

__all__ = [
    "CLASSES",
    "DISCIPLINES",
    "READING_LAWS",
    "WARM_UP",
    "Interval",
    "Patients",
    "Result",
    "Scenario",
    "draw_patients",
    "queues",
    "simulate",
    "theory",
    "waits_of",
]
