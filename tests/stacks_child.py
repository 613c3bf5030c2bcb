"""Prepares stores in processes of their own, for whoever wants to kill them: `test_stacks_kill.py` gives the orders.

An order is a line of JSON, `{"root": ..., "store": ..., "options": ..., "die_at": ..., "kill_after": ...}`; its answer
is the exit code (negative: the signal that ended it). With `die_at` the process kills itself at the n-th line
of `stacks/store.py` that it runs, with `kill_after` it is killed after so many seconds, if it is not done by then.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time

import torch

from cspine_utils import stacks
from cspine_utils.rsna import RsnaDataset
from cspine_utils.stacks import store


def die_at(line: int) -> None:
    """SIGKILL at the n-th line that this process runs in `stacks/store.py`."""
    left = line

    def trace(frame, event, _):
        nonlocal left
        if frame.f_code.co_filename != store.__file__:
            return None
        left -= event == "line"
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return trace

    sys.settrace(trace)


def main() -> None:
    """Follow the orders until there are none. Each order gets a fork, so that torch is loaded once."""
    torch.set_num_threads(1)
    for line in sys.stdin:
        order = json.loads(line)
        process = os.fork()
        if process == 0:
            dataset = RsnaDataset(order["root"])
            if order["die_at"] is not None:
                die_at(order["die_at"])
            stacks.prepare(dataset, order["store"], workers=0, progress=False, **order["options"])
            os._exit(0)
        if order["kill_after"] is not None:
            time.sleep(order["kill_after"])
            os.kill(process, signal.SIGKILL)  # one that is done keeps its id until it is waited for
        print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
