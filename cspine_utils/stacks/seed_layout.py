"""The 105 arrays of a study as the students' project had them on disk: one file a frame."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from .store import Stored, no_place, open_study, replace_file


def export_seed_layout(store, study: str, out) -> list[Path]:
    """Write `<study>_<n>.npy` for every odd slice n (counted from 1): float64 `(6, h, w)`, HU and label ids.

    Parameters
    ----------
    store : folder written by `prepare`
    out : folder, made if missing; eight bytes for each of 105 x 6 x h x w values (1.3 GB at 512 x 512)

    Returns
    -------
    The files, in the order of the frames

    Raises
    ------
    StackError : a study that is not in the store or damaged, no room to write
    """
    stored, out = open_study(store, study), Path(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
        return [_write(out, stored, index) for index in range(len(stored))]
    except OSError as error:
        raise no_place(out, error, size=len(stored) * 6 * 8 * stored.hu[0].size) from error


def _write(out: Path, stored: Stored, index: int) -> Path:
    path = out / f"{stored.study}_{2 * index + 1}.npy"
    replace_file(path, stored.frame(index).astype(np.float64))
    return path
