"""python -m cspine_utils.ladder: climb, and write ladder.csv and ladder_curves.csv; or compare recipes, levers.csv; or
judge a finished rung under controls, controls.csv and predictions.csv."""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd
import torch

from cspine_utils import files

from . import PROFILES, RUNGS, climb
from .controls import control
from .levers import pull
from .report import in_order, markdown
from .weights import PUBLISHED, begin, export


def main(arguments=None) -> None:
    parser = argparse.ArgumentParser(prog="python -m cspine_utils.ladder", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("data/runs/ladder"), help="where the sets and the runs go")
    parser.add_argument("--profile", choices=PROFILES, default="laptop")
    parser.add_argument("--rungs", nargs="+", choices=RUNGS, default=list(RUNGS), metavar="RUNG", help=", ".join(RUNGS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="one climb each")
    parser.add_argument("--threads", type=int, default=1, help="of torch; processes that render are as many")
    parser.add_argument("--begin", type=Path, help="a folder of weights, data/weights say: of rungs not to climb again")
    parser.add_argument(
        "--levers", action="store_true", help="train one recipe after the other on crops, not the rungs"
    )
    parser.add_argument(
        "--controls", choices=[name for name in RUNGS if RUNGS[name].kind == "necks"], metavar="RUNG",
        help="judge this finished rung under controls, climb nothing",
    )  # fmt: skip
    parser.add_argument("--table", type=Path, help="where the tables go (default: the out folder); rows of others stay")
    parser.add_argument("--weights", type=Path, help=f"a folder for the weights of {', '.join(PUBLISHED)}")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(chosen.threads)
    workers = chosen.threads if chosen.threads > 1 else 0
    profile, table = PROFILES[chosen.profile], chosen.table or chosen.out
    table.mkdir(parents=True, exist_ok=True)
    if chosen.levers:
        parts = [pull(chosen.out, profile, seed=seed) for seed in chosen.seeds]
        _write(pd.concat(parts, ignore_index=True).round(5), table / "levers.csv")
        return
    if chosen.controls:
        settings = {"rung": chosen.controls, "workers": workers}
        parts = [control(chosen.out, profile, seed=seed, **settings) for seed in chosen.seeds]
        found, said = (pd.concat(part, ignore_index=True) for part in zip(*parts, strict=True))
        _write(said.round(6), table / "predictions.csv")
        _write(found.round(4), table / "controls.csv")
        print(found.round(3).to_string(index=False))
        return
    rows = []
    for seed in chosen.seeds:
        if chosen.begin:
            begin(chosen.begin, chosen.out, seed)
        rows.append(climb(chosen.out, profile, rungs=chosen.rungs, seed=seed, workers=workers))
        found = pd.concat(rows, ignore_index=True)
        _write(_beside(table / "ladder.csv", found.drop(columns="profile").round(4)), table / "ladder.csv")
        _write(_beside(table / "ladder_curves.csv", curves(chosen.out, found).round(5)), table / "ladder_curves.csv")
    for name in PUBLISHED if chosen.weights else ():
        if name in chosen.rungs:
            export(chosen.out / str(chosen.seeds[0]) / name, chosen.weights / f"{name}.safetensors")
    print(markdown(pd.read_csv(table / "ladder.csv")))


def curves(out: Path, rows: pd.DataFrame) -> pd.DataFrame:
    """The histories of all rungs that were trained, one below the other."""
    parts = []
    for rung, seed in zip(rows["rung"], rows["seed"], strict=True):
        path = out / str(seed) / rung / "history.csv"
        if path.exists():
            history = pd.read_csv(path)
            history.insert(0, "seed", seed)
            history.insert(0, "rung", rung)
            parts.append(history.drop(columns=["memory_mb"], errors="ignore"))
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def _beside(path: Path, new: pd.DataFrame) -> pd.DataFrame:
    """New rows, and of an older table those of other rungs and seeds: seeds may be climbed on one evening each."""
    if not path.exists():
        return new
    old = pd.read_csv(path)
    if new.empty:  # the curves of rungs that were judged as they are
        return old
    climbed = pd.MultiIndex.from_frame(new[["rung", "seed"]])
    old = old[~pd.MultiIndex.from_frame(old[["rung", "seed"]]).isin(climbed)]
    both = pd.concat([part for part in (old, new) if not part.empty], ignore_index=True)
    return in_order(both, ("seed", "rung"))


def _write(table: pd.DataFrame, path: Path) -> None:
    files.write_text(path, table.to_csv(index=False), shared=True)


if __name__ == "__main__":
    main()
