"""Training: repeatable, resumable after any kill, honest about its best epoch."""

import copy
import json
import math
import os

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import log_loss
from torch import nn

from cspine_utils import checkpoints, metrics, training
from cspine_utils.errors import ParameterError, TrainingError
from cspine_utils.models.vit3d import ViT3D

torch.set_num_threads(1)  # here as well as in conftest: a child process imports this module alone

SHAPE = (6, 3, 8, 8)
COSTS = ["seconds", "memory_mb"]
RATES = torch.tensor([0.2, 0.3, 0.15, 0.2, 0.25, 0.3, 0.35, 0.5])


class Studies(torch.utils.data.Dataset):
    """Noise, with labels that know nothing of it."""

    def __init__(self, n, seed):
        g = torch.Generator().manual_seed(seed)
        self.x, self.y = torch.randn(n, *SHAPE, generator=g), (torch.rand(n, 8, generator=g) < RATES).float()

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return self.x[i], self.y[i]


class Killed(Studies):
    """The same, but the k-th reading of a study is interrupted."""

    def __init__(self, n, seed, at, how):
        super().__init__(n, seed)
        self.left, self.how = at, how

    def __getitem__(self, i):
        self.left -= 1
        if self.left == 0:
            self.how()
        return super().__getitem__(i)


def interrupt():
    raise KeyboardInterrupt


def model(seed=0, **changes):
    torch.manual_seed(seed)
    arguments = dict(frames=6, channels=3, size=8, frame_patch=3, patch=4, dim=16, depth=1, heads=2)
    return ViT3D(**{**arguments, **changes})


def fit(out, *, train=None, validation=None, net=None, seed=0, **changes):
    settings = dict(epochs=3, batch_size=2, learning_rate=3e-3, gamma=0.7, base_rates=RATES, progress=False)
    net = net or model(dropout=0.2)
    result = training.fit(
        net,
        train or Studies(5, 1),
        validation or Studies(4, 30),
        out=out,
        generator=torch.Generator().manual_seed(seed),
        **{**settings, **changes},
    )
    return net, result


def saved(out, name):
    return torch.load(out / name, weights_only=True)


def same_weights(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def same_runs(a, b):
    """Same numbers in everything that two runs left on disk, seconds and memory excepted."""
    tables = [pd.read_csv(out / "history.csv").drop(columns=COSTS) for out in (a, b)]
    last = [saved(out, "last.pt") for out in (a, b)]
    moments = [{(k, m): v for k, s in run["optimizer"]["state"].items() for m, v in s.items()} for run in last]
    return (
        tables[0].equals(tables[1])
        and same_weights(last[0]["model"], last[1]["model"])
        and same_weights(saved(a, "best.pt")["model"], saved(b, "best.pt")["model"])
        and same_weights(moments[0], moments[1])
        and last[0]["best_train_loss"] == last[1]["best_train_loss"]
        and saved(a, "best.pt")["epoch"] == saved(b, "best.pt")["epoch"]
    )


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Three epochs of which the second is best, so that mixing up first, best and last would be seen."""
    out = tmp_path_factory.mktemp("undisturbed")
    net, result = fit(out)
    assert result.best_epoch == 2
    return out, net, result


# ---- learning


def test_eight_studies_are_learned_by_heart(tmp_path):
    data = Studies(8, 3)
    net, result = fit(tmp_path, train=data, validation=data, net=model(), epochs=40, gamma=1.0)
    y, p = training.predict(net, data)
    constant = metrics.plain_bce(y, metrics.constant_predictions(metrics.base_rates(y), 8))
    assert metrics.plain_bce(y, p) < 0.2 * constant
    assert ((p > 0.5) == (y == 1)).all()
    assert result.best_train_loss == pytest.approx(metrics.plain_bce(y, p), rel=1e-5)


def per_study(net, data, rates):
    y, p = training.predict(net, data)
    constant = metrics.constant_predictions(rates, len(y))
    return metrics.plain_bce_per_study(y, p), metrics.plain_bce_per_study(y, constant)


def test_labels_without_meaning_land_at_the_constant_and_a_leak_does_not(tmp_path):
    """The control, and the fixture that must make it fail: validation studies that were trained on."""
    for seed in range(4, 10):
        train, validation = Studies(24, 2 * seed + 100), Studies(24, 2 * seed + 101)
        rates = metrics.base_rates(train.y.numpy(), smoothing=0.5)
        options = dict(train=train, epochs=8, batch_size=4, gamma=1.0, seed=seed, base_rates=rates)
        net, _ = fit(tmp_path / f"fair-{seed}", validation=validation, net=model(seed), **options)
        assert metrics.lands_at_constant(*per_study(net, validation, rates))
        net, _ = fit(tmp_path / f"leak-{seed}", validation=train, net=model(seed), **options)
        assert not metrics.lands_at_constant(*per_study(net, train, rates))


# ---- what the numbers are


def test_epoch_0_is_the_constant(undisturbed):
    _, _, result = undisturbed
    for name, data in (("train_loss", Studies(5, 1)), ("validation_loss", Studies(4, 30))):
        y = data.y.numpy()
        constant = metrics.plain_bce(y, metrics.constant_predictions(RATES.double().numpy(), len(y)))
        assert result.history[name][0] == pytest.approx(constant, rel=1e-6)
    assert result.history["learning_rate"][0] == 0


def test_learning_rate_falls_by_gamma(undisturbed):
    _, _, result = undisturbed
    np.testing.assert_allclose(result.history["learning_rate"], [0, 3e-3, 3e-3 * 0.7, 3e-3 * 0.49])
    assert list(result.history["epoch"]) == [0, 1, 2, 3]


def test_the_steps_are_those_of_a_loop_written_by_hand(tmp_path):
    """AdamW, clipping and the falling rate, without shuffling (one batch an epoch) and without dropout."""
    net, data = model(), Studies(4, 1)
    net.set_base_rates(RATES)
    nn.init.normal_(net.head.weight)  # so that the gradient is large enough to be clipped
    start = {k: v.clone() for k, v in net.state_dict().items()}
    fit(tmp_path, train=data, net=net, batch_size=4, epochs=2, base_rates=None, clip=0.1, weight_decay=0.3)
    net.load_state_dict(start)
    net.train()
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3, weight_decay=0.3)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.7)
    losses = []
    for _ in range(2):
        optimizer.zero_grad()
        loss = nn.BCEWithLogitsLoss()(net(data.x), data.y)
        loss.backward()
        assert nn.utils.clip_grad_norm_(net.parameters(), 0.1) > 0.2
        optimizer.step()
        scheduler.step()
        losses.append(float(loss.detach()))
    for name, value in saved(tmp_path, "last.pt")["model"].items():
        torch.testing.assert_close(net.state_dict()[name], value, atol=1e-5, rtol=1e-4)
    assert pd.read_csv(tmp_path / "history.csv")["train_loss"][1:].tolist() == pytest.approx(losses, rel=1e-5)


def test_an_unfinished_last_batch_counts_each_study_once(tmp_path):
    """With no step to speak of, the running train loss must be the plain mean over 5 studies in batches of 2, 2, 1."""
    net = model()
    nn.init.normal_(net.head.weight)
    _, result = fit(tmp_path, net=net, epochs=1, learning_rate=1e-12)
    assert result.history["train_loss"][1] == pytest.approx(result.history["train_loss"][0], rel=1e-6)


def test_the_best_epoch_is_kept_and_returned(tmp_path):
    train, validation = Studies(6, 1), Studies(6, 26)
    net = model(3)
    nn.init.normal_(net.head.weight, std=0.3)  # a bad start, so that training first helps and then overfits
    start = copy.deepcopy(net)
    _, result = fit(tmp_path, train=train, validation=validation, net=net, epochs=12, gamma=1.0, seed=3)
    losses = result.history["validation_loss"]
    assert 0 < result.best_epoch == losses.idxmin() < 12  # else this case shows nothing
    assert result.best_validation_loss == losses.min()
    assert same_weights(net.state_dict(), saved(tmp_path, "best.pt")["model"])
    assert not same_weights(net.state_dict(), saved(tmp_path, "last.pt")["model"])
    assert not net.training
    assert training.mean_loss(net, validation) == losses.min()
    assert training.mean_loss(net, train) == result.best_train_loss
    last = checkpoints.load(model(9), tmp_path / "last.pt")
    assert training.mean_loss(last, validation) == losses.iloc[-1]
    # a run stopped at that epoch ends with those weights
    fit(tmp_path / "short", train=train, validation=validation, net=start, epochs=result.best_epoch, gamma=1.0, seed=3)
    assert same_weights(net.state_dict(), saved(tmp_path / "short", "last.pt")["model"])


def test_the_untrained_model_does_not_pass_for_a_trained_one(tmp_path):
    net, result = fit(tmp_path / "harm", epochs=2, learning_rate=1.0, gamma=1.0)
    losses = result.history["validation_loss"]
    assert losses[0] < losses[1:].min(), "else this case shows nothing"
    assert result.best_epoch == losses[1:].idxmin() and result.best_validation_loss == losses[1:].min()
    _, untrained = fit(tmp_path / "none", epochs=0)
    assert untrained.best_epoch == 0 and untrained.best_validation_loss == untrained.history["validation_loss"][0]


def test_patience_stops_and_stays_stopped(tmp_path):
    _, result = fit(tmp_path, epochs=50, learning_rate=1.0, gamma=1.0, patience=3)
    assert result.history["epoch"].iloc[-1] == result.best_epoch + 3 < 50
    _, again = fit(tmp_path, epochs=50, learning_rate=1.0, gamma=1.0, patience=3)
    assert again.history.equals(result.history)


def test_predict_gives_labels_and_probabilities_in_order():
    net, data = model(dropout=0.5).train(), Studies(5, 1)
    nn.init.normal_(net.head.weight)
    y, p = training.predict(net, data, batch_size=3)
    assert net.training and y.dtype == p.dtype == np.float64
    np.testing.assert_array_equal(y, data.y)
    with torch.no_grad():
        np.testing.assert_allclose(p, torch.sigmoid(net.eval()(data.x)), rtol=1e-5)
    expected = np.mean([log_loss(y[i], p[i], labels=[0, 1]) for i in range(5)])
    assert training.mean_loss(net, data) == pytest.approx(expected, rel=1e-6)


def test_history_files_say_what_the_result_says(undisturbed):
    out, _, result = undisturbed
    pd.testing.assert_frame_equal(pd.read_csv(out / "history.csv"), result.history, rtol=1e-12)
    summary = json.loads((out / "history.json").read_text())
    assert summary["history"] == result.history.to_dict("records")
    assert (summary["best_epoch"], summary["best_train_loss"]) == (result.best_epoch, result.best_train_loss)
    assert summary["settings"]["gamma"] == 0.7 and summary["settings"]["model"]["config"]["heads"] == 2
    assert sorted(p.name for p in out.iterdir()) == ["best.pt", "history.csv", "history.json", "last.pt"]


# ---- the same seed, the same numbers


def test_same_seed_same_run_other_seed_other_run(undisturbed, tmp_path):
    out, net, _ = undisturbed
    torch.manual_seed(99)  # nobody else's random state matters
    again, _ = fit(tmp_path / "again")
    assert same_runs(out, tmp_path / "again")
    assert same_weights(net.state_dict(), again.state_dict())
    fit(tmp_path / "other", seed=1)
    assert not same_weights(saved(out, "last.pt")["model"], saved(tmp_path / "other", "last.pt")["model"])


def test_the_caller_s_random_numbers_are_left_alone(tmp_path):
    net = model(dropout=0.2)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    fit(tmp_path, net=net)
    assert torch.equal(torch.rand(3), expected)


def test_order_and_dropout_change_from_epoch_to_epoch(tmp_path):
    class Watched(Studies):
        def __init__(self):
            super().__init__(6, 1)
            self.seen = []

        def __getitem__(self, i):
            self.seen.append(i)
            return super().__getitem__(i)

    data = Watched()
    fit(tmp_path, train=data)
    passes = [data.seen[k : k + 6] for k in range(0, len(data.seen), 6)]  # epochs 0 to 3, then the best once more
    assert passes[0] == passes[-1] == list(range(6))
    assert all(sorted(p) == list(range(6)) for p in passes)
    assert len({tuple(p) for p in passes[1:4]}) == 3


# ---- interrupted


@pytest.mark.parametrize("at", [1, 5, 7, 12, 18, 21])  # 5 readings an epoch: in epoch 0, 0 (its end), 1, 2, 3, after 3
def test_an_interrupted_run_goes_on_to_the_same_end(undisturbed, tmp_path, at):
    out, net, result = undisturbed
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path, train=Killed(5, 1, at, interrupt))
    resumed, again = fit(tmp_path, net=model(seed=77, dropout=0.2) if at > 5 else None)
    assert same_runs(out, tmp_path)
    assert same_weights(net.state_dict(), resumed.state_dict())
    assert again.history.drop(columns=COSTS).equals(result.history.drop(columns=COSTS))
    assert (again.best_epoch, again.best_train_loss) == (result.best_epoch, result.best_train_loss)
    assert again.resumed_from == {1: None, 5: None, 7: 0, 12: 1, 18: 2, 21: 3}[at]


def test_a_cell_run_again_after_an_interrupt_goes_on(undisturbed, tmp_path):
    """The same model object, left in the middle of an epoch."""
    net = model(dropout=0.2)
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path, net=net, train=Killed(5, 1, 14, interrupt))
    fit(tmp_path, net=net)
    assert same_runs(undisturbed[0], tmp_path)


def test_killed_at_any_file_it_goes_on_to_the_same_end(undisturbed, tmp_path, monkeypatch):
    """Interrupted just before each file comes into place."""
    replace = os.replace

    def replace_all_but(n):
        """An os.replace that is interrupted at its n-th call, and a list of the calls."""
        calls = []

        def stopping(*paths):
            calls.append(paths)
            if len(calls) == n:
                raise KeyboardInterrupt
            replace(*paths)

        monkeypatch.setattr(checkpoints.os, "replace", stopping)
        return calls

    calls = replace_all_but(None)
    fit(tmp_path / "count")
    assert len(calls) >= 4 * 3 + 3  # last.pt and two tables an epoch, best.pt three times
    for n in range(1, len(calls) + 1):
        out = tmp_path / str(n)
        replace_all_but(n)
        with pytest.raises(KeyboardInterrupt):
            fit(out)
        replace_all_but(None)
        fit(out)
        assert same_runs(undisturbed[0], out), n
        assert not list(out.glob("*.partial"))


def test_a_finished_run_is_not_trained_again(undisturbed, tmp_path):
    _, result = fit(tmp_path)
    before = saved(tmp_path, "last.pt")

    class Unread(Studies):
        def __getitem__(self, i):
            raise AssertionError("a finished run needs no data")

    net, again = fit(tmp_path, train=Unread(5, 1), validation=Unread(4, 23), net=model(seed=8, dropout=0.2))
    assert again.history.equals(result.history) and again.resumed_from == 3
    assert again.best_train_loss == result.best_train_loss
    assert same_weights(net.state_dict(), undisturbed[1].state_dict())
    assert same_weights(before["model"], saved(tmp_path, "last.pt")["model"])


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(learning_rate=1e-3), r"learning_rate 0\.003 \(there\); expected learning_rate 0\.001"),
        (dict(epochs=4), r"epochs 3 \(there\)"),
        (dict(base_rates=None), r"base_rates \[0\.2"),
        (dict(train=Studies(6, 1)), r"train_studies 5 \(there\); expected train_studies 6"),
        (dict(data_settings={"mask": "blank"}), r"data \{\} \(there\).*mask"),
        (dict(net=model(dropout=0.1)), r"model .*'dropout': 0\.2"),
        (dict(net=model(dropout=0.2, heads=4)), r"model .*'heads': 2"),
        (dict(seed=1), r"seed .*generator made anew with the same seed"),
    ],
)
def test_a_folder_with_another_run_is_refused(undisturbed, changes, message):
    before = (undisturbed[0] / "last.pt").read_bytes()
    with pytest.raises(TrainingError, match=message) as caught:
        fit(undisturbed[0], **changes)
    assert "another folder" in caught.value.remedy
    assert (undisturbed[0] / "last.pt").read_bytes() == before


def test_a_folder_with_a_run_on_other_data_is_refused(tmp_path):
    data = Studies(4, 30)
    data.fingerprint = "with the mask"
    fit(tmp_path, validation=data)
    fit(tmp_path, validation=data)
    data.fingerprint = "mask blank"
    with pytest.raises(TrainingError, match=r"validation_fingerprint with the mask \(there\); .*mask blank"):
        fit(tmp_path, validation=data)


def test_a_broken_checkpoint_is_named(tmp_path):
    (tmp_path / "last.pt").write_bytes(b"not a checkpoint")
    with pytest.raises(TrainingError, match=r"last\.pt.*does not load"):
        fit(tmp_path)
    with pytest.raises(TrainingError, match="no file"):
        checkpoints.load(model(), tmp_path / "best.pt")
    torch.save({"weights": 1}, tmp_path / "other.pt")
    with pytest.raises(TrainingError, match="keys weights"):
        checkpoints.load(model(), tmp_path / "other.pt")


def test_weights_of_another_model_are_refused(undisturbed):
    with pytest.raises(TrainingError, match=r"another form.*ViT3D as it was built here"):
        checkpoints.load(model(dim=32), undisturbed[0] / "best.pt")


# ---- refused


def spoiled(n, seed, index, value, target=False):
    data = Studies(n, seed)
    (data.y if target else data.x)[index].view(-1)[3] = value
    return data


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("which", ["train", "validation"])
def test_unusable_input_is_named_with_its_batch(tmp_path, which, value):
    data = {which: spoiled(5, 1, 3, value)}
    with pytest.raises(TrainingError, match=r"batch 2 of 3 \(dataset items \[2, 3\]\): .*NaN or infinity in the input"):
        fit(tmp_path, **data)
    assert not (tmp_path / "last.pt").exists()


def test_a_loss_that_explodes_is_named_with_epoch_and_batch(tmp_path):
    class Explodes(ViT3D):
        def forward(self, x):
            return super().forward(x) * (math.nan if self.training else 1)

    net = Explodes(**model().config)
    with pytest.raises(TrainingError, match=r"epoch 1, batch 1 of 3 .*from finite input.*lower the learning rate"):
        fit(tmp_path, net=net)


@pytest.mark.parametrize("which", ["train", "validation"])
def test_an_empty_dataset_is_refused(tmp_path, which):
    with pytest.raises(TrainingError, match=rf"fit\({which}\): found no studies"):
        training.fit(model(), **{"train": Studies(2, 1), "validation": Studies(2, 1), which: Studies(0, 1)},
                     out=tmp_path, epochs=1, generator=torch.Generator())  # fmt: skip
    with pytest.raises(TrainingError, match="found no studies"):
        training.predict(model(), Studies(0, 1))


def test_unusable_targets_are_refused(tmp_path):
    data = Studies(3, 1)
    data.y = data.y[:, :7]
    with pytest.raises(TrainingError, match=r"dataset\[0\].*\(7,\).*\(8,\).*patient_overall"):
        fit(tmp_path, train=data)
    for value in (2.0, math.nan):
        with pytest.raises(TrainingError, match=r"dataset\[1\].*numbers in \[0, 1\]"):
            fit(tmp_path, train=spoiled(3, 1, 1, value, target=True))


def test_a_model_that_does_not_fit_is_refused(tmp_path):
    with pytest.raises(TrainingError, match=r"logits of shape \(2, 7\); expected \(2, 8\).*targets=8"):
        fit(tmp_path, net=model(targets=7), base_rates=None)
    with pytest.raises(TrainingError, match="Linear without a method set_base_rates"):
        fit(tmp_path, net=nn.Linear(2, 8))


@pytest.mark.parametrize(
    "changes",
    [
        dict(epochs=-1), dict(epochs=2.0), dict(batch_size=0), dict(batch_size=True), dict(learning_rate="1e-4"),
        dict(learning_rate=0), dict(gamma=math.nan), dict(weight_decay=-1), dict(clip=0), dict(patience=0),
        dict(accumulate=0), dict(schedule="step"), dict(warmup_steps=-1), dict(label_smoothing=1.0),
        dict(precision="16-mixed"), dict(checkpoint_activations=1), dict(best_by=None), dict(warmup_steps=9),
    ],
)  # fmt: skip
def test_settings_out_of_range_are_refused(tmp_path, changes):
    (name,) = changes
    with pytest.raises(ParameterError, match=rf"fit\({name}\): found {changes[name]!r}"):
        fit(tmp_path / "run", **changes)
    assert not (tmp_path / "run").exists()


def test_the_bar_is_plain_text_on_stdout(tmp_path, capsys):
    fit(tmp_path, progress=True)
    shown = capsys.readouterr()
    assert "9/9" in shown.out and "validation=" in shown.out and shown.err == ""
    fit(tmp_path / "quiet")
    assert capsys.readouterr() == ("", "")


def test_arguments_that_cannot_be(tmp_path):
    for changes in ({"generator": np.random.default_rng(0)}, {"generator": None}, {"learning_rate": True}):
        arguments = {"out": tmp_path, "epochs": 1, "generator": torch.Generator(), "progress": False} | changes
        with pytest.raises(ParameterError):
            training.fit(model(), Studies(2, 1), Studies(2, 2), **arguments)
    (tmp_path / "file").write_text("")
    with pytest.raises(TrainingError, match="expected a folder"):
        fit(tmp_path / "file")


@pytest.mark.parametrize("content", [b"", b"abc", b"PK" + bytes(40)])
def test_files_that_are_no_checkpoint(tmp_path, content):
    (tmp_path / "best.pt").write_bytes(content)
    with pytest.raises(TrainingError, match="a checkpoint written by training.fit"):
        checkpoints.load(model(), tmp_path / "best.pt")
