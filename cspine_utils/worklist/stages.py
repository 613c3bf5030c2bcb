"""How long our own pipeline takes for an exam, stage by stage: what the AI's answer waits for."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    import torch

    from cspine_utils.rsna import RsnaDataset

STAGES = ("read", "label map", "screen", "stack", "classify")


def stage_seconds(
    dataset: RsnaDataset, studies: Iterable[str], model: torch.nn.Module, *, size: int, field_mm: float | None
) -> pd.DataFrame:
    """Seconds of every stage for studies with a label map.

    Parameters
    ----------
    model : six-channel classifier for stacks of this size, in evaluation mode
    size, field_mm : see `stacks.six_channel`

    Returns
    -------
    DataFrame, one row a study and stage: study, stage, seconds. "label map" reads the map of the data set; where there
    is none, a segmenter must draw it, which takes longer
    """
    # Formulas and simulations need none of these, and they take seconds to import.
    import torch

    from cspine_utils import dicom, nifti, stacks

    rows = []
    for study in studies:
        times = [time.perf_counter()]
        volume = dicom.read_series(dataset.series_dir(study))
        times.append(time.perf_counter())
        mask = nifti.read_mask(dataset.mask_path(study), volume)
        times.append(time.perf_counter())
        nifti.check_placement(volume, mask)
        times.append(time.perf_counter())
        x = stacks.normalise(stacks.six_channel(volume, mask, size=size, field_mm=field_mm))
        times.append(time.perf_counter())
        with torch.no_grad():
            model(torch.from_numpy(np.ascontiguousarray(x))[None])
        times.append(time.perf_counter())
        rows += [
            {"study": study, "stage": stage, "seconds": after - before}
            for stage, before, after in zip(STAGES, times[:-1], times[1:], strict=True)
        ]
    return pd.DataFrame(rows)
