import gzip
import shutil

import pandas as pd
import pytest

from cspine_utils import demo, screening
from cspine_utils.errors import ParameterError
from cspine_utils.rsna import RsnaDataset


def test_six_studies_are_broken_and_the_original_is_not(rsna_folder, tmp_path):
    table = pd.read_csv(rsna_folder / "train.csv", dtype=str)
    first, without_mask = table["StudyInstanceUID"].iloc[[0, 3]]
    extra = [f"1.2.826.0.1.3680043.{n}" for n in range(15, 19)]
    for study in extra:
        shutil.copytree(rsna_folder / "train_images" / first, rsna_folder / "train_images" / study)
        shutil.copy(rsna_folder / "segmentations" / f"{first}.nii", rsna_folder / "segmentations" / f"{study}.nii")
    more = pd.concat([table.iloc[:1].assign(StudyInstanceUID=study) for study in extra])
    pd.concat([table, more]).to_csv(rsna_folder / "train.csv", index=False)
    packed = rsna_folder / "segmentations" / f"{extra[1]}.nii"  # the one that will lie half a voxel off
    packed.with_name(packed.name + ".gz").write_bytes(gzip.compress(packed.read_bytes(), mtime=0))
    packed.unlink()
    before = {p: p.read_bytes() for p in rsna_folder.rglob("*") if p.is_file()}

    dataset = RsnaDataset(rsna_folder)
    with pytest.raises(ParameterError, match="none with a label map"):
        demo.broken_copy(dataset, tmp_path, [without_mask])
    few = screening.survey(demo.broken_copy(dataset, tmp_path / "few", dataset.studies[:2]), progress=False)
    assert few["verdict"].tolist() == ["reject", "repair"]
    broken = demo.broken_copy(dataset, tmp_path, dataset.studies)
    survey = screening.survey(broken, progress=False)

    assert {p: p.read_bytes() for p in rsna_folder.rglob("*") if p.is_file()} == before
    assert without_mask not in survey.index and len(survey) == 7
    assert survey["verdict"].tolist() == ["reject", "repair", "reject", "reject", "repair", "repair", "use"]
    said = ("1 slice(s) missing", "resample_uneven=True", "7.dcm", "no such folder", "0.5", "11", "")
    for reason, words in zip(survey["reason"], said, strict=True):
        assert words in reason
    uneven = survey.iloc[1]
    assert (uneven["step_min_mm"], uneven["step_max_mm"]) == pytest.approx((0.76 * 1.5, 1.24 * 1.5), abs=1e-3)
    assert survey["mask"].tolist() == ["not judged", "fits", "not judged", "not judged", "wrong", "wrong", "fits"]
