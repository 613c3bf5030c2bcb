"""A run that is killed, whenever that happens, leaves a store that the next run finishes to the same bytes."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import ROOT
from stacks_studies import contents

from cspine_utils import stacks
from cspine_utils.rsna import RsnaDataset

OPTIONS = {"size": 48, "count": 210, "field_mm": 5.0}  # files of a megabyte, so that a kill can hit one half-written
MOMENTS = 20
LINES = 200  # of stacks/store.py in a run over three studies


@pytest.fixture(scope="module")
def child():
    """A process that prepares stores in forks of itself."""
    command = [sys.executable, str(ROOT / "tests" / "stacks_child.py")]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
    yield process
    process.stdin.close()
    assert process.wait(60) == 0


def run(child, dataset, store, *, die_at=None, kill_after=None) -> int:
    """Prepare the studies of a dataset in a process that may be killed; returns its exit code."""
    order = {"root": str(dataset.root), "store": str(store), "options": OPTIONS}
    child.stdin.write(json.dumps(order | {"die_at": die_at, "kill_after": kill_after}) + "\n")
    child.stdin.flush()
    return int(child.stdout.readline())


def check(dataset, store, undisturbed) -> int:
    """What is in the store is right, and the next run finishes it; returns how many studies were there already."""
    found = contents(store) if store.exists() else {}
    there = [study for study in dataset.studies if f"{study}.json" in found]
    for study in there:
        stacks.open_study(store, study)
        for ending in ("hu.npy", "mask.npy", "json"):
            assert found[f"{study}.{ending}"] == undisturbed[f"{study}.{ending}"]
    report = stacks.prepare(dataset, store, workers=0, progress=False, **OPTIONS)
    assert (report["status"] == "kept").sum() == len(there)
    assert contents(store) == undisturbed
    return len(there)


def test_killed_at_random_moments(rsna_folder, tmp_path, child):
    dataset, generator = RsnaDataset(rsna_folder), np.random.default_rng(8)
    for name in ("first", "undisturbed"):  # the first one loads what later ones find loaded
        started = time.monotonic()
        assert run(child, dataset, tmp_path / name) == 0
        took = time.monotonic() - started
    undisturbed = contents(tmp_path / "undisturbed")
    assert len(undisturbed) == 9
    for moment in range(MOMENTS):
        store = tmp_path / str(moment)
        assert run(child, dataset, store, kill_after=generator.uniform(0, took)) in (-signal.SIGKILL, 0)
        check(dataset, store, undisturbed)


def test_killed_at_random_lines_of_the_writer(rsna_folder, tmp_path, child):
    """Between any two steps of writing, renaming and forgetting, however short: most of the moments that matter."""
    dataset, generator = RsnaDataset(rsna_folder), np.random.default_rng(9)
    assert run(child, dataset, tmp_path / "undisturbed") == 0
    undisturbed, complete = contents(tmp_path / "undisturbed"), []
    for line in generator.choice(LINES, MOMENTS, replace=False).tolist():
        store = tmp_path / str(line)
        assert run(child, dataset, store, die_at=line) == -signal.SIGKILL, f"a run has fewer than {LINES} lines"
        complete.append(check(dataset, store, undisturbed))
    assert min(complete) == 0 and max(complete) >= 2, "the moments lie all over the run"
