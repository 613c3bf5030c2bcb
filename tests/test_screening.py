import numpy as np
import pandas as pd
import pytest
from conftest import neck_mask, patient_volume, write_label_file, write_series

from cspine_utils import screening
from cspine_utils.errors import DatasetError, ParameterError
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


def test_a_file_cut_short_is_seen_without_reading_pixels(tmp_path):
    root, study = tmp_path / "rsna", "1.2.826.0.1.3680043.11"
    paths = write_series(root / "train_images" / study, patient_volume((4, 40, 50)), study_uid=study)
    content = paths[2].read_bytes()
    (root / "segmentations").mkdir()
    (root / "train.csv").write_text("StudyInstanceUID,patient_overall,C1,C2,C3,C4,C5,C6,C7\n" + study + ",0" * 8 + "\n")
    (root / "train_bounding_boxes.csv").write_text("StudyInstanceUID,x,y,width,height,slice_number\n")
    for kept, verdict in ((len(content), "use"), (len(content) - 20, "reject")):
        paths[2].write_bytes(content[:kept])
        row = screening.survey(RsnaDataset(root), progress=False).iloc[0]
        assert row["verdict"] == verdict
    assert "3.dcm" in row["reason"] and "cut short" in row["reason"] and "40 x 50" in row["reason"]


def test_readable_pairs_go_on_past_damaged_ones(rsna_folder):
    dataset = RsnaDataset(rsna_folder)
    damaged, good, foreign, no_mask = dataset.studies
    dataset.mask_path(damaged).write_text("not a label map")
    dataset.mask_path(foreign).write_bytes(
        write_label_file(rsna_folder / "m.nii", neck_mask(), patient_volume()).read_bytes()
    )
    failures = {}
    pairs = list(screening.read_pairs(dataset, dataset.studies, failures))
    assert [study for study, _, _ in pairs] == [good]
    _, volume, mask = pairs[0]
    assert np.array_equal(mask, neck_mask((12, 9, 11))) and np.array_equal(
        volume.hu, patient_volume((12, 9, 11), seed=1).hu
    )
    assert list(failures) == [damaged, foreign, no_mask]
    for study, words in ((damaged, "cannot be read"), (foreign, "the CT's own grid"), (no_mask, "no label map")):
        assert words in failures[study]
    assert screening.example(dataset, dataset.studies)[0] == good
    with pytest.raises(DatasetError, match="among 2 studies.*mend the first.*cannot be read"):
        screening.example(dataset, [damaged, foreign])


def test_usable_studies_or_the_first_reason(rsna_folder):
    dataset = RsnaDataset(rsna_folder)
    (dataset.series_dir(dataset.studies[0]) / "4.dcm").unlink()
    table = screening.survey(dataset, progress=False)
    assert screening.usable(table) == dataset.studies[1:]
    assert screening.usable(table, with_mask=True) == dataset.studies[1:3]
    with pytest.raises(DatasetError, match="none of them usable.*1 slice.s. missing"):
        screening.usable(table.iloc[:1])
    with pytest.raises(DatasetError, match="none of them usable with a label map.*segmentations"):
        screening.usable(table.iloc[3:], with_mask=True)


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


def test_unknown_studies_and_sizes_that_cannot_be():
    labels = labels_of(3, 3)
    with pytest.raises(ParameterError, match="study x9, which has no labels"):
        screening.split(["s1", "x9"], labels, sizes={"a": 1}, generator=np.random.default_rng(0))
    for sizes in ({}, {"a": 1.5}):
        with pytest.raises(ParameterError, match="parts of at least one study"):
            screening.split(labels.index, labels, sizes=sizes, generator=np.random.default_rng(0))


def test_all_of_one_class():
    labels = labels_of(0, 5)
    parts = screening.split(labels.index, labels, sizes={"a": 3, "b": 2}, generator=np.random.default_rng(0))
    assert sorted(parts["a"] + parts["b"]) == sorted(labels.index)
