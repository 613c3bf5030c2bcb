"""The ladder: its numbers by hand, sets without a patient in common, and a small one climbed from end to end."""

import json
import re
from dataclasses import asdict, dataclass, replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ROOT

from cspine_utils import checkpoints, crops, mask_jitter, metrics, necks, ranking, stacks
from cspine_utils.anatomy import TARGETS
from cspine_utils.errors import ParameterError, TrainingError
from cspine_utils.ladder import (
    PROFILES,
    RUNGS,
    Profile,
    __main__,
    climb,
    controls,
    judge,
    levers,
    masks,
    plan,
    report,
    rungs,
    weights,
)
from cspine_utils.ladder.plan import Rung, sets
from cspine_utils.phantom.study import study_uid

#: The smallest that has everything.
SMALL = Profile(
    crop_pairs=2, crop_choose=2, crop_judge=2, crop_epochs=1, crop_batch=2, necks=2, necks_choose=1, necks_judge=3,
    necks_twins=2, neck_epochs=1, neck_batch=2, mask_necks=1, mask_epochs=5, lever_epochs=1, lever_batch=2,
    study_size=48, dim=12, depth=1, precision="32-true",
)  # fmt: skip


# ------------------------------------------------------------------------------------------------- numbers of one rung


def crop_answers(gap=0.4, pairs=14, seed=0):
    """y and p of broken crops and their twins in turn; p is told apart by `gap` on average."""
    rng = np.random.default_rng(seed)
    y, p = np.full((2 * pairs, 8), np.nan), rng.random((2 * pairs, 8))
    for i in range(pairs):
        y[2 * i : 2 * i + 2, i % 7] = 1, 0
        p[2 * i : 2 * i + 2, i % 7] = 0.5 + gap * np.array([0.5, -0.5]) + 0.1 * rng.standard_normal()
    return y, p, np.repeat(np.arange(pairs), 2)


def test_crops_of_who_knows_and_of_who_does_not():
    y, p, patients = crop_answers(gap=0.9)
    found = judge.of_crops(y, np.where(np.isnan(y), p, y), patients, np.random.default_rng(0))
    assert found["auroc"] == found["auroc_low"] == found["pooled_auroc"] == found["above_own_twin"] == 1
    assert 0.7 < found["twin_low"] < 1 == found["twin_high"]
    found = judge.of_crops(y, np.full_like(p, 0.3), patients, np.random.default_rng(0))
    assert found["auroc"] == found["pooled_auroc"] == found["above_own_twin"] == 0.5


def test_what_was_known_before_by_hand():
    y = np.zeros((4, 8))
    y[:2, 2] = y[:2, 7] = 1
    p = np.full((4, 8), 0.5)
    p[:, 2] = 0.9, 0.4, 0.6, 0.2  # three of four pairs in order
    found = judge.briefly(y, p, "before")
    assert found["auroc_before"] == pytest.approx(0.75)
    of_c3 = -np.log([0.9, 0.4, 0.4, 0.8]).mean()
    assert found["loss_before"] == pytest.approx((of_c3 + 7 * np.log(2)) / 8)


def test_crops_are_compared_with_their_own_twins():
    """Scores differ more between patients than within a pair: pairs show what AUROC does not."""
    y, p, patients = crop_answers(gap=0.1, seed=3)
    wrong = 5  # its twin is scored above it
    p[2 * wrong, wrong], p[2 * wrong + 1, wrong] = 0.2, 0.8
    tie = 8
    p[2 * tie : 2 * tie + 2, tie % 7] = 0.4
    found = judge.of_crops(y, p, patients, np.random.default_rng(0))
    assert found["above_own_twin"] == pytest.approx(12.5 / 14)
    assert found["auroc"] == pytest.approx(ranking.within_level_auroc(y, p, patients)) and found["auroc"] < 0.85
    assert found["twin_low"] < 12.5 / 14 < found["twin_high"]


def test_the_interval_of_crops_is_over_patients():
    y, p, patients = crop_answers(gap=0.1, pairs=28)
    found = judge.of_crops(y, p, patients, np.random.default_rng(4))
    expected = ranking.bootstrap(
        ranking.within_level_auroc, y, p, generator=np.random.default_rng(4), groups=np.arange(56) // 2
    )
    assert (found["auroc"], found["auroc_low"], found["auroc_high"]) == expected


@pytest.mark.parametrize(
    "spoil", [lambda y: y[::-1], lambda y: y[:-1], lambda y: np.roll(y, 1, axis=0), lambda y: np.where(y == 0, 1, y)]
)
def test_crops_in_another_order_are_refused(spoil):
    y, p, patients = crop_answers()
    y = spoil(y)
    with pytest.raises(ParameterError, match="its twin in turn"):
        judge.of_crops(y, p[: len(y)], patients[: len(y)], np.random.default_rng(0))


def neck_labels(n=120, seed=0):
    rng = np.random.default_rng(seed)
    y = (rng.random((n, 8)) < np.array([0.2, 0.3, 0.1, 0.15, 0.2, 0.3, 0.4, 0])).astype(float)
    y[:, 7] = y[:, :7].any(axis=1)
    return y


def test_necks_of_who_knows_and_of_who_does_not():
    y = neck_labels()
    rates = metrics.base_rates(neck_labels(seed=1))
    found = judge.of_necks(y, 0.002 + 0.996 * y, rates, np.random.default_rng(0))
    assert found["auroc"] == found["pooled_auroc"] == 1 and found["skill"] > 0.99
    assert found["loss"] == pytest.approx(-np.log(0.998)) and found["difference_high"] < -0.3
    assert found["difference"] == pytest.approx(found["loss"] - found["constant"])
    found = judge.of_necks(y, np.tile(rates, (len(y), 1)), rates, np.random.default_rng(0))
    assert found["auroc"] == found["auroc_low"] == found["auroc_high"] == 0.5
    assert found["skill"] == found["difference"] == found["difference_low"] == 0
    assert found["pooled_auroc"] > 0.6, "levels alone, pooled, look like learning"
    assert found["constant"] == pytest.approx(metrics.plain_bce(y, np.tile(rates, (len(y), 1))))


def test_twins_of_necks():
    y = neck_labels(3)
    y[:] = 0
    y[0, [1, 4, 7]], y[1, [6, 7]], y[2, [0, 7]] = 1, 1, 1
    broken, intact = np.full((3, 8), 0.4), np.full((3, 8), 0.6)  # at intact levels the twin is always higher
    broken[0, [1, 4]], broken[1, 6] = 0.9, 0.9
    found = judge.of_twins(y, broken, intact)
    assert found["above_own_twin"] == 0.75, "three of four; the patient is no level"
    assert judge.of_twins(y, intact, intact)["above_own_twin"] == 0.5
    assert judge.of_twins(y, intact, broken)["above_own_twin"] == 0.25
    for wrong in [(y * 0, broken, intact), (y, broken, intact[:2])]:
        with pytest.raises(ParameterError, match="at least one fractured level"):
            judge.of_twins(*wrong)


# ------------------------------------------------------------------------------------------------- who is in which set


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("name", RUNGS)
def test_who_judges_had_no_part_in_the_training(name, profile):
    """Nor in that of the rungs that the weights come from; sets of vertebrae and of necks have other seeds."""
    assert plan.CROPS_SEED != plan.NECKS_SEED
    judging = set(sets(RUNGS[name], PROFILES[profile])["judge"])
    assert judging
    steps = [name]
    for step in steps:
        rung = RUNGS[step]
        own = sets(rung, PROFILES[profile])
        assert not set(own["teach"]) & set(own["choose"])
        if rung.kind == RUNGS[name].kind:
            assert not judging & (set(own["teach"]) | set(own["choose"]))
        assert rung.trains == bool(own["teach"])
        assert rung.trains or rung.start, "a climb begins with a training"
        steps.extend(rung.start)


def test_patients_of_any_start_are_found_among_those_that_judge(monkeypatch):
    steps = {
        "one": Rung("necks", "easy", "rsna"),
        "two": Rung("necks", "easy", "rsna", first=plan.JUDGE),  # learns from those that judge the others
        "either": Rung("necks", "easy", "rsna", start=("one", "two")),
        "later": Rung("necks", "easy", "rsna", start=("either",)),
        "apart": Rung("necks", "easy", "rsna", start=("one",)),
    }
    monkeypatch.setattr(plan, "RUNGS", steps)
    shared = set(range(plan.JUDGE, plan.JUDGE + min(SMALL.necks, SMALL.necks_judge)))
    found = {name: plan._shared(name, SMALL) for name in steps}
    assert found == {"one": set(), "two": set(), "either": shared, "later": shared, "apart": set()}


def test_sets_by_hand():
    found = sets(Rung("necks", "easy", "rsna", first=500), replace(SMALL, necks=3, necks_choose=2, necks_judge=4))
    assert {name: list(numbers) for name, numbers in found.items()} == {
        "teach": [500, 501, 502],
        "choose": [plan.CHOOSE + 500, plan.CHOOSE + 501],
        "judge": [plan.JUDGE + 500 + i for i in range(4)],
    }
    found = sets(Rung("crops", "hard", trains=False), replace(SMALL, crop_judge=3))
    assert [len(found[name]) for name in ("teach", "choose", "judge")] == [0, 0, 3]
    assert plan.CHOOSE % 7 == plan.JUDGE % 7 == 0, "levels in turn begin with C1"


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("crops-easy", {"crop_choose": plan.JUDGE - plan.CHOOSE + 1}),
        ("crops-easy", {"crop_pairs": plan.JUDGE + 1}),
        ("necks-balanced", {"necks_choose": 99}),
        ("necks-easy", {"necks": 120_200, "necks_choose": 0}),
    ],
)
def test_a_profile_whose_sets_would_share_patients_is_refused(tmp_path, name, changes):
    for start in RUNGS[name].start:
        (tmp_path / "0" / start).mkdir(parents=True)
        (tmp_path / "0" / start / "judged.pt").touch()
    with pytest.raises(ParameterError, match=f"judge {name}"):
        climb(tmp_path, replace(SMALL, **changes), rungs=[name])
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["crops-simple"], "'crops-simple'"),
        (["crops-standard"], "no finished rung crops-torn.*climb crops-torn first"),
        (["crops-torn", "crops-easy"], "no finished rung crops-easy"),
        (["crops-easy", "crops-hard"], "no finished rung crops-longer"),
        (
            ["crops-easy", "crops-torn", "necks-balanced", "necks-easy", "necks-standard"],
            "no finished rung crops-longer",
        ),
        (
            ["crops-easy", "crops-torn", "crops-standard", "crops-longer", "necks-standard"],
            "no finished rung necks-easy",
        ),
    ],
)
def test_a_rung_without_its_start_is_refused_before_anything_is_done(tmp_path, names, said):
    with pytest.raises(ParameterError, match=said):
        climb(tmp_path, SMALL, rungs=names)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("maps", [2, 3])
def test_masks_of_some_necks_must_be_left_to_draw(tmp_path, maps):
    plan.check(tmp_path, list(RUNGS), replace(SMALL, mask_necks=1), 0)
    with pytest.raises(ParameterError, match=f"{maps} mask_necks, 2 necks.*few-maps"):
        climb(tmp_path, replace(SMALL, mask_necks=maps))
    plan.check(tmp_path, [name for name in RUNGS if not RUNGS[name].drawn], replace(SMALL, mask_necks=maps), 0)
    assert not list(tmp_path.iterdir())


def test_weights_that_do_not_fill_the_model_are_refused(tmp_path):
    model = rungs.new_model(SMALL, 0)
    weights = {name: value for name, value in model.state_dict().items() if not name.startswith("embed")}
    torch.save({"model": weights, "settings": {}}, tmp_path / "best.pt")
    with pytest.raises(TrainingError, match="every weight"):
        rungs._started(SMALL, 1, [tmp_path / "best.pt"])
    checkpoints.save(model, tmp_path / "best.pt")
    other = rungs._started(SMALL, 1, [tmp_path / "best.pt"])
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


# --------------------------------------------------------------------------------------------------- a climb, in small


@pytest.fixture(scope="module")
def climbed(tmp_path_factory):
    """A whole climb by the command, of crops and necks that are coarse besides: the folder."""
    patch = pytest.MonkeyPatch()
    patch.setattr(crops, "CropForm", partial(crops.CropForm, frames=10, size=16, frame_mm=4.0, pixel_mm=4.0))
    patch.setattr(necks, "NeckForm", SmallNecks)
    for room in (rungs, levers):
        patch.setattr(room, "CLOSER", (5, 8))
    patch.setattr(masks, "PATCH", (32, 32, 32))
    patch.setattr(masks, "SPACING_MM", 4.0)
    patch.setitem(PROFILES, "small", SMALL)
    out = tmp_path_factory.mktemp("ladder")
    asked = ["--out", str(out), "--profile", "small", "--seeds", "1", "--table", str(out / "tables")]
    __main__.main([*asked, "--weights", str(out / "weights")])
    __main__.main([*asked, "--levers"])
    __main__.main([*asked, "--controls", "necks-easy", "few-boxes"])
    yield out
    patch.undo()


@dataclass(frozen=True)
class SmallNecks(necks.NeckForm):
    frames: int = 10
    size: int = 16
    study_size: int = 48


def test_a_climb_tells_all_rungs(climbed):
    table = pd.read_csv(climbed / "tables" / "ladder.csv")
    assert list(table["rung"]) == list(RUNGS) and (table["seed"] == 1).all()
    assert list(table.columns) == [
        "rung", "seed", "start", "difficulty", "prevalence", "boxes", "masks", "learned_from", "judged_on",
        "kept", "alone", *judge.NUMBERS, "train_seconds", "render_seconds", "threads", "precision",
    ]  # fmt: skip
    table = table.set_index("rung")
    alone = table.index.str.startswith("crops")
    assert table["pooled_auroc"].between(0, 1).all() and table.loc[alone, "above_own_twin"].between(0, 1).all()
    assert table.loc[~alone, ["loss", "constant", "difference", "skill"]].notna().all(axis=None)
    assert table.loc[alone, "loss"].isna().all(), "what a rung does not measure stays empty"
    assert table["learned_from"].tolist() == [2, 2, 2, 2, 0, 2, 2, 2, 2, 2]
    assert table["judged_on"].tolist() == [2] * 5 + [3] * 5
    assert table.loc["crops-hard", "train_seconds"] == 0, "judged as it is"
    assert table.loc[alone, "kept"].isna().all() and table.loc[~alone, "kept"].isin(["trained", "start"]).all()
    curves = pd.read_csv(climbed / "tables" / "ladder_curves.csv")
    assert list(curves["rung"].unique()) == [name for name in RUNGS if RUNGS[name].trains]
    assert (curves.groupby("rung")["epoch"].max() == 1).all() and curves["validation_loss"].notna().all()


def test_a_climb_that_is_finished_does_nothing_again(climbed, monkeypatch):
    before = {
        path: path.stat().st_mtime_ns for path in climbed.rglob("*") if path.is_file() and "tables" not in str(path)
    }
    monkeypatch.setattr(rungs, "_climb_one", None)
    again = climb(climbed, SMALL, seed=1, progress=False)
    assert list(again["rung"]) == list(RUNGS)
    assert before == {path: path.stat().st_mtime_ns for path in before}
    rows = [json.loads((climbed / "1" / name / "row.json").read_text()) for name in RUNGS]
    assert again["auroc"].equals(pd.DataFrame(rows)["auroc"])


def test_another_profile_in_the_same_folder_is_refused(climbed):
    with pytest.raises(ParameterError, match="crop_epochs=1.*crop_epochs=2"):
        climb(climbed, replace(SMALL, crop_epochs=2), rungs=["crops-easy"], seed=1)
    with pytest.raises(ParameterError, match="dim=12"):
        climb(climbed, replace(SMALL, dim=24), rungs=["crops-easy"], seed=1)
    kept = climb(climbed, replace(SMALL, neck_epochs=2, lever_epochs=9, mask_epochs=9), rungs=["crops-easy"], seed=1)
    assert list(kept["rung"]) == ["crops-easy"], "what is of necks alone does not matter to crops"
    climb(climbed, replace(SMALL, mask_epochs=9), rungs=["few-boxes"], seed=1)
    with pytest.raises(ParameterError, match="mask_epochs=5.*mask_epochs=9"):
        climb(climbed, replace(SMALL, mask_epochs=9), rungs=["few-maps"], seed=1)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"start": ("crops-torn",)}, "start=crops-standard.*start=crops-torn"),
        ({"difficulty": "hard"}, "difficulty=standard.*difficulty=hard"),
        ({"boxes": 0.5}, "boxes=1.0.*boxes=0.5"),
        ({"drawn": True}, "masks=true.*masks=drawn"),
    ],
)
def test_a_finished_rung_of_another_plan_is_refused(climbed, monkeypatch, changes, said):
    monkeypatch.setitem(RUNGS, "crops-longer", replace(RUNGS["crops-longer"], **changes))
    with pytest.raises(ParameterError, match=f"{said}.*move its folder away"):
        climb(climbed, SMALL, rungs=["crops-longer"], seed=1)


def test_rungs_learn_and_are_judged_on_the_sets_that_they_say(climbed):
    own = sets(RUNGS["crops-standard"], SMALL)
    work = rungs._Crops(climbed / "data", RUNGS["crops-standard"], SMALL, 0, False)
    choose = work.choose.dataset
    assert [work.taught.numbers, choose.numbers, work.held_out.numbers] == [list(part) for part in own.values()]
    assert work.taught.closer and not choose.closer and not work.held_out.closer
    assert work.taught.jitter == work.choose.jitter == rungs.JITTER and work.choose.alike == 2
    assert work.rate == SMALL.crop_rate_again < SMALL.crop_rate
    first = rungs._Crops(climbed / "data", RUNGS["crops-easy"], SMALL, 0, False)
    assert first.taught.jitter is None and isinstance(first.choose, crops.TwinCrops) and first.rate == SMALL.crop_rate
    some = replace(RUNGS["few-boxes"], boxes=0.5)
    for rung in (RUNGS["necks-balanced"], RUNGS["necks-easy"], RUNGS["necks-standard"], RUNGS["few-boxes"], some):
        work = rungs._Necks(climbed / "data", rung, SMALL, 0, False)
        uids = {
            part: [study_uid(plan.NECKS_SEED, number) for number in numbers]
            for part, numbers in sets(rung, SMALL).items()
        }
        assert work.taught.dataset.studies == uids["teach"]
        assert work.choose.dataset.studies == uids["choose"] and work.held_out.studies == uids["judge"]
        assert work.choose.jitter == rungs.JITTER
        assert [study.removesuffix(".twin") for study in work.twins.studies] == list(work.broken.index)
        assert set(work.broken.index) <= set(uids["judge"]) and (work.broken["patient_overall"] == 1).all()
        labels = pd.Series(work.taught.targets[:, -1].numpy(), index=uids["teach"])
        assert work.taught.told == set(labels.index[labels == 1][: round(rung.boxes * len(labels))])
        assert np.allclose(work.rates, metrics.base_rates(work.taught.targets.numpy(), smoothing=0.5))
    assert len(work.taught.told) == 1 < len(work.taught), "the first one of two"
    assert RUNGS["few-boxes"].boxes == pytest.approx(0.116, abs=1e-3)


def test_the_command_leaves_the_weights_of_three_rungs_and_the_table_of_the_levers(climbed):
    assert sorted(path.stem for path in (climbed / "weights").iterdir()) == ["crops-easy", "crops-torn", "necks-easy"]
    _, told = weights.load(climbed / "weights" / "necks-easy.safetensors")
    row = pd.read_csv(climbed / "tables" / "ladder.csv").set_index("rung").loc["necks-easy"]
    assert told["loss"] == pytest.approx(row["loss"], abs=1e-4) and told["prevalence"] == "rsna"
    model, facts = weights.load(climbed / "weights" / "crops-easy.safetensors")
    best = torch.load(climbed / "1" / "crops-easy" / "judged.pt", weights_only=True)["model"]
    assert all(torch.allclose(best[name], value, rtol=0.01) for name, value in model.state_dict().items())
    assert facts["rung"] == "crops-easy" and facts["seed"] == 1
    table = pd.read_csv(climbed / "tables" / "levers.csv")
    assert list(table["lever"].unique()) == list(levers.LEVERS) and (table["seed"] == 1).all()


def test_necks_are_calibrated_before_they_teach_and_on_those_that_choose(climbed, monkeypatch, tmp_path):
    done = []
    calibrate = rungs.calibration.calibrate

    def noted(model, dataset, objective, **options):
        done.append((dataset, options))
        return calibrate(model, dataset, objective, **options)

    def asked(model, dataset):
        done.append(dataset)
        return ask(model, dataset)

    ask = rungs.ask
    monkeypatch.setattr(rungs, "ask", asked)
    monkeypatch.setattr(rungs.calibration, "calibrate", noted)
    monkeypatch.setattr(rungs.training, "fit", lambda *_, **__: done.append("fit"))
    work = rungs._Necks(climbed / "data", RUNGS["necks-easy"], SMALL, 0, False)
    model = rungs.new_model(SMALL, 1)
    work.train(model, tmp_path, 1)
    (before, options), known, fitted, (after, no_options), chosen, (of_start, _), again = done
    assert after is chosen is of_start is again is work.choose, "what was learned, and what it began with"
    assert known is work.held_out, "what the start knows is asked of those that judge, before anything is learned"
    assert fitted == "fit" and before.dataset.dataset is work.taught
    assert options == {"rates": work.rates} and not no_options
    assert model.head.bias.abs().min() > 0  # what was found is in the model


class SaidBy(torch.utils.data.Dataset):
    """A set whose labels a model knows: those levels are broken that it finds most broken."""

    def __init__(self, model, dataset):
        self.dataset = dataset
        _, p = rungs.ask(model, dataset)
        y = (p[:, :7] > np.median(p[:, :7], axis=1, keepdims=True)).astype(np.float32)
        self.y = torch.from_numpy(np.append(y, y.max(axis=1, keepdims=True), axis=1))

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, index):
        return self.dataset[index][0], self.y[index]


@pytest.mark.parametrize("kept", ["start", "trained"])
def test_what_necks_teach_is_kept_if_it_is_better(climbed, monkeypatch, tmp_path, kept):
    """Training turns the evidence round: what knew the labels is wrong then, and the other way round."""
    work = rungs._Necks(climbed / "data", RUNGS["necks-easy"], SMALL, 0, False)
    model = rungs.new_model(SMALL, 1)
    with torch.no_grad():
        model.head.evidence.weight.normal_(generator=torch.Generator().manual_seed(0))
    work.choose = SaidBy(model, work.choose)
    right = model.head.evidence.weight.detach().clone()

    def turn(model, *_, **__):
        with torch.no_grad():
            model.head.evidence.weight.neg_()

    if kept == "trained":
        turn(model)
    monkeypatch.setattr(rungs.training, "fit", turn)
    work.train(model, tmp_path, 1)
    assert work.kept == kept and torch.equal(model.head.evidence.weight, right)
    y, p = rungs.ask(model, work.choose)
    assert metrics.plain_bce_per_study(y, p).mean() < 0.5, "and calibrated there"


def test_a_rung_begins_with_the_weights_of_its_start(climbed, monkeypatch):
    """`crops-hard` is judged with what `crops-longer` has learned."""
    seen = {}
    monkeypatch.setattr(rungs._Crops, "judge", lambda self, model, rng: seen.update(model.state_dict()) or {})
    rungs._climb_one(climbed, "crops-hard", SMALL, 1, 0, False)
    best = torch.load(climbed / "1" / "crops-longer" / "judged.pt", weights_only=True)["model"]
    assert seen.keys() == best.keys() and all(torch.equal(seen[name], best[name]) for name in best)
    assert any(not torch.equal(best[name], value) for name, value in rungs.new_model(SMALL, 1).state_dict().items())


def test_two_starts_are_their_mean(climbed, monkeypatch):
    seen = {}
    monkeypatch.setattr(rungs._Necks, "judge", lambda self, model, rng: {})
    monkeypatch.setattr(rungs._Necks, "train", lambda self, model, out, seed: seen.update(model.state_dict()) or done)
    monkeypatch.setattr(rungs.checkpoints, "save", lambda model, path: None)
    judged = []
    monkeypatch.setattr(
        rungs._Necks, "auroc", lambda self, model: judged.append(model.state_dict()) or 0.7 + len(judged)
    )
    done = SimpleNamespace(seconds=0.0)
    row = rungs._climb_one(climbed, "necks-standard", SMALL, 1, 0, False)
    assert row["start"] == "necks-easy + crops-longer"
    one, two = (
        torch.load(climbed / "1" / name / "judged.pt", weights_only=True)["model"]
        for name in ("necks-easy", "crops-longer")
    )
    assert seen.keys() == one.keys() and any(not torch.equal(one[name], two[name]) for name in one)
    assert all(torch.allclose(seen[name], 0.5 * one[name] + 0.5 * two[name], atol=1e-7) for name in one)
    assert row["alone"] == "1.7000 + 2.7000" and len(judged) == 2, "each start is judged by itself, in their order"
    for alone, weights_ in zip(judged, (one, two), strict=True):
        assert alone.keys() == weights_.keys() and all(torch.equal(alone[name], weights_[name]) for name in alone)


def test_a_start_alone_is_judged_within_levels_on_those_that_judge(climbed):
    """Of the same weights it says what the row of their own rung says."""
    table = pd.read_csv(climbed / "tables" / "ladder.csv").set_index("rung")
    assert table.loc[table["alone"].notna()].index.tolist() == ["necks-standard"]
    for name, kind in (("crops-standard", rungs._Crops), ("necks-easy", rungs._Necks)):
        work = kind(climbed / "data", RUNGS[name], SMALL, 0, False)
        model = rungs._started(SMALL, 1, [plan.weights_file(climbed, 1, name)])
        assert work.auroc(model) == pytest.approx(table.loc[name, "auroc"], abs=1e-4, nan_ok=True)


def test_who_learns_the_same_crops_again_sees_them_in_another_order(climbed, monkeypatch, tmp_path):
    seeds = []
    monkeypatch.setattr(rungs.training, "fit", lambda *_, generator, **__: seeds.append(generator.initial_seed()))
    for name in ("crops-torn", "crops-standard", "crops-longer"):
        rungs._Crops(climbed / "data", RUNGS[name], SMALL, 0, False).train(None, tmp_path, 3)
    monkeypatch.setattr(rungs._Necks, "_keep_the_better", lambda self, model, start: "")
    for again in (0, 7):
        work = rungs._Necks(climbed / "data", replace(RUNGS["necks-easy"], again=again), SMALL, 0, False)
        work.train(rungs.new_model(SMALL, 1), tmp_path, 3)
    assert seeds == [3, 3, 1003, 3, 10]
    before, after = RUNGS["crops-standard"], RUNGS["crops-longer"]
    assert sets(before, SMALL) == sets(after, SMALL) and before.difficulty == after.difficulty


def test_each_lever_is_pulled_once(climbed):
    table = levers.pull(climbed, SMALL, seed=1, progress=False)
    assert list(table["lever"].unique()) == list(levers.LEVERS) and table.groupby("lever").size().to_dict() == {
        name: 1 + lever.times for name, lever in levers.LEVERS.items()
    }, "epoch 0, and those of each"
    last = table.groupby("number").tail(1)
    assert last["above_own_twin"].between(0, 1).all() and last["pooled_auroc"].notna().all()
    assert table["pooled_auroc"].notna().sum() == len(levers.LEVERS), "judged once, after the last epoch"
    before = {path: path.stat().st_mtime_ns for path in climbed.glob("1/lever-*/best.pt")}
    again = levers.pull(climbed, SMALL, seed=1, progress=False)
    assert len(before) == len(levers.LEVERS) and all(path.stat().st_mtime_ns == time for path, time in before.items())
    pd.testing.assert_frame_equal(again, table)


def test_each_lever_adds_to_the_one_before():
    steps = [asdict(lever) for lever in levers.LEVERS.values()]
    added = [{name for name in b if a[name] != b[name]} - {"rate"} for a, b in zip(steps, steps[1:], strict=False)]
    assert added == [{"head"}, {"twins"}, {"token_weight"}, {"stem"}, {"closer"}, {"times"}, {"times", "shuffled"}]


def test_rows_of_other_rungs_and_seeds_stay_in_the_table(tmp_path):
    path = tmp_path / "ladder.csv"
    old = pd.DataFrame(
        {"rung": ["crops-easy", "necks-easy", "necks-easy"], "seed": [0, 0, 1], "auroc": [0.1, 0.2, 0.3]}
    )
    new = pd.DataFrame({"rung": ["necks-easy", "necks-balanced"], "seed": [0, 0], "auroc": [0.8, 0.9], "more": [1, 2]})
    assert __main__._beside(path, new).equals(new)
    old.to_csv(path, index=False)
    both = __main__._beside(path, new)
    assert both["rung"].tolist() == ["crops-easy", "necks-balanced", "necks-easy", "necks-easy"]
    assert both["seed"].tolist() == [0, 0, 0, 1] and both["auroc"].tolist() == [0.1, 0.9, 0.8, 0.3]
    assert __main__._beside(path, new.iloc[:0]).equals(old)


def test_the_readme_shows_the_table_that_was_measured():
    table = pd.read_csv(ROOT / "data" / "ladder.csv")
    assert report.markdown(table) in (ROOT / "README.md").read_text()
    assert set(report.WORDS) == set(RUNGS)


def test_a_line_of_the_table_by_hand(climbed):
    row = {
        "rung": "necks-easy", "seed": 0, "learned_from": 1280, "judged_on": 200, "auroc": 0.95164, "auroc_low": 0.9,
        "auroc_high": 0.9789, "auroc_torn": 0.91, "auroc_before": 0.5, "above_own_twin": 0.967, "loss": 0.1437,
        "constant": 0.3333, "skill": 0.5689, "train_seconds": 690.0,
    }  # fmt: skip
    crop = row | {"rung": "crops-hard", "learned_from": 0, "auroc_before": np.nan, "loss": np.nan, "skill": np.nan}
    lines = report.markdown(pd.DataFrame([row, crop])).splitlines()
    assert [len(line.split("|")) for line in lines] == [12] * 4, "ten cells a line"
    words = report.WORDS
    assert lines[2] == f"| {words['crops-hard']} | – | 200 pairs | 0.952 (0.900–0.979) | 0.910 |  | 96.7% |  |  | – |"
    told = "1,280 necks | 200 necks | 0.952 (0.900–0.979) | 0.910 | 0.500 | 96.7% | 0.144 beside 0.333 | 57% | 12 |"
    assert lines[3] == f"| {words['necks-easy']} | {told}"
    assert "1,280 necks, start kept | 200 necks" in report.markdown(pd.DataFrame([row | {"kept": "start"}]))
    two = report.markdown(pd.DataFrame([row, row | {"seed": 1}]))
    assert "real data, seed 0 |" in two and "real data, seed 1 |" in two


def test_labels_are_shuffled_within_pairs(climbed):
    pairs = crops.TwinCrops(climbed / "data" / "crops-easy", [0, 1, 0, 1])
    shuffled = levers.Shuffled(pairs, 0)
    assert len(shuffled) == len(pairs) and 0 < shuffled.swapped.sum() < 4
    assert shuffled.fingerprint != pairs.fingerprint != levers.Shuffled(pairs, 1).fingerprint != shuffled.fingerprint
    order = shuffled.epoch_order(torch.Generator().manual_seed(0))
    assert sorted(order) == list(range(8)) and pairs.views, "what an epoch sees of each pair is drawn"
    for index in range(8):
        (x, y), (own, truth), (twin, _) = shuffled[index], pairs[index], pairs[index ^ 1]
        shown = twin if shuffled.swapped[index // 2] else own
        assert torch.equal(x[:, :6], shown[:, :6]) and torch.equal(x[:, 6], own[:, 6])
        assert torch.equal(y.nan_to_num(-1), truth.nan_to_num(-1))
        assert not torch.equal(own[:, :6], twin[:, :6])


def test_controls_judge_the_weights_and_the_necks_of_the_row(climbed):
    whole = pd.read_csv(climbed / "tables" / "controls.csv").set_index("control")
    assert list(whole["rung"]) == ["necks-easy"] * len(controls.CONTROLS) + ["few-boxes"] * len(controls.CONTROLS)
    table, other = (whole[whole["rung"] == rung] for rung in ("necks-easy", "few-boxes"))
    rows = pd.read_csv(climbed / "tables" / "ladder.csv").set_index("rung")
    row = rows.loc["necks-easy"]
    assert list(table.index) == list(other.index) == list(controls.CONTROLS)
    assert other.loc["as it is", "loss"] == pytest.approx(rows.loc["few-boxes", "loss"], abs=2e-4)
    assert other["dice"].equals(table["dice"]), "the same necks and masks"
    same = ["seed", "judged_on", "pooled_auroc", "loss", "constant", "difference", "skill"]
    assert table.loc["as it is", same].to_list() == pytest.approx(row[same].to_list(), abs=2e-4)
    assert (table["constant"] == row["constant"]).sum() >= 6, "the same necks"
    assert table["loss"].nunique() > 4, "and each control changes what is said of them"
    dice = table["dice"]
    assert dice["as it is"] == dice["breaks filled"] == dice["labels of other necks"] == 1 and dice["no mask"] == 0
    assert (
        dice[["mask 1 voxel beside", "mask torn", *(name for name in dice.index if "predicted" in name)]]
        .between(0, 0.99)
        .all()
    )
    folder, *others = (plan.segmenter_folder(climbed, 1, name) for name in ("necks-easy", "few-maps", "necks-balanced"))
    assert [folder == other for other in others] == [True, False], "those that learn from the same necks share it"
    nets = [torch.load(path / "best.pt", weights_only=True)["model"] for path in (folder, folder / "hasty")]
    assert len(list(folder.glob("masks-*/*.npz"))) > len(list((folder / "hasty").glob("masks-*/*.npz"))) == 3
    assert any(not torch.equal(nets[0][name], nets[1][name]) for name in nets[0]), "one has learned for longer"
    both = pd.read_csv(climbed / "tables" / "predictions.csv")
    assert both["rung"].value_counts().to_dict() == {"necks-easy": 3, "few-boxes": 3}
    said = both[both["rung"] == "necks-easy"]
    y, p = (said[[prefix + target for target in TARGETS]].to_numpy(float) for prefix in ("", "p_"))
    assert metrics.plain_bce_per_study(y, p).mean() == pytest.approx(row["loss"], abs=2e-4)
    judged = [study_uid(plan.NECKS_SEED, number) for number in sets(RUNGS["necks-easy"], SMALL)["judge"]]
    assert said["study"].tolist() == judged and (said["rung"] == "necks-easy").all()


def test_what_a_rung_knew_before_and_its_weights_as_judged(climbed):
    table = pd.read_csv(climbed / "tables" / "ladder.csv").set_index("rung")
    alone = table.index.str.startswith("crops")
    assert table.loc[alone, "loss_before"].isna().all() and table.loc[~alone, "loss_before"].notna().all()
    work = rungs._Necks(climbed / "data", RUNGS["necks-easy"], SMALL, 0, False)
    model = checkpoints.load(rungs.new_model(SMALL, 1), climbed / "1" / "necks-easy" / "judged.pt")
    y, p = rungs.ask(model, work.held_out)
    assert metrics.plain_bce_per_study(y, p).mean() == pytest.approx(table.loc["necks-easy", "loss"], abs=1e-4)
    best = torch.load(climbed / "1" / "necks-easy" / "best.pt", weights_only=True)["model"]
    assert not torch.equal(best["head.gain"], model.head.gain), "calibrated after the best epoch"


def test_what_is_said_of_torn_masks_is_of_the_same_patients(climbed, monkeypatch):
    """Recomputed from the weights, and different from what is said of masks as they are."""
    table = pd.read_csv(climbed / "tables" / "ladder.csv").set_index("rung")
    alone = table.index.str.startswith("crops")  # two pairs of unlike levels: nobody to compare them with
    assert table.loc[~alone, "auroc_torn"].notna().all() and table.loc["necks-easy", "loss_torn"] > 0
    torn = partial(mask_jitter.Torn, jitter=rungs.ALL_TORN)
    work = rungs._Necks(climbed / "data", RUNGS["necks-easy"], SMALL, 0, False)
    model = checkpoints.load(rungs.new_model(SMALL, 1), climbed / "1" / "necks-easy" / "judged.pt")
    y, p = rungs.ask(model, torn(work.held_out))
    assert metrics.plain_bce_per_study(y, p).mean() == pytest.approx(table.loc["necks-easy", "loss_torn"], abs=1e-4)
    assert not np.allclose(p, rungs.ask(model, work.held_out)[1], atol=1e-7)
    seen = []
    monkeypatch.setattr(rungs.training, "predict", lambda _, data, **__: seen.append(data) or crop_answers(pairs=2)[:2])
    work = rungs._Crops(climbed / "data", RUNGS["crops-torn"], SMALL, 0, False)
    work.judge(None, np.random.default_rng(0))
    assert seen[0] is work.held_out is seen[1].dataset and seen[1].alike == 2 and seen[1].jitter == rungs.ALL_TORN
    assert rungs.ALL_TORN.clean == 0 and replace(rungs.ALL_TORN, clean=rungs.JITTER.clean) == rungs.JITTER


def test_masks_are_drawn_of_all_necks_but_those_that_the_network_learned_from(climbed):
    """In the last rung, and in no other; what is called torn is the true mask all the same."""
    rung, folder = RUNGS["few-maps"], plan.segmenter_folder(climbed, 1, "few-maps")
    assert [name for name in RUNGS if RUNGS[name].drawn] == ["few-maps"]
    assert replace(rung, drawn=False) == RUNGS["few-boxes"], "nothing else differs"
    plain, work = (rungs._Necks(climbed / "data", rung, SMALL, 0, False) for _ in range(2))
    work.draw_masks(folder, 1)
    net = work.taught.net
    assert work.taught.maps == set(plain.stored[0].studies[: SMALL.mask_necks]) and work.maps == 1 < len(work.taught)
    pairs = {
        "taught": plain.taught, "choose": plain.stored[1], "held_out": plain.stored[2], "twins": plain.twins,
    }  # fmt: skip
    for name, as_stored in pairs.items():
        shown = getattr(work, name)
        assert len(shown) == len(as_stored) > 0 and shown.net is net
        for index, study in enumerate(shown.stored.studies):
            (x, y), (before, told) = shown[index], as_stored[index]
            drawn = masks.draw(net, stacks.open_study(shown.stored.store, study), plan.GENEROUS)
            expected = stacks.labels_of(before[:, 5]) if name == "taught" and index == 0 else torch.from_numpy(drawn)
            assert torch.equal(stacks.labels_of(x[:, 5]), expected.long())
            assert torch.equal(x[:, :5], before[:, :5]) and torch.equal(y, told)
            assert torch.equal(x[:, 6].nan_to_num(-1), before[:, 6].nan_to_num(-1))
    table = pd.read_csv(climbed / "tables" / "ladder.csv").set_index("rung")
    model = rungs._started(SMALL, 1, [plan.weights_file(climbed, 1, "few-maps")])
    losses = [metrics.plain_bce_per_study(*rungs.ask(model, one)).mean() for one in (work.held_out, plain.held_out)]
    torn = mask_jitter.Torn(plain.held_out, rungs.ALL_TORN)
    losses.append(metrics.plain_bce_per_study(*rungs.ask(model, torn)).mean())
    assert table.loc["few-maps", ["loss", "loss_torn"]].tolist() == pytest.approx([losses[0], losses[2]], abs=1e-4)
    assert len({round(loss, 6) for loss in losses}) == 3 and table.loc["few-maps", "masks"] == "drawn, odds 7"


def test_who_has_no_map_calibrates(climbed, monkeypatch, tmp_path):
    """Masks that the network has learned by heart say little about those that it draws."""
    seen = []
    work = rungs._Necks(climbed / "data", RUNGS["few-maps"], SMALL, 0, False)
    work.draw_masks(plan.segmenter_folder(climbed, 1, "few-maps"), 1)
    monkeypatch.setattr(rungs.calibration, "calibrate", lambda model, some, *_, **__: seen.append(some))
    monkeypatch.setattr(rungs.training, "fit", lambda *_, **__: None)
    work.train(rungs.new_model(SMALL, 1), tmp_path, 1)
    assert seen[0].dataset.dataset is work.taught and list(seen[0].dataset.indices) == [1]


def test_necks_that_follow_necks_alone_learn_more_gently(climbed):
    rate = {
        name: rungs._Necks(climbed / "data", RUNGS[name], SMALL, 0, False).rate
        for name in ("necks-balanced", "necks-easy", "necks-standard", "few-boxes", "few-maps")
    }
    assert rate == {
        "necks-balanced": SMALL.neck_rate,
        "necks-easy": SMALL.neck_rate_again,
        "necks-standard": SMALL.neck_rate,
        "few-boxes": SMALL.neck_rate,
        "few-maps": SMALL.neck_rate,
    }
    assert SMALL.neck_rate_again < SMALL.neck_rate


def test_a_climb_of_all_rungs_finds_every_start():
    names = list(RUNGS)
    assert all(rung.trains or len(rung.start) == 1 for rung in RUNGS.values()), "one model is judged"
    assert all(set(RUNGS[name].start) <= set(names[:place]) for place, name in enumerate(names))


# ------------------------------------------------------------------------------------------------------ command line


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--begin", "nowhere"], "nowhere: found no weights"),
        (["--controls", "necks-easy"], "no weights of necks-easy.*--begin data/weights, which has necks-easy"),
        (
            ["--begin", str(ROOT / "data" / "weights"), "--controls", "necks-easy", "few-boxes"],
            "no weights of few-boxes",
        ),
        (["--rungs", "crops-torn"], "climb crops-easy first, name it before crops-torn, or --begin data/weights"),
        (["--rungs", "necks-easy"], "climb necks-balanced first, name it before necks-easy\\.$"),
        (["--table", "a_file"], "a_file"),
    ],
)  # fmt: skip
def test_what_cannot_be_climbed_is_one_line(tmp_path, monkeypatch, capsys, options, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a_file").write_text("no folder")
    assert __main__.main(["--out", "out", *options]) == 2
    err = capsys.readouterr().err
    assert re.search(said, err.strip()) and err.startswith("ladder: ") and err.count("\n") == 1
    assert not (tmp_path / "out" / "data").exists(), "nothing was rendered"


@pytest.mark.parametrize("options", [["--threads", "0"], ["--seeds", "-1"], ["--levers", "--controls", "necks-easy"]])
def test_what_cannot_be_asked_is_refused_by_the_parser(options):
    with pytest.raises(SystemExit) as error:
        __main__.main(options)
    assert error.value.code == 2


def test_rungs_with_shipped_weights_are_not_climbed_unless_named(tmp_path, monkeypatch):
    asked = []

    def climbed_none(out, profile, *, rungs, **_):
        asked.append(list(rungs))
        return pd.DataFrame({"rung": rungs, "seed": 0, "profile": ""})

    monkeypatch.setattr(__main__, "climb", climbed_none)
    monkeypatch.setattr(__main__, "markdown", lambda table: "")
    begin = ["--out", str(tmp_path), "--begin", str(ROOT / "data" / "weights")]
    assert __main__.main(begin) == 0
    assert asked[-1] == [name for name in RUNGS if name not in plan.PUBLISHED]
    assert plan.weights_file(tmp_path, 0, "crops-torn").exists()
    assert __main__.main([*begin, "--rungs", "necks-easy"]) == 0 and asked[-1] == ["necks-easy"]
    assert __main__.main(["--out", str(tmp_path)]) == 0 and asked[-1] == list(RUNGS)


def test_shipped_weights_can_be_judged_under_controls(tmp_path, monkeypatch):
    """Without a row of their own: nobody climbed them here."""
    weights_of = plan.weights_file(tmp_path, 0, "necks-easy")
    weights_of.parent.mkdir(parents=True)
    checkpoints.save(rungs.new_model(SMALL, 0), weights_of)

    def no_further(*_):
        raise KeyError("the necks are asked for")

    monkeypatch.setattr(controls, "necks_of", no_further)
    with pytest.raises(KeyError, match="asked for"):
        controls.control(tmp_path, SMALL)
