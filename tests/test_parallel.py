import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import warnings

import by_name
import psutil
import pytest
from conftest import ROOT

from cspine_utils import parallel
from cspine_utils.errors import ParameterError


@pytest.fixture(scope="module")
def client():
    """Two dask workers, started anew when they die; a task that kills two of them is given up."""
    import dask
    from distributed import Client, LocalCluster

    with dask.config.set({"distributed.scheduler.allowed-failures": 1}):
        with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster, Client(cluster) as one:
            yield one


def results(function, items, **options) -> dict:
    pairs = list(parallel.each(function, items, **options))
    assert sorted(item for item, _ in pairs) == sorted(items), "every item once"
    return dict(pairs)


SQUARES = {n: n * n for n in range(9)}


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_the_same_results_on_any_number_of_processes(workers):
    assert results(by_name.square, range(9), workers=workers) == SQUARES
    assert results(by_name.square, [], workers=workers) == {}


def test_the_same_results_on_dask(client):
    assert results(by_name.square, range(9), client=client) == SQUARES


def test_processes_are_others_and_two():
    seen = set(results(by_name.own_process, range(40), workers=2).values())
    assert len(seen) == 2 and os.getpid() not in seen
    assert set(results(by_name.own_process, range(3), workers=0).values()) == {os.getpid()}


@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_process_loses_nothing(workers, tmp_path):
    found = results(by_name.kill_at_three, range(9), workers=workers)
    assert found.pop(3) == parallel.Failure("its reading ended the process twice (exit code 7)")
    assert found == {n: n * n for n in range(9) if n != 3}
    once = [(n, str(tmp_path)) for n in range(9)]
    assert results(by_name.kill_once, once, workers=workers) == {(n, str(tmp_path)): n * n for n in range(9)}
    assert (tmp_path / "died").exists()


def test_a_killed_dask_worker_loses_nothing(client, tmp_path):
    found = results(by_name.kill_at_three, range(9), client=client)
    assert "every dask worker that tried it" in found.pop(3).reason
    assert found == {n: n * n for n in range(9) if n != 3}
    once = [(n, str(tmp_path)) for n in range(9)]
    assert results(by_name.kill_once, once, client=client) == {(n, str(tmp_path)): n * n for n in range(9)}


def test_a_cluster_without_workers_is_told_and_waited_for(monkeypatch):
    from distributed import Client, LocalCluster

    monkeypatch.setattr(parallel, "PATIENCE_S", 0.2)
    with LocalCluster(n_workers=0, processes=False, dashboard_address=None) as cluster, Client(cluster) as client:
        threading.Timer(1.5, cluster.scale, [1]).start()
        with pytest.warns(RuntimeWarning, match="no workers for 0.2 s.*Ctrl-C"):
            assert results(by_name.square, range(9), client=client) == SQUARES
        with warnings.catch_warnings(action="error"):
            assert results(by_name.square, range(9), client=client) == SQUARES


def test_workers_that_are_lost_on_the_way_are_told_and_waited_for(monkeypatch):
    """All but the first result go with the only worker that had them; the next worker makes them again."""
    from distributed import Client, LocalCluster

    monkeypatch.setattr(parallel, "PATIENCE_S", 0.2)
    with LocalCluster(n_workers=1, processes=False, dashboard_address=None) as cluster, Client(cluster) as client:
        pairs = parallel.each(by_name.square, range(9), client=client)
        found = dict([next(pairs)])
        cluster.sync(cluster.workers[0].close)
        assert not client.nthreads()
        threading.Timer(1.5, cluster.scale, [2]).start()
        with pytest.warns(RuntimeWarning, match="no workers for 0.2 s.*Ctrl-C") as told:
            found.update(pairs)
        assert sum("no workers" in str(one.message) for one in told) == 1, "once, however long it lasts"
    assert found == SQUARES
    assert not any(thread.name == "are there dask workers?" for thread in threading.enumerate())


def test_a_result_that_is_lost_after_it_was_made_is_asked_for_again():
    """dask says that there was no error, then the worker dies, and so does who makes the result anew."""
    from distributed import KilledWorker

    class Future:
        def __init__(self, fault):
            self.fault = fault

        def exception(self):
            return None

        def result(self):
            if self.fault:
                raise self.fault
            return 5

    assert parallel._dask_answer(Future(None)) == (5,)
    assert parallel._dask_answer(Future(KilledWorker("task", "worker", 1))) is None
    with pytest.raises(ParameterError, match="workers that cannot do the work .ModuleNotFoundError"):
        parallel._dask_answer(Future(ModuleNotFoundError("no cspine_utils")))


@pytest.mark.parametrize("workers", [0, 2])
def test_an_exception_is_a_result_without_its_message(workers):
    found = results(by_name.raise_at_three, range(9), workers=workers)
    reason = found.pop(3).reason
    assert "ValueError" in reason and "by_name.py, line" in reason and "DOE" not in reason
    assert found == {n: n * n for n in range(9) if n != 3}


def test_an_exception_on_dask(client):
    assert "ValueError" in results(by_name.raise_at_three, range(9), client=client)[3].reason


def test_what_cannot_be_asked():
    for wrong in ({"workers": -1}, {"workers": 1.5}, {"workers": True}, {"workers": 2, "client": object()}):
        with pytest.raises(ParameterError, match="a number of processes from 0 up"):
            list(parallel.each(by_name.square, [1], **wrong))


def test_a_function_that_no_process_can_import(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "from cspine_utils import parallel\ndef mine(n):\n    return n\n"
        "print(list(parallel.each(mine, [1], workers=1)))\n"
    )
    done = run_script(script)
    assert done.returncode == 1 and "ParameterError" in done.stderr and "put the function into a module" in done.stderr


def run_script(path):
    env = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    return subprocess.run([sys.executable, str(path)], env=env, capture_output=True, text=True, timeout=120)


def test_a_script_needs_no_guard(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import by_name\nfrom cspine_utils import parallel\n"
        "print('once', sorted(r for _, r in parallel.each(by_name.square, range(4), workers=2)))\n"
    )
    done = run_script(script)
    assert (done.returncode, done.stdout) == (0, "once [0, 1, 4, 9]\n"), done.stderr


def children(pid: int) -> list[int]:
    return [child.pid for child in psutil.Process(pid).children()]


def test_processes_end_with_their_caller():
    """Killed in the middle: idle ones see the end of their pipe, nobody stays behind."""
    script = textwrap.dedent(
        """
        import sys, time, by_name
        from cspine_utils import parallel
        for item, _ in parallel.each(by_name.square, range(4), workers=2):
            print("first", flush=True)
            time.sleep(60)
        """
    )
    env = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    caller = subprocess.Popen([sys.executable, "-c", script], env=env, stdout=subprocess.PIPE)
    caller.stdout.readline()
    workers = children(caller.pid)
    assert len(workers) == 2
    caller.send_signal(signal.SIGKILL)
    caller.wait()
    deadline = time.monotonic() + 30
    while any(psutil.pid_exists(pid) for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(psutil.pid_exists(pid) for pid in workers)


def test_closing_early_ends_the_processes():
    before = set(children(os.getpid()))
    stream = parallel.each(by_name.own_process, range(50), workers=2)
    next(stream)
    assert set(children(os.getpid())) - before
    stream.close()
    assert set(children(os.getpid())) - before == set()
