"""What can be asked of a training: schedules, accumulation, augmentation, order, objectives, measures, precision."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import log_loss
from test_training import Studies, fit, interrupt, model, same_runs, saved
from torch import nn

from cspine_utils import checkpoints, training
from cspine_utils.errors import ParameterError, TrainingError
from cspine_utils.models.vit3d import ViT3D
from cspine_utils.objectives import CLASSIFICATION, SEGMENTATION
from cspine_utils.training import settings
from cspine_utils.training.processes import fabric_for


def by_hand(net, data, *, order, batch, rates, smoothing=0.0, clip=1.0, decay=1e-4):
    """The same training, written down as one would without the package; returns losses and largest gradient norm."""
    optimizer = torch.optim.AdamW(net.parameters(), weight_decay=decay)
    net.train()
    losses, norms = [], []
    for step, rate in enumerate(rates):
        items = order[step * batch : (step + 1) * batch]
        optimizer.param_groups[0]["lr"] = rate
        logits, y = net(data.x[items]), data.y[items]
        losses += F.binary_cross_entropy_with_logits(logits, y, reduction="none").mean(dim=1).tolist()
        optimizer.zero_grad()
        F.binary_cross_entropy_with_logits(logits, y * (1 - smoothing) + smoothing / 2).backward()
        norms.append(nn.utils.get_total_norm([p.grad for p in net.parameters()]).item())
        nn.utils.clip_grad_norm_(net.parameters(), clip)
        optimizer.step()
    return losses, norms


# ---- steps


def test_one_epoch_equals_a_loop_written_by_hand(tmp_path):
    """7 studies in passes of 2, two passes a step: steps of 4 and of 3 studies, the last pass with one study."""
    data, start = Studies(7, 1), model(seed=5)
    nn.init.normal_(start.head.weight)
    net, hand = model(seed=5), model(seed=5)
    for one in (net, hand):
        one.load_state_dict(start.state_dict())
    chosen = [4, 1, 6, 0, 3, 5, 2]
    _, result = fit(
        tmp_path, train=data, net=net, epochs=1, accumulate=2, schedule="linear", warmup_steps=1, gamma=1.0,
        label_smoothing=0.2, clip=0.05, base_rates=None, order=lambda generator: chosen,
    )  # fmt: skip
    losses, norms = by_hand(hand, data, order=chosen, batch=4, rates=[3e-3, 3e-3], smoothing=0.2, clip=0.05)
    with torch.no_grad():  # weights would not do: what gradient a key's bias has is rounding, which Adam makes large
        ours, theirs, before = (one.eval()(data.x) for one in (net, hand, start))
    assert (ours - theirs).abs().max() < 1e-3 * (ours - before).abs().max()
    row = result.history.iloc[1]
    assert row["train_loss"] == pytest.approx(np.mean(losses), rel=1e-5)  # not smoothed
    assert row["gradient_norm"] == pytest.approx(max(norms), rel=1e-4) and max(norms) > 0.05


def asked(**changes):
    base = {"train_studies": 10, "batch_size": 2, "accumulate": 2, "epochs": 4, "learning_rate": 0.5, "gamma": 1.0}
    return base | {"schedule": "gamma", "warmup_steps": 0} | changes  # 3 steps an epoch, 12 in all


def rates(wanted):
    per_epoch = settings.steps_per_epoch(wanted)
    return [settings.rate(wanted, 1 + step // per_epoch, step % per_epoch) for step in range(per_epoch * 4)]


def by_torch(schedulers, warmup, total=12):
    """The same with torch's schedulers, one after the other."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.5)
    rise = torch.optim.lr_scheduler.LinearLR(optimizer, 1 / warmup, 1.0, total_iters=warmup - 1)
    both = torch.optim.lr_scheduler.SequentialLR(optimizer, [rise, schedulers(optimizer)], milestones=[warmup])
    found = []
    for _ in range(total):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        both.step()
    return found


def test_the_rates_are_those_of_torch():
    linear = by_torch(lambda o: torch.optim.lr_scheduler.LinearLR(o, 1.0, 1e-12, total_iters=8), 4)
    np.testing.assert_allclose(rates(asked(schedule="linear", warmup_steps=4)), linear, atol=1e-9)
    cosine = by_torch(lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, T_max=8), 4)
    np.testing.assert_allclose(rates(asked(schedule="cosine", warmup_steps=4)), cosine, atol=1e-9)
    assert linear[3] == 0.5 and 0 < linear[-1] < 0.1  # the last step still learns


def test_gamma_and_warm_up_multiply():
    found = rates(asked(gamma=0.5, warmup_steps=5))
    np.testing.assert_allclose(found[:7], [0.1, 0.2, 0.3, 0.2, 0.25, 0.25, 0.125])
    assert found[9:] == [0.0625] * 3


def test_the_history_tells_the_rate_of_the_last_step(tmp_path):
    _, result = fit(tmp_path, train=Studies(5, 1), epochs=2, schedule="linear", gamma=0.5)  # 3 steps an epoch
    np.testing.assert_allclose(result.history["learning_rate"], [0, 3e-3 * 4 / 6, 3e-3 * 0.5 * 1 / 6])
    assert (result.history["memory_mb"] > 50).all() and result.history["memory_mb"].is_monotonic_increasing


def test_half_a_step_is_forgotten_after_an_interrupt(tmp_path):
    """The same model object again, interrupted between the two passes of a step, its gradient half full."""

    class Stops(Studies):
        left = 0

        def __getitem__(self, i):
            self.left -= 1
            if self.left == 0:
                interrupt()
            return super().__getitem__(i)

    data = Stops(5, 1)
    fit(tmp_path / "whole", train=data, accumulate=2)
    net, data.left = model(dropout=0.2), 5 + 3  # epoch 0 reads 5, epoch 1 two, and the third is the second pass's first
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path / "stopped", train=data, net=net, accumulate=2)
    assert any(p.grad is not None and p.grad.any() for p in net.parameters()), "else this case shows nothing"
    fit(tmp_path / "stopped", train=data, net=net, accumulate=2)
    assert same_runs(tmp_path / "whole", tmp_path / "stopped")


# ---- what an epoch sees


@dataclasses.dataclass(frozen=True)
class Shaken:
    """Noise on the images, as an augmentation."""

    strength: float

    def __call__(self, x, generator):
        return x + self.strength * torch.randn(x.shape, generator=generator, device=generator.device)


class Watched(ViT3D):
    """Keeps what it was shown, and whether it was learning."""

    def forward(self, x):
        self.__dict__.setdefault("seen", []).append((self.training, x.detach().clone()))
        return super().forward(x)


def test_augmentation_is_for_training_alone_and_new_in_every_epoch(tmp_path):
    data, held_out = Studies(4, 1), Studies(3, 2)
    net = Watched(**model().config)
    fit(tmp_path, train=data, validation=held_out, net=net, augment=Shaken(0.25), order=lambda generator: [2, 0, 3, 1])
    shown = [torch.cat([x for learning, x in net.seen if learning][k : k + 2]) for k in (0, 2, 4)]
    noise = [(x - data.x[[2, 0, 3, 1]]) / 0.25 for x in shown]
    assert all(abs(n.std() - 1) < 0.1 and abs(n.mean()) < 0.1 for n in noise)
    assert not torch.equal(noise[0], noise[1]) and not torch.equal(noise[1], noise[2])
    assert not torch.equal(noise[0][:2], noise[0][2:])
    clean = torch.cat([x for learning, x in net.seen if not learning])
    assert torch.equal(clean, torch.cat([data.x, *[held_out.x] * 4, data.x]))
    again = Watched(**model().config)
    fit(tmp_path / "2", train=data, validation=held_out, net=again, augment=Shaken(0.25), order=lambda g: [2, 0, 3, 1])
    assert all(torch.equal(a[1], b[1]) for a, b in zip(net.seen, again.seen, strict=True))


def test_another_augmentation_is_another_run(tmp_path):
    fit(tmp_path, augment=Shaken(0.25))
    with pytest.raises(TrainingError, match=r"augment Shaken\(strength=0.25\) \(there\); .*strength=0.5"):
        fit(tmp_path, augment=Shaken(0.5))
    assert settings.name_of(len) == "builtins.len" and settings.name_of(None) is None


def test_a_dataset_says_its_order(tmp_path):
    class Pairs(Studies):
        """Twins 2i and 2i + 1 side by side."""

        def epoch_order(self, generator):
            return [2 * i + side for i in torch.randperm(3, generator=generator).tolist() for side in (0, 1)]

        def __getitem__(self, i):
            self.__dict__.setdefault("seen", []).append(i)
            return super().__getitem__(i)

    data = Pairs(6, 1)
    fit(tmp_path, train=data, epochs=5)
    passes = [tuple(data.seen[k : k + 6]) for k in range(6, 36, 6)]
    assert all(p[k] + 1 == p[k + 1] and p[k] % 2 == 0 for p in passes for k in (0, 2, 4))
    assert all(sorted(p) == list(range(6)) for p in passes) and len(set(passes)) > 1
    data.seen = []
    fit(tmp_path / "given", train=data, epochs=1, order=lambda generator: [5, 5, 0, 1, 2, 3])
    assert data.seen[6:12] == [5, 5, 0, 1, 2, 3]


@pytest.mark.parametrize("wrong", [[0, 1, 2, 3], [0, 1, 2, 3, 5], [], [0, 1, 2, 3, -1]])
def test_an_order_that_cannot_be_is_refused(tmp_path, wrong):
    with pytest.raises(TrainingError, match=r"expected 5 indices from 0 to 4"):
        fit(tmp_path, order=lambda generator: wrong)


# ---- objectives


class Lesion(Studies):
    """A last channel that tells where; where a study does not know, the channel is NaN."""

    def __init__(self, n, seed):
        super().__init__(n, seed)
        self.x = self.x.clone()
        self.x[:, :, 2] = (self.x[:, :, 2] > 1).float()
        self.x[::3, :, 2] = math.nan


class Evidence(ViT3D):
    """Two channels in; the targets, then one number for each of the six frames."""

    def evidence(self, x):
        return torch.cat([self(x), x.mean(dim=(2, 3, 4))], dim=1)


def split_off(x, y):
    return x[:, :, :2], torch.cat([y, x[:, :, 2].mean(dim=(2, 3))], dim=1)


def known_loss(z, y):
    known = ~y.isnan()
    return F.binary_cross_entropy_with_logits(z[known], y[known])


def image_loss(z, y):
    return F.binary_cross_entropy_with_logits(z[:, :8], y[:, :8])


EVIDENCE = dataclasses.replace(
    CLASSIFICATION, name="evidence", prepare=split_off, answer=lambda net, x: net.evidence(x), loss=known_loss,
    report={"bce": image_loss},
)  # fmt: skip


def test_an_objective_prepares_answers_and_reports(tmp_path):
    data, held_out = Lesion(6, 1), Lesion(5, 30)
    net = Evidence(**model(channels=2).config)
    seen = []

    def measure(y, logits):
        seen.append((y, logits))
        return {"mean_logit": logits.mean()}

    def augment(x, generator):  # moves the targets with the image: they are still there
        assert x.shape[2] == 3
        return x.roll(1, dims=1)

    options = dict(train=data, validation=held_out, objective=EVIDENCE, augment=augment, measure=measure, epochs=2)
    _, result = fit(tmp_path, net=net, label_smoothing=0.1, **options)
    y, p = training.predict(net, held_out, 2, EVIDENCE)
    np.testing.assert_array_equal(y, held_out.y)
    with torch.no_grad():
        logits = net(held_out.x[:, :, :2])
    np.testing.assert_allclose(p, torch.sigmoid(logits), rtol=1e-5)
    row = result.history.iloc[result.best_epoch]
    assert row["validation_bce"] == pytest.approx(np.mean([log_loss(y[i], p[i], labels=[0, 1]) for i in range(5)]))
    assert row["validation_loss"] == pytest.approx(training.mean_loss(net, held_out, 2, EVIDENCE))
    assert abs(row["validation_loss"] - row["validation_bce"]) > 1e-3  # tokens count
    assert len(seen) == 3 and row["mean_logit"] == pytest.approx(logits.mean().item(), rel=1e-4)
    np.testing.assert_array_equal(seen[0][0], held_out.y)
    assert seen[0][0].dtype == seen[0][1].dtype == np.float64 and seen[0][1].shape == (5, 8)


def test_the_best_epoch_goes_by_the_column_that_was_asked_for(tmp_path):
    """A measure that is lowest in epoch 3 of 4, NaN in epoch 1, and still lower untrained."""
    values = iter([0.0, math.nan, 0.3, 0.2, 0.25] * 2)
    options = dict(epochs=4, gamma=1.0, measure=lambda y, logits: {"auroc_lost": next(values)})
    net, result = fit(tmp_path, best_by="auroc_lost", **options)
    assert result.best_epoch == 3 and saved(tmp_path, "best.pt")["epoch"] == 3
    assert result.best_validation_loss == result.history["validation_loss"][3]
    text = (tmp_path / "history.json").read_text()
    assert "NaN" not in text and json.loads(text)["history"][1]["auroc_lost"] is None
    assert result.history["validation_loss"].iloc[1:].idxmin() == 2, "else this case shows nothing"
    stopped = fit(tmp_path / "stopped", best_by="auroc_lost", patience=1, **options)[1]
    assert stopped.history["epoch"].iloc[-1] == 4 and stopped.best_epoch == 3


def test_columns_that_are_not_there_or_taken_are_refused(tmp_path):
    with pytest.raises(ParameterError, match=r"fit\(best_by\): found auroc; expected one of validation_loss, mine"):
        fit(tmp_path, best_by="auroc", measure=lambda y, logits: {"mine": 1.0})
    for name in ("seconds", "validation_loss"):
        with pytest.raises(ParameterError, match=rf"fit\(measure\): found {name}"):
            fit(tmp_path / "2", measure=lambda y, logits, name=name: {name: 1.0})
    assert not (tmp_path / "last.pt").exists()


@pytest.mark.parametrize("option", [dict(label_smoothing=0.1), dict(measure=lambda y, logits: {})])
def test_a_segmenter_has_no_image_label(tmp_path, option):
    (name,) = option
    with pytest.raises(ParameterError, match=rf"fit\({name}\): .*objective segmentation"):
        fit(tmp_path, objective=SEGMENTATION, base_rates=None, **option)
    with pytest.raises(ParameterError, match=r"predict\(objective\): found segmentation"):
        training.predict(model(), Studies(2, 1), objective=SEGMENTATION)


# ---- precision and memory


def test_bf16_computes_in_bfloat16_and_keeps_float32_weights(tmp_path):
    kinds = set()
    nets = {}
    for precision in ("32-true", "bf16-mixed"):
        nets[precision] = net = model()
        handle = net.blocks[0].register_forward_hook(lambda m, i, o: kinds.add((precision, o.dtype)))  # noqa: B023
        linear = next(m for m in net.blocks[0].modules() if isinstance(m, nn.Linear))
        linear.register_forward_hook(lambda m, i, o: kinds.add((precision, o.dtype)))  # noqa: B023
        fit(tmp_path / precision, net=net, precision=precision, epochs=2)
        handle.remove()
    assert ("bf16-mixed", torch.bfloat16) in kinds and ("32-true", torch.bfloat16) not in kinds
    assert {p.dtype for p in nets["bf16-mixed"].parameters()} == {torch.float32}
    a, b = (torch.cat([p.detach().flatten() for p in net.parameters()]) for net in nets.values())
    assert 0 < (a - b).abs().max() < 0.05


@pytest.mark.parametrize(
    ("able", "chosen"),
    [({"avx2": True, "avx512_bf16": False}, "32-true"), ({"avx512_f": True}, "32-true"),
     ({"avx512_bf16": True}, "bf16-mixed"), ({"amx_bf16": True, "avx512_bf16": False}, "bf16-mixed"),
     ({"neon": True, "bf16": True}, "bf16-mixed"), ({}, "32-true")],
    ids=str,
)  # fmt: skip
def test_bf16_is_chosen_where_the_processor_multiplies_it(tmp_path, monkeypatch, able, chosen):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able)
    assert training.fast_precision(torch.device("cpu")) == chosen
    _, result = fit(tmp_path, precision="auto", epochs=1)
    assert json.loads((result.out / "history.json").read_text())["settings"]["precision"] == chosen


def test_names_of_what_a_processor_can_do_are_those_of_torch():
    """Torch lists what it knows of, true or false: a name that it does not use would never be found."""
    known = torch.cpu.get_capabilities()
    own = {"x86_64": {"avx512_bf16", "amx_bf16"}, "aarch64": {"bf16"}}.get(known["architecture"], set())
    assert own <= known.keys() and own <= set(settings._BFLOAT16)


def test_auto_takes_the_precision_of_a_fabric_that_is_given(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    _, result = fit(tmp_path, fabric=fabric_for(model(), "bf16-mixed"), precision="auto", epochs=1)
    assert json.loads((result.out / "history.json").read_text())["settings"]["precision"] == "bf16-mixed"


def test_a_fabric_of_another_precision_is_refused(tmp_path, capfd):
    fabric = fabric_for(model(), "bf16-mixed")
    with pytest.raises(ParameterError, match="32-true beside a fabric with bf16-mixed"):
        fit(tmp_path, fabric=fabric)
    _, result = fit(tmp_path, fabric=fabric, precision="bf16-mixed", epochs=1)
    assert len(result.history) == 2
    assert capfd.readouterr() == ("", "")  # fabric would announce itself


def test_activations_are_checkpointed_where_the_model_can(tmp_path):
    class Can(ViT3D):
        checkpoint_activations = False

    net = Can(**model().config)
    fit(tmp_path, net=net, epochs=1)
    assert net.checkpoint_activations is False
    fit(tmp_path / "2", net=net, epochs=1, checkpoint_activations=True)
    assert net.checkpoint_activations is True
    with pytest.raises(ParameterError, match="Linear, which has no such attribute"):
        fit(tmp_path / "3", net=nn.Linear(3, 8), base_rates=None, checkpoint_activations=True)


# ---- start from another run, or beside one


def test_a_second_process_reads_a_run_and_writes_none(tmp_path):
    fit(tmp_path, epochs=1)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    beside = checkpoints.Run(tmp_path, saved(tmp_path, "last.pt")["settings"], model(dropout=0.2), writes=False)
    assert beside.resume() == 1
    beside.record(epoch=2, train_loss=0.0, validation_loss=0.0, seconds=0.0)
    beside.go_to_best(lambda: 0.25)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_weights_that_fit_are_taken_and_the_others_named(tmp_path):
    fit(tmp_path, epochs=1)
    there = saved(tmp_path, "best.pt")["model"]
    net = model(seed=9, frames=9, targets=7)  # other positions and another head, the same blocks
    before = {name: value.clone() for name, value in net.state_dict().items()}
    loaded = training.load_matching(net, tmp_path / "best.pt")
    after = net.state_dict()
    moved = {name for name in after if not torch.equal(after[name], before[name])}
    assert moved <= set(loaded.loaded) and all(torch.equal(after[name], there[name]) for name in loaded.loaded)
    assert set(loaded.loaded) | set(loaded.kept) == set(after) and not set(loaded.loaded) & set(loaded.kept)
    assert any("blocks" in name for name in moved)
    assert {"head.weight", "head.bias"} < set(loaded.kept) and set(loaded.unused) == set(loaded.kept)
    assert "(8, 16), the model has (7, 16)" in loaded.unused["head.weight"] and "head.weight" in str(loaded)
    assert net.training


def test_weights_of_which_none_fits_are_refused(tmp_path):
    fit(tmp_path, epochs=0)
    with pytest.raises(TrainingError, match=r"no weight that fits.*akin to Linear, which has weight, bias"):
        training.load_matching(nn.Linear(2, 8), tmp_path / "best.pt")
    with pytest.raises(TrainingError, match="no file"):
        training.load_matching(model(), tmp_path / "none.pt")
    torch.save({"model": {"blocks": 1}, "settings": {}}, tmp_path / "odd.pt")
    with pytest.raises(TrainingError, match="no weight that fits"):
        checkpoints.load_matching(model(), tmp_path / "odd.pt")


# ---- a look at some of the training studies


def test_the_train_loss_of_a_large_set_may_be_measured_on_some_of_it(tmp_path):
    data = Studies(7, 1)

    def answering():
        net = model(seed=5)
        torch.manual_seed(9)
        nn.init.normal_(net.head.weight)  # at zero, all studies have the same loss
        return net

    net, untrained = answering(), answering()
    _, result = fit(tmp_path / "some", train=data, net=net, epochs=1, base_rates=None, train_sample=3)
    picked = torch.utils.data.Subset(data, [0, 2, 4])
    assert result.history["train_loss"][0] == pytest.approx(training.mean_loss(untrained, picked), rel=1e-6)
    assert result.best_train_loss == pytest.approx(training.mean_loss(net, picked), rel=1e-6)
    _, whole = fit(tmp_path / "all", train=data, net=answering(), epochs=1, base_rates=None)
    assert whole.history["train_loss"][0] != pytest.approx(result.history["train_loss"][0], rel=1e-6)
    assert whole.history["validation_loss"].tolist() == result.history["validation_loss"].tolist()


@pytest.mark.parametrize("wrong", [0, 2.0, True])
def test_a_sample_is_a_number_of_studies(tmp_path, wrong):
    with pytest.raises(ParameterError, match="train_sample"):
        fit(tmp_path, epochs=1, train_sample=wrong)
