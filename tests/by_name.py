"""Functions for workers, which import what they run by its name. Nothing heavy is imported here."""

import os
import signal
import sys
import time
from pathlib import Path

from cspine_utils.screening.study import look_at


def square(number):
    return number * number


def let_dask_begin():
    """Wait before dying: dask does not start a worker anew that ends before its start was noticed."""
    if "distributed" in sys.modules:
        time.sleep(2)


def kill_at_three(number):
    """Dies of 3, each time; and prints, which must not disturb the answers."""
    print("number", number)
    if number == 3:
        let_dask_begin()
        os._exit(7)
    return number * number


def kill_once(job):
    """Dies of 3 unless it died before: `job` is (number, folder for its mark)."""
    number, folder = job
    mark = Path(folder) / "died"
    if number == 3 and not mark.exists():
        mark.touch()
        let_dask_begin()
        os.kill(os.getpid(), signal.SIGKILL)
    return number * number


def raise_at_three(number):
    if number == 3:
        raise ValueError("DOE^JANE")
    return number * number


def own_process(number):
    time.sleep(0.02)  # so that every process has its turn
    return os.getpid()


def look_and_log(job):
    """As a survey looks at a study, with a line in a log beside the folder of images for each time."""
    with open(job.folder.parent.parent / "log", "a") as log:
        log.write(job.study + "\n")
    return look_at(job)


def look_slowly(job):
    row = look_and_log(job)
    time.sleep(0.2)
    return row


def look_and_die_of_12(job):
    if job.study.endswith(".12"):
        let_dask_begin()
        os.kill(os.getpid(), signal.SIGKILL)
    return look_and_log(job)


def look_and_raise_at_12(job):
    if job.study.endswith(".12"):
        raise KeyError("DOE^JANE")
    return look_at(job)
