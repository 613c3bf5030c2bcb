"""A synthetic cervical-spine CT cohort with known truth, written in the folder form of the RSNA-2022 data.

No licensed image goes into it: every vertebra is built from rounded primitives, every fracture is cut on purpose.
`render_pair(plan)` gives a study and its intact twin, which differ at the fracture alone;
`render_vertebra(plan, level)` the neighbourhood of one vertebra at a small part of the cost.
"""

from .cohort import write_cohort
from .export import read_truth
from .fractures import DIFFICULTIES, FRACTURE_TYPES, KINDS
from .mimics import MIMICS
from .patterns import level_patterns
from .rendering import render, render_neck, render_neck_pair, render_pair, render_vertebra, render_vertebra_pair
from .scanner import KERNELS
from .study import StudyPlan, draw_plan
from .truth import Box, FractureTruth, Rendered

__all__ = [
    "Box",
    "DIFFICULTIES",
    "FRACTURE_TYPES",
    "FractureTruth",
    "KERNELS",
    "KINDS",
    "MIMICS",
    "Rendered",
    "StudyPlan",
    "draw_plan",
    "level_patterns",
    "read_truth",
    "render",
    "render_neck",
    "render_neck_pair",
    "render_pair",
    "render_vertebra",
    "render_vertebra_pair",
    "write_cohort",
]
