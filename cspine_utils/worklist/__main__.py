"""python -m cspine_utils.worklist theory|simulate: a reading room's mean waits in minutes, as JSON."""

from __future__ import annotations

import argparse
import inspect
import json
import sys
from dataclasses import fields
from pathlib import Path

from cspine_utils.errors import CSpineError, WorklistError

from . import theory
from .scenario import DISCIPLINES, READING_LAWS, Scenario, or_null
from .simulation import simulate

_TYPES = {"radiologists": int, "discipline": str, "reading_law": str}
_CHOICES = {"discipline": DISCIPLINES, "reading_law": READING_LAWS}
_LISTS = ("operating_points", "day_profile")


def main(arguments=None) -> int:
    parser = argparse.ArgumentParser(prog="python -m cspine_utils.worklist", description=__doc__)
    told = _attributes()
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (("theory", "closed forms"), ("simulate", "exams one by one, with 95 %% intervals")):
        command = commands.add_parser(name, help=text, argument_default=argparse.SUPPRESS)
        command.add_argument("--scenario", help="a JSON file of fields, - for standard input; options override it")
        for field in fields(Scenario):
            if field.name in _LISTS:
                command.add_argument(
                    f"--{field.name.replace('_', '-')}", type=_json_list, help=f"{told[field.name]} (a JSON list)"
                )
            else:
                command.add_argument(
                    f"--{field.name.replace('_', '-')}", type=_TYPES.get(field.name, float),
                    choices=_CHOICES.get(field.name), help=f"{told[field.name]} (default {field.default})",
                )  # fmt: skip
        if name == "simulate":
            command.add_argument("--exams", type=int, default=20_000, help="of a replication")
            command.add_argument("--seed", type=int, default=0)
            command.add_argument("--replications", type=int, default=20)
            command.add_argument("--workers", type=int, default=0, help="processes")
    chosen = vars(parser.parse_args(arguments))
    try:
        scenario = _scenario(chosen)
        if chosen["command"] == "theory":
            print(json.dumps({name: or_null(wait) for name, wait in theory.table(scenario).items()}, indent=2))
        else:
            how = {name: chosen[name] for name in ("seed", "replications", "workers")}
            print(simulate(scenario, n_exams=chosen["exams"], **how).to_json())
    except CSpineError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _json_list(text: str) -> list:
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, list):
        raise argparse.ArgumentTypeError(f"{text!r} is no JSON list; write '[1, 2]', with the quotes of your shell")
    return found


def _attributes() -> dict[str, str]:
    """What each field of a scenario is, from its docstring."""
    text = inspect.getdoc(Scenario).split("----------\n")[1].split("\n\n")[0]
    told: dict[str, str] = {}
    names: list[str] = []
    for line in text.splitlines():
        if line.startswith(" "):
            for name in names:
                told[name] += " " + line.strip()
        else:
            head, words = line.split(" : ", 1)
            names = head.split(", ")
            told |= dict.fromkeys(names, words)
    return {name: words.replace("%", "%%") for name, words in told.items()}


def _scenario(chosen: dict) -> Scenario:
    content = {}
    if "scenario" in chosen:
        try:
            text = sys.stdin.read() if chosen["scenario"] == "-" else Path(chosen["scenario"]).read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise WorklistError(
                chosen["scenario"], found=f"a file that cannot be read ({error})", expected="a JSON file of fields",
                remedy="mind the path.",
            ) from error  # fmt: skip
        content = json.loads(Scenario.from_json(text).to_json())
    known = {field.name for field in fields(Scenario)}
    return Scenario.from_dict(content | {name: value for name, value in chosen.items() if name in known})


if __name__ == "__main__":
    sys.exit(main())
