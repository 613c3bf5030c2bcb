"""Counts from tables that are generated, so that what they count is known by construction; no row is a real one."""

import numpy as np
import pandas as pd
import pytest

from cspine_utils import rsna, screening
from cspine_utils.anatomy import LEVELS, TARGETS
from cspine_utils.errors import DatasetError
from cspine_utils.rsna import RsnaDataset

#: Fractured levels of a study -> number of such studies, and level -> studies, as published for the real set.
BY_NUMBER = (1058, 623, 239, 64, 26, 7, 2, 0)
BY_LEVEL = (146, 285, 73, 108, 162, 277, 393)


def write_tables(root, broken, boxes, generator):
    """`train.csv` from a (studies, 7) array, `train_bounding_boxes.csv` from boxes a study; ids are made up."""
    root.mkdir()
    ids = [f"7.77.{n}" for n in generator.permutation(10 * len(broken))[: len(broken)]]
    table = pd.DataFrame(broken.astype(int), columns=list(LEVELS))
    table.insert(0, "patient_overall", table.max(axis=1))
    table.insert(0, "StudyInstanceUID", ids)
    table.to_csv(root / "train.csv", index=False)
    rows = [(study, *generator.uniform(1, 300, 4).round(3), n + 1) for study, k in zip(ids, boxes, strict=True)
            for n in range(k)]  # fmt: skip
    names = ["StudyInstanceUID", *rsna.BOX_COLUMNS]
    pd.DataFrame(rows, columns=names).to_csv(root / "train_bounding_boxes.csv", index=False)
    return np.array(ids)


def levels_with(by_number, by_level, generator):
    """A (studies, 7) array with these numbers of fractured levels a study and of studies a level, in a drawn order.

    From the study with most levels to the one with least, each takes the levels that have most left.
    """
    left = np.array(by_level)
    rows = []
    for number in range(7, 0, -1):
        for _ in range(by_number[number]):
            row = np.zeros(7, bool)
            row[np.argsort(-left, kind="stable")[:number]] = True
            left -= row
            rows.append(row)
    assert not left.any()
    rows += [np.zeros(7, bool)] * by_number[0]
    return np.array(rows)[generator.permutation(len(rows))]


@pytest.fixture(scope="module")
def like_the_real_set(tmp_path_factory):
    """2,019 studies whose counts are the published ones: (folder, ids, label maps, positions)."""
    generator = np.random.default_rng(2022)
    broken = levels_with(BY_NUMBER, BY_LEVEL, generator)
    fractured, intact = np.flatnonzero(broken.any(axis=1)), np.flatnonzero(~broken.any(axis=1))
    boxes = np.zeros(len(broken), int)
    boxed = generator.permutation(fractured)[:235]
    boxes[boxed] = 1 + generator.multinomial(7217 - 235, np.full(235, 1 / 235))
    root = tmp_path_factory.mktemp("tables") / "rsna"
    ids = write_tables(root, broken, boxes, generator)
    maps = ids[np.concatenate([boxed[:40], generator.permutation(intact)[:47]])]
    count = len(ids)
    first = np.ones(count, int)
    first[generator.permutation(count)[:10]] = generator.integers(2, 60, 10)
    upward = np.zeros(count, bool)
    upward[generator.permutation(count)[:197]] = True
    head, feet = generator.uniform(-50, 400, count), 0
    feet = head - generator.uniform(100, 300, count)
    positions = pd.DataFrame(
        {
            "StudyInstanceUID": ids,
            "first_number": first,
            "last_number": first + generator.integers(69, 1082, count),
            "z_first_mm": np.where(upward, feet, head),
            "z_last_mm": np.where(upward, head, feet),
        }
    )
    return root, ids, maps, positions.sample(frac=1, random_state=1)


def test_the_published_counts_come_out_of_tables_made_to_have_them(like_the_real_set):
    root, _, maps, positions = like_the_real_set
    table = screening.count_tables(root, label_maps=maps, positions=positions)
    assert table["count"].to_dict() == screening.PUBLISHED_COUNTS
    assert table.loc["fractured", "share"] == pytest.approx(0.4760, abs=5e-5)
    assert table.loc["C3 fractured", "share"] == pytest.approx(0.0362, abs=5e-5)
    assert np.isnan(table.loc["boxes", "share"])


def test_published_counts_agree_with_one_another():
    real = screening.PUBLISHED_COUNTS
    by_number = [real[f"{n} level{'s' * (n != 1)} fractured"] for n in range(8)]
    assert sum(by_number) == real["studies"] == 2019 and sum(by_number[1:]) == real["fractured"]
    assert sum(n * k for n, k in enumerate(by_number)) == sum(real[f"{level} fractured"] for level in LEVELS)


def test_label_maps_are_found_by_their_names(like_the_real_set):
    root, ids, maps, _ = like_the_real_set
    assert "label maps" not in screening.count_tables(root).index, "neither a folder nor a list"
    folder = root / "segmentations"
    folder.mkdir()
    for study in maps[:50]:
        (folder / f"{study}.nii").touch()
    (folder / ".DS_Store").touch()
    (folder / ".hidden.nii").touch()
    found = screening.count_tables(rsna.read_tables(root))["count"]
    assert found["label maps"] == 50 and found["fractured with a label map"] == 40
    assert "without 1.dcm" not in found.index
    for path in folder.iterdir():
        path.unlink()
    assert screening.count_tables(root).loc["label maps", "count"] == 0
    folder.rmdir()


def test_odd_tables(tmp_path):
    """Empty numbers, 0.dcm, one place for all, boxes of none."""
    broken = np.zeros((6, 7), bool)
    broken[1, [0, 6]] = True
    ids = write_tables(tmp_path / "rsna", broken, [0] * 6, np.random.default_rng(0))
    positions = pd.DataFrame(
        {"first_number": [1, 0, 2, None, 1, 7], "last_number": [9, 8, 9, None, 9, 20], "z_first_mm": [5, 0, 1, 0, 3, 9],
         "z_last_mm": [0, 5, 5, 1, 3, 2], "more": 1},
        index=pd.Index(ids, name="study"),
    )  # fmt: skip
    found = screening.count_tables(tmp_path / "rsna", label_maps=[], positions=positions)["count"]
    assert found["without 1.dcm"] == 2 and found["stored feet -> head"] == 2
    assert found["boxes"] == found["studies with boxes"] == found["label maps"] == 0
    assert found["2 levels fractured"] == 1 and found["0 levels fractured"] == 5


def test_a_survey_gives_the_positions(rsna_folder):
    dataset = RsnaDataset(rsna_folder)
    for path in sorted(dataset.series_dir(dataset.studies[2]).iterdir()):
        path.rename(path.with_name(f"{int(path.stem) + 100}.dcm"))
    found = screening.count_tables(dataset, positions=screening.survey(dataset, progress=False))["count"]
    wanted = {
        "studies": 4, "fractured": 1, "C5 fractured": 1, "1 level fractured": 1, "boxes": 2, "studies with boxes": 1,
        "label maps": 3, "fractured with a label map": 1, "label maps with boxes": 1, "without 1.dcm": 1,
        "stored feet -> head": 1,
    }  # fmt: skip
    assert {name: found[name] for name in wanted} == wanted


def test_what_cannot_be_counted(like_the_real_set):
    root, ids, maps, positions = like_the_real_set
    for wrong, said in (([*maps, "9.9"], "9.9, which train.csv"), ([*maps, maps[0]], f"{maps[0]} twice")):
        with pytest.raises(DatasetError, match=f"label_maps: found study {said}"):
            screening.count_tables(root, label_maps=wrong)
    with pytest.raises(DatasetError, match="positions: found no column z_last_mm"):
        screening.count_tables(root, positions=positions.drop(columns="z_last_mm"))
    with pytest.raises(DatasetError, match=f"positions: found study {positions['StudyInstanceUID'].iloc[3]} twice"):
        screening.count_tables(root, positions=pd.concat([positions, positions.iloc[3:4]]))
    with pytest.raises(DatasetError, match="no such folder"):
        screening.count_tables(root / "absent")


def test_tables_without_images(like_the_real_set):
    root, ids, _, _ = like_the_real_set
    tables = rsna.read_tables(root)
    assert list(tables.labels.index) == list(ids) and list(tables.labels.columns) == list(TARGETS)
    assert len(tables.boxes) == 7217 and tables.label_maps is None
    with pytest.raises(DatasetError, match="train_images"):
        RsnaDataset(root)
