"""Trainings in processes of their own: killed ones, and one shared by two.

python training_child.py kills OUT MOMENT ...     one killed training a moment, each in OUT/<moment>
torchrun ... training_child.py share OUT          the trainings of `SHARED`, each in OUT/<name>
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch

sys.path.insert(0, os.path.dirname(__file__))

from test_training import Studies, fit, model

from cspine_utils.checkpoints import Run
from cspine_utils.errors import TrainingError

# ---- killed


@dataclass(frozen=True)
class Noise:
    """An augmentation that draws random numbers."""

    strength: float = 0.25

    def __call__(self, x, generator):
        return x + self.strength * torch.randn(x.shape, generator=generator)


#: Everything that has a state or a count: dropout (in `test_training.fit`), augmentation, steps, warm-up, schedule.
OPTIONS = dict(epochs=4, accumulate=2, schedule="cosine", warmup_steps=3, augment=Noise(), label_smoothing=0.05)


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


class Read(Studies):
    """Studies of which the k-th reading is the process's last."""

    def __init__(self, n, seed, at):
        super().__init__(n, seed)
        self.left = at

    def __getitem__(self, i):
        self.left -= 1
        if self.left == 0:
            kill()
        return super().__getitem__(i)


def half_written(at: int):
    """torch.save as it is, but the at-th file is cut in half and the process is gone."""
    save, files = torch.save, []

    def saving(state, path):
        save(state, path)
        files.append(path)
        if len(files) == at:
            os.truncate(path, os.path.getsize(path) // 2)
            kill()

    torch.save = saving


def killed(out: Path, moment: str) -> None:
    """A training that ends at its n-th reading of a study ("read-n") or in the middle of its n-th file ("file-n")."""
    kind, number = moment.split("-")
    if kind == "file":
        half_written(int(number))
    fit(out / moment, train=Read(7, 1, int(number) if kind == "read" else 0), **OPTIONS)


def kills(out: Path, moments: list[str]) -> None:
    """Forked from a process that has imported everything and computed nothing: one start for all of them."""
    for moment in moments:
        child = os.fork()
        if not child:
            killed(out, moment)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        print(moment, os.WTERMSIG(status), flush=True)


# ---- shared

#: name -> options of a training without random numbers but the order: 5 studies, so that the last pass has one alone.
SHARED = {
    "plain": dict(epochs=3, batch_size=2),
    "steps": dict(epochs=2, batch_size=2, accumulate=2, clip=0.05, label_smoothing=0.1, schedule="linear"),
    "resumed": dict(epochs=3, batch_size=2),
}


def untrained():
    """A model whose answers differ from study to study from the start."""
    net = model(seed=4)
    torch.nn.init.normal_(net.head.weight)
    return net


def shared_fit(out: Path, **options):
    return fit(out, train=Studies(5, 1), validation=Studies(3, 30), net=untrained(), **options)


def share(out: Path) -> None:
    rank = os.environ["RANK"]
    for name, options in SHARED.items():
        if name == "resumed":
            with writing_late(rank == "0"), contextlib.suppress(KeyboardInterrupt):
                fit(out / name, train=Studies(5, 1), validation=Studies(3, 30), net=stopping(), **options)
        net, result = shared_fit(out / name, **options)
        # What each process believes, whether it wrote files or not.
        belief = {"weights": net.state_dict(), "best": result.best_train_loss, "resumed": result.resumed_from or 0}
        torch.save(belief | {"losses": result.history["validation_loss"].tolist()}, out / f"{name}-{rank}.pt")
    try:  # the first process finds a finished run, the second one nothing
        shared_fit(out / ("resumed" if rank == "0" else "elsewhere"), **SHARED["resumed"])
    except TrainingError as error:
        (out / f"apart-{rank}.txt").write_text(str(error))


@contextlib.contextmanager
def writing_late(late: bool):
    """This process has its checkpoints on disk a second later than the others go on."""
    record = Run.record

    def sleep_and_record(self, **row):
        time.sleep(1)
        record(self, **row)

    Run.record = sleep_and_record if late else record
    try:
        yield
    finally:
        Run.record = record


def stopping():
    """The same model, interrupted in both processes at the start of epoch 2."""
    net = untrained()
    passes = []

    def hook(module, inputs):
        passes.append(module.training)
        if sum(passes) == 4:
            raise KeyboardInterrupt

    net.register_forward_pre_hook(hook)
    return net


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1] == "kills":
        kills(Path(sys.argv[2]), sys.argv[3:])
    else:
        share(Path(sys.argv[2]))
