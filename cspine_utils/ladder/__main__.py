"""python -m cspine_utils.ladder: climb, and write ladder.csv and ladder_curves.csv; or compare recipes, levers.csv; or
judge finished rungs under controls, controls.csv and predictions.csv."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import pandas as pd
import torch

from cspine_utils import files
from cspine_utils.errors import CSpineError

from . import PROFILES, RUNGS, climb
from .controls import check, control
from .levers import pull
from .plan import PUBLISHED
from .report import in_order, markdown
from .weights import begin, export


def main(arguments=None) -> int:
    chosen = _parser().parse_args(arguments)
    try:
        return _do(chosen)
    except CSpineError as error:
        print(f"ladder: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"ladder: {error}. What to do: check the folders, free space and permissions.", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m cspine_utils.ladder",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--out", type=Path, default=Path("data/runs/ladder"), help="where the sets and the runs go")
    parser.add_argument("--profile", choices=PROFILES, default="laptop", help="how much of everything")
    parser.add_argument(
        "--rungs", nargs="+", choices=RUNGS, metavar="RUNG", default=argparse.SUPPRESS,
        help=f"some of {', '.join(RUNGS)} (default: all, but for those that --begin has weights of)",
    )  # fmt: skip
    parser.add_argument("--seeds", nargs="+", type=_whole(0), default=[0], help="one climb each")
    parser.add_argument("--threads", type=_whole(1), default=1, help="of torch; processes that render are as many")
    parser.add_argument(
        "--begin", type=Path, default=argparse.SUPPRESS,
        help="a folder of weights, data/weights say: these rungs are not climbed again unless --rungs names them",
    )  # fmt: skip
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--levers", action="store_true", help="train one recipe after the other on crops, not the rungs")
    what.add_argument(
        "--controls", nargs="+", choices=[name for name in RUNGS if RUNGS[name].kind == "necks"], metavar="RUNG",
        default=argparse.SUPPRESS, help="judge these rungs' weights under controls, climb nothing",
    )  # fmt: skip
    parser.add_argument(
        "--table", type=Path, default=argparse.SUPPRESS,
        help="where the tables go (default: the out folder); rows of other rungs and seeds stay",
    )  # fmt: skip
    parser.add_argument(
        "--weights", type=Path, default=argparse.SUPPRESS, help=f"a folder for the weights of {', '.join(PUBLISHED)}"
    )
    return parser


def _whole(least: int):
    def number(text: str) -> int:
        if not text.isascii() or not text.isdigit() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {least} up")
        return int(text)

    return number


def _do(chosen: argparse.Namespace) -> int:
    torch.set_num_threads(chosen.threads)
    workers = chosen.threads if chosen.threads > 1 else 0
    profile, table = PROFILES[chosen.profile], getattr(chosen, "table", chosen.out)
    table.mkdir(parents=True, exist_ok=True)
    if chosen.levers:
        parts = [pull(chosen.out, profile, seed=seed) for seed in chosen.seeds]
        _write(pd.concat(parts, ignore_index=True).round(5), table / "levers.csv")
        return 0
    named = getattr(chosen, "rungs", None)
    begun = {
        seed: begin(chosen.begin, chosen.out, seed, but=named or ()) if "begin" in chosen else []
        for seed in chosen.seeds
    }
    if "controls" in chosen:
        asked = [(rung, seed) for rung in chosen.controls for seed in chosen.seeds]
        for rung, seed in asked:  # before the first of them takes an hour
            check(chosen.out, profile, rung, seed)
        parts = [control(chosen.out, profile, rung=rung, seed=seed, workers=workers) for rung, seed in asked]
        found, said = (pd.concat(part, ignore_index=True) for part in zip(*parts, strict=True))
        _write(said.round(6), table / "predictions.csv")
        _write(found.round(4), table / "controls.csv")
        print(found.round(3).to_string(index=False))
        return 0
    rows, climbed = [], []
    for seed in chosen.seeds:
        climbed = named or [name for name in RUNGS if name not in begun[seed]]
        rows.append(climb(chosen.out, profile, rungs=climbed, seed=seed, workers=workers))
        found = pd.concat(rows, ignore_index=True)
        _write(_beside(table / "ladder.csv", found.drop(columns="profile").round(4)), table / "ladder.csv")
        together = _beside(table / "ladder_curves.csv", curves(chosen.out, found).round(5))
        if not together.empty:  # rungs that are judged as they are have no curve
            _write(together, table / "ladder_curves.csv")
    for name in PUBLISHED if "weights" in chosen else ():
        if name in climbed:
            export(chosen.out / str(chosen.seeds[0]) / name, chosen.weights / f"{name}.safetensors")
    print(markdown(pd.read_csv(table / "ladder.csv")))
    return 0


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
    sys.exit(main())
