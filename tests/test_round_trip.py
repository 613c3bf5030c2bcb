"""What the phantom draws, the course's own readers give back: every voxel, every stored form."""

import numpy as np
import pandas as pd
import pytest

from cspine_utils import screening
from cspine_utils.dicom import read_series
from cspine_utils.nifti import read_mask
from cspine_utils.phantom import read_truth, write_cohort
from cspine_utils.rsna import RsnaDataset

STUDIES = 12


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    return write_cohort(tmp_path_factory.mktemp("cohort") / "phantom", STUDIES, 11, size=48, progress=False)


def test_every_stored_form_is_in_the_cohort(cohort):
    forms = pd.read_csv(cohort / "truth" / "storage.csv")
    assert set(forms["order"]) == {"head_to_feet", "feet_to_head"} and set(forms["first_number"]) == {1, 2}
    assert len(set(forms["transfer_syntax"])) == 3 and set(forms["signed"]) == {0, 1}
    assert (forms["step_mm"] != forms["thickness_mm"]).any() and set(forms["has_mask"]) == {0, 1}


@pytest.mark.parametrize("index", range(STUDIES))
def test_voxels_places_and_labels_come_back(cohort, index):
    dataset = RsnaDataset(cohort)
    study = dataset.studies[index]
    truth, record = read_truth(cohort / "truth" / f"{study}.npz")
    volume = read_series(dataset.series_dir(study))
    assert np.array_equal(volume.hu, truth.hu)
    assert volume.affine == pytest.approx(truth.affine, abs=1e-3)
    assert volume.study_uid == study
    assert [level for level in dataset.labels.columns[:7] if dataset.labels.loc[study, level]] == record["levels"]
    path = dataset.mask_path(study)
    if path is not None:
        assert np.array_equal(read_mask(path, volume), truth.labels)


def test_the_survey_says_how_each_study_is_stored(cohort):
    survey = screening.survey(RsnaDataset(cohort), progress=False)
    forms = pd.read_csv(cohort / "truth" / "storage.csv", dtype={"study": str}).set_index("study")
    assert (survey["verdict"] == "use").all()
    direction = forms["order"].map({"head_to_feet": "head -> feet", "feet_to_head": "feet -> head"})
    assert survey["direction"].tolist() == direction.loc[survey.index].tolist()
    assert survey["first_number"].astype(int).tolist() == forms.loc[survey.index, "first_number"].tolist()
    for column in ("step_mm", "thickness_mm"):
        assert survey[column].astype(float).to_numpy() == pytest.approx(
            forms.loc[survey.index, column].to_numpy(), abs=1e-3
        )
