"""A training that is killed, and one that two processes share, end like one left alone in one process."""

import os
import signal
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
import training_child as child
from test_training import COSTS, Studies, fit, same_runs, saved

SCRIPT = child.__file__
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}

# Every epoch reads the seven training studies once, epoch 0 and the last look at the best epoch included. So: before
# anything is written; between the two passes of a step; in the next epochs, the last one, that last look. Then in the
# middle of the first file of the run and of later ones.
# moment -> last epoch that is found finished
MOMENTS = {
    "read-3": None, "read-10": 0, "read-15": 1, "read-20": 1, "read-33": 3, "read-38": 4,
    "file-1": None, "file-2": None, "file-4": 0, "file-5": 1,
}  # fmt: skip


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    out = tmp_path_factory.mktemp("killed")
    done = subprocess.run(
        [sys.executable, SCRIPT, "kills", out, *MOMENTS], capture_output=True, text=True, env=ENVIRONMENT
    )
    assert done.stdout.split() == [word for m in MOMENTS for word in (m, str(int(signal.SIGKILL)))], done.stderr
    fit(out / "undisturbed", train=Studies(7, 1), **child.OPTIONS)
    return out


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_at_any_moment_it_goes_on_to_the_same_end(killed, moment):
    left = killed / moment
    assert len(list(left.glob("*.partial"))) == moment.startswith("file")
    _, result = fit(left, train=Studies(7, 1), **child.OPTIONS)
    assert result.resumed_from == MOMENTS[moment]
    assert same_runs(killed / "undisturbed", left)
    assert not list(left.glob("*.partial"))


def test_the_moments_are_spread_and_the_options_matter(killed, tmp_path):
    """Else the test above shows little: it would pass if nothing were random or counted."""
    for name in ("augment", "warmup_steps", "accumulate", "schedule", "label_smoothing"):
        fit(tmp_path / name, train=Studies(7, 1), **{k: v for k, v in child.OPTIONS.items() if k != name})
        assert not same_runs(killed / "undisturbed", tmp_path / name), name


# ---- two processes


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """The trainings of `SHARED`, by two processes under torchrun."""
    out = tmp_path_factory.mktemp("shared")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", SCRIPT]
    done = subprocess.run([*command, "share", out], capture_output=True, text=True, env=ENVIRONMENT, timeout=150)
    assert done.returncode == 0, done.stderr[-3000:]
    return out


@pytest.mark.parametrize("name", child.SHARED)
def test_two_processes_have_the_losses_of_one(shared, tmp_path, name):
    net, result = child.shared_fit(tmp_path, **child.SHARED[name])
    both = pd.read_csv(shared / name / "history.csv")
    assert list(both.columns) == list(result.history.columns)
    numbers = result.history.drop(columns=COSTS)
    np.testing.assert_allclose(both[numbers.columns], numbers, rtol=2e-4)
    beliefs = [torch.load(shared / f"{name}-{rank}.pt") for rank in (0, 1)]
    for belief in beliefs:
        assert belief["losses"] == both["validation_loss"].tolist()
        assert belief["best"] == pytest.approx(result.best_train_loss, rel=2e-4)
        assert belief["resumed"] == (1 if name == "resumed" else 0)
    assert all(torch.equal(value, beliefs[1]["weights"][k]) for k, value in beliefs[0]["weights"].items())
    files = sorted(p.name for p in (shared / name).iterdir())
    assert files == ["best.pt", "history.csv", "history.json", "last.pt"]
    assert saved(shared / name, "last.pt")["settings"]["processes"] == 2


def test_processes_that_would_go_on_differently_are_told(shared):
    """Else they wait for each other for ever."""
    for rank in (0, 1):
        assert "after epoch 3, from the start" in (shared / f"apart-{rank}.txt").read_text()


def test_a_mean_of_means_would_be_noticed(shared):
    """Its distance from the right mean, for the uneven last pass, is far above the tolerance."""
    from cspine_utils.training import mean_loss

    net, data = child.untrained(), Studies(5, 1)
    single = [mean_loss(net, [data[i]]) for i in range(5)]
    right, means = np.mean(single), np.mean([np.mean(single[:2]), np.mean(single[2:4]), single[4]])
    assert abs(means / right - 1) > 2e-3
