"""A synthetic cervical-spine CT cohort with known truth, written in the folder form of the RSNA-2022 data.

No licensed image goes into it: every vertebra is built from rounded primitives, every fracture is cut on purpose.
`render(plan)` and `render(plan, fractured=False)` differ at the fracture alone.
"""

from .cohort import write_cohort
from .export import read_truth
from .fractures import DIFFICULTIES, FRACTURE_TYPES
from .patterns import level_patterns
from .study import Box, FractureTruth, Rendered, StudyPlan, draw_plan, render

__all__ = [
    "Box",
    "DIFFICULTIES",
    "FRACTURE_TYPES",
    "FractureTruth",
    "Rendered",
    "StudyPlan",
    "draw_plan",
    "level_patterns",
    "read_truth",
    "render",
    "write_cohort",
]
