"""Weights that travel with the course: written, read, refused, and as good as it is said."""

import json
from dataclasses import asdict

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ROOT
from safetensors import safe_open
from safetensors.torch import save_file

from cspine_utils import checkpoints, crops, evidence, training
from cspine_utils.errors import ParameterError, TrainingError
from cspine_utils.ladder import Profile, judge, plan, rungs, weights
from cspine_utils.mask_jitter import Torn

SHIPPED = ROOT / "data" / "weights" / "crops-easy.safetensors"
SMALL = Profile(dim=12, depth=1)


@pytest.fixture
def run(tmp_path):
    """A finished rung's folder: a model of its own making and its row."""
    model = rungs.new_model(SMALL, 3)
    with torch.no_grad():
        model.head.evidence.weight.normal_()
    checkpoints.save(model, tmp_path / "judged.pt")
    row = {"rung": "r", "seed": 0, "difficulty": "easy", "learned_from": 5, "auroc": 0.7, "above_own_twin": 0.9}
    (tmp_path / "row.json").write_text(json.dumps(row | {"profile": asdict(SMALL)}))
    return tmp_path, model


def test_what_is_read_answers_as_what_was_written(run):
    folder, model = run
    again, facts = weights.load(weights.export(folder, folder / "sub" / "r.safetensors"))
    x = torch.randn(1, 5, 6, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.allclose(model.eval()(x), again(x), atol=0.05) and not again.training
        model.head.evidence.weight.neg_()
        assert not torch.allclose(model(x), again(x), atol=0.05)
    assert facts == {"rung": "r", "seed": 0, "difficulty": "easy", "learned_from": 5, "auroc": 0.7,
                     "above_own_twin": 0.9}  # fmt: skip
    assert [p.name for p in (folder / "sub").iterdir()] == ["r.safetensors"]
    (folder / "like_any").write_text("")
    mode = (folder / "like_any").stat().st_mode
    assert (folder / "sub" / "r.safetensors").stat().st_mode == mode, "others may read it as any file"


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def of_another_version(path):
    content = path.read_bytes()
    path.write_bytes(content.replace(b'\\"frame_patch\\"', b'\\"frame_patsh\\"'))


@pytest.mark.parametrize(
    "harm", [cut, of_another_version, lambda path: path.unlink(), lambda path: path.write_text("x")]
)
def test_what_cannot_be_used_is_refused_by_name(run, harm):
    folder, _ = run
    path = weights.export(folder, folder / "r.safetensors")
    harm(path)
    with pytest.raises(TrainingError, match="r.safetensors"):
        weights.load(path)


@pytest.fixture(scope="module")
def held_out(tmp_path_factory):
    """Vertebrae of fourteen necks of another cohort."""
    folder = tmp_path_factory.mktemp("crops")
    crops.render_crops(folder, 14, difficulty="easy", seed=77, progress=False)
    return crops.TwinCrops(folder, range(14))


def test_the_weights_that_come_with_the_course_see_fractures(held_out):
    """The break is scored above its own twin, and above other patients' bones."""
    model, facts = weights.load(SHIPPED)
    y, p = training.predict(model, held_out, 14, evidence.objective(frame_patch=5, patch=8))
    found = judge.of_crops(y, p, held_out.patients, np.random.default_rng(0))
    assert facts["above_own_twin"] > 0.95 and found["above_own_twin"] >= 12 / 14
    with torch.no_grad():  # the same network, deaf to what it found
        model.head.evidence.weight.zero_()
    y, p = training.predict(model, held_out, 14, evidence.objective(frame_patch=5, patch=8))
    assert judge.of_crops(y, p, held_out.patients, np.random.default_rng(0))["above_own_twin"] == 0.5


def test_the_weights_of_the_second_rung_see_with_torn_masks(held_out):
    torn = Torn(held_out, rungs.ALL_TORN, seed=5, alike=2)
    found = {}
    for name in ("crops-easy", "crops-torn"):
        model, _ = weights.load(SHIPPED.with_stem(name))
        y, p = training.predict(model, torn, 14, evidence.objective(frame_patch=5, patch=8))
        found[name] = judge.of_crops(y, p, held_out.patients, np.random.default_rng(0))
    assert found["crops-torn"]["above_own_twin"] >= 12 / 14
    assert found["crops-torn"]["pooled_auroc"] > found["crops-easy"]["pooled_auroc"] + 0.1


@pytest.mark.parametrize("name", plan.PUBLISHED)
def test_the_table_tells_the_same_of_them(name):
    _, facts = weights.load(SHIPPED.with_stem(name))
    assert facts["rung"] == name
    table = pd.read_csv(ROOT / "data" / "ladder.csv").set_index(["rung", "seed"])
    row = table.loc[(facts["rung"], facts["seed"])]
    assert row["auroc"] == pytest.approx(facts["auroc"], abs=1e-3) and row["learned_from"] == facts["learned_from"]


def test_a_climb_may_begin_with_weights_that_came_with_the_course(run, tmp_path):
    folder, model = run
    shipped, out = tmp_path / "shipped", tmp_path / "out"
    weights.export(folder, shipped / "crops-easy.safetensors")
    facts = {"rung": "crops-easy", "seed": 0}
    save_as(shipped / "crops-easy.safetensors", facts)
    with pytest.raises(ParameterError, match="no finished rung crops-easy"):
        plan.check(out, ["crops-torn"], SMALL, 0)
    assert weights.begin(shipped, out, 0) == ["crops-easy"]
    plan.check(out, ["crops-torn"], SMALL, 0)
    begun = rungs._started(SMALL, 9, [plan.weights_file(out, 0, "crops-easy")])
    assert all(torch.allclose(a, b, rtol=0.01) for a, b in zip(model.parameters(), begun.parameters(), strict=True))
    checkpoints.save(rungs.new_model(SMALL, 5), plan.weights_file(out, 0, "crops-easy"))
    before = plan.weights_file(out, 0, "crops-easy").read_bytes()
    assert weights.begin(shipped, out, 0) == ["crops-easy"], "weights that are there stay"
    assert plan.weights_file(out, 0, "crops-easy").read_bytes() == before
    assert weights.begin(shipped, tmp_path / "new", 0, but=["crops-easy"]) == []
    assert not (tmp_path / "new").exists(), "a rung that is to be climbed begins as the ladder says"
    plan.row_file(out, 0, "crops-easy").write_text("{}")
    assert weights.begin(shipped, out, 0) == [], "a rung that was climbed here is no shipped one"
    with pytest.raises(TrainingError, match="crops-easy.safetensors of seed 0.*expected weights of seed 3"):
        weights.begin(shipped, out, 3)
    with pytest.raises(TrainingError, match="no weights"):
        weights.begin(tmp_path / "nowhere", out, 0)


def save_as(path, facts):
    """The same weights with other facts."""
    with safe_open(path, framework="pt") as file:
        content, config = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()["config"]
    save_file(content, path, metadata={"config": config, "facts": json.dumps(facts)})
