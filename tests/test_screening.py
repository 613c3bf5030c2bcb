import numpy as np
import pandas as pd
import pytest
from conftest import write_series

from cspine_utils import screening
from cspine_utils.errors import ParameterError
from cspine_utils.rsna import RsnaDataset


def test_survey_says_what_the_headers_say(rsna_folder):
    table = screening.survey(RsnaDataset(rsna_folder), progress=False)
    assert table["verdict"].tolist() == ["use"] * 4
    assert table["direction"].tolist() == ["head -> feet", "feet -> head", "head -> feet", "head -> feet"]
    assert table["files"].tolist() == [12] * 4 and table["has_mask"].tolist() == [True] * 3 + [False]
    row = table.iloc[0]
    assert (row["rows"], row["columns"]) == (9, 11)
    assert (row["pixel_mm"], row["step_mm"], row["thickness_mm"]) == pytest.approx((0.6, 1.5, 2.0))
    assert row["transfer_syntax"] == "Explicit VR Little Endian" and row["first_number"] == 1


def test_bad_studies_are_listed_and_the_survey_goes_on(rsna_folder, volume):
    dataset = RsnaDataset(rsna_folder)
    gap, text, absent, good = dataset.studies
    (dataset.series_dir(gap) / "4.dcm").unlink()
    (dataset.series_dir(text) / "99.dcm").write_text("no DICOM")
    dataset.series_dir(absent).rename(rsna_folder / "elsewhere")
    for path in dataset.series_dir(good).iterdir():
        path.unlink()
    write_series(dataset.series_dir(good), volume, first_number=2, study_uid=good)
    table = screening.survey(dataset, progress=False)
    assert table["verdict"].tolist() == ["reject", "reject", "reject", "use"]
    for study, words in ((gap, "1 slice(s) missing"), (text, "99.dcm"), (absent, "no such folder")):
        assert words in table.loc[study, "reason"] and "What to do:" in table.loc[study, "reason"]
    assert table.loc[good, "first_number"] == 2 and table.loc[good, "reason"] == ""


def labels_of(n_fractured, n_intact):
    overall = [1] * n_fractured + [0] * n_intact
    return pd.DataFrame({"patient_overall": overall}, index=[f"s{i}" for i in range(len(overall))])


def test_split_is_disjoint_stratified_and_repeatable():
    labels = labels_of(40, 46)
    sizes = {"train": 70, "validation": 14, "test": 2}
    parts = screening.split(labels.index, labels, sizes=sizes, generator=np.random.default_rng(1))
    assert {part: len(ids) for part, ids in parts.items()} == sizes
    assert len(set().union(*parts.values())) == 86
    assert labels.loc[parts["train"], "patient_overall"].sum() in (32, 33)  # 40 / 86 of 70 = 32.6
    assert labels.loc[parts["validation"], "patient_overall"].sum() in (6, 7)
    again = screening.split(labels.index, labels, sizes=sizes, generator=np.random.default_rng(1))
    other = screening.split(labels.index, labels, sizes=sizes, generator=np.random.default_rng(2))
    assert parts == again and parts != other
    orders = {tuple(screening.split(labels.index, labels, sizes={"a": 1}, generator=np.random.default_rng(s))["a"])
              for s in range(40)}  # fmt: skip
    assert len(orders) > 15, "every study can come first"


def test_a_repeated_study_and_too_large_parts_are_refused():
    labels = labels_of(3, 3)
    with pytest.raises(ParameterError, match="s2 more than once"):
        screening.split([*labels.index, "s2"], labels, sizes={"train": 2}, generator=np.random.default_rng(0))
    for sizes in ({"train": 5, "validation": 2}, {"train": 5, "validation": 0}):
        with pytest.raises(ParameterError, match="6 studies"):
            screening.split(labels.index, labels, sizes=sizes, generator=np.random.default_rng(0))


def test_all_of_one_class():
    labels = labels_of(0, 5)
    parts = screening.split(labels.index, labels, sizes={"a": 3, "b": 2}, generator=np.random.default_rng(0))
    assert sorted(parts["a"] + parts["b"]) == sorted(labels.index)
