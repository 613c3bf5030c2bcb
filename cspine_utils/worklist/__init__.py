"""The worklist of a reading room with and without an AI that flags fractures: simulation and closed forms.

    python -m cspine_utils.worklist theory --load 0.8 --discipline preemptive
    python -m cspine_utils.worklist simulate --load 0.8 --exams 20000

It answers one question: how long does an exam wait until it is read? Triage moves waiting from flagged exams to all
others, it never removes any. What a radiologist sees, and what happens to the patient, is not in it.

`scenario` says what happens, `queues` lets exams wait, `simulation` replicates and compares on the same patients,
`theory` has the formulas, `usefulness` what a threshold on a model's probabilities means, `stages` how long our own
pipeline takes.
"""

from . import queues, theory
from .scenario import DISCIPLINES, READING_LAWS, Scenario
from .simulation import CLASSES, WARM_UP, Interval, Patients, Result, draw_patients, simulate, waits_of
from .stages import STAGES, stage_seconds
from .usefulness import (
    at_prevalence,
    drawn_operating_points,
    net_benefit,
    operating_point,
    positive_predictive_value,
)

__all__ = [
    "CLASSES",
    "DISCIPLINES",
    "READING_LAWS",
    "STAGES",
    "WARM_UP",
    "Interval",
    "Patients",
    "Result",
    "Scenario",
    "at_prevalence",
    "draw_patients",
    "drawn_operating_points",
    "net_benefit",
    "operating_point",
    "positive_predictive_value",
    "queues",
    "simulate",
    "stage_seconds",
    "theory",
    "waits_of",
]
