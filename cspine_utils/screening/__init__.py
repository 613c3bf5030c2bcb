"""Look at every study before using any: a verdict with its reason for each, and splits that do not leak.

survey(dataset) -> table          headers only, one row a study; a bad one never stops the cohort
usable(table) -> ids              whose CT (and label map) is read as it is
read_pairs(dataset, ids)          volumes with their label maps
split, folds, reproduction_split  ids dealt out by study; `check_disjoint` is the gate behind each
count_tables(root) -> counts      what the published tables say without any image
"""

from .cohort import funnel, survey, usable
from .counts import PUBLISHED_COUNTS, count_tables
from .pairs import example, read_files, read_pair, read_pairs
from .splits import ReproductionSplit, check_disjoint, folds, reproduction_split, split
from .study import SURVEY_COLUMNS

__all__ = [
    "PUBLISHED_COUNTS",
    "SURVEY_COLUMNS",
    "ReproductionSplit",
    "check_disjoint",
    "count_tables",
    "example",
    "folds",
    "funnel",
    "read_files",
    "read_pair",
    "read_pairs",
    "reproduction_split",
    "split",
    "survey",
    "usable",
]
