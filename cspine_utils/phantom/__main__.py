"""`python -m cspine_utils.phantom --out DIR --studies N --seed S`: write a synthetic cohort."""

from __future__ import annotations

import argparse
import sys

from cspine_utils.errors import CSpineError

from .cohort import write_cohort
from .fractures import DIFFICULTIES
from .study import PREVALENCES


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code (2 with one line on stderr for anything the user can mend)."""
    parser = argparse.ArgumentParser(
        prog="python -m cspine_utils.phantom",
        description="Write a synthetic cervical-spine CT cohort in the RSNA-2022 form.",
    )
    parser.add_argument("--out", required=True, help="folder to write, or to finish")
    parser.add_argument("--studies", type=int, required=True, help="number of studies")
    parser.add_argument("--seed", type=int, required=True, help="the same seed gives the same bytes")
    parser.add_argument("--size", type=int, default=128, help="pixels across (default 128)")
    parser.add_argument("--difficulty", default="standard", help=", ".join(DIFFICULTIES) + " (default standard)")
    parser.add_argument(
        "--prevalence",
        default="rsna",
        help=", ".join(PREVALENCES) + " (default rsna; balanced: every level in every second study)",
    )
    parser.add_argument("--twins", action="store_true", help="also write the intact twin of every fractured study")
    parser.add_argument("--workers", type=int, help="processes (default: one a core, for a few studies just one)")
    parser.add_argument("--device", default="cpu", help="torch device that renders (default cpu)")
    args = vars(parser.parse_args(arguments))
    try:
        write_cohort(args.pop("out"), args.pop("studies"), args.pop("seed"), **args)
    except CSpineError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        remedy = "check the folder's name, permissions and free space, and that no other run writes there"
        print(f"error: {error}; what to do: {remedy}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on where it was", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
