"""Whatever happens to a run, its store holds whole studies of one setting, and nothing else."""

import errno
import threading

import numpy as np
import pytest
from stacks_studies import ARGS, contents, names

from cspine_utils import stacks
from cspine_utils.errors import StackError
from cspine_utils.rsna import RsnaDataset
from cspine_utils.stacks import making
from cspine_utils.stacks import store as files


def test_processes_and_dask_make_the_same_bytes(rsna_folder, tmp_path):
    distributed = pytest.importorskip("distributed")
    dataset = RsnaDataset(rsna_folder)
    reports = [stacks.prepare(dataset, tmp_path / "here", **ARGS)]
    reports.append(stacks.prepare(dataset, tmp_path / "processes", workers=1, **ARGS))
    with distributed.Client(processes=False, n_workers=1, threads_per_worker=2, dashboard_address=None) as client:
        reports.append(stacks.prepare(dataset, tmp_path / "dask", client=client, **ARGS))
    expected = contents(tmp_path / "here")
    assert len(expected) == 9
    for folder, report in zip(("processes", "dask"), reports[1:], strict=True):
        assert contents(tmp_path / folder) == expected and report.equals(reports[0])


def full_disk(monkeypatch, after):
    """Writing an array fails from the `after`-th on, when half of it is written."""
    real, calls = np.lib.format.write_array, []

    def write_array(file, array, **options):
        calls.append(None)
        if len(calls) > after:
            file.write(b"\x93NUMPY half of it")
            raise OSError(errno.ENOSPC, "No space left on device")
        real(file, array, **options)

    monkeypatch.setattr(np.lib.format, "write_array", write_array)


@pytest.mark.parametrize("after", [2, 3])
def test_a_full_disk_is_said_and_the_store_stays_consistent(rsna_folder, store, monkeypatch, after):
    dataset = RsnaDataset(rsna_folder)
    with monkeypatch.context() as patch:
        full_disk(patch, after)
        table = stacks.prepare(dataset, store, **ARGS)
    assert table["status"].tolist() == ["made", "failed", "failed", "skipped"]
    assert "found a full disk" in table["reason"].iloc[1] and "run stacks.prepare again" in table["reason"].iloc[1]
    assert set(contents(store)) == names(dataset.studies[0])
    assert stacks.prepare(dataset, store, **ARGS)["status"].tolist() == ["kept", "made", "made", "skipped"]
    before = contents(store)
    with monkeypatch.context() as patch:
        full_disk(patch, after)
        stacks.prepare(dataset, store, **ARGS | {"size": 9})
    assert set(contents(store)) == names(dataset.studies[0]), "nothing of the old settings beside the new ones"
    stacks.prepare(dataset, store, **ARGS)
    assert contents(store) == before
    with monkeypatch.context() as patch, pytest.raises(StackError, match="a full disk"):
        full_disk(patch, after)
        stacks.export_seed_layout(store, dataset.studies[0], store / "seed")
    assert len(list((store / "seed").iterdir())) == after


def test_a_study_that_became_unreadable_leaves_the_store(rsna_folder, store):
    dataset = RsnaDataset(rsna_folder)
    stacks.prepare(dataset, store, **ARGS)
    path = next(dataset.series_dir(dataset.studies[2]).glob("7.dcm"))
    path.write_bytes(path.read_bytes()[:-9])
    table = stacks.prepare(dataset, store, **ARGS)
    assert table["status"].tolist() == ["kept", "kept", "failed", "skipped"] and "7.dcm" in table["reason"].iloc[2]
    assert set(contents(store)) == names(*dataset.studies[:2])


def test_two_runs_at_once_share_the_work(rsna_folder, tmp_path, store, monkeypatch):
    """A run that finds another one at a study waits for it and takes what that one has made."""
    dataset = RsnaDataset(rsna_folder)
    study = dataset.studies[0]
    stacks.prepare(dataset, tmp_path / "other", studies=[study], **ARGS)
    store.mkdir()
    arrived, result, real = threading.Event(), [], making.locked

    def locked(folder, name):
        arrived.set()
        return real(folder, name)

    monkeypatch.setattr(making, "locked", locked)
    second = threading.Thread(
        target=lambda: result.append(stacks.prepare(dataset, store, studies=[study], workers=0, **ARGS))
    )
    with real(store, study):  # the first run
        half = store / f".{study}.hu.npy.part"
        half.write_bytes(b"half")
        second.start()
        assert arrived.wait(60)
        second.join(0.2)
        assert second.is_alive() and half.read_bytes() == b"half", "it waits and touches nothing"
        half.unlink()
        for path in (tmp_path / "other").glob("[!.]*"):
            (store / path.name).write_bytes(path.read_bytes())
    second.join(60)
    assert result[0]["status"].tolist() == ["kept"] and contents(store) == contents(tmp_path / "other")


def test_leftovers_of_a_killed_run_go(rsna_folder, store):
    dataset = RsnaDataset(rsna_folder)
    study = dataset.studies[0]
    store.mkdir()
    (store / f".{study}.mask.npy.part").write_bytes(b"half")
    (store / f".{study}.9.mask.npy.part").write_bytes(b"of a study whose name begins alike, being written")
    stacks.prepare(dataset, store, studies=[study], **ARGS)
    assert set(contents(store)) == names(study) | {f".{study}.9.mask.npy.part"}
    assert files.read_facts(store, study)["version"] == files.VERSION
