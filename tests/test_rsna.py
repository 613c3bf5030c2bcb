import pandas as pd
import pytest

from cspine_utils.anatomy import TARGETS
from cspine_utils.errors import DatasetError, StudyError
from cspine_utils.rsna import RsnaDataset

FRACTURED = "1.2.826.0.1.3680043.12"
NO_MASK = "1.2.826.0.1.3680043.14"


def edit_table(root, name, change):
    table = pd.read_csv(root / name, dtype={"StudyInstanceUID": str})
    change(table).to_csv(root / name, index=False)


def test_tables_and_paths(rsna_folder):
    dataset = RsnaDataset(rsna_folder)
    assert dataset.studies == [f"1.2.826.0.1.3680043.{n}" for n in (11, 12, 13, 14)]
    assert list(dataset.labels.columns) == list(TARGETS)
    assert dataset.labels.loc[FRACTURED].tolist() == [0, 0, 0, 0, 1, 0, 0, 1]
    assert dataset.labels.drop(FRACTURED).sum().sum() == 0
    assert dataset.boxes.loc[FRACTURED, "slice_number"].tolist() == [6, 7]
    assert dataset.boxes.iloc[0].tolist() == [2.0, 1.0, 3.0, 2.5, 6]
    assert dataset.series_dir(FRACTURED) == rsna_folder / "train_images" / FRACTURED
    assert dataset.mask_path(FRACTURED) == rsna_folder / "segmentations" / f"{FRACTURED}.nii"
    assert dataset.mask_path(NO_MASK) is None


def test_columns_may_come_in_any_order(rsna_folder):
    edit_table(rsna_folder, "train.csv", lambda table: table[sorted(table.columns, reverse=True)])
    assert RsnaDataset(rsna_folder).labels.loc[FRACTURED].tolist() == [0, 0, 0, 0, 1, 0, 0, 1]


def test_a_unique_id_that_looks_like_a_number_stays_text(rsna_folder):
    edit_table(rsna_folder, "train.csv", lambda t: t.replace(NO_MASK, "1.20"))
    assert "1.20" in RsnaDataset(rsna_folder).studies


def test_unknown_study_and_study_without_images(rsna_folder):
    dataset = RsnaDataset(rsna_folder)
    for ask in (dataset.series_dir, dataset.mask_path):
        with pytest.raises(StudyError, match=r"no study '9\.9'.*one of its 4 studies"):
            ask("9.9")
    (rsna_folder / "train_images" / NO_MASK).rename(rsna_folder / "elsewhere")
    with pytest.raises(StudyError, match=NO_MASK):
        dataset.series_dir(NO_MASK)


@pytest.mark.parametrize("study", ["../../etc", "..", "/etc", "a/b", "a\\b", "", ".hidden", "a\nb", "1.2\n"])
def test_no_id_leaves_the_folder(rsna_folder, study):
    edit_table(rsna_folder, "train.csv", lambda table: table.replace(NO_MASK, study))
    with pytest.raises(StudyError, match="lead out of the folder"):
        RsnaDataset(rsna_folder)


@pytest.mark.parametrize("name", ["train.csv", "train_bounding_boxes.csv"])
def test_missing_and_broken_tables(rsna_folder, name):
    (rsna_folder / name).write_bytes(b"")
    with pytest.raises(DatasetError, match=f"{name}.*no CSV table"):
        RsnaDataset(rsna_folder)
    (rsna_folder / name).unlink()
    with pytest.raises(DatasetError, match=f"{name}: found no such file"):
        RsnaDataset(rsna_folder)


@pytest.mark.parametrize(
    ("name", "column"),
    [("train.csv", "C4"), ("train.csv", "StudyInstanceUID"), ("train_bounding_boxes.csv", "slice_number")],
)
def test_missing_columns_are_named(rsna_folder, name, column):
    edit_table(rsna_folder, name, lambda table: table.drop(columns=column))
    with pytest.raises(DatasetError, match=f"{name}: found no column {column} "):
        RsnaDataset(rsna_folder)


@pytest.mark.parametrize("folder", ["train_images", "segmentations"])
def test_missing_folders_are_named(rsna_folder, folder):
    (rsna_folder / folder).rename(rsna_folder / "elsewhere")
    with pytest.raises(DatasetError, match=f"folder {folder}/"):
        RsnaDataset(rsna_folder)


def test_empty_folder_absent_folder_and_file(tmp_path):
    with pytest.raises(DatasetError, match="train_images"):
        RsnaDataset(tmp_path)
    with pytest.raises(DatasetError, match="no such folder.*cspine_utils.phantom"):
        RsnaDataset(tmp_path / "absent")
    (tmp_path / "file").touch()
    with pytest.raises(DatasetError, match="found a file"):
        RsnaDataset(tmp_path / "file")


def with_cell(column, value):
    def change(table):
        table = table.astype({column: object})
        table.loc[2, column] = value
        return table

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (with_cell("C3", 2), "the value 2 for study .*43.13, column C3"),
        (with_cell("C3", None), "column C3"),
        (with_cell("C3", "yes"), "the value yes for study .*43.13, column C3"),
        (with_cell("C3", 1), "patient_overall different"),
        (lambda table: pd.concat([table, table.iloc[:1]]), "43.11 2 times"),
    ],
)
def test_labels_that_cannot_be_trained_on(rsna_folder, change, said):
    edit_table(rsna_folder, "train.csv", change)
    with pytest.raises(DatasetError, match=said):
        RsnaDataset(rsna_folder)


def test_boxes_of_unknown_studies_and_boxes_without_numbers(rsna_folder):
    good = (rsna_folder / "train_bounding_boxes.csv").read_text()
    edit_table(rsna_folder, "train_bounding_boxes.csv", lambda table: table.replace(FRACTURED, "1.9"))
    with pytest.raises(DatasetError, match=r"boxes of study 1\.9"):
        RsnaDataset(rsna_folder)
    (rsna_folder / "train_bounding_boxes.csv").write_text(good.replace("2.5,7", "wide,7"))
    with pytest.raises(DatasetError, match="data row 2"):
        RsnaDataset(rsna_folder)


def test_a_label_map_that_got_lost_or_is_compressed_is_one(rsna_folder):
    dataset = RsnaDataset(rsna_folder)
    lost, packed = dataset.studies[:2]
    dataset.mask_path(lost).unlink()
    (rsna_folder / "segmentations" / f"{lost}.nii").symlink_to("elsewhere")
    plain = dataset.mask_path(packed)
    plain.rename(plain.with_name(plain.name + ".gz"))
    assert dataset.mask_path(lost).name == f"{lost}.nii" and dataset.mask_path(packed).name == f"{packed}.nii.gz"
    assert dataset.mask_path(dataset.studies[3]) is None
    assert set(RsnaDataset(rsna_folder).label_maps) == set(dataset.studies[:3])
