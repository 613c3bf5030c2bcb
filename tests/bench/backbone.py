"""How much faster the 2D network runs with its channels last in memory, beside the same network as timm makes it.

    python tests/bench/backbone.py

Forward and backward over one study of 105 six-channel frames of 64 x 64, random numbers, one thread. Prints the
median of the runs of each and their ratio.
"""

from __future__ import annotations

import statistics
import time

import torch

from cspine_utils.models.slice_models import LAPTOP_BACKBONE, Backbone

RUNS = 9


def seconds(net, frames) -> float:
    started = time.perf_counter()
    net(frames).square().mean().backward()
    return time.perf_counter() - started


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    x = torch.randn(105, 6, 64, 64)
    net = Backbone(name=LAPTOP_BACKBONE, channels=6, size=(64, 64)).net
    forms = {"channels last": torch.channels_last, "as timm makes it": torch.contiguous_format}
    times: dict[str, list[float]] = {name: [] for name in forms}
    for _ in range(RUNS + 1):  # turn about, so that a busy moment hits both; the first of each is thrown away
        for name, form in forms.items():
            times[name].append(seconds(net.to(memory_format=form), x.contiguous(memory_format=form)))
    medians = {name: statistics.median(values[1:]) for name, values in times.items()}
    for name, median in medians.items():
        print(f"{name:<18} {median:.3f} s")
    print(f"ratio {medians['as timm makes it'] / medians['channels last']:.2f}")


if __name__ == "__main__":
    main()
