"""From a volume and its mask to the course's tensor: 105 frames of six channels, stored once, gathered when loaded.

six_channel(volume, mask) -> (105, 6, h, w)      one study, in HU and label ids
normalise(stack) -> what a network gets
prepare(dataset, out, size=...) -> report        the slices and masks of a cohort on disk
StackDataset(out, labels)                        the store as training samples
open_study(out, study) -> Stored                 one study of the store, mapped into memory
export_seed_layout(out, study, folder)           the 105 files of the students' project
"""

from .dataset import StackDataset, two_sets
from .layout import FRAMES, Axis, Layout, cervical_slices, check_on_grid, lay_out
from .making import prepare
from .seed_layout import export_seed_layout
from .slices import AIR_HU, CHANNELS, NEIGHBOURS, gather_six, resample_slices, shown_slices, six_channel
from .store import Stored, open_study
from .windows import MASK_SCALE, SLICE_SCALE, WINDOWS, apply_window, labels_of, normalise, scale_hu, scale_labels

__all__ = [
    "AIR_HU",
    "CHANNELS",
    "FRAMES",
    "MASK_SCALE",
    "NEIGHBOURS",
    "SLICE_SCALE",
    "WINDOWS",
    "Axis",
    "Layout",
    "StackDataset",
    "Stored",
    "apply_window",
    "cervical_slices",
    "check_on_grid",
    "export_seed_layout",
    "gather_six",
    "labels_of",
    "lay_out",
    "normalise",
    "open_study",
    "prepare",
    "resample_slices",
    "scale_hu",
    "scale_labels",
    "shown_slices",
    "six_channel",
    "two_sets",
]
