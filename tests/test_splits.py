import numpy as np
import pandas as pd
import pytest
from sklearn.model_selection import KFold, StratifiedKFold

from cspine_utils import screening
from cspine_utils.anatomy import LEVELS, TARGETS
from cspine_utils.errors import DatasetError, ParameterError


def rng(seed=0):
    return np.random.default_rng(seed)


# ---- the leakage gate ----

STUDIES = [f"1.2.{i}" for i in range(12)]
SLICES = [(study, number) for study in STUDIES for number in range(10)]


def test_a_slice_level_split_is_refused_and_a_study_level_one_passes():
    order = rng().permutation(len(SLICES))
    by_slice = {"train": [SLICES[i] for i in order[:90]], "validation": [SLICES[i] for i in order[90:]]}
    with pytest.raises(ParameterError, match=r"study 1\.2\..* in train and in validation, and 11 more studies"):
        screening.check_disjoint(by_slice)
    by_study = {
        "train": [s for s in SLICES if s[0] in STUDIES[:9]],
        "validation": [s for s in SLICES if s[0] in STUDIES[9:]],
    }
    screening.check_disjoint(by_study)
    by_study["validation"].append((STUDIES[4], 3))
    with pytest.raises(ParameterError, match=r"study 1\.2\.4 in train and in validation; "):
        screening.check_disjoint(by_study)


def test_the_gate_takes_ids_lists_and_other_items():
    screening.check_disjoint([STUDIES[:4], STUDIES[4:], []])
    with pytest.raises(ParameterError, match=r"study 1\.2\.3 in part 0 and in part 2"):
        screening.check_disjoint([STUDIES[:4], STUDIES[4:], iter(STUDIES[3:4])])
    files = {"a": ["1.2.0/4.dcm"], "b": ["1.2.0/5.dcm"]}
    screening.check_disjoint(files)  # as names they differ ...
    with pytest.raises(ParameterError, match=r"study 1\.2\.0 in a and in b"):
        screening.check_disjoint(files, study_of=lambda name: name.split("/")[0])
    for item in (5, (5, 6), ["1.2"], {"study": "1.2"}, np.int64(3)):  # ... but nothing passes because it is unknown
        with pytest.raises(ParameterError, match="say whose item it is"):
            screening.check_disjoint({"a": [item], "b": []})


# ---- parts of given sizes ----


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


# ---- folds ----

PREVALENCE = dict(zip(LEVELS, (0.0723, 0.1412, 0.0362, 0.0535, 0.0802, 0.1372, 0.1946), strict=True))


def cohort(count, seed=0):
    """Labels with the rates of the real set; a broken neck breaks in about 1.5 places."""
    generator = rng(seed)
    broken = generator.random((count, 7)) < np.array(list(PREVALENCE.values()))
    table = pd.DataFrame(broken.astype(int), columns=list(LEVELS), index=[f"1.2.{i}" for i in range(count)])
    return table.assign(patient_overall=table.max(axis=1))[list(TARGETS)]


def spread(labels, validation_parts):
    """For each target, the largest less the smallest count in a fold."""
    counts = np.array([labels.loc[part, list(TARGETS)].sum() for part in validation_parts])
    return np.ptp(counts, axis=0)


@pytest.mark.parametrize(("count", "k"), [(87, 5), (36, 5), (2019, 5), (40, 7), (5, 5), (7, 2)])
def test_each_study_validates_once(count, k):
    labels = cohort(count)
    studies = list(rng(3).permutation(labels.index))
    parts = screening.folds(studies, labels, k=k, generator=rng(1))
    assert len(parts) == k
    assert sorted(s for part in parts for s in part["validation"]) == sorted(studies)
    for part in parts:
        assert sorted(part["train"] + part["validation"]) == sorted(studies)
        assert not set(part["train"]) & set(part["validation"])
        for ids in part.values():
            assert ids == [s for s in studies if s in set(ids)], "in the order that was given"
    sizes = [len(part["validation"]) for part in parts]
    broken = [int(labels.loc[part["validation"], "patient_overall"].sum()) for part in parts]
    intact = [size - b for size, b in zip(sizes, broken, strict=True)]
    for numbers in (sizes, broken, intact):
        assert max(numbers) - min(numbers) <= 1


def test_folds_are_repeatable_and_drawn():
    labels = cohort(60)
    again = [screening.folds(labels.index, labels, k=4, generator=rng(s)) for s in (1, 1, 2)]
    assert again[0] == again[1] != again[2]
    first, with_first = labels.index[0], set()
    for seed in range(20):
        parts = [part["validation"] for part in screening.folds(labels.index, labels, k=4, generator=rng(seed))]
        with_first |= {tuple(part) for part in parts if first in part}
    assert len(with_first) == 20, "company changes with the generator"


@pytest.mark.parametrize("count", [87, 300, 2019])
def test_rare_levels_are_spread_better_than_by_the_usual_ways(count):
    """Mean over ten cohorts of the largest less the smallest number of a level in five folds."""
    ours, stratified, plain = [], [], []
    for seed in range(10):
        labels = cohort(count, seed)
        ids = labels.index.to_numpy()
        ours.append(spread(labels, [f["validation"] for f in screening.folds(ids, labels, k=5, generator=rng(seed))]))
        for found, divider in (
            (stratified, StratifiedKFold(5, shuffle=True, random_state=seed)),
            (plain, KFold(5, shuffle=True, random_state=seed)),
        ):
            found.append(spread(labels, [ids[test] for _, test in divider.split(ids, labels["patient_overall"])]))
    ours, stratified, plain = (np.mean(values, axis=0) for values in (ours, stratified, plain))
    levels = slice(0, 7)
    assert ours[levels].max() <= 1.1, "hardly ever by more than one study"
    assert (ours[levels] < stratified[levels]).all() and (ours[levels] < plain[levels]).all()
    assert ours[levels].mean() < 0.4 * stratified[levels].mean()
    assert ours[7] <= 1 <= plain[7]


def test_folds_that_cannot_be():
    labels = cohort(10)
    for k in (1, 0, 11, 2.5, True):
        with pytest.raises(ParameterError, match="a number of folds from 2 to 10"):
            screening.folds(labels.index, labels, k=k, generator=rng())
    with pytest.raises(ParameterError, match=r"1\.2\.4 more than once"):
        screening.folds([*labels.index, "1.2.4"], labels, k=3, generator=rng())
    with pytest.raises(ParameterError, match="x, which has no labels"):
        screening.folds([*labels.index, "x"], labels, k=3, generator=rng())


@pytest.mark.parametrize("function", ["split", "folds", "reproduction_split"])
def test_labels_with_a_study_twice_are_refused(function):
    labels = cohort(8)
    options = {"split": {"sizes": {"a": 3}}, "folds": {"k": 3}, "reproduction_split": {}}[function]
    with pytest.raises(ParameterError, match="labels: found study 1.2.5 more than once"):
        doubled = pd.concat([labels, labels.iloc[5:6]])
        getattr(screening, function)(list(labels.index), doubled, generator=rng(), **options)


# ---- the split of the students' project ----


def survey_of(studies, **columns):
    table = pd.DataFrame({"ct": "use", "mask": "fits", "reason": ""}, index=pd.Index(studies, name="study"))
    return table.assign(**columns)


def test_the_projects_split_of_2019_studies():
    labels = cohort(2019)
    mask = np.where(np.arange(2019) % 23 == 5, "fits", "none")  # 88 of them
    table = survey_of(labels.index, mask=mask)
    table.iloc[5, table.columns.get_loc("mask")] = "wrong"
    found = screening.reproduction_split(table, labels, generator=rng())
    assert {name: len(part) for name, part in found.parts.items()} == {"train": 70, "validation": 14, "test": 2}
    assert len(found.left_over) == 1
    dealt = [s for part in found.parts.values() for s in part] + found.left_over
    assert sorted(dealt) == sorted(s for s in table.index[table["mask"] == "fits"])
    assert "as in the students' project; 1 left over, chosen by lot" in found.note and "16 and 100 %" in found.note
    assert found == screening.reproduction_split(table, labels, generator=rng())
    left = {screening.reproduction_split(table, labels, generator=rng(s)).left_over[0] for s in range(60)}
    assert len(left) > 30 and labels.loc[list(left), "patient_overall"].nunique() == 2, "any study can be left over"


@pytest.mark.parametrize(
    ("count", "sizes"), [(85, (69, 14, 2)), (36, (28, 6, 2)), (12, (8, 2, 2)), (5, (2, 1, 2)), (4, (1, 1, 2))]
)
def test_a_smaller_cohort_in_the_same_proportions(count, sizes):
    labels = cohort(count)
    found = screening.reproduction_split(list(labels.index), labels, generator=rng())
    assert tuple(map(len, found.parts.values())) == sizes and found.left_over == []
    assert f"{count} studies instead of 86" in found.note


def test_what_the_projects_split_refuses():
    labels = cohort(6)
    with pytest.raises(ParameterError, match="3 with a label map; expected at least four"):
        screening.reproduction_split(labels.index[:3], labels, generator=rng())
    with pytest.raises(ParameterError, match="more than once"):
        screening.reproduction_split([*labels.index, labels.index[0]], labels, generator=rng())
    with pytest.raises(DatasetError, match="none of them usable with a label map"):
        screening.reproduction_split(survey_of(labels.index, mask="none"), labels, generator=rng())
    twice = pd.concat([survey_of(labels.index)] * 2)
    with pytest.raises(ParameterError, match="more than once"):
        screening.reproduction_split(twice, labels, generator=rng())


@pytest.mark.parametrize("function", ["split", "folds", "reproduction_split"])
def test_every_split_passes_through_the_gate(function, monkeypatch):
    asked = []
    monkeypatch.setattr("cspine_utils.screening.splits.check_disjoint", lambda parts: asked.append(parts))
    options = {"split": {"sizes": {"a": 3, "b": 4}}, "folds": {"k": 3}, "reproduction_split": {}}[function]
    labels = cohort(20)
    found = getattr(screening, function)(list(labels.index), labels, generator=rng(), **options)
    assert (found.parts if function == "reproduction_split" else found[0] if function == "folds" else found) in asked


@pytest.mark.parametrize("value", ["text", 2, float("nan")])
def test_labels_that_are_neither_0_nor_1_are_refused(value):
    labels = pd.DataFrame(0, index=[f"s{i}" for i in range(6)], columns=list(TARGETS))
    labels = labels.astype(str) if value == "text" else labels.astype(float)
    if value != "text":
        labels.loc["s3", ["patient_overall", "C4"]] = value
    generator = np.random.default_rng(0)
    for deal in (
        lambda: screening.split(labels.index, labels, sizes={"a": 3}, generator=generator),
        lambda: screening.folds(labels.index, labels, k=2, generator=generator),
    ):
        with pytest.raises(ParameterError, match="0 or 1 for every study"):
            deal()


@pytest.mark.parametrize("generator", [None, 7])
def test_a_split_that_could_not_be_made_again_is_refused(generator):
    labels = pd.DataFrame(0, index=[f"s{i}" for i in range(6)], columns=list(TARGETS))
    for deal in (
        lambda: screening.split(labels.index, labels, sizes={"a": 3}, generator=generator),
        lambda: screening.folds(labels.index, labels, k=2, generator=generator),
        lambda: screening.reproduction_split(labels.index, labels, generator=generator),
    ):
        with pytest.raises(ParameterError, match="default_rng"):
            deal()
