import shutil

import pandas as pd
import pytest

from cspine_utils import demo, screening
from cspine_utils.errors import ParameterError
from cspine_utils.rsna import RsnaDataset


def test_four_studies_are_broken_and_the_original_is_not(rsna_folder, tmp_path):
    table = pd.read_csv(rsna_folder / "train.csv", dtype=str)
    extra = table.iloc[:1].assign(StudyInstanceUID="1.2.826.0.1.3680043.15")
    pd.concat([table, extra]).to_csv(rsna_folder / "train.csv", index=False)
    images = rsna_folder / "train_images"
    shutil.copytree(images / table["StudyInstanceUID"][0], images / "1.2.826.0.1.3680043.15")
    before = {p: p.read_bytes() for p in rsna_folder.rglob("*") if p.is_file()}

    dataset = RsnaDataset(rsna_folder)
    with pytest.raises(ParameterError, match="at least five"):
        demo.broken_copy(dataset, tmp_path, dataset.studies[:4])
    survey = screening.survey(demo.broken_copy(dataset, tmp_path, dataset.studies), progress=False)

    assert {p: p.read_bytes() for p in rsna_folder.rglob("*") if p.is_file()} == before
    assert survey["verdict"].tolist() == ["reject", "reject", "reject", "reject", "use"]
    for reason, words in zip(
        survey["reason"], ("1 slice(s) missing", "notes.dcm", "7.dcm", "no such folder", ""), strict=True
    ):
        assert words in reason
