"""One function over many items: in this process, in several, or on a dask cluster. No item is ever lost.

A worker may die in the middle of an item: a damaged file crashes a decoder, or the system runs out of memory and kills
somebody. Such an item is tried once more when all others are done, with nothing beside it. If it kills again, its
result is a `Failure`, and so is the result of a function that raises.

The processes are plain new Pythons that are told what to do through a pipe. Unlike the pools of the standard library
they do not run the caller's script again, so that notebooks and scripts without `if __name__ == "__main__"` may use
them, they are not forked (a forked torch can hang), it is known which item a dead one held, and they end by themselves
when the caller is killed.
"""

from __future__ import annotations

import os
import pickle
import selectors
import signal
import subprocess
import sys
import threading
import time
import traceback
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cspine_utils.errors import ParameterError

#: Seconds without a single dask worker after which it is said.
PATIENCE_S = 60.0

_START = (
    "import pickle, sys; sys.path[:] = pickle.load(sys.stdin.buffer); "
    "from cspine_utils.parallel import _serve; _serve()"
)


@dataclass(frozen=True)
class Failure:
    """Why there is no result: the function raised, or its worker died twice.

    It tells the kind of an exception and where it was raised, but not its message, which may quote the file that was
    being read: a patient's name has no place in a table.
    """

    reason: str


def processors() -> int:
    """How many processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def each(function: Callable, items: Iterable, *, workers: int = 0, client=None) -> Iterator[tuple]:
    """Yield (item, function(item)) as results come; a `Failure` stands for a result that there is not.

    Parameters
    ----------
    function : importable by its name (of a module that workers can import); items and results can be pickled
    workers : processes; 0 stays in this process, where a crash of the function is a crash of the caller
    client : a `distributed.Client`; its workers must be able to import the function and to reach what it reads

    Raises
    ------
    ParameterError : workers below 0 or beside a client, workers that cannot start or cannot import the function
    """
    items = list(items)
    whole = isinstance(workers, int) and not isinstance(workers, bool) and workers >= 0
    if not whole or (client is not None and workers):
        raise ParameterError(
            "workers",
            found=f"{workers!r}" + (" beside a client" if client is not None else ""),
            expected="a number of processes from 0 up, or a dask client instead",
            remedy="leave one of the two out." if client is not None else "0 reads in this process.",
        )
    if client is not None:
        yield from _on_dask(function, items, client)
    elif workers == 0:
        for item in items:
            yield item, _guarded(function, item)
    else:
        yield from _in_processes(function, items, workers)


def _guarded(function: Callable, item):
    try:
        return function(item)
    except Exception as error:  # whatever it is, the other items go on
        place = traceback.extract_tb(error.__traceback__)[-1]
        kind = type(error).__name__
        if isinstance(error, OSError) and error.errno is not None:  # "No space left on device": quotes no file
            kind += f" ({os.strerror(error.errno)})"
        return Failure(f"an unexpected {kind} in {Path(place.filename).name}, line {place.lineno}")


def _in_processes(function: Callable, items: list, workers: int) -> Iterator[tuple]:
    waiting, suspects = deque(items), []
    holds: dict[_Worker, object] = {}  # worker -> (item,) or, while it starts, ()
    try:
        for _ in range(min(workers, len(items))):
            holds[_Worker(function)] = ()
        while holds:
            for worker in _which_answered(holds):
                held = holds.pop(worker)
                answer = worker.answer()
                if answer is None:
                    if not held:
                        raise _cannot_start(worker.end())
                    worker.end()
                    suspects += held
                    worker = _Worker(function) if waiting else None
                    if worker:
                        holds[worker] = ()
                    continue
                if waiting:
                    holds[worker] = (waiting.popleft(),)
                    worker.give(holds[worker][0])
                else:
                    worker.end()
                if held:
                    yield held[0], answer[0]
        for item in suspects:
            yield item, _alone(function, item, holds)
    finally:
        for worker in holds:
            worker.end(kill=True)


def _alone(function: Callable, item, holds: dict):
    """The result of an item whose worker died, from a new worker with nothing beside it."""
    worker = _Worker(function)
    holds[worker] = ()
    if worker.answer() is None:
        raise _cannot_start(worker.end())
    worker.give(item)
    answer = worker.answer()
    how = worker.end()
    del holds[worker]
    return answer[0] if answer else Failure(f"its reading ended the process twice ({how})")


def _cannot_start(how: str) -> ParameterError:
    return ParameterError(
        "workers",
        found=f"a new process that ended before it began ({how}; what it said is on the error stream)",
        expected="processes that can import the same modules as this one",
        remedy="use workers=0, or put the function into a module.",
    )


def _which_answered(workers) -> list[_Worker]:
    with selectors.DefaultSelector() as selector:
        for worker in workers:
            selector.register(worker.process.stdout, selectors.EVENT_READ, worker)
        return [key.data for key, _ in selector.select()]


class _Worker:
    """A new Python that answers once when it is ready, and then once for every item."""

    def __init__(self, function: Callable):
        command = [sys.executable, "-P", "-c", _START]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._tell(sys.path)
        self._tell(function)

    def _tell(self, message) -> None:
        content = pickle.dumps(message)
        try:
            self.process.stdin.write(content)
            self.process.stdin.flush()
        except OSError:
            pass  # it is dead, and its missing answer will say so

    def give(self, item) -> None:
        self._tell(item)

    def answer(self) -> tuple | None:
        """(result,) once it has come, or None if the process died."""
        try:
            return (pickle.load(self.process.stdout),)
        except (EOFError, OSError, pickle.UnpicklingError):
            return None

    def end(self, kill: bool = False) -> str:
        """Let it end (it does when nothing more can come) and say how it ended."""
        if kill:
            self.process.kill()
        try:
            self.process.stdin.close()
        except OSError:
            pass  # the last words to a dead process
        self.process.stdout.close()
        try:
            code = self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        return signal.Signals(-code).name if code < 0 else f"exit code {code}"


def _serve() -> None:
    """The life of a worker: the function, then an item and an answer, until nothing more can come."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the caller, who ends this process
    tasks, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what the function prints must not get between the answers
    function = pickle.load(tasks)
    answer = None
    try:
        while True:
            answers.write(pickle.dumps(answer))
            answers.flush()
            answer = _guarded(function, pickle.load(tasks))
    except (EOFError, BrokenPipeError):
        os._exit(0)  # the caller has what it wanted, or is gone


def _on_dask(function: Callable, items: list, client) -> Iterator[tuple]:
    from distributed import as_completed  # whoever has a client has it; nobody else needs it

    suspects = []
    futures = dict(zip(client.map(_guarded, [function] * len(items), items, pure=False), items, strict=True))
    try:
        with _telling_of_no_workers(client):
            for future in as_completed(list(futures)):
                item = futures.pop(future)
                answer = _dask_answer(future)
                if answer is None:
                    suspects.append(item)
                else:
                    yield item, answer[0]
            for item in suspects:
                future = client.submit(_guarded, function, item, pure=False)
                answer = _dask_answer(future)
                yield item, answer[0] if answer else Failure("its reading ended every dask worker that tried it")
    finally:
        client.cancel(list(futures))


@contextmanager
def _telling_of_no_workers(client) -> Iterator[None]:
    """Warn each time that there are none for a while: they can be late, and the last of them can die and not come back.

    A cluster of a computing centre may have its reasons for either, so the work stays asked for; but its owner is told.
    """
    ended, started = threading.Event(), time.monotonic()

    def watch() -> None:
        looks = 0
        while not ended.wait(PATIENCE_S / 2):
            try:
                looks = 0 if client.nthreads() else looks + 1
            except OSError:  # nor does the scheduler answer
                looks += 1
            if looks == 3:
                minutes = (time.monotonic() - started) / 60  # another text each time: Python tells the same one once
                warnings.warn(
                    f"the dask cluster has had no workers for {PATIENCE_S:g} s, {minutes:.1f} minutes after "
                    "the work began; the work waits for them. Start some, or interrupt (Ctrl-C) and go on without a "
                    "client: what is done stays done.",
                    RuntimeWarning,
                    stacklevel=2,
                )

    watcher = threading.Thread(target=watch, name="are there dask workers?", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join(timeout=5)  # it may be waiting for a scheduler that is gone


def _dask_answer(future) -> tuple | None:
    """(result,) or None if workers died; whatever else dask reports concerns every item."""
    error = future.exception()
    if error is None:
        try:
            return (future.result(),)
        except Exception as lost:  # with its worker, after it was made; `_guarded` itself raises nothing
            error = lost
    if type(error).__name__ in {"KilledWorker", "CancelledError", "FutureCancelledError"}:
        return None
    raise ParameterError(
        "client",
        found=f"workers that cannot do the work ({type(error).__name__}: {' '.join(str(error).split())})",
        expected="workers with this package installed",
        remedy="install the same environment on the workers, or survey without a client.",
    ) from error
