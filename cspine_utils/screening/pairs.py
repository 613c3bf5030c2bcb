"""Studies -> CT volumes with their label maps, past those that cannot be read."""

from __future__ import annotations

from cspine_utils import dicom, nifti
from cspine_utils.errors import CSpineError, DatasetError, MaskError


def read_pair(dataset, study: str):
    """CT and label map of one study.

    Returns
    -------
    (volume, mask) : `Volume`, and uint8 labels on its grid

    Raises
    ------
    CSpineError : one of them cannot be read, they do not fit together, or the labels lie better on bone after a flip:
        a label map with a mirrored header can lie on the very grid of the CT, where only the bone under it tells
    """
    path = dataset.mask_path(study)
    if path is None:
        raise MaskError(
            dataset.root / "segmentations" / f"{study}.nii",
            found="no label map",
            expected="one",
            remedy="leave this study out where a label map is needed.",
        )
    return read_files(dataset.series_dir(study), path)


def read_files(series_dir, mask_path):
    """CT and label map by their places, as `read_pair`."""
    volume = dicom.read_series(series_dir)
    mask = nifti.read_mask(mask_path, volume)
    nifti.check_placement(volume, mask)
    return volume, mask


def read_pairs(dataset, studies, failures: dict[str, str] | None = None):
    """Yield (study, volume, mask) of each study whose CT and label map can be read and fit together.

    A survey reads headers only; pixels may still be damaged. A study that cannot be used is left out, and its reason
    is put into `failures`.
    """
    for study in studies:
        try:
            volume, mask = read_pair(dataset, study)
        except CSpineError as error:
            if failures is not None:
                failures[study] = str(error)
            continue
        yield study, volume, mask


def example(dataset, studies):
    """The first readable (study, volume, mask); raises DatasetError with a reason where there is none."""
    failures: dict[str, str] = {}
    for pair in read_pairs(dataset, studies, failures):
        return pair
    raise DatasetError(
        dataset.root,
        found=f"no readable CT with its label map among {len(failures)} studies",
        expected="at least one",
        remedy=f"mend the first: {next(iter(failures.values()))}" if failures else "choose other studies.",
    )
